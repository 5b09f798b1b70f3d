import pytest

from regraft.jobs.progress import Bar, is_first_process, loss_and_accuracy


def test_a_bar_counts_on_standard_error(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with Bar(enabled=True, noun="network", describe=lambda row: f"at {row['x']}") as bar:
        assert capsys.readouterr().err == ""
        bar.update(1, 3, {"x": 7})
        bar.update(3, 3, {"x": 9})
    out, err = capsys.readouterr()
    assert out == ""
    last = err.splitlines()[-1]
    assert last.startswith("network")
    assert "3/3" in last
    assert "at 9" in last


def test_a_disabled_bar_says_nothing(capsys):
    with Bar(enabled=False) as bar:
        bar.update(1, 3, {})
    assert capsys.readouterr() == ("", "")


def test_a_bar_ends_with_what_was_interrupted(capsys):
    with Bar(enabled=True, describe=str) as bar:
        bar.update(1, 3, {})
        bar.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
        assert not bar._progress.live.is_started


def test_metrics_are_told_once_there_are_some():
    assert loss_and_accuracy({}) == ""
    assert loss_and_accuracy({"loss": 0.5, "accuracy": 87.25}) == "loss 0.500, accuracy 87.2%"


@pytest.mark.parametrize(
    ("variables", "first"),
    [({}, True), ({"RANK": "0"}, True), ({"RANK": "1"}, False), ({"LOCAL_RANK": "2"}, False)],
)
def test_one_process_speaks(monkeypatch, variables, first):
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_first_process() is first

from regraft.cli.output import table
from regraft.jobs.progress import Bar, loss_and_accuracy
from regraft.jobs.stages import Stages, remark


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


def test_without_a_terminal_a_line_is_written_now_and_then(capsys):
    now = iter([0.0, 5.0, 21.0, 30.0, 41.5, 90.0])
    with Bar(enabled=True, noun="step", clock=lambda: next(now)) as bar:
        for step in range(1, 6):
            bar.update(step, 5, {"loss": 0.5} if step > 2 else {})
    err = capsys.readouterr().err
    assert [line for line in err.splitlines() if " of " in line] == [
        "step 2 of 5",
        "step 4 of 5: loss 0.500",
    ]


def test_stages_say_what_comes_next(capsys):
    with Stages(enabled=True) as stages:
        remark(stages, "measuring")
        remark(stages.begin("step"), "not this: it is one function for all stages")
    remark(None, "nor this")
    assert capsys.readouterr().err.splitlines()[0] == "measuring"


def test_the_name_of_a_line_is_not_broken_in_a_narrow_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    table(["", "validation (%)", "test (%)"], [["initial_weights", "86.60 ± 0.12", "85.80 ± 0.11"]])
    assert "initial_weights" in capsys.readouterr().out

import io

import pytest
from rich.console import Console

from regraft.errors import InputError
from regraft.report.document import escape_markdown
from regraft.report.runs import find_runs
from regraft.report.table import Row, rows, to_markdown, to_rich


def test_rows_of_a_comparison(comparison):
    found = rows(find_runs(comparison))
    assert [(row.setting[-3:], row.arm, row.control, row.n) for row in found] == [
        ("0.5", "edge_popup", None, 3),
        ("0.5", "iterand", "edge_popup", 3),
        ("h=1", "edge_popup", None, 3),
        ("h=1", "iterand", "edge_popup", 3),
    ]
    control, arm = found[:2]
    # Base 82.5 + 0.3 seed^2, so the mean adds 1.4; the difference is 1.1, 1.2, 1.3.
    assert control.mean == pytest.approx(83.9)
    assert arm.paired_difference == pytest.approx(1.2)
    assert arm.paired_low == pytest.approx(1.2 - 0.2484138, abs=1e-6)
    assert control.paired_difference is None
    assert (arm.seconds, arm.stored_bytes, arm.peak_memory_bytes) == (10.0, 500, None)


def test_the_json_form_has_the_agreed_keys(comparison):
    control, arm = (row.to_dict() for row in rows(find_runs(comparison))[:2])
    agreed = ["setting", "arm", "control", "metric", "unit", "n", "mean", "low", "high"]
    agreed += ["values", "paired_difference", "paired_low", "paired_high"]
    agreed += ["seconds", "stored_bytes", "trainable_parameters", "peak_memory_bytes"]
    assert list(arm) == agreed
    assert list(control) == [key for key in agreed if key != "control"]


def test_one_seed_has_no_interval(make_run, tmp_path):
    make_run(arm="a")
    make_run(arm="b", control="a", accuracy=91.25)
    found = rows(find_runs(tmp_path))
    assert [(row.low, row.high, row.paired_low) for row in found] == [(None, None, None)] * 2
    assert "| 91.2 – | +1.2 – | 1 |" in to_markdown(found)


def test_intervals_of_accuracies_end_at_0_and_100(make_run, tmp_path):
    for seed, accuracy in ((1, 99.9), (2, 92.0), (3, 99.8)):
        make_run(arm="high", seed=seed, accuracy=accuracy)
        make_run(arm="low", seed=seed, accuracy=100 - accuracy)
    by_arm = {row.arm: row for row in rows(find_runs([tmp_path]))}
    high, low = by_arm["high"], by_arm["low"]
    assert high.high == 100.0
    assert low.low == 0.0
    assert 0 < high.low < high.mean
    assert low.mean < low.high < 100


def test_a_control_that_was_not_run_is_named_without_a_difference(make_run, tmp_path):
    make_run(arm="b", control="a")
    (row,) = rows(find_runs(tmp_path))
    assert (row.control, row.paired_difference) == ("a", None)


def test_another_metric(comparison):
    found = rows(find_runs(comparison), "test_loss", "")
    assert [row.mean for row in found] == [0.5] * 4
    assert "| Test loss |" in to_markdown(found)
    assert "| 0.500 [0.500, 0.500] |" in to_markdown(found)


def test_an_unknown_metric(comparison):
    with pytest.raises(InputError, match="choose one of test_accuracy, test_loss"):
        rows(find_runs(comparison), "accuracy")


def test_no_finished_run(make_run, tmp_path):
    make_run(finished=False)
    with pytest.raises(InputError, match="no run has finished yet"):
        rows(find_runs(tmp_path))


def test_the_same_seed_twice(make_run, tmp_path):
    folder = make_run()
    other = tmp_path / "again"
    other.mkdir()
    for file in folder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    with pytest.raises(InputError, match="are both seed 1 of iterand"):
        rows(find_runs(tmp_path))


def test_two_controls_for_one_arm(make_run, tmp_path):
    make_run(seed=1, control="a")
    make_run(seed=2, control="b")
    with pytest.raises(InputError, match=r"different controls \(a, b\)"):
        rows(find_runs(tmp_path))


def test_a_metric_that_one_seed_lacks(make_run, tmp_path):
    make_run(seed=1)
    make_run(seed=2, metrics={"test_loss": 1.0})
    with pytest.raises(InputError, match="has no test_accuracy, which other seeds of iterand have"):
        rows(find_runs(tmp_path))


def test_markdown_is_a_table_whatever_the_names(make_run, tmp_path):
    make_run(arm="a|b `c` <i>*x* _y_ edge_popup")
    lines = to_markdown(rows(find_runs(tmp_path))).splitlines()
    assert len(lines) == 3
    assert r"a\|b \`c\` \<i\>\*x\* \_y\_ edge_popup" in lines[2]


def test_markdown_in_full():
    row = Row(setting="s", arm="b", control="a", metric="barrier", unit="", n=5, mean=0.1234)
    assert to_markdown([row]) == (
        "| Setting | Arm | Control | Barrier | Difference | n |\n"
        "| --- | --- | --- | ---: | ---: | ---: |\n"
        "| s | b | a | 0.123 – | – | 5 |\n"
    )


def test_metrics_get_tables_of_their_own():
    first = Row(setting="s", arm="a", metric="test_accuracy", unit="%", n=1, mean=1.0)
    second = Row(setting="s", arm="a", metric="barrier", unit="", n=1, mean=1.0)
    assert to_markdown([first, second]).count("| Setting |") == 2


def test_the_terminal_shows_names_as_they_are(make_run, tmp_path):
    make_run(arm="[red]x[/red]")
    make_run(arm="b", control="[red]x[/red]", accuracy=91.0)
    console = Console(file=io.StringIO(), width=80)
    for table in to_rich(rows(find_runs(tmp_path))):
        console.print(table)
    text = console.file.getvalue()
    assert "digits/mlp/width=1" in text
    assert "[red]x[/red]" in text
    assert "+1.0" in text
    assert max(map(len, text.splitlines())) <= 80


def test_escaping_leaves_words_alone():
    assert escape_markdown("edge_popup width=0.5") == "edge_popup width=0.5"


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_names_of_arms_are_not_broken_in_narrow_terminals(make_run, tmp_path, columns):
    make_run(arm="initial_weights", seed=1)
    make_run(arm="straight_through", control="initial_weights", seed=1)
    text = io.StringIO()
    for table in to_rich(rows(find_runs(tmp_path))):
        Console(file=text, width=columns, color_system=None).print(table)
    for name in ("initial_weights", "straight_through"):
        assert any(line.lstrip().startswith(name) for line in text.getvalue().splitlines())

import itertools
import json
import re

import pytest

from regraft.errors import InputError
from regraft.report.plots import curve_panels, efficiency, learning_curves, position, without
from regraft.report.runs import find_runs
from regraft.report.table import Row, rows


def row(setting="digits/width=0.5", **values):
    values = {"arm": "a", "metric": "test_accuracy", "unit": "%", "n": 1, "mean": 1.0} | values
    return Row(setting=setting, **values)


def test_curves_are_means_over_seeds_between_the_extremes(comparison):
    first, second = curve_panels(find_runs(comparison), key="accuracy", split="validation")
    assert (first.title, second.title) == ("digits/mlp/width=0.5", "digits/mlp/width=1")
    control, arm = first.lines
    assert (control.label, arm.label) == ("edge_popup", "iterand")
    # At epoch 1 every run is at half its final accuracy: 82.5 + 0.3, 1.2 and 2.7.
    assert control.y[0] == pytest.approx(83.9 / 2)
    assert control.low is not None
    assert control.high is not None
    assert (control.low[0], control.high[0]) == pytest.approx((82.8 / 2, 85.2 / 2))


def test_an_unfinished_run_does_not_shorten_a_curve(comparison):
    panels = curve_panels(find_runs(comparison), key="accuracy", split="validation")
    assert all(len(line.x) == 4 for panel in panels for line in panel.lines)


def test_while_none_has_finished_unfinished_runs_count(make_run, tmp_path):
    make_run(seed=1, finished=False, epochs=3)
    make_run(seed=2, finished=False, epochs=2)
    (panel,) = curve_panels(find_runs(tmp_path), key="accuracy", split="validation")
    assert list(panel.lines[0].x) == [1, 2]


def test_one_seed_has_no_band(make_run, tmp_path):
    make_run()
    (panel,) = curve_panels(find_runs(tmp_path), key="loss", split="validation", x="step")
    assert panel.lines[0].low is None
    assert list(panel.lines[0].x) == [10, 20, 30, 40]


def test_a_loss_that_is_no_number_is_a_gap(make_run, tmp_path):
    folder = make_run()
    with (folder / "metrics.jsonl").open("a") as file:
        row = {"step": 20, "epoch": 2, "split": "validation", "accuracy": float("nan")}
        file.write(json.dumps(row) + "\n")
    (panel,) = curve_panels(find_runs(tmp_path), key="accuracy", split="validation")
    assert list(panel.lines[0].x) == [1, 3, 4]


def test_curves_are_the_same_every_time(comparison):
    first, second = (learning_curves(find_runs(comparison)) for _ in range(2))
    assert first == second
    assert "Validation accuracy (%)" in first


def test_curves_that_were_not_recorded(comparison):
    with pytest.raises(InputError, match="split 'test', which no run has"):
        learning_curves(find_runs(comparison), split="test")


def test_efficiency_takes_numbers_from_settings_and_costs(comparison):
    found = rows(find_runs(comparison))
    by_width, by_bytes = efficiency(found), efficiency(found, "stored_bytes")
    assert ">0.5</text>" in by_width
    assert ">500 B</text>" in by_bytes
    assert ">digits/mlp</text>" in by_width


def test_efficiency_needs_one_metric_and_an_axis():
    with pytest.raises(InputError, match="several metrics"):
        efficiency([row(), row(metric="barrier")])
    with pytest.raises(InputError, match="x is 'depth', which no row has"):
        efficiency([row()], "depth")


def test_efficiency_from_nothing_stored_needs_a_linear_axis():
    free = [row("s/sparsity=0"), row("s/sparsity=0.5")]
    with pytest.raises(InputError, match="above 0"):
        efficiency(free, "sparsity", along="sparsity")
    assert ">Sparsity</text>" in efficiency(free, "sparsity", along="sparsity", log_x=False)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("a/width=0.5/b", 0.5), ("width=2e3", 2000), ("a/mywidth=2", None), ("a/width=1-2", None)],
)
def test_positions(setting, value):
    assert position(row(setting), "width") == value


def test_a_setting_without_a_part():
    assert without("a/width=1/b", "width") == "a/b"


def test_points_stand_at_their_cost_however_many_arms_there_are():
    sizes = [1000 * 2**i for i in range(12)]
    rows = [row(arm=f"arm {i}", stored_bytes=size) for i, size in enumerate(sizes)]
    figure = efficiency(rows, "stored_bytes", along="width", legend=False)
    marks = [float(x) for x in re.findall(r'<use [^>]*x="([\d.]+)"', figure)]
    labels = re.findall(r' x="([\d.]+)" y="[\d.]+"[^>]*>[\d.]+ [kM]B<', figure)
    assert len(marks) == 12
    assert len(labels) >= 4
    for at in map(float, labels):
        assert min(abs(at - mark) for mark in marks) < 0.5
    steps = [b - a for a, b in itertools.pairwise(marks)]
    assert max(steps) - min(steps) < 0.1  # twice the size is as far everywhere

import json

import pytest

from regraft.errors import InputError
from regraft.files import load_json, write_json
from regraft.report.runs import find_runs, read_run


def change(path, **values):
    write_json(path, load_json(path) | values)


def test_a_finished_run(make_run):
    run = read_run(make_run(arm="iterand", control="edge_popup", seed=3, peak_memory_bytes=7))
    assert (run.setting, run.arm, run.control, run.seed) == (
        "digits/mlp/width=1",
        "iterand",
        "edge_popup",
        3,
    )
    assert run.finished
    assert run.result is not None
    assert run.result.metrics["test_accuracy"] == 90.0
    assert (run.result.stored_bytes, run.result.peak_memory_bytes) == (500, 7)
    assert run.environment["torch"] == "2.11.0"
    assert [row["epoch"] for row in run.history] == [1, 2, 3, 4]


def test_an_unfinished_run_keeps_what_it_measured(make_run):
    run = read_run(make_run(finished=False))
    assert not run.finished
    assert len(run.history) == 4


def test_the_half_line_of_a_killed_run_is_dropped(make_run):
    folder = make_run(finished=False)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 50, "epo')
    assert len(read_run(folder).history) == 4


def test_a_repeated_step_keeps_its_last_row(make_run):
    folder = make_run()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "epoch": 2, "split": "validation", "accuracy": 1.5}\n')
    history = read_run(folder).history
    assert [row["step"] for row in history] == [10, 20, 30, 40]
    assert history[1]["accuracy"] == 1.5


def test_a_line_separator_inside_a_string_ends_no_line(make_run):
    folder = make_run(epochs=0)
    row = {"step": 1, "split": "train", "note": "a\u2028b"}
    (folder / "metrics.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n")
    assert read_run(folder).history == (row,)


def test_an_arm_is_not_its_own_control(make_run):
    assert read_run(make_run(arm="edge_popup", control="edge_popup")).control is None


def test_a_missing_config(make_run):
    folder = make_run()
    (folder / "regraft.json").unlink()
    with pytest.raises(InputError, match=r"regraft\.json is missing"):
        find_runs(folder)


def test_config_that_is_no_json(make_run):
    folder = make_run()
    (folder / "regraft.json").write_text('{"schema": 1,\n"arm" 3}')
    with pytest.raises(InputError, match=r"regraft\.json is not valid JSON at line 2"):
        read_run(folder)


def test_config_that_is_a_list(make_run):
    folder = make_run()
    (folder / "regraft.json").write_text("[]")
    with pytest.raises(InputError, match=r"regraft\.json .*it has no digest"):
        read_run(folder)


def test_config_that_is_binary(make_run):
    folder = make_run()
    (folder / "regraft.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"regraft\.json is not UTF-8"):
        read_run(folder)


def test_nesting_without_end(make_run):
    folder = make_run()
    (folder / "regraft.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="nested too deeply"):
        read_run(folder)


def test_another_programs_config(make_run):
    folder = make_run()
    (folder / "regraft.json").write_text('{"model_type": "bert", "hidden_size": 768}')
    with pytest.raises(InputError, match=r"regraft\.json .*it has no digest"):
        read_run(folder)


@pytest.mark.parametrize("name", ["regraft.json", "result.json"])
def test_a_newer_schema(make_run, name):
    folder = make_run()
    change(folder / name, schema=2)
    with pytest.raises(InputError, match=rf"{name} has schema 2, .* upgrade regraft"):
        read_run(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("arm", None),
        ("arm", ""),
        ("arm", "a\x00b"),
        ("setting", "two\nlines"),
        ("setting", "\ud800"),
        ("control", 3),
        ("seed", "1"),
        ("seed", True),
        ("config", []),
    ],
)
def test_wrong_values_in_config(make_run, key, value):
    folder = make_run()
    change(folder / "regraft.json", **{key: value})
    with pytest.raises(InputError, match=rf"regraft\.json: {key} is"):
        read_run(folder)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"metrics": None}, "metrics is None"),
        ({"metrics": {"test_accuracy": "90"}}, r"metrics\.test_accuracy is '90'"),
        ({"metrics": {"test_accuracy": float("nan")}}, r"metrics\.test_accuracy is nan"),
        ({"metrics": {"test_accuracy": True}}, r"metrics\.test_accuracy is True"),
        ({"seconds": -1}, "seconds is -1"),
        ({"stored_bytes": "many"}, "stored_bytes is 'many'"),
    ],
)
def test_wrong_values_in_result(make_run, values, named):
    folder = make_run()
    change(folder / "result.json", **values)
    with pytest.raises(InputError, match=rf"result\.json: {named}"):
        read_run(folder)


def test_a_truncated_result(make_run):
    folder = make_run()
    (folder / "result.json").write_text('{"schema": 1, "metr')
    with pytest.raises(InputError, match=r"result\.json is not valid JSON at line 1"):
        read_run(folder)


def test_a_broken_line_of_metrics(make_run):
    folder = make_run()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join([lines[0], lines[1][:12], *lines[2:]]) + "\n")
    with pytest.raises(InputError, match=r"metrics\.jsonl, line 2, is not valid JSON"):
        read_run(folder)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("[1]", "expected an object"),
        ('{"step": 1}', "expected an object"),
        ('{"step": 1.5, "split": "train"}', "step is 1.5"),
    ],
)
def test_a_foreign_line_of_metrics(make_run, line, named):
    folder = make_run()
    (folder / "metrics.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=rf"metrics\.jsonl, line 1: {named}"):
        read_run(folder)


def test_a_broken_environment(make_run):
    folder = make_run()
    (folder / "environment.json").write_text("{")
    with pytest.raises(InputError, match=r"environment\.json is not valid JSON"):
        read_run(folder)


def test_finding_counts_numbers_as_numbers(make_run, tmp_path):
    for width in ("1", "0.5", "0.25"):
        for seed in (10, 9, 1):
            make_run(setting=f"digits/mlp/width={width}", seed=seed)
    found = [(run.setting[-4:], run.seed) for run in find_runs(tmp_path)]
    assert found == [(width, seed) for width in ("0.25", "=0.5", "th=1") for seed in (1, 9, 10)]


def test_finding_lists_unfinished_runs(comparison):
    runs = find_runs(comparison)
    assert len(runs) == 13
    assert sum(not run.finished for run in runs) == 1


def test_a_run_is_found_once(comparison):
    runs = find_runs([comparison, comparison / "digits_mlp_width=1"])
    assert len(runs) == 13


def test_what_lies_inside_a_run_is_its_own_affair(make_run):
    folder = make_run()
    (folder / "ticket").mkdir()
    (folder / "ticket" / "config.json").write_text('{"format": "ticket"}')
    assert len(find_runs(folder.parent)) == 1


def test_folders_of_merges_are_passed_over(make_run):
    folder = make_run()
    merge = folder.parent / "merge"
    merge.mkdir()
    write_json(merge / "regraft.json", {"schema": 1, "setting": None, "config": {}})
    assert len(find_runs(folder.parent)) == 1


def test_nothing_to_find(tmp_path):
    with pytest.raises(InputError, match="holds no run"):
        find_runs(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        find_runs(tmp_path / "missing")

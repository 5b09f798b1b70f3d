import dataclasses
import json
from pathlib import Path

import pytest

from regraft.cli.reproduce import Reproduce
from regraft.config import DataConfig, ModelConfig, OptimConfig, RuntimeConfig, TicketConfig
from regraft.errors import InputError
from regraft.files import load_json, write_json
from regraft.jobs.train import TrainJob
from regraft.recipes.again import Compared, only, read_committed, run_again
from regraft.recipes.recipe import Findings, Recipe, reproduce

TINY = TrainJob(
    setting="digits/mlp",
    arm="edge_popup",
    data=DataConfig(name="digits", train_size=100),
    model=ModelConfig(name="mlp", options={"widths": [16]}),
    ticket=TicketConfig(method="edge_popup"),
    optim=OptimConfig(lr=0.1, epochs=1, batch_size=32),
    runtime=RuntimeConfig(accelerator="cpu", threads=1),
)
MIXED = dataclasses.replace(
    TINY,
    arm="shuffled_mask",
    control="edge_popup",
    ticket=TicketConfig(method="shuffled_mask"),
    source=TINY,
)


@pytest.fixture
def recipe():
    jobs = [job.with_seed(seed) for job in (TINY, MIXED) for seed in (1, 2)]
    return Recipe(
        name="tiny",
        scale="smoke",
        title="Tiny",
        question="?",
        jobs=jobs,
        read=lambda runs, rows: Findings(claims=[], text="", figures={}),
    )


def test_one_run_of_a_row_is_made_again_to_the_committed_value(recipe, tmp_path):
    reproduce(recipe, tmp_path / "runs", workers=1, results=tmp_path)
    committed = read_committed(tmp_path / "tiny_smoke.json", "tiny")
    row = "digits/mlp/shuffled_mask"
    part = only(recipe, row, 2)
    # The source of the run is made again as well, and not compared.
    assert [(job.arm, job.runtime.seed) for job in part.jobs] == [
        ("edge_popup", 2),
        ("shuffled_mask", 2),
    ]
    (one,) = run_again(part, row, tmp_path / "again", committed=committed, workers=1)
    assert (one.arm, one.seed, one.metric) == ("shuffled_mask", 2, "test_accuracy")
    assert one.committed == committed["rows"][1]["values"]["2"]
    assert one.same
    assert str(one).endswith("%: the same")
    everything = run_again(
        only(recipe, None, 1), None, tmp_path / "all", committed=committed, workers=1
    )
    assert [one.arm for one in everything] == ["edge_popup", "shuffled_mask"]
    assert all(one.same for one in everything)


def test_a_value_that_differs_is_said_and_fails(recipe, tmp_path, monkeypatch, capsys):
    reproduce(recipe, tmp_path / "runs", workers=1, results=tmp_path)
    file = tmp_path / "tiny_smoke.json"
    monkeypatch.setattr("regraft.recipes.load_recipe", lambda *arguments: recipe)
    command = Reproduce(
        recipe="tiny",
        only="digits/mlp/edge_popup",
        seed=1,
        check=file,
        out=tmp_path / "runs",
        workers=1,
    )
    assert command.run() == 0
    assert "the same" in capsys.readouterr().out
    data = load_json(file, ours=True)
    data["rows"][0]["values"]["1"] += 0.5
    write_json(file, data)
    assert command.run() == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "differs by -0.5" in said
    assert "was made on" in said
    assert dataclasses.replace(command, check=None).run() == 0


def test_values_are_the_same_to_the_digits_that_are_written():
    one = Compared(
        setting="s", arm="a", seed=1, metric="m", unit="%", committed=66.6667, again=200 / 3
    )
    assert one.same
    assert not dataclasses.replace(one, again=66.666).same
    assert dataclasses.replace(one, again=1.0, unit="s").same  # seconds are never the same
    assert "not compared" in str(dataclasses.replace(one, unit="s"))
    assert "committed" not in str(dataclasses.replace(one, committed=None))


def test_what_is_not_there_is_refused(recipe, tmp_path):
    with pytest.raises(
        InputError, match=r"no such SETTING/ARM; the nearest is digits/mlp/edge_pop"
    ):
        only(recipe, "digits/mlp/edge_poppup", None)
    with pytest.raises(InputError, match="--seed 3: expected one of 1, 2"):
        only(recipe, None, 3)
    with pytest.raises(InputError, match="cannot be read"):
        read_committed(tmp_path / "nothing.json", "tiny")
    file = tmp_path / "a.json"
    file.write_text("[1, 2]")
    with pytest.raises(InputError, match="it has no digest"):
        read_committed(file, "tiny")
    write_json(file, {"rows": []})
    with pytest.raises(InputError, match="is no results file of a recipe"):
        read_committed(file, "tiny")
    write_json(file, {"recipe": "other", "scale": "cpu", "rows": []})
    with pytest.raises(InputError, match="is of the recipe 'other', not of 'tiny'"):
        read_committed(file, "tiny")
    file.write_text(file.read_text().replace("other", "tiny"))
    with pytest.raises(InputError, match="it is not as Regraft wrote it"):
        read_committed(file, "tiny")
    file.write_text(json.dumps({"recipe": "tiny", "scale": "cpu", "rows": []}))
    with pytest.raises(InputError, match="it has no digest"):
        read_committed(file, "tiny")


def test_results_of_earlier_versions_have_no_values_to_compare(recipe, tmp_path):
    row = {"setting": "digits/mlp", "arm": "edge_popup", "metric": "test_accuracy", "mean": 1.0}
    part = only(recipe, "digits/mlp/edge_popup", 1)
    with pytest.raises(InputError, match="no value of seed 1 for digits/mlp/edge_popup"):
        run_again(part, None, tmp_path, committed={"rows": [row]}, workers=1)
    with pytest.raises(InputError, match="nothing to compare"):
        run_again(part, None, tmp_path, committed={"rows": []}, workers=1)


def test_committed_results_that_have_values_name_rows_of_their_recipe():
    from regraft.recipes import RECIPES, load_recipe

    for name in RECIPES:
        file = Path(__file__).parents[2] / "docs" / "results" / f"{name}.json"
        data = read_committed(file, name) if file.exists() else {"rows": []}
        rows = {f"{r['setting']}/{r['arm']}" for r in data["rows"] if r.get("values")}
        jobs = load_recipe(name, data["scale"]).jobs if rows else []
        assert rows <= {f"{job.setting}/{job.arm}" for job in jobs}

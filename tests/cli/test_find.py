import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from regraft.cli.find import Find

QUICK = ("--epochs", 1, "--train-size", 100, "--batch-size", 20, "--width", 0.5)


def setting(**more):
    return Find.of(**{"epochs": 1, **more}).job().setting


DIFFERENT = [
    {},
    {"frozen": 0.5},
    {"frozen": 0.25},
    {"pruned": 0.4, "locked": 0.1},
    {"frozen": 0.5, "allocation": "erk", "scope": "global"},
    {"frozen": 0.5, "scope": "global"},
    {"scope": "global"},
    {"dynamic_scale": True},
    {"graph_split": "random"},
    {"features": "l2"},
    {"method": "random_mask_trained", "allocation": "erk"},
]


def test_runs_that_are_not_alike_share_no_setting():
    found = [setting(**more) for more in DIFFERENT]
    assert len(set(found)) == len(found)


def test_runs_that_are_alike_share_their_setting():
    assert setting() == "digits/conv_small/signed_kaiming_constant/sparsity=0.5/width=1"
    assert setting(method="edge_popup", frozen=0.5) == setting(frozen=0.5)
    assert setting(pruned=0.25, locked=0.25) == setting(frozen=0.5)
    assert setting(seed=3, epochs=2) == setting()


def test_the_setting_is_in_the_run(answer, tmp_path):
    answer("ticket", "find", "--out", tmp_path / "run", *QUICK, "--frozen", 0.5)
    config = json.loads((tmp_path / "run" / "regraft.json").read_text())
    assert "/frozen=0.5" in json.dumps(config)


@pytest.mark.parametrize("option", [("--frozen", 0.5), ("--pruned", 0.1), ("--locked", 0.1)])
@pytest.mark.parametrize("method", ["dense", "random_mask_trained"])
def test_a_control_that_freezes_nothing_says_so(refused, method, option, tmp_path):
    words = ("ticket", "find", "--out", tmp_path / "run", *QUICK, "--method", method)
    assert f"{option[0]} has no effect on --method {method}" in refused(*words, *option)
    assert "--dynamic-scale has no effect" in refused(*words, "--dynamic-scale")
    assert not (tmp_path / "run").exists()


def test_uneven_freezing_says_which_scope_it_needs(answer, refused, tmp_path):
    words = ("ticket", "find", "--out", tmp_path / "run", *QUICK, "--method", "edge_popup")
    words += ("--frozen", 0.5, "--allocation", "erk")
    assert "add --scope global" in refused(*words)
    answer(*words, "--scope", "global")


def test_shares_that_cannot_be_are_refused_by_name(refused, tmp_path):
    words = ("ticket", "find", "--out", tmp_path / "run", *QUICK)
    assert "--pruned -0.5" in refused(*words, "--pruned", -0.5)
    assert "pruned" in refused(*words, "--pruned", 0.7, "--locked", 0.7)
    assert "--sparsity 2.0" in refused(*words, "--sparsity", 2, "--frozen", 0.5)
    ticket = Find.of(frozen=0.5, epochs=1).job().ticket
    assert (ticket.pruned, ticket.locked) == (0.25, 0.25)


def test_a_graph_is_searched_by_default_until_it_is_learned():
    from regraft.config import DataConfig
    from regraft.jobs.ticket.search import optim_for

    optim = optim_for(DataConfig(name="cora"), batch_size=128)
    assert (optim.optimizer, optim.select, optim.epochs) == ("adamw", "best", 200)
    assert optim_for(DataConfig(name="cora"), batch_size=128, lr=0.5).lr == 0.5


def test_few_images_take_as_many_epochs_as_make_enough_steps(image_folder):
    from regraft.config import DataConfig
    from regraft.jobs.ticket.search import optim_for

    few = DataConfig(name=str(image_folder), image_size=8, validation=0.0)
    assert optim_for(few, batch_size=12).epochs == 100  # two batches
    assert optim_for(few, batch_size=12, epochs=3).epochs == 3
    assert optim_for(DataConfig(name="digits"), batch_size=128).epochs == 20


def test_options_of_images_are_refused_with_a_graph(refused):
    for words in (("--image-size", 8), ("--channels", 1), ("--augment", "flip")):
        said = refused("ticket", "find", "--data", "cora", "--model", "gcn", *words)
        assert f"{words[0]} {words[1]} is for images, and cora is a graph" in said


def test_a_search_that_ends_near_guessing_says_so(answer):
    words = ("ticket", "find", *QUICK, "--threads", 1)
    (note,) = answer(*words, "--lr", 1e-9)["notes"]
    assert "no better than guessing: the most frequent class is 10." in note
    more = ("--epochs", 60, "--data", "digits", "--model", "mlp", "--method", "edge_popup")
    assert answer("ticket", "find", *more, "--train-size", 400)["notes"] == []


def test_the_folder_has_a_default(answer):
    out = answer("ticket", "find", *QUICK, "--method", "random_mask")["out"]
    assert out == "runs/find-digits-conv_small-random_mask"
    assert (Path(out) / "model.ticket").is_file()


def test_a_search_leaves_the_card_of_every_verb(answer, regraft):
    told = answer("ticket", "find", *QUICK, "--out", "run")
    card = json.loads(Path("run/card.json").read_text())
    del card["regraft.digest"]
    assert {k: told[k] for k in card} == card
    assert card["kind"] == "ticket-find"
    assert card["metrics"] == json.loads(Path("run/result.json").read_text())["metrics"]
    (scores, layers) = card["tables"]
    assert [row[:2] for row in scores["rows"]] == [["Test", "359"], ["Validation", "144"]]
    assert scores["rows"][0][2] == f"{card['metrics']['test_accuracy']:.2f}"
    held = answer("ticket", "inspect", "run")
    assert [row[0] for row in layers["rows"]] == [mask["name"] for mask in held["masks"]]
    assert all(Path("run", name).exists() for name in card["files"])
    said = Path("run/README.md").read_text()
    assert f"test accuracy: {card['metrics']['test_accuracy']:.2f}%".capitalize() in said
    assert "regraft ticket run" in said
    assert "<svg" in Path("run/report.html").read_text()
    Path("run/card.json").unlink()  # a run of the library, or killed before its card
    assert regraft("ticket", "find", *QUICK, "--out", "run")[0] == 0
    again = json.loads(Path("run/card.json").read_text())
    assert [again[k] for k in ("metrics", "tables", "lines")] == [
        card[k] for k in ("metrics", "tables", "lines")
    ]


def test_an_untrained_control_has_a_card_without_a_curve(answer):
    told = answer("ticket", "find", *QUICK, "--method", "random_mask", "--out", "run")
    assert told["tables"][0]["title"] == "How good it is"
    assert "<svg" not in Path("run/report.html").read_text()


def test_grey_pictures_fit_a_network_of_one_channel(answer, image_folder):
    words = ("ticket", "find", "--data", image_folder, "--image-size", 8, "--model", "mlp")
    out = answer(*words, "--epochs", 1, "--channels", 1)["out"]
    # The folder has no test images: the report is of what was measured.
    assert [row["metric"] for row in answer("report", out)["rows"]] == ["validation_accuracy"]
    shape = answer("ticket", "inspect", out)["masks"][0]["shape"]
    assert shape[1] == 8 * 8


def test_a_recorded_training_is_one_that_transfer_takes(answer, refused, tmp_path):
    from regraft.symmetry.transfer.trajectory import Trajectory

    words = ("ticket", "find", "--method", "dense", "--model", "mlp", "--width", 0.25)
    words += ("--epochs", 2, "--threads", 1)
    answer(*words, "--record", "--states", 3, "--out", "a")
    answer(*words, "--out", "plain")
    assert len(Trajectory.open(Path("a/trajectory"))) == 3
    plain, recorded = (load_file(f"{name}/model.safetensors") for name in ("plain", "a"))
    assert all(torch.equal(plain[name], recorded[name]) for name in plain)
    assert answer("predict", "a", write_digit(tmp_path))["images"]
    answer(*words, "--record", "--states", 3, "--out", "b", "--seed", 2)
    card = answer(
        "transfer", "a", "--to", "b/trajectory/initial.safetensors", "--data", "digits",
        "--match", "naive", "--curve-images", 50, "--points", 0, "--plane-points", 0,
    )  # fmt: skip
    assert card["curves"]
    assert "add --method dense" in refused("ticket", "find", "--record")


def write_digit(folder):
    image = pytest.importorskip("PIL.Image")
    image.new("L", (8, 8), 90).save(folder / "one.png")
    return folder / "one.png"

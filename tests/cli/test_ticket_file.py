import csv
import json
import pickle
import sys

import numpy as np
import pytest
import torch
from graphs import write_planetoid
from networks import conv_net
from safetensors.torch import load_file, save_file

from regraft.config import DataConfig, ModelConfig, OptimConfig, RuntimeConfig, TicketConfig
from regraft.data import load_graph, load_known
from regraft.jobs.train import TrainJob
from regraft.models import build
from regraft.tickets import Freezing, edge_popup, fill, load_ticket, save_ticket

QUICK = ("--epochs", 1, "--train-size", 100, "--batch-size", 20, "--width", 0.5, "--every", 2)
ABOUT = {
    "model": {"name": "conv2", "width": 0.25, "options": {}},
    "input": {"channels": 3, "image_size": 8},
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.25, 0.3],
    "classes": ["ant", "bee", "cat"],
}


@pytest.fixture
def run_folder(answer, tmp_path):
    answer("ticket", "find", "--out", tmp_path / "run", *QUICK)
    return tmp_path / "run"


def network(classes=3):
    config = ModelConfig(name="conv2", width=0.25)
    return build(config, num_classes=classes, channels=3, image_size=8)


@pytest.fixture
def masked():
    torch.manual_seed(0)
    return edge_popup(network(), sparsity=0.6, freezing=Freezing(0.2, 0.2), seed=4).eval()


@pytest.fixture
def ticket(tmp_path, masked):
    save_ticket(tmp_path / "a.ticket", masked, about=ABOUT)
    return tmp_path / "a.ticket"


def images(folder):
    """Return the images of a folder as the network takes them, by path."""
    pillow = pytest.importorskip("PIL.Image")
    numpy = pytest.importorskip("numpy")
    mean, std = (torch.tensor(ABOUT[k]).view(3, 1, 1) for k in ("mean", "std"))
    found = {}
    for path in sorted(folder.rglob("*.png")):
        image = pillow.open(path).convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
        pixels = numpy.array(image.resize((8, 8), pillow.Resampling.BILINEAR, box=box))
        found[str(path)] = (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - mean) / std
    return found


def test_images_get_the_probabilities_of_the_network(
    answer, ticket, masked, image_folder, tmp_path
):
    words = ("ticket", "run", ticket, image_folder, "--out", tmp_path / "p.csv", "--top", 2)
    found = answer(*words)["images"]
    expected = images(image_folder)
    assert [f["image"] for f in found] == list(expected)
    with torch.no_grad():
        logits = masked(torch.stack(list(expected.values())))
    for row, wanted in zip(found, logits.softmax(1), strict=True):
        values, order = wanted.topk(2)
        assert [t["class"] for t in row["top"]] == [ABOUT["classes"][k] for k in order]
        got = torch.tensor([t["probability"] for t in row["top"]])
        assert torch.allclose(got, values, atol=1e-5)
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["image", "class", "probability", "class_2", "probability_2"]
    assert [r["class"] for r in rows] == [f["top"][0]["class"] for f in found]
    assert float(rows[0]["probability"]) == pytest.approx(
        found[0]["top"][0]["probability"], abs=1e-6
    )


@pytest.mark.filterwarnings("default")
def test_an_unreadable_picture_is_named_or_left_out(regraft, refused, ticket, image_folder):
    bad = image_folder / "ant" / "bad.png"
    bad.write_bytes(b"no image")
    words = ("ticket", "run", ticket, image_folder)
    assert "bad.png cannot be decoded" in refused(*words)
    code, out, err = regraft(*words, "--unreadable", "skip", "--json")
    assert code == 0, err
    assert "left out 1 unreadable image(s): " in err
    found = json.loads(out)
    assert len(found["images"]) == 24
    assert found["left_out"] == [str(bad)]


def test_a_person_sees_the_classes(regraft, ticket, image_folder):
    first = sorted(image_folder.rglob("*.png"))[0]
    code, out, err = regraft("ticket", "run", ticket, first)
    assert (code, err) == (0, "")
    assert "0.png" in out
    assert all(name in out for name in ABOUT["classes"])
    assert "%" in out


def test_the_accuracy_on_a_folder(answer, regraft, ticket, masked, image_folder, tmp_path):
    found = answer("ticket", "run", ticket, "--data", image_folder, "--out", tmp_path / "p.csv")
    labels = torch.arange(3).repeat_interleave(8)
    with torch.no_grad():
        right = masked(torch.stack(list(images(image_folder).values()))).argmax(1) == labels
    assert found["accuracy"] == pytest.approx(100 * right.float().mean().item())
    assert (found["data"], found["split"], found["n"]) == ("photos", "all", 24)
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["class"] == r["prediction"] for r in rows] == right.tolist()
    out = regraft("ticket", "run", ticket, "--data", image_folder)[1]
    assert f"accuracy on photos: {found['accuracy']:.2f}% of 24" in out


def test_the_accuracy_on_the_test_split_is_the_searchs_own(answer, run_folder):
    result = json.loads((run_folder / "result.json").read_text())
    found = answer("ticket", "run", run_folder, "--data", "digits")
    assert found["accuracy"] == pytest.approx(result["metrics"]["test_accuracy"], abs=1e-4)
    assert found["n"] == len(load_known("digits", None).test)


def test_a_grey_network_takes_coloured_images(answer, run_folder, image_folder):
    found = answer("ticket", "run", run_folder, image_folder, "--top", 1)["images"]
    assert len(found) == 24
    assert all(len(f["top"]) == 1 for f in found)


def test_a_timm_model_runs_from_its_ticket(answer, image_folder, tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = edge_popup(timm.create_model("resnet10t", num_classes=3), seed=2).eval()
    model(torch.zeros(1, 3, 32, 32))
    about = {**ABOUT, "model": {"name": "timm/resnet10t"}}
    about["input"] = {"channels": 3, "image_size": 32}
    save_ticket(tmp_path / "t.ticket", model, about=about)
    answer("ticket", "bake", tmp_path / "t.ticket", "--out", tmp_path / "m.safetensors")
    plain = timm.create_model("resnet10t", num_classes=3).eval()
    plain.load_state_dict(load_file(tmp_path / "m.safetensors"))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(plain(x), model(x))
    assert len(answer("ticket", "run", tmp_path / "t.ticket", image_folder)["images"]) == 24


@pytest.mark.parametrize("split", ["public", "random"])
def test_a_graph_network_classifies_its_nodes(answer, refused, split, ticket, tmp_path):
    pytest.importorskip("torch_geometric")
    write_planetoid(tmp_path / "sets", nodes=2000)
    data = DataConfig(
        name="cora", root=str(tmp_path / "sets"), features="l2", graph_split=split, split_seed=5
    )
    job = TrainJob(
        setting="s",
        arm="edge_popup",
        data=data,
        model=ModelConfig(name="gcn", options={"hidden": 16}),
        ticket=TicketConfig(method="edge_popup"),
        optim=OptimConfig(epochs=3),
        runtime=RuntimeConfig(accelerator="cpu", threads=1),
    )
    result = job.run_in(tmp_path / "run")
    run = ("ticket", "run", tmp_path / "run", "--data", "cora", "--data-root", tmp_path / "sets")
    found = answer(*run, "--out", tmp_path / "p.csv")
    assert found["accuracy"] == pytest.approx(result["metrics"]["test_accuracy"], abs=1e-4)
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    graph = load_graph(data)
    assert [r["node"] for r in rows] == [str(i) for i in range(2000)]
    assert [r["class"] for r in rows] == [str(k) for k in graph.y.tolist()]
    right = [rows[i]["class"] == rows[i]["prediction"] for i in graph.test.tolist()]
    assert found["accuracy"] == pytest.approx(100 * sum(right) / len(right))
    assert "classifies the nodes of a graph" in refused(*run[:3], "--data", "digits")
    assert "is a graph and" in refused("ticket", "run", ticket, *run[3:])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"split": 3}, "has split=3: expected an object"),
        ({"split": {"graph_split": ["public"]}}, "has graph_split=['public']: expected text"),
        ({"split": {"split_seed": "5"}}, "has split_seed='5': expected a whole number"),
        ({"split": {"split_seed": None}}, "has split_seed=None: expected a whole number"),
        ({"split": {"shots": 2.5}}, "has shots=2.5: expected a whole number or null"),
        ({"split": {"train_size": True}}, "has train_size=True: expected a whole number or null"),
        ({"features": {"l2": 1}}, "has features={'l2': 1}: expected text"),
        ({"features": None}, "has features=None: expected text"),
        ({"features": "sum"}, "features='sum': expected one of raw, row, l2"),
    ],
)
def test_a_graph_header_of_other_types_is_told_in_one_sentence(
    refused, masked, tmp_path, wrong, said
):
    pytest.importorskip("torch_geometric")
    about = {
        "model": {"name": "gcn"},
        "classes": ["0", "1", "2"],
        "input": {"graph": True, "features": 30},
        "data": "cora",
    }
    save_ticket("g.ticket", masked, about={**about, **wrong})
    write_planetoid(tmp_path / "sets")
    assert said in refused(
        "ticket", "run", "g.ticket", "--data", "cora", "--data-root", tmp_path / "sets"
    )


def test_a_node_of_no_known_class_is_predicted_and_not_counted(answer, tmp_path):
    pytest.importorskip("torch_geometric")
    write_planetoid(tmp_path / "sets")
    file = tmp_path / "sets/Planetoid/Cora/raw/ind.cora.ally"
    one_hot = np.eye(3, dtype=np.int32)[np.arange(560) % 3]
    one_hot[555] = 0
    file.write_bytes(pickle.dumps(one_hot, protocol=2))
    config = ModelConfig(name="gcn", options={"hidden": 16})
    shape = {"graph": True, "features": 30}
    model = edge_popup(build(config, num_classes=3, **shape), seed=1).eval()
    about = {"model": {"name": "gcn", "options": {"hidden": 16}}, "input": shape}
    save_ticket("g.ticket", model, about={**about, "classes": ["a", "b", "c"]})
    run = ("ticket", "run", "g.ticket", "--data", "cora", "--data-root", tmp_path / "sets")
    assert answer(*run, "--out", tmp_path / "p.csv")["n"] == 40
    with (tmp_path / "p.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert [r["node"] for r in rows if not r["class"]] == ["555"]
    assert rows[555]["prediction"] in ("a", "b", "c")


def test_a_factory_is_imported_only_when_it_is_named(
    answer, refused, image_folder, factory, tmp_path
):
    words = ("--data", image_folder, "--image-size", 8, "--model", f"{factory}:small")
    answer("ticket", "find", "--out", tmp_path / "run", *words, "--epochs", 1)
    sys.modules.pop(factory, None)
    for verb in (("run", tmp_path / "run", image_folder), ("bake", tmp_path / "run", "--out", "m")):
        said = refused("ticket", *verb)
        assert f"pass --model {factory}:small if you trust it" in said
        assert factory not in sys.modules
    run = ("ticket", "run", tmp_path / "run", image_folder, "--model", f"{factory}:small")
    assert len(answer(*run)["images"]) == 24


def test_unpacked_and_packed_again_a_ticket_is_the_same_file(answer, ticket, tmp_path):
    found = answer("ticket", "unpack", ticket, "--out", tmp_path / "folder")
    assert set(found["files"]) == {"ticket.json", "masks.safetensors", "state.safetensors"}
    again = answer("ticket", "pack", tmp_path / "folder", "--out", tmp_path / "b.ticket")
    assert (tmp_path / "b.ticket").read_bytes() == ticket.read_bytes()
    assert again["bytes"] == ticket.stat().st_size
    assert again["entropy_bound"] == load_ticket(ticket).entropy_bound()


def test_a_state_dict_is_packed_with_the_facts_it_lacks(answer, masked, ticket, tmp_path):
    save_file(masked.state_dict(), tmp_path / "state.safetensors")
    words = ["--model", "conv2", "--width", 0.25, "--class-names", "ant,bee,cat"]
    words += ["--image-size", 8, "--mean", 0.5, 0.4, 0.3, "--std", 0.2, 0.25, 0.3]
    answer("ticket", "pack", tmp_path / "state.safetensors", "--out", "b.ticket", *words)
    packed = load_ticket("b.ticket")
    assert packed.about == ABOUT
    state = load_ticket(ticket).state_dict()
    assert all(torch.equal(t, state[k]) for k, t in packed.state_dict().items())
    answer("ticket", "pack", "b.ticket", "--out", "c.ticket", "--num-classes", 3)
    assert load_ticket("c.ticket").about["classes"] == ["0", "1", "2"]


@pytest.mark.parametrize("where", [".", "checkpoint.safetensors"])
def test_a_run_is_packed_from_its_checkpoint(answer, run_folder, where, tmp_path):
    wanted = (run_folder / "model.ticket").read_bytes()
    (run_folder / "model.ticket").unlink()
    answer("ticket", "pack", run_folder / where, "--out", tmp_path / "b.ticket")
    assert (tmp_path / "b.ticket").read_bytes() == wanted


def test_inspect_tells_bytes_and_shares(answer, regraft, ticket, masked):
    seen = answer("ticket", "inspect", ticket)
    n = sum(m.numel() for m in load_ticket(ticket).masks().values())
    assert (seen["weights"], seen["bytes"]) == (n, ticket.stat().st_size)
    assert sum(seen["parts"].values()) == seen["bytes"]
    assert seen["free_weights"] == pytest.approx(0.6 * n, abs=4)
    state = sum(t.numel() * t.element_size() for t in load_ticket(ticket).state.values())
    assert seen["against"] == {
        "dense float32": 4 * n + state,
        "dense int8": n + state,
        "1-bit mask": -(-seen["free_weights"] // 8) + state,
    }
    for entry, mask in zip(seen["masks"], load_ticket(ticket).masks().values(), strict=True):
        assert entry["sparsity"] == pytest.approx(1 - mask.float().mean().item())
        assert entry["pruned"] == pytest.approx(0.2, abs=0.01)
        assert entry["density"] == pytest.approx((0.4 - 0.2) / 0.6, abs=0.05)
        assert 0.8 < entry["bits_per_free_weight"] < 1
    code, out, err = regraft("ticket", "inspect", ticket)
    assert (code, err) == (0, "")
    for said in ("conv2", "seed 4", "dense int8", "1-bit mask", "entropy bound", "masks", "header"):
        assert said in out


def test_what_cannot_be_run_is_told_in_one_sentence(refused, ticket, image_folder, tmp_path):
    run = ("ticket", "run", ticket)
    assert "name image files or folders, or give --data" in refused(*run)
    assert "only one of the two" in refused(*run, image_folder, "--data", "digits")
    assert "no/such.png: no such image" in refused(*run, "no/such.png")
    (tmp_path / "empty").mkdir()
    assert "empty holds no images" in refused(*run, tmp_path / "empty")
    assert "--top 0: expected at least 1" in refused(*run, image_folder, "--top", 0)
    assert "has the class '0', which" in refused(*run, "--data", "digits")
    assert "neither a known set nor a folder" in refused(*run, "--data", "no/such/folder")
    assert "did you mean 'digits'?" in refused(*run, "--data", "digit")
    (image_folder / "bee" / "3.png").write_bytes(b"not an image")
    assert str(image_folder / "bee" / "3.png") in refused(*run, image_folder)


def test_a_ticket_that_does_not_say_what_it_is_of(refused, masked, image_folder, tmp_path):
    save_ticket("a.ticket", masked)
    for words in (("run", "a.ticket", image_folder), ("bake", "a.ticket", "--out", "m")):
        assert "does not say which model it is of" in refused("ticket", *words)
    save_ticket("b.ticket", masked, about={**ABOUT, "mean": [0.5]})
    assert "b.ticket has mean=[0.5] for images of 3" in refused(
        "ticket", "run", "b.ticket", image_folder
    )
    for wrong in (
        {"model": 3},
        {"model": {"nom": "x"}},
        {"model": {"name": "gcn", "options": None}},
        {"classes": 3},
        {"classes": [1, 2, 3]},
        {"input": {"size": "8"}},
        {"input": [3, 8]},
        {"input": {"channels": True, "image_size": 8}},
        {"input": {"graph": 1, "features": 8}},
        {"input": {"graph": True, "features": True}},
    ):
        save_ticket("c.ticket", masked, about={**ABOUT, **wrong})
        said = refused("ticket", "run", "c.ticket", image_folder)
        assert "c.ticket says what it is of in a way" in said


def test_another_architecture_is_refused_before_it_is_built(refused, ticket):
    words = ("ticket", "bake", ticket, "--out", "m.safetensors", "--model")
    assert "tensor" in refused(*words, "conv6")
    assert "unknown" in refused(*words, "conv_smal")


def test_a_header_that_asks_for_a_giant_is_refused_before_it_is_made(refused, masked, monkeypatch):
    giant = {**ABOUT, "model": {"name": "conv2", "width": 1e5}}
    save_ticket("giant.ticket", masked, about=giant)
    assert "has shape" in refused("ticket", "bake", "giant.ticket", "--out", "m")


def test_what_cannot_be_packed_is_told_in_one_sentence(refused, tmp_path):
    pack = ("ticket", "pack")
    assert "no such file or folder" in refused(*pack, "nowhere", "--out", "x")
    (tmp_path / "empty").mkdir()
    assert "neither a ticket nor a run's checkpoint" in refused(*pack, "empty", "--out", "x")
    (tmp_path / "text").write_text("hello, this is no ticket")
    assert "text is not a ticket" in refused(*pack, "text", "--out", "x")
    save_file(conv_net().state_dict(), "plain.safetensors")
    assert "plain.safetensors: the state dict has no edge-popup mask" in refused(
        *pack, "plain.safetensors", "--out", "x"
    )
    assert not (tmp_path / "x").exists()


def test_what_cannot_be_said_while_packing(refused, ticket):
    pack = ("ticket", "pack", ticket, "--out", "x")
    assert "--num-classes 1: expected 2 or more" in refused(*pack, "--num-classes", 1)
    assert "--width 0.0" in refused(*pack, "--width", 0)
    assert "no JSON object" in refused(*pack, "--model-options", "[1]")


def test_unpacking_onto_something_else_is_refused(refused, ticket, image_folder):
    said = refused("ticket", "unpack", ticket, "--out", image_folder)
    assert "which is no part of a ticket" in said


def test_the_filled_network_is_the_masked_one(ticket, masked):
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(fill(network(), load_ticket(ticket)).eval()(x), masked(x))

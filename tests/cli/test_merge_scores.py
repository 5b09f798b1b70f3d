"""What a merge's card says of its models, held against each model measured on its own."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file

from checkpoints import CONV, MLP, checkpoint, digits, trained
from regraft.cli.align import Align
from regraft.cli.merge import Merge
from regraft.errors import InputError
from regraft.files import write_tensors
from regraft.jobs.merge.data import Data
from regraft.jobs.merge.models import read_models
from regraft.models import build
from regraft.symmetry.merge.connectivity import measure
from regraft.train import outputs

HALVES = [(0, 1, 2, 3, 4), (3, 4, 5, 6, 7, 8, 9)]


@pytest.fixture
def merged(tmp_path, capsys):
    """Run the verb on checkpoints with --json and return its card."""

    def call(paths, **options):
        options = {"out": tmp_path / "out", "json": True, "points": 0, **options}
        assert Merge.of(checkpoints=tuple(paths), **options).run() == 0
        return json.loads(capsys.readouterr().out)

    return call


@pytest.fixture
def part(monkeypatch):
    """Make a data set of some of the digits that `--data NAME` finds: part(NAME, {digit: class})."""
    import regraft.data

    made, real, names_of = {}, regraft.data.load, regraft.data.known_names
    monkeypatch.setattr(regraft.data, "known_names", lambda: (*names_of(), *made))
    monkeypatch.setattr(regraft.data, "load", lambda config: made.get(config.name) or real(config))

    def make(name, names):
        splits, classes = digits(), tuple(sorted(names.values()))
        rows = torch.tensor([classes.index(names[d]) if d in names else 0 for d in range(10)])

        def cut(images):
            own = torch.isin(images.labels, torch.tensor(list(names)))
            images = images.subset(own.nonzero().flatten())
            return replace(images, labels=rows[images.labels], num_classes=len(classes))

        found = {k: getattr(splits, k) for k in ("train", "validation", "test")}
        found = {k: None if v is None else cut(v) for k, v in found.items()}
        made[name] = replace(splits, name=name, classes=classes, **found)
        return name

    return make


def files(tmp_path, classes, **options):
    """Two checkpoints whose logits are far below 0, of which no cross-entropy takes notice."""
    found = []
    for i, own in enumerate(classes, start=1):
        bias = trained("conv", i, own)[0]["head.bias"] - 20
        path = tmp_path / f"{i}.safetensors"
        found.append(checkpoint(path, "conv", i, own, **{"head.bias": bias}, **options))
    return found


def alone(config, state, classes, images, mean, std, rows):
    """Return accuracy and loss of one model as it was trained."""
    model = build(config, num_classes=classes, channels=1, image_size=8)
    model.load_state_dict(state)
    splits = digits()
    found = measure(model, [Data(splits, mean, std, rows).batches(images, "cpu")])
    return pytest.approx((found.accuracy, found.loss), rel=1e-4, abs=1e-4)


def test_classifiers_of_different_sizes_compete_with_no_rows_that_they_do_not_have(
    tmp_path, merged, part
):
    paths = files(tmp_path, HALVES)
    data = tuple(part(f"d{i}", {d: str(d) for d in own}) for i, own in enumerate(HALVES))
    card = merged(paths, heads="separate", data=data, points=2)
    splits = digits()
    for i, own in enumerate(HALVES):
        kept = torch.isin(splits.test.labels, torch.tensor(own)).nonzero().flatten()
        images = splits.test.subset(kept)
        rows = torch.zeros(10, dtype=torch.int64)
        rows[list(own)] = torch.arange(len(own))
        state = trained("conv", i + 1, own)[0]
        truth = alone(CONV, state, len(own), images, splits.mean, splits.std, tuple(rows.tolist()))
        for found in (
            card["scores"][f"model {i + 1}"],
            card["curves"]["1-2"]["aligned"]["scores"][i],
        ):
            assert (found["accuracies"][i], found["losses"][i]) == truth


@pytest.mark.parametrize("times", [1, 2])
def test_each_model_is_measured_in_its_own_order_of_classes_and_its_own_normalisation(
    times, tmp_path, merged
):
    splits, order = digits(), list(reversed(range(10)))
    first = checkpoint(tmp_path / "1.safetensors")
    state, about = trained(seed=2)
    state |= {k: state[k][order].contiguous() for k in ("head.weight", "head.bias")}
    mean, std = (splits.mean[0] + 0.1,), (splits.std[0] * 1.5,)
    about |= {"classes": [splits.classes[i] for i in order], "mean": [*mean], "std": [*std]}
    write_tensors(tmp_path / "2.safetensors", state, {"regraft.model": json.dumps(about)})
    paths = [first, tmp_path / "2.safetensors"]
    options = {"heads": "separate", "data": ("digits",) * times, "statistics_images": 200}
    card = merged(paths, **options)
    truth = [
        alone(MLP, trained()[0], 10, splits.test, splits.mean, splits.std, tuple(range(10))),
        alone(MLP, state, 10, splits.test, mean, std, tuple(order)),
    ]
    for i in range(2):
        found = card["scores"][f"model {i + 1}"]
        assert (found["accuracies"][i], found["losses"][i]) == truth[i]
        with safe_open(tmp_path / "out" / f"model-{i + 1}.safetensors", framework="pt") as opened:
            said = json.loads(opened.metadata()["regraft.model"])
        assert said["mean"] == pytest.approx((splits.mean, mean)[i])
    # What is measured is what statistics are taken from: both normalisations, once each.
    assert card["repair"]["images"] == 400
    verb = Merge.of(checkpoints=tuple(paths), out=tmp_path, **options)
    models = read_models(verb.config(), heads="separate")
    shown = torch.cat([x for x, _, _ in models.statistics(200, 100, 1).batches(0)])
    a, b = (
        torch.cat([x for x, _, _ in own.batches(splits.train, "cpu", limit=200, seed=1).batches(0)])
        for own in models.apart
    )
    torch.testing.assert_close(shown.sum(), a.sum() + b.sum())


def test_one_classifier_for_images_normalised_differently_is_noted(tmp_path, merged):
    state, about = trained(seed=2)
    about |= {"mean": [0.0], "std": [1.0]}
    write_tensors(tmp_path / "2.safetensors", state, {"regraft.model": json.dumps(about)})
    paths = [checkpoint(tmp_path / "1.safetensors"), tmp_path / "2.safetensors"]
    said = "normalised differently"
    assert any(said in n for n in merged(paths, data=("digits",))["notes"])
    same = {"mean": (0.5,), "std": (0.5,), "out": tmp_path / "same"}
    assert not any(said in n for n in merged(paths, data=("digits",), **same)["notes"])


def test_a_model_and_the_ensemble_of_a_union_say_nothing_of_classes_they_do_not_know(
    tmp_path, merged
):
    paths = files(tmp_path, HALVES)
    card = merged(paths, heads="union", data=("digits",), points=2)
    splits, logits = digits(), []
    data = Data(splits, splits.mean, splits.std, tuple(range(10)))
    for i, own in enumerate(HALVES, start=1):
        model = build(CONV, num_classes=len(own), channels=1, image_size=8)
        model.load_state_dict(trained("conv", i, own)[0])
        found, labels = outputs(model, data.batches(splits.test, "cpu"))
        right = torch.tensor(own)[found.argmax(1)] == labels
        score = card["scores"][f"model {i}"]
        assert score["accuracy"] == pytest.approx(100 * right.float().mean().item(), abs=0.01)
        assert score["loss"] is None  # it gives the others probability 0
        wide = torch.full((len(labels), 10), float("nan"))
        wide[:, list(own)] = found - 20
        logits.append(wide)
    both = torch.stack(logits).nanmean(0)
    score = card["scores"]["logit ensemble"]
    assert score["accuracy"] == pytest.approx(
        100 * (both.argmax(1) == labels).float().mean().item(), abs=0.01
    )
    assert score["loss"] == pytest.approx(F.cross_entropy(both, labels).item(), rel=1e-4)
    assert any("the logit ensemble has for each class" in note for note in card["notes"])
    assert "| model 1 |" in (tmp_path / "out" / "README.md").read_text()
    assert (tmp_path / "out" / "report.html").exists()


def test_the_ensemble_of_a_shared_classifier_is_the_plain_mean(tmp_path, merged):
    paths = [checkpoint(tmp_path / f"{i}.safetensors", seed=i) for i in (1, 2)]
    card = merged(paths, data=("digits",))
    splits, logits = digits(), []
    data = Data(splits, splits.mean, splits.std, tuple(range(10)))
    for i in (1, 2):
        model = build(MLP, num_classes=10, channels=1, image_size=8)
        model.load_state_dict(trained(seed=i)[0])
        found, labels = outputs(model, data.batches(splits.test, "cpu"))
        logits.append(found)
    expected = F.cross_entropy((logits[0] + logits[1]) / 2, labels).item()
    assert card["scores"]["logit ensemble"]["loss"] == pytest.approx(expected, rel=1e-4)


def test_fewer_classes_than_rows_are_the_rows_of_their_numbers_or_refused(tmp_path, merged, part):
    paths = [checkpoint(tmp_path / f"{i}.safetensors", seed=i, header=False) for i in (1, 2)]
    options = {"model": "mlp", "model_options": '{"widths": [24, 16]}', "match": "none"}
    splits = digits()
    number = part("numbers", {d: str(d) for d in (7, 8, 9)})
    options |= {"mean": splits.mean, "std": splits.std}
    card = merged(paths, data=(number,), **options)
    assert card["scores"]["model 1"]["accuracy"] > 80
    words = {7: "seven", 8: "eight", 9: "nine"}
    data = (part("words", words),)
    with pytest.raises(
        InputError,
        match=r"words has 3 classes \(eight, nine, seven\) and the classifier 10 rows, whose classes "
        "are not known: say which rows they are with --class-names",
    ):
        merged(paths, data=data, out=tmp_path / "refused", **options)
    named = (",".join(words.get(i, str(i)) for i in range(10)),) * 2
    again = merged(paths, data=data, class_names=named, out=tmp_path / "named", **options)
    for name, score in card["scores"].items():
        assert again["scores"][name]["loss"] == pytest.approx(score["loss"], rel=1e-3)


def test_images_whose_labels_are_not_looked_at_may_be_of_any_classes(tmp_path, part, capsys):
    paths = tuple(checkpoint(tmp_path / f"{i}.safetensors", seed=i) for i in (1, 2))
    options = {"data": (part("words", {7: "seven", 9: "nine"}),), "json": True}
    options |= {"checkpoints": paths, "out": tmp_path / "out"}
    assert Align.of(match="activations", **options).run() == 0
    matched = json.loads(capsys.readouterr().out)
    assert matched["match"]["by"] == "activations"
    (data,) = matched["data"]
    assert matched["match"]["models"][1]["images"] == data["train_images"] < 2000
    with pytest.raises(InputError, match="which stand for 0, 1, 2"):
        Align.of(match="ste", **options | {"out": tmp_path / "other"}).run()


def test_data_with_more_classes_than_a_model_kept_apart_are_refused(tmp_path, merged):
    with pytest.raises(
        InputError, match=r"10 classes and the classifier of .*1.safetensors 5 rows"
    ):
        merged(files(tmp_path, HALVES), heads="separate", data=("digits",))


@pytest.mark.parametrize("classes", [None, 10])
@pytest.mark.parametrize("heads", ["shared", "separate"])
def test_a_network_that_declares_its_classifier_first_is_merged(
    classes, heads, tmp_path, merged, monkeypatch
):
    name = f"head_first_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(
        "from torch import nn\n\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, num_classes, in_channels, image_size):\n"
        "        super().__init__()\n"
        "        self.head = nn.Linear(12, num_classes)\n"
        "        self.body = nn.Linear(in_channels * image_size**2, 12)\n\n"
        "    def forward(self, x):\n"
        "        return self.head(self.body(x.flatten(1)).relu()).log_softmax(1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    paths = []
    for seed in (1, 2):
        draw = torch.Generator().manual_seed(seed)
        shapes = {"head.weight": (10, 12), "head.bias": (10,), "body.weight": (12, 64)}
        shapes["body.bias"] = (12,)
        state = {k: torch.randn(s, generator=draw) for k, s in shapes.items()}
        save_file(state, tmp_path / f"{seed}.safetensors")
        paths.append(tmp_path / f"{seed}.safetensors")
    options = {"model": f"{name}:Net", "image_size": 8, "channels": 1}
    card = merged(paths, num_classes=classes, heads=heads, **options)
    assert card["shape"]["num_classes"] == 10
    assert [m["classes"] for m in card["models"]] == [10, 10]

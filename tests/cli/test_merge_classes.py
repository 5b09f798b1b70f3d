import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from checkpoints import CONV, accuracy, checkpoint, digits, network, trained
from regraft.errors import InputError


def test_a_condensed_set_is_read_and_labels_follow(pair, combine, tmp_path):
    from regraft.generators import CondensedSet

    splits = digits()
    rows = torch.cat([(splits.train.labels == c).nonzero()[:2, 0] for c in range(10)])
    images = splits.train.images[rows].float() / 255
    made = CondensedSet(
        images, splits.train.labels[rows], splits.classes, splits.mean, splits.std, "dc"
    )
    made.save(tmp_path / "c.safetensors")
    options = {"match": "ste", "surrogate": "condensed", "ste_steps": 6, "points": 0}
    card = combine(pair, data=("digits",), condensed=(tmp_path / "c.safetensors",), **options)
    assert card["match"]["models"][1]["images"] == [{"data": "digits", "images": 20}]


HALVES = [(0, 1, 2, 3, 4), (3, 4, 5, 6, 7, 8, 9)]


@pytest.fixture
def halves(tmp_path):
    return [
        checkpoint(tmp_path / f"{i}.safetensors", "conv", i, classes)
        for i, classes in enumerate(HALVES, start=1)
    ]


def test_class_lists_that_differ_become_one_head_by_name(halves, combine, tmp_path):
    card = combine(halves, heads="union", data=("digits",))
    assert card["shape"]["num_classes"] == 10
    merged = load_file(tmp_path / "out" / "model.safetensors")
    a, b = (trained("conv", i, c)[0] for i, c in enumerate(HALVES, start=1))
    assert merged["head.bias"].shape == (10,)
    torch.testing.assert_close(merged["head.bias"][:3], a["head.bias"][:3])
    torch.testing.assert_close(merged["head.bias"][5:], b["head.bias"][2:])
    both = (a["head.bias"][3:] + b["head.bias"][:2]) / 2
    torch.testing.assert_close(merged["head.bias"][3:5], both)
    assert accuracy(network(CONV, merged)) == pytest.approx(
        card["scores"]["merged and repaired"]["accuracy"], abs=0.01
    )
    best = max(card["scores"][f"model {i}"]["accuracy"] for i in (1, 2))
    assert best < 75  # neither knows all classes
    assert card["scores"]["logit ensemble"]["accuracy"] > best


def test_heads_apart_are_a_file_each(halves, combine, tmp_path):
    with pytest.raises(
        InputError, match=r"has 5 classes and .*2.safetensors has 7: merge them with"
    ):
        combine(halves)
    card = combine(halves, heads="separate")
    files = [load_file(tmp_path / "out" / f"model-{i}.safetensors") for i in (1, 2)]
    assert "model.safetensors" not in card["files"]
    for i, (file, classes) in enumerate(zip(files, HALVES, strict=True), start=1):
        own = trained("conv", i, classes)[0]
        assert torch.equal(file["head.bias"], own["head.bias"])
        network(CONV, file, len(classes))
        with safe_open(tmp_path / "out" / f"model-{i}.safetensors", framework="pt") as opened:
            about = json.loads(opened.metadata()["regraft.model"])
        assert about["classes"] == trained("conv", i, classes)[1]["classes"]
    assert all(torch.equal(files[0][k], files[1][k]) for k in files[0] if "head" not in k)


def test_a_union_takes_names_without_data(halves, combine, tmp_path):
    names = tuple(",".join(f"class {i}" for i in half) for half in HALVES)
    card = combine(halves, heads="union", class_names=names)
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as opened:
        about = json.loads(opened.metadata()["regraft.model"])
    assert about["classes"] == [f"class {i}" for i in range(10)]
    assert card["shape"]["num_classes"] == 10
    with pytest.raises(InputError, match="are 2 and its classifier has 5 rows"):
        combine(halves, heads="union", class_names=("a,b", "c"), out=tmp_path / "other")

"""Rows of one classifier that the models of a merge call differently."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from regraft.cli import main
from regraft.jobs.merge.card import _shared_names
from regraft.jobs.predict.labelled_images import _rows


@pytest.mark.parametrize(
    ("names", "shared"),
    [
        ([], None),
        ([["a", "b"], ["a", "b"]], ["a", "b"]),
        ([["a", "b"], ["c", "b"]], ["a | c", "b"]),
        ([["a", "b"], ["b", "a"], ["a", "b"]], ["a | b", "b | a"]),
        ([["a", "b"], ["a", "b", "c"]], None),
    ],
)
def test_a_row_has_every_name_that_a_model_has_for_it(names, shared):
    assert _shared_names(names) == shared


def test_a_class_is_the_row_that_alone_has_its_name():
    assert _rows(["a | c", "b"]) == {"a | c": 0, "a": 0, "c": 0, "b": 1}
    assert _rows(["a | b", "b | a"]) == {"a | b": 0, "b | a": 1}


def test_a_merge_of_models_with_other_classes_can_be_predicted_and_evaluated_with(
    tmp_path, monkeypatch, capsys
):
    image = pytest.importorskip("PIL.Image")
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
        save_file(net.state_dict(), tmp_path / f"{name}.safetensors")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "row_names_net.py").write_text(
        "from torch import nn\n\n"
        "def net(num_classes, in_channels, image_size):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(),\n"
        "                         nn.Linear(16, num_classes))\n"
    )
    torch.manual_seed(0)
    numbers, letters = ",".join("0123456789"), ",".join("abcdefghij")
    words = [
        "merge",
        "a.safetensors",
        "b.safetensors",
        "--model",
        "row_names_net:net",
        "--channels",
    ]
    words += ["1", "--image-size", "8", "--class-names", numbers, "--class-names", letters]
    words += ["--mean", "0.5", "--std", "0.5", "--points", "0", "--data", "digits"]
    assert main([*words, "--out", "out"]) == 0
    (tmp_path / "pictures").mkdir()
    image.new("L", (8, 8), 90).save(tmp_path / "pictures" / "one.png")
    capsys.readouterr()
    more = ["--model", "row_names_net:net"]
    assert main(["predict", "out", "pictures", *more, "--json"]) == 0
    assert " | " in capsys.readouterr().out
    assert main(["evaluate", "out", "--data", "digits", *more, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)

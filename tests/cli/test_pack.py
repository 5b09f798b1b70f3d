import json

import pytest
import torch
from safetensors.torch import save_file

from regraft.config import ModelConfig
from regraft.models import build
from regraft.tickets import edge_popup, gather, load_ticket, save_ticket, write_unpacked

SAID = ("--model", "conv2", "--width", 0.25, "--class-names", "ant,bee,cat")
FED = ("--image-size", 8, "--channels", 3, "--mean", 0.5, 0.4, 0.3, "--std", 0.2, 0.2, 0.2)


def masked():
    torch.manual_seed(0)
    config = ModelConfig(name="conv2", width=0.25)
    return edge_popup(build(config, num_classes=3, channels=3, image_size=8), seed=4).eval()


@pytest.fixture
def state(tmp_path):
    save_file(masked().state_dict(), tmp_path / "state.safetensors")
    return tmp_path / "state.safetensors"


def test_what_is_said_and_fits_is_packed(answer, state, image_folder):
    answer("ticket", "pack", state, "--out", "a.ticket", *SAID, *FED)
    about = load_ticket("a.ticket").about
    assert about["classes"] == ["ant", "bee", "cat"]
    assert len(answer("ticket", "run", "a.ticket", image_folder)["images"]) == 24


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (("--model", "nosuchmodel"), "'nosuchmodel' is unknown"),
        (("--model", "conv_smal"), "did you mean 'conv_small'?"),
        (("--model", "conv4"), "tensor"),
        (("--width", 0.5), "has shape"),
        (("--class-names", "a,b,c,d"), "has shape"),
        (("--class-names", "a,b,a"), "names 'a' twice"),
        (("--class-names", "a"), "--class-names has one name, 'a'"),
        (("--image-size", -3), "--image-size -3: expected at least 1"),
        (("--image-size", 16), "has shape"),
        (("--channels", 0), "--channels 0: expected at least 1"),
        (("--mean", 0.5, "--std", 0.2), "have 1 number(s) for 3 channel(s)"),
        (("--mean", 0.5), "--mean and --std go together"),
        (("--std", 0, 0, 0), "--std 0.0: expected a finite number above 0"),
        (("--mean", "nan", "nan", "nan"), "--mean nan: expected a finite number"),
    ],
)
def test_what_is_said_and_does_not_fit_is_refused(refused, state, tmp_path, wrong, said):
    assert said in refused("ticket", "pack", state, "--out", "a.ticket", *SAID, *FED, *wrong)
    assert not (tmp_path / "a.ticket").exists()


def test_an_unknown_name_is_refused_without_a_shape_to_build_it_for(refused, state):
    words = ("ticket", "pack", state, "--out", "a.ticket", "--model", "nosuchmodel")
    assert "'nosuchmodel' is unknown" in refused(*words)


def test_other_means_than_the_headers_channels_are_refused(refused, answer, state):
    answer("ticket", "pack", state, "--out", "a.ticket", *SAID, *FED)
    words = ("ticket", "pack", "a.ticket", "--out", "b.ticket", "--mean", 0.5, "--std", 0.2)
    assert "a.ticket has mean=[0.5] for images of 3 channel(s)" in refused(*words)


@pytest.mark.parametrize(
    "wrong", [{"model": 3}, {"model": {"nom": 1, "name": "conv2"}}, {"input": 3}]
)
def test_a_header_of_other_types_can_be_said_anew(answer, refused, wrong, tmp_path):
    save_ticket("a.ticket", masked(), about=wrong)
    pack = ("ticket", "pack", "a.ticket", "--out", "b.ticket")
    answer(*pack)  # nothing said, nothing to look at
    if wrong.get("model") == {"nom": 1, "name": "conv2"}:
        assert "say another with --model" in refused(*pack, "--width", 0.25)
        return
    answer(*pack, *SAID, *FED)
    answer("ticket", "bake", "b.ticket", "--out", "m.safetensors")


def test_a_pytorch_file_is_told_how_to_come_in(refused, tmp_path):
    for zipped in (True, False):
        torch.save(masked().state_dict(), "sd.pt", _use_new_zipfile_serialization=zipped)
        said = refused("ticket", "pack", "sd.pt", "--out", "a.ticket")
        assert "safetensors.torch.save_file" in said


@pytest.mark.parametrize("verb", ["inspect", "run", "bake", "unpack"])
def test_a_folder_of_something_else_says_what_to_do(refused, verb, tmp_path):
    words = {"run": ("x.png",), "bake": ("--out", "m"), "unpack": ("--out", "u")}.get(verb, ())
    write_unpacked(tmp_path / "u1", gather(masked()))
    assert "ticket pack" in refused("ticket", verb, tmp_path / "u1", *words)
    (tmp_path / "dense").mkdir()
    (tmp_path / "dense" / "model.safetensors").write_bytes(b"")
    said = refused("ticket", verb, tmp_path / "dense", *words)
    assert "trained weights, model.safetensors, and no ticket" in said
    assert f"`regraft predict {tmp_path / 'dense'} IMAGES` opens them" in said
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "checkpoint.safetensors").write_bytes(b"")
    said = refused("ticket", verb, tmp_path / "half", *words)
    assert "an unfinished run and no ticket: start the same command again" in said


def test_a_ticket_of_more_weights_than_bytes_is_unpacked_only_by_force(
    answer, refused, monkeypatch, tmp_path
):
    monkeypatch.setattr("regraft.tickets.file.unpacked._MAX_BITLESS", 1 << 10)
    save_ticket("a.ticket", edge_popup(torch.nn.Linear(64, 64), sparsity=0.0))
    words = ("ticket", "unpack", "a.ticket", "--out", tmp_path / "folder")
    assert "claims 4096 weights that it has no bits for" in refused(*words)
    assert not (tmp_path / "folder").exists()
    answer(*words, "--force")
    answer("ticket", "pack", tmp_path / "folder", "--out", "b.ticket")
    assert (tmp_path / "b.ticket").read_bytes() == (tmp_path / "a.ticket").read_bytes()
    assert json.loads((tmp_path / "folder" / "ticket.json").read_text())["schema"] == 2

import argparse
import os
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from regraft.checkpoints import read_checkpoint
from regraft.errors import InputError

STATE = {"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(2)}


@pytest.mark.parametrize("name", ["x.pth.tar", "x.ckpt", "x.bin", "x", "x.safetensors", "x.th"])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_is_what_it_holds_whatever_it_is_called(tmp_path, name, legacy):
    torch.save(
        {"epoch": 3, "state_dict": STATE},
        tmp_path / name,
        _use_new_zipfile_serialization=not legacy,
    )
    checkpoint = read_checkpoint(tmp_path / name)
    assert list(checkpoint) == list(STATE)
    assert torch.equal(checkpoint["a.weight"], STATE["a.weight"])


@pytest.mark.parametrize(
    "key", ["state_dict", "model_state_dict", "model", "net", "network", "params"]
)
def test_the_usual_keys_are_looked_into(tmp_path, key):
    torch.save({"epoch": 3, key: STATE, "loss": 0.5}, tmp_path / "x.pth")
    checkpoint = read_checkpoint(tmp_path / "x.pth")
    assert list(checkpoint) == list(STATE)
    assert f"found under {key!r}" in checkpoint.notes[0]


@pytest.mark.parametrize("key", ["model_ema", "state_dict_ema", "ema"])
def test_a_running_average_is_taken_where_there_is_nothing_else_and_said(tmp_path, key):
    average = {k: v + 1 for k, v in STATE.items()}
    torch.save({key: average, "epoch": 3}, tmp_path / "x.pth")
    checkpoint = read_checkpoint(tmp_path / "x.pth")
    assert torch.equal(checkpoint["a.weight"], average["a.weight"])
    assert "a running average of weights was found" in checkpoint.notes[0]
    torch.save({key: average, "state_dict": STATE}, tmp_path / "y.pth")
    assert torch.equal(read_checkpoint(tmp_path / "y.pth")["a.weight"], STATE["a.weight"])


def refused(path):
    with pytest.raises(InputError) as caught:
        read_checkpoint(path)
    said = str(caught.value)
    assert "\x1b" not in said
    assert "damaged" not in said
    return said


def test_what_would_run_code_is_refused_in_our_words(tmp_path):
    torch.save({"model": STATE, "args": argparse.Namespace(lr=0.1)}, tmp_path / "x.pth")
    assert "state_dict()" in refused(tmp_path / "x.pth")


def test_a_torchscript_archive_is_named(tmp_path):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "x.pt")
    assert "is a TorchScript archive" in refused(tmp_path / "x.pt")


def test_another_zip_archive_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "a ZIP archive of something else (readme.txt)" in refused(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("start", "said"),
    [(b"GGUF", "GGUF"), (b"\x89HDF\r\n\x1a\n", "HDF5"), (b"\x08\x07\x12\x07pytorch", "ONNX")],
)
def test_files_of_other_frameworks_are_named(tmp_path, start, said):
    (tmp_path / "x.bin").write_bytes(start + bytes(64))
    assert said in refused(tmp_path / "x.bin")


def test_arrays_of_numpy_are_named(tmp_path):
    np.save(tmp_path / "x.npy", np.ones(3))
    assert "a file of NumPy" in refused(tmp_path / "x.npy")


def test_a_mapping_that_holds_itself_comes_to_an_end(tmp_path):
    state = {}
    state["model"] = {"state_dict": state}
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(InputError, match="holds no state dict of tensors"):
        read_checkpoint(tmp_path / "a.pt")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: torch.zeros(1).expand(1 << 40), "w repeats values that the file holds once"),
        (lambda: torch.zeros(3, device="meta"), "w has no values"),
        (lambda: torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8), "w is quantised"),
    ],
)
def test_tensors_without_values_of_their_own_are_refused_at_no_cost(tmp_path, make, said, legacy):
    torch.save({"w": make()}, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InputError, match=said):
        read_checkpoint(tmp_path / "a.pt")


def test_an_archive_that_was_compressed_is_not_taken_for_numbers(tmp_path):
    torch.save({"w": torch.randn(64)}, tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as old,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(InputError, match=r"was compressed after torch\.save wrote it"):
        read_checkpoint(tmp_path / "b.pt")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.pt")
    with pytest.raises(InputError, match="is a pipe or a device"):
        read_checkpoint(tmp_path / "a.pt")

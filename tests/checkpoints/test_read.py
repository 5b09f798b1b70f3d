import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from regraft.checkpoints.names import unwrapped
from regraft.checkpoints.read import (
    check_alike,
    check_finite,
    check_tied,
    fit_names,
    read_checkpoint,
    tied_names,
)
from regraft.errors import InputError
from regraft.files import write_tensors
from regraft.models import MLP, ConvSmall
from regraft.train import save_state


def network():
    return ConvSmall(3, image_size=8, width=0.25)


@pytest.fixture
def state():
    torch.manual_seed(0)
    return network().state_dict()


def same(found, state):
    assert list(found) == list(state)
    assert len(found) == len(state)
    for name, tensor in state.items():
        assert torch.equal(found[name], tensor)
        assert found[name].dtype == tensor.dtype
        assert found.sketch[name].shape == tensor.shape
        assert found.sketch[name].is_meta


def written(path, state, **more):
    save_file(state, path, **more)
    return path


def sharded(folder, state):
    folder.mkdir(exist_ok=True)
    names = list(state)
    parts = {"m-1.safetensors": names[::2], "m-2.safetensors": names[1::2]}
    for file, keys in parts.items():
        save_file({k: state[k] for k in keys}, folder / file)
    weight_map = {k: file for file, keys in parts.items() for k in keys}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def test_every_form_reads_alike(state, tmp_path):
    write_tensors(tmp_path / "a.safetensors", state, {"regraft.model": "{}"})
    torch.save(state, tmp_path / "a.pt")
    torch.save(state, tmp_path / "a.th", _use_new_zipfile_serialization=False)
    save_state(tmp_path / "run.safetensors", {"step": 3, "model": dict(state)})
    sharded(tmp_path / "shards", state)
    (tmp_path / "folder").mkdir()
    save_file(state, tmp_path / "folder" / "model.safetensors")
    (tmp_path / "other").mkdir()
    save_file(state, tmp_path / "other" / "weights.safetensors")
    for name in (
        "a.safetensors", "a.pt", "a.th", "run.safetensors", "shards", "folder", "other",
        "shards/model.safetensors.index.json",
    ):  # fmt: skip
        found = fit_names(read_checkpoint(tmp_path / name), network())
        same(found, state)
        assert found.nbytes == sum(t.numel() * t.element_size() for t in state.values())
        assert found.notes == ()
        check_finite(found)
    assert read_checkpoint(tmp_path / "a.safetensors").metadata["regraft.model"] == "{}"


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_a_nested_state_is_found_and_said(key, state, tmp_path):
    torch.save({"epoch": 3, key: state, "optimizer": {"lr": 0.1}}, tmp_path / "a.pth")
    found = read_checkpoint(tmp_path / "a.pth")
    same(found, state)
    assert repr(key) in found.notes[0]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model."])
def test_a_prefix_is_dropped_where_the_names_fit_then_and_said(prefix, state, tmp_path):
    path = written(tmp_path / "a.safetensors", {prefix + k: v for k, v in state.items()})
    found = fit_names(read_checkpoint(path), network())
    same(found, state)
    assert repr(prefix) in found.notes[0]
    assert "dropped" in found.notes[0]


def test_a_prefix_that_the_model_has_is_added(state, tmp_path):
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = network()

    path = written(tmp_path / "a.safetensors", state)
    found = fit_names(read_checkpoint(path), Wrapper())
    same(found, {f"model.{k}": v for k, v in state.items()})
    assert "added" in found.notes[0]


def test_a_tied_tensor_has_all_its_names(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    path = written(tmp_path / "a.safetensors", {"1.weight": torch.ones(3, 3)})
    found = fit_names(read_checkpoint(path), model)
    same(found, {"0.weight": torch.ones(3, 3), "1.weight": torch.ones(3, 3)})
    assert "0.weight is tied" in found.notes[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn])
def test_tied_names_with_different_values_are_named(dtype, tmp_path):
    model = nn.Sequential(*(nn.Linear(3, 3, bias=False) for _ in range(4)))
    model[1].weight = model[3].weight = model[0].weight
    assert tied_names(model) == [["0.weight", "1.weight", "3.weight"]]
    one = torch.arange(9.0).reshape(3, 3)
    state = {f"{i}.weight": one.to(dtype, copy=True) for i in range(4)}
    # The same values in another dtype, and of what is no number: another check tells of it.
    state["1.weight"] = state["1.weight"].to(torch.float16)
    for name in ("0.weight", "1.weight", "3.weight"):
        state[name] = torch.where(torch.eye(3) > 0, float("nan"), state[name].float())
        state[name] = state[name].to(torch.float16 if name == "1.weight" else dtype)
    found = fit_names(read_checkpoint(written(tmp_path / "a.safetensors", state)), model)
    check_tied(found, tied_names(model))
    changed = state["3.weight"].float()
    changed[0, 1] = 7
    path = written(tmp_path / "b.safetensors", {**state, "3.weight": changed.to(dtype)})
    found = fit_names(read_checkpoint(path), model)
    said("0.weight and 3.weight are one tied tensor", check_tied, found, tied_names(model))
    # Stored once it has one value.
    once = {k: v for k, v in state.items() if k in ("2.weight", "3.weight")}
    found = fit_names(read_checkpoint(written(tmp_path / "c.safetensors", once)), model)
    check_tied(found, tied_names(model))


def test_tensors_that_are_not_dense_are_named(state, tmp_path):
    packed = {**state, "head.weight": state["head.weight"].to_sparse()}
    torch.save(packed, tmp_path / "a.pt")
    said("head.weight is stored as a sparse_coo tensor", read_checkpoint, tmp_path / "a.pt")


def said(match, call, *arguments):
    with pytest.raises(InputError, match=match) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)


def test_files_that_are_none_are_said(state, tmp_path):
    said("no such file", read_checkpoint, tmp_path / "none.pt")
    said("a folder without model.safetensors", read_checkpoint, tmp_path)
    (tmp_path / "empty.safetensors").write_bytes(b"")
    said("cannot be read as safetensors", read_checkpoint, tmp_path / "empty.safetensors")
    (tmp_path / "text.safetensors").write_text("not at all" * 50)
    said("cannot be read as safetensors", read_checkpoint, tmp_path / "text.safetensors")
    whole = written(tmp_path / "a.safetensors", state).read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-40])
    said("damaged or cut short", read_checkpoint, tmp_path / "cut.safetensors")
    torch.save(state, tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    said("damaged or cut short", read_checkpoint, tmp_path / "cut.pt")
    save_file({}, tmp_path / "nothing.safetensors")
    said("holds no tensors", read_checkpoint, tmp_path / "nothing.safetensors")
    torch.save([1, 2], tmp_path / "list.pt")
    said("no state dict of tensors", read_checkpoint, tmp_path / "list.pt")
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "numbers.pt")
    said("it has epoch, lr", read_checkpoint, tmp_path / "numbers.pt")
    save_state(tmp_path / "run.safetensors", {"step": torch.ones(2)})
    said("without a model in it", read_checkpoint, tmp_path / "run.safetensors")


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("made-by-a-pickle",)


def test_a_pickle_never_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"w": Harmful()}, tmp_path / "a.pt")
    said("would run code when opened", read_checkpoint, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps({"w": Harmful()}, protocol=2))
    said("cannot be read|would run code", read_checkpoint, tmp_path / "b.pt")
    torch.save(network(), tmp_path / "whole.pt")
    said("save `model.state_dict\\(\\)` alone", read_checkpoint, tmp_path / "whole.pt")
    assert not Path("made-by-a-pickle").exists()


def test_broken_shards_are_said(state, tmp_path):
    index = sharded(tmp_path / "s", state)
    (tmp_path / "s" / "m-2.safetensors").unlink()
    said("names the shard m-2.safetensors, which is not there", read_checkpoint, tmp_path / "s")
    save_file({"w": torch.ones(1)}, tmp_path / "s" / "m-2.safetensors")
    said("into m-2.safetensors, which does not hold it", read_checkpoint, tmp_path / "s")
    index.write_text('{"weight_map": {"w": "../../etc/x.safetensors"}}')
    said("outside its own folder", read_checkpoint, tmp_path / "s")
    index.write_text('{"weight_map": {"w": "m-1.bin"}}')
    said("not there", read_checkpoint, tmp_path / "s")
    for text in ("{", "[]", '{"weight_map": 3}'):
        index.write_text(text)
        said("no index of shards", read_checkpoint, tmp_path / "s")


@pytest.mark.parametrize("kind", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float8_e5m2])
def test_a_value_that_is_no_number_is_named(kind, dtype, state, tmp_path):
    bad = state["features.3.weight"].float().clone()
    bad[1, 0, 0, 0] = float(kind)
    state["features.3.weight"] = bad.to(dtype)
    path = written(tmp_path / "a.safetensors", state)
    what = "NaN" if kind == "nan" else "infinite"
    said(f"features.3.weight holds {what} values \\(1 of", check_finite, read_checkpoint(path))


def test_dtypes_that_cannot_be_merged_are_named(state, tmp_path):
    complex_ = {**state, "head.bias": state["head.bias"].to(torch.complex64)}
    path = written(tmp_path / "a.safetensors", complex_)
    said("head.bias has dtype complex64", read_checkpoint, path)
    eight = {**state, "head.weight": state["head.weight"].to(torch.int8)}
    path = written(tmp_path / "b.safetensors", eight)
    said(
        "head.weight is int8 and the model has float32", fit_names, read_checkpoint(path), network()
    )
    other = read_checkpoint(written(tmp_path / "c.safetensors", state))
    said("head.weight is float32 in .*c.safe", check_alike, other, read_checkpoint(path))


def test_the_first_difference_of_two_architectures_is_named(state, tmp_path):
    a = read_checkpoint(written(tmp_path / "a.safetensors", state))
    torch.manual_seed(0)
    wide = ConvSmall(3, image_size=8, width=0.5).state_dict()
    b = read_checkpoint(written(tmp_path / "b.safetensors", wide))
    said(r"b.safetensors: features.0.weight has shape \(8, 1, 3, 3\), expected", check_alike, a, b)
    said("b.safetensors: features.0.weight has shape", fit_names, b, network())
    short = {k: v for k, v in state.items() if k != "head.bias"}
    c = read_checkpoint(written(tmp_path / "c.safetensors", short))
    said("c.safetensors has no tensor 'head.bias'", check_alike, a, c)
    said("c.safetensors has no tensor 'head.bias'", fit_names, c, network())
    said("a.safetensors has a tensor 'head.bias'", check_alike, c, a)
    said("features.1.weight has shape", fit_names, a, MLP(4, [3], 2))
    check_alike(a, a)


def test_a_tensor_is_not_read_before_it_is_used(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(4), "b": torch.ones(4)}, path)
    found = read_checkpoint(path)
    save_file({"a": torch.full((4,), 2.0), "b": torch.ones(4)}, path)
    assert found["a"][0] == 2


@pytest.mark.data
def test_a_published_checkpoint_reads():
    path = Path(os.environ.get("REGRAFT_DATA", "none")) / "weights" / "resnet20-12fca82f.th"
    if not path.exists():
        pytest.skip("the published weights are not there")
    found = unwrapped(read_checkpoint(path))
    check_finite(found)
    assert found["conv1.weight"].shape == (16, 3, 3, 3)
    assert [n.split(": ")[1] for n in found.notes] == [
        "the state dict was found under 'state_dict'",
        "the prefix 'module.' of names was dropped",
    ]


def test_a_header_whose_length_looks_like_a_pickle_is_that_of_safetensors(tmp_path):
    path = tmp_path / "a.safetensors"
    for size in range(400, 700):  # one of these lengths is 640, which is 80 02 in bytes
        save_file({"a": torch.ones(2)}, path, metadata={"x": "y" * size})
        if path.read_bytes()[:2] == b"\x80\x02":
            break
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert list(read_checkpoint(path)) == ["a"]


def test_a_model_file_with_a_flipped_bit_is_refused(state, tmp_path):
    file = tmp_path / "a.safetensors"
    write_tensors(file, state, {"regraft.model": "{}"})
    whole = file.read_bytes()
    for at in range(0, len(whole), 211):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(InputError):
            read_checkpoint(file)

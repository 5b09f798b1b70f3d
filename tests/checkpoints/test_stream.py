import weakref

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from regraft.checkpoints.stream import _DTYPES, write_stream
from regraft.errors import InputError
from regraft.files import read_tensors

DTYPES = sorted(_DTYPES, key=str)


def tensors():
    generator = torch.Generator().manual_seed(0)
    found = {"scalar": torch.tensor(3), "none": torch.zeros(0, 4)}
    for i, dtype in enumerate(DTYPES):
        drawn = torch.randint(0, 2, (3, i + 1), generator=generator)
        found[f"t{i}"] = drawn.to(dtype)
    return found


def sketch(found):
    return {k: torch.empty_like(v, device="meta") for k, v in found.items()}


@pytest.mark.parametrize("backwards", [False, True])
def test_what_is_written_is_what_safetensors_reads(backwards, tmp_path):
    found = tensors()
    pairs = list(found.items())[:: -1 if backwards else 1]
    path = tmp_path / "deep" / "a.safetensors"
    size = write_stream(path, sketch(found), iter(pairs), {"made": "ünïcode"})
    assert path.stat().st_size == size
    back = load_file(path)
    assert back.keys() == found.keys()
    for name, tensor in found.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name].double(), tensor.double())
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["made"] == "ünïcode"
    assert read_tensors(path)[0] == metadata


def test_a_file_that_is_not_whole_is_not_there(tmp_path):
    found = tensors()
    path = tmp_path / "a.safetensors"
    path.write_text("older")
    pairs = list(found.items())
    for wrong, said in (
        (pairs[:-1], "never came"),
        ([*pairs, pairs[0]], "is not the tensor that was announced"),
        ([("scalar", torch.tensor(3.0))], "scalar is not the tensor that was announced"),
        ([("other", torch.tensor(3))], "other is not the tensor that was announced"),
    ):
        with pytest.raises(InputError, match=said):
            write_stream(path, sketch(found), wrong, {})
        assert path.read_text() == "older"
        assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    with pytest.raises(InputError, match="z has dtype"):
        write_stream(path, {"z": torch.empty(1, dtype=torch.complex64)}, [], {})


def test_no_more_than_two_tensors_are_alive(tmp_path):
    found = {f"t{i}": torch.ones(5) for i in range(6)}
    alive = weakref.WeakSet()
    most = []

    def one_by_one():
        for name in found:
            tensor = torch.ones(5)
            alive.add(tensor)
            most.append(len(alive))
            yield name, tensor

    write_stream(tmp_path / "a.safetensors", sketch(found), one_by_one(), {})
    assert len(most) == 6
    assert max(most) <= 2

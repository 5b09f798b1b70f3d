import math

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from regraft.errors import InputError
from regraft.files import write_tensors
from regraft.train import load_state, save_state
from regraft.train.checkpoint import random_state, set_random_state

DTYPES = [
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.uint8,
    torch.bool,
]


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    values = torch.arange(math.prod(shape)).reshape(shape) * draw(st.integers(-3, 3))
    tensor = values.to(draw(st.sampled_from(DTYPES)))
    return tensor.mT if draw(st.booleans()) and tensor.ndim > 1 else tensor


keys = st.text(max_size=4) | st.sampled_from(["1", "a/b", "a", "b", "/", ""]) | st.integers(-2, 3)
numbers = st.integers() | st.floats(allow_nan=False) | st.booleans()
leaves = numbers | st.none() | st.text(max_size=8) | tensors()
trees = st.recursive(
    leaves,
    lambda below: (
        st.lists(below, max_size=4)
        | st.dictionaries(keys, below, max_size=4)
        # The same object in two places: a tied weight.
        | below.map(lambda node: [node, {"again": node}])
    ),
    max_leaves=12,
)
states = st.dictionaries(st.text(max_size=4) | st.sampled_from(["a/b", "a"]), trees, max_size=5)


def same(left, right):
    if isinstance(left, torch.Tensor):
        return (
            isinstance(right, torch.Tensor)
            and left.dtype == right.dtype
            and left.shape == right.shape
            and torch.equal(left, right)
        )
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[k], right[k]) for k in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(state=states)
def test_what_is_saved_is_loaded(tmp_path, state):
    save_state(tmp_path / "state", state)
    assert same(load_state(tmp_path / "state"), state)


def test_keys_that_spell_the_same_path_stay_apart(tmp_path):
    numbers = {1: torch.ones(3), "1": torch.ones(4)}
    state = {"a": {"b": torch.zeros(2)}, "a/b": torch.ones(2), "n": numbers}
    save_state(tmp_path / "state", state)
    assert same(load_state(tmp_path / "state"), state)


def test_numbers_that_are_not_finite_come_back(tmp_path):
    save_state(tmp_path / "state", {"x": [math.nan, math.inf, -math.inf, 10**40]})
    found = load_state(tmp_path / "state")["x"]
    assert math.isnan(found[0])
    assert found[1:] == [math.inf, -math.inf, 10**40]


def test_shared_tensors_are_stored_once_and_views_are_cut_out(tmp_path):
    big = torch.arange(10_000.0)
    save_state(tmp_path / "state", {"a": big, "b": big, "row": big[10:12]})
    assert (tmp_path / "state").stat().st_size < 1.1 * big.nbytes
    found = load_state(tmp_path / "state")
    assert torch.equal(found["b"], big)
    assert torch.equal(found["row"], torch.tensor([10.0, 11.0]))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_the_state_of_an_optimiser_goes_around(tmp_path, optimizer):
    model = nn.Linear(3, 2)
    made = optimizer(model.parameters(), lr=0.1)
    model(torch.ones(4, 3)).sum().backward()
    made.step()
    save_state(tmp_path / "state", {"optimizer": made.state_dict()})
    other = optimizer(model.parameters(), lr=9.0)
    other.load_state_dict(load_state(tmp_path / "state")["optimizer"])
    assert other.param_groups[0]["lr"] == 0.1
    for left, right in zip(made.state.values(), other.state.values(), strict=True):
        assert same(left, right)


def test_the_random_state_goes_around(tmp_path):
    save_state(tmp_path / "state", random_state())
    expected = torch.rand(5)
    torch.rand(3)
    set_random_state(load_state(tmp_path / "state"))
    assert torch.equal(torch.rand(5), expected)


@pytest.mark.parametrize(
    ("leaf", "name"),
    [({1, 2}, "set"), (b"x", "bytes"), (1 + 2j, "complex"), (np.zeros(2), "ndarray")],
)
def test_a_leaf_of_another_type_is_refused_by_its_place(tmp_path, leaf, name):
    with pytest.raises(TypeError, match=rf"state at /a/0/b is a {name}: store tensors"):
        save_state(tmp_path / "state", {"a": [{"b": leaf}]})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", [(1, 2), None, 0.5])
def test_a_key_of_another_type_is_refused(tmp_path, key):
    with pytest.raises(TypeError, match=r"state at /a has the key .*: use text or integers"):
        save_state(tmp_path / "state", {"a": {key: 1}})


def test_a_newer_schema_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("regraft.train.checkpoint.SCHEMA", 2)
    save_state(tmp_path / "state", {})
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"has schema 2, this version reads up to 1: update"):
        load_state(tmp_path / "state")


@pytest.mark.parametrize(
    "data", [b"", b"garbage", b"\x08" + b"\x00" * 7 + b"{}      ", b"\xff" * 64]
)
def test_garbage_is_refused(tmp_path, data):
    (tmp_path / "state").write_bytes(data)
    with pytest.raises(InputError, match=r"state (is damaged|is not a Regraft)"):
        load_state(tmp_path / "state")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (None, "is not a Regraft state file"),
        ({"schema": "1"}, "is not a Regraft state file"),
        ({"tree": '{"v": 1}'}, "is damaged"),
        ({"schema": "one", "tree": '{"v": 1}'}, "is damaged"),
        ({"schema": "1", "tree": '{"d": [['}, "is damaged"),
        ({"schema": "1", "tree": "[]"}, "is damaged"),
        ({"schema": "1", "tree": '{"d": 3}'}, "is damaged"),
        ({"schema": "1", "tree": '{"t": "gone"}'}, "is damaged"),
    ],
)
def test_other_safetensors_files_are_refused(tmp_path, header, message):
    if header is None:
        safetensors.torch.save_file({"w": torch.zeros(2)}, tmp_path / "state")
    else:
        write_tensors(tmp_path / "state", {"w": torch.zeros(2)}, header)
    with pytest.raises(InputError, match=message):
        load_state(tmp_path / "state")


@pytest.mark.parametrize("name", ["missing", "."])
def test_a_missing_file_or_a_folder_is_refused(tmp_path, name):
    with pytest.raises(InputError, match=r"cannot be read|is damaged"):
        load_state(tmp_path / name)


def test_a_flipped_bit_is_refused_wherever_it_is(tmp_path):
    file = tmp_path / "state"
    save_state(file, {"w": torch.arange(5.0), "step": 3})
    whole = file.read_bytes()
    for at in range(len(whole)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        with pytest.raises(InputError):
            load_state(file)

import json
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import conv_net, images
from safetensors.torch import load_file, safe_open, save_file
from torch import nn

from regraft.errors import InputError
from regraft.files import write_tensors
from regraft.tickets import bake, edge_popup
from regraft.tickets.quantise import load_quantised, quantise, save_quantised

WEIGHTS = ["0.weight", "3.weight", "7.weight"]
BITS = st.integers(2, 8)


def heavy(rows, columns, seed, scale=1.0):
    """A linear layer whose channels have very different sizes, with a few large weights."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(columns, rows)
    w = torch.randn(rows, columns, generator=generator) ** 3
    model.weight.data = scale * w * torch.logspace(-2, 1, rows)[:, None]
    return model


def reference(channel, bits):
    """The slow twin: each weight of a channel goes to its nearest level, for each clipping factor."""
    level = 2 ** (bits - 1) - 1
    top = max(abs(w) for w in channel)
    best = (math.inf, [])
    for i in range(37):
        scale = float(torch.tensor(top / level * (1 - i / 40)).half())
        levels = [k * scale for k in range(-level, level + 1)]
        values = [min(levels, key=lambda v: abs(v - w)) for w in channel]
        error = sum((v - w) ** 2 for v, w in zip(values, channel, strict=True))
        best = min(best, (error, values), key=lambda pair: pair[0])
    return best


def squared_error(model, bits):
    dequantised = quantise(model, bits).dequantise(model).weight.double()
    return (dequantised - model.weight.double()).detach().square().sum(dim=1)


@settings(max_examples=25)
@given(rows=st.integers(1, 4), columns=st.integers(1, 12), seed=st.integers(0, 999), bits=BITS)
def test_it_leaves_the_error_of_the_slow_twin(rows, columns, seed, bits):
    model = heavy(rows, columns, seed)
    found = squared_error(model, bits)
    expected = [reference(row.tolist(), bits)[0] for row in model.weight.detach()]
    assert found.tolist() == pytest.approx(expected, rel=1e-3, abs=1e-9)


@given(seed=st.integers(0, 999), bits=BITS)
def test_every_weight_has_the_nearest_level_of_its_channel(seed, bits):
    model = heavy(3, 40, seed)
    q = quantise(model, bits)
    level = 2 ** (bits - 1) - 1
    assert int(q.codes["weight"].abs().max()) <= level
    scale = q.scales["weight"].float()[:, None]
    nearest = (model.weight / scale).round().clamp(-level, level)
    assert torch.equal(q.codes["weight"].float(), nearest)


def test_more_bits_leave_less_error():
    model = heavy(8, 500, seed=1)
    errors = [float(squared_error(model, bits).sum()) for bits in range(2, 9)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-2 * errors[0]


def test_clipping_pays_at_few_bits():
    model = heavy(8, 2000, seed=2)
    for bits, gain in ((2, 0.9), (4, 0.9), (8, 1.0)):
        level = 2 ** (bits - 1) - 1
        scale = (model.weight.detach().abs().amax(dim=1, keepdim=True) / level).half().float()
        plain = (model.weight / scale).round() * scale
        unclipped = (plain - model.weight).double().square().sum(dim=1)
        assert (squared_error(model, bits) <= gain * unclipped + 1e-9).all()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), seed=st.integers(0, 999), bits=BITS)
def test_the_file_gives_back_every_bit(tmp_path, rows, columns, seed, bits):
    q = quantise(heavy(rows, columns, seed), bits)
    size = save_quantised(tmp_path / "q.safetensors", q)
    again = load_quantised(tmp_path / "q.safetensors")
    assert size == (tmp_path / "q.safetensors").stat().st_size
    assert (again.bits, again.tied) == (bits, {})
    for mine, theirs in ((q.codes, again.codes), (q.scales, again.scales), (q.state, again.state)):
        assert mine.keys() == theirs.keys()
        assert all(
            torch.equal(t, theirs[k]) and t.dtype == theirs[k].dtype for k, t in mine.items()
        )


@given(bits=BITS)
def test_the_ends_of_the_range_survive_packing(bits):
    level = 2 ** (bits - 1) - 1
    model = nn.Linear(2 * level + 1, 1, bias=False)
    model.weight.data = torch.arange(-level, level + 1).float()[None]
    assert quantise(model, bits).codes["weight"].tolist() == [list(range(-level, level + 1))]


def test_a_file_of_three_bits_has_three_bits_for_each_weight(tmp_path):
    model = nn.Linear(1000, 1000, bias=False)
    size = save_quantised(tmp_path / "q", quantise(model, 3))
    assert size == pytest.approx(3 * 1000 * 1000 / 8 + 2 * 1000, abs=1000)


def test_only_what_tickets_mask_is_quantised():
    model = conv_net()
    model(images()[0])
    q = quantise(model, 4)
    copy = q.dequantise(model)
    assert list(q.codes) == WEIGHTS
    for key, tensor in model.state_dict().items():
        assert torch.equal(copy.state_dict()[key], tensor) == (key not in WEIGHTS)


def test_eight_bits_hardly_change_the_outputs_and_the_model_not_at_all():
    model = conv_net().eval()
    before = {k: t.clone() for k, t in model.state_dict().items()}
    x, _ = images()
    copy = quantise(model, 8).dequantise(model)
    difference = (copy(x) - model(x)).abs().max()
    assert 0 < difference < 0.02 * model(x).abs().max()
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())


def test_a_file_makes_the_same_network(tmp_path):
    model = conv_net().eval()
    q = quantise(model, 3)
    save_quantised(tmp_path / "q", q)
    x, _ = images()
    other = conv_net().eval()
    assert torch.equal(load_quantised(tmp_path / "q").dequantise(other)(x), q.dequantise(model)(x))


def test_a_baked_ticket_of_signed_constants_is_exact_at_two_bits():
    model = bake(edge_popup(conv_net(), sparsity=0.5, seed=1))
    copy = quantise(model, 2).dequantise(model)
    for name in WEIGHTS:
        weight, found = model.get_parameter(name), copy.get_parameter(name)
        assert torch.equal(weight.sign(), found.sign())
        assert torch.allclose(weight, found, rtol=1e-3)


def test_a_channel_of_zeros_stays_zero():
    model = nn.Linear(4, 2, bias=False)
    model.weight.data[0] = 0
    found = quantise(model, 4).dequantise(model).weight
    assert (found[0] == 0).all()
    assert (found[1] != 0).any()


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path):
    model = nn.Sequential(nn.Linear(50, 50, bias=False), nn.Linear(50, 50, bias=False))
    alone = save_quantised(tmp_path / "one", quantise(model[:1], 4))
    model[1].weight = model[0].weight
    size = save_quantised(tmp_path / "two", quantise(model, 4))
    assert size - alone < 100
    copy = load_quantised(tmp_path / "two").dequantise(model)
    assert copy[0].weight is copy[1].weight
    assert torch.equal(copy[0].weight, quantise(model[:1], 4).dequantise(model[:1])[0].weight)


def test_what_stays_trainable_stays_as_it_is():
    model = conv_net()
    copy = quantise(model, 2, trainable=["7.*"]).dequantise(model)
    assert torch.equal(copy[7].weight, model[7].weight)
    assert not torch.equal(copy[3].weight, model[3].weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_copy_keeps_the_dtype(dtype):
    model = nn.Linear(6, 3).to(dtype)
    copy = quantise(model, 8).dequantise(model)
    assert copy.weight.dtype == dtype
    assert torch.allclose(copy.weight, model.weight, atol=0.02)


@pytest.mark.parametrize("bits", [1, 9, 0, 2.5, "4"])
def test_other_widths_are_refused(bits):
    with pytest.raises(InputError, match=f"bits={bits}"):
        quantise(nn.Linear(2, 2), bits)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e9])
def test_weights_that_no_scale_reaches_are_refused(value):
    model = nn.Linear(3, 2)
    model.weight.data[1, 2] = value
    with pytest.raises(InputError, match="'weight' reaches"):
        quantise(model, 8)


def test_models_that_cannot_be_quantised_are_refused():
    with pytest.raises(InputError, match="no maskable weight"):
        quantise(nn.ReLU(), 4)
    with pytest.raises(InputError, match="already parametrised"):
        quantise(edge_popup(conv_net()), 4)
    with pytest.raises(InputError, match="does not fit"):
        quantise(conv_net(), 4).dequantise(conv_net(classes=4))


def rewritten(tmp_path, change):
    """Return a file of quantised weights whose header and tensors went through `change`."""
    path = tmp_path / "q.safetensors"
    save_quantised(path, quantise(conv_net(), 4))
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["regraft.quantised"])
    tensors = load_file(path)
    change(header, tensors)
    write_tensors(path, tensors, {"regraft.quantised": json.dumps(header)})
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, t: h.update(schema=2), "schema 2"),
        (lambda h, t: h.pop("bits"), "no readable file"),
        (lambda h, t: t.pop("code/7.weight"), "no readable file"),
    ],
)
def test_a_damaged_or_newer_file_is_refused(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        load_quantised(rewritten(tmp_path, change))


def test_other_files_are_refused(tmp_path):
    path = rewritten(tmp_path, lambda h, t: None)
    load_quantised(path)
    data = path.read_bytes()
    for length in (0, 7, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match="no readable file"):
            load_quantised(path)
    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    for wrong in (tmp_path / "other", tmp_path / "none", tmp_path):
        with pytest.raises(InputError, match="no readable file"):
            load_quantised(wrong)


def test_a_flipped_bit_is_refused_wherever_it_is(tmp_path):
    path = rewritten(tmp_path, lambda h, t: None)
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        with pytest.raises(InputError):
            load_quantised(path)

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import conv_net, images
from safetensors.torch import load_file, save_file
from torch import nn

from regraft.errors import InputError
from regraft.tickets import IteRand, edge_popup, fill, load_ticket, masks, named_masks, save_ticket

LAWS = ["signed_kaiming_constant", "kaiming_uniform", "kaiming_normal"]


def search(law="signed_kaiming_constant", redraw=True, sparsity=0.6):
    model = edge_popup(conv_net(), weight_init=law, sparsity=sparsity, seed=5)
    model(images()[0])  # running statistics that no seed gives back
    if redraw:
        iterand = IteRand(model, every=1, rate=0.5)
        for seed in range(4):
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for _, entry, _ in named_masks(model):
                    entry.original += 0.1 * torch.randn(entry.original.shape, generator=generator)
            iterand.step()
    return model.eval()


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("redraw", [False, True])
def test_a_ticket_rebuilds_the_network_bit_by_bit(tmp_path, law, redraw):
    model = search(law, redraw)
    size = save_ticket(tmp_path / "ticket.safetensors", model)
    ticket = load_ticket(tmp_path)
    x, _ = images(seed=9)
    assert torch.equal(fill(conv_net(), ticket).eval()(x), model(x))
    assert all(torch.equal(m, masks(model)[n]) for n, m in ticket.masks().items())
    assert size == (tmp_path / "ticket.safetensors").stat().st_size == ticket.size
    assert sum(ticket.bytes_by_part().values()) == size


def test_a_ticket_of_tied_weights_fills_every_owner(tmp_path):
    def tied():
        net = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
        net[1].weight = net[0].weight
        return net

    model = edge_popup(tied(), seed=1)
    save_ticket(tmp_path / "t.safetensors", model)
    x = torch.randn(3, 6)
    assert torch.equal(fill(tied(), load_ticket(tmp_path / "t.safetensors"))(x), model(x))


def test_no_weight_is_stored(tmp_path):
    save_ticket(tmp_path / "t.safetensors", edge_popup(nn.Linear(1000, 1000, bias=False)))
    assert load_ticket(tmp_path / "t.safetensors").size < 1000 * 1000 / 8 + 2048


def test_a_redrawn_signed_constant_costs_a_bit_for_each_kept_weight(tmp_path):
    model = edge_popup(nn.Linear(1000, 1000, bias=False), sparsity=0.75)
    IteRand(model, every=1, rate=0.5).step()
    save_ticket(tmp_path / "t.safetensors", model)
    parts = load_ticket(tmp_path / "t.safetensors").bytes_by_part()
    assert parts["masks"] == 125_000
    assert parts["signs"] == pytest.approx(125_000 / 4, rel=0.01)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(sparsity=st.floats(0, 1), seed=st.integers(0, 2**63))
def test_any_sparsity_and_seed_survive(tmp_path, sparsity, seed):
    model = edge_popup(nn.Linear(13, 7), sparsity=sparsity, seed=seed)
    save_ticket(tmp_path / "t.safetensors", model)
    plain = fill(nn.Linear(13, 7), load_ticket(tmp_path / "t.safetensors"))
    assert torch.equal(plain.weight, model.weight)


def test_what_it_is_about_comes_along(tmp_path):
    about = {"classes": ["katze", "ключ"], "model": {"name": "m:f"}}
    save_ticket(tmp_path / "t.safetensors", search(), about=about)
    header = load_ticket(tmp_path / "t.safetensors").header
    assert header["classes"] == about["classes"]
    assert header["masks"]["7.weight"]["source"]["seed"] == 5


def test_a_plain_model_has_no_ticket(tmp_path):
    with pytest.raises(InputError, match="no edge-popup mask"):
        save_ticket(tmp_path / "t.safetensors", conv_net())


def test_an_unwritable_path_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        save_ticket(tmp_path / "file" / "t.safetensors", search())


def test_a_missing_ticket_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such ticket"):
        load_ticket(tmp_path)


def test_a_file_that_is_no_ticket_is_refused(tmp_path):
    (tmp_path / "a").write_bytes(b"hello")
    save_file({"x": torch.zeros(1)}, tmp_path / "b")
    with pytest.raises(InputError, match="not a readable ticket"):
        load_ticket(tmp_path / "a")
    with pytest.raises(InputError, match="not a ticket"):
        load_ticket(tmp_path / "b")


def rewritten(tmp_path, change):
    """Return a ticket file whose header and tensors went through `change`."""
    path = tmp_path / "ticket.safetensors"
    save_ticket(path, search())
    ticket = load_ticket(path)
    tensors, header = load_file(path), ticket.header
    change(header, tensors)
    save_file(tensors, path, metadata={"regraft.ticket": json.dumps(header)})
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, t: h.update(schema=99), "schema 99"),
        (lambda h, t: h.update(stream=99), "stream 99"),
        (lambda h, t: h.pop("masks"), "not a readable ticket"),
        (lambda h, t: t.pop("mask/7.weight"), "not a readable ticket"),
        (lambda h, t: t["mask/7.weight"].bitwise_not_(), "checksum of mask/7.weight"),
        (lambda h, t: t.update({"sign/7.weight": t["sign/7.weight"][:-1]}), "checksum of sign"),
        (lambda h, t: t["state/1.running_mean"].add_(1e-6), "checksum of state/1.running_mean"),
        (lambda h, t: t.update(more=torch.zeros(1)), "missing or too many"),
        (lambda h, t: h["masks"]["7.weight"].update(kept=3), "does not fit its header"),
    ],
)
def test_a_damaged_or_newer_ticket_is_refused(tmp_path, change, message):
    path = rewritten(tmp_path, change)
    with pytest.raises(InputError, match=message):
        load_ticket(path)


def test_a_truncated_ticket_is_refused(tmp_path):
    path = rewritten(tmp_path, lambda h, t: None)
    data = path.read_bytes()
    for length in (0, 7, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match="not a readable ticket"):
            load_ticket(path)


def test_a_ticket_of_another_architecture_names_the_first_tensor_that_differs(tmp_path):
    save_ticket(tmp_path / "t.safetensors", search())
    ticket = load_ticket(tmp_path / "t.safetensors")
    with pytest.raises(InputError, match=r"'7.bias' has shape \(5,\) in the ticket and \(4,\)"):
        fill(conv_net(classes=4), ticket)
    with pytest.raises(InputError, match="that the model lacks"):
        fill(conv_net()[:7], ticket)
    with pytest.raises(InputError, match="that the ticket lacks"):
        fill(nn.Sequential(*conv_net(), nn.Linear(5, 5)), ticket)

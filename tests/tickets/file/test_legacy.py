import hashlib
import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from networks import conv_net, images
from safetensors.torch import load_file, save_file
from searches import search

from regraft.errors import InputError
from regraft.tickets import fill, gather, load_ticket, masks, named_masks
from regraft.tickets.file.packed import pack, unpack

LAWS = ["signed_kaiming_constant", "kaiming_uniform", "kaiming_normal"]


def checksum(tensor):
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def bits(flags):
    return torch.from_numpy(np.packbits(flags.reshape(-1).numpy(), bitorder="little"))


def save_old(path, model, change=None, about=None):
    """Write a ticket of schema 1, as the first version did."""
    tensors, header = {}, {}
    for name, entry, mask in named_masks(model):
        kept = mask.mask(entry.original)
        tensors[f"mask/{name}"] = bits(kept)
        header[name] = {"source": asdict(mask.source), "kept": int(kept.sum())}
        if mask.draw is not None:
            if mask.source.init == "signed_kaiming_constant":
                tensors[f"sign/{name}"] = bits(mask.weight[kept] > 0)
            else:
                tensors[f"draw/{name}"] = mask.draw[kept]
    for key, tensor in model.state_dict().items():
        if "parametrizations" not in key:
            tensors[f"state/{key}"] = tensor.clone()
    header = {"schema": 1, "stream": 1, "masks": header, **(about or {})}
    header["checksums"] = {k: checksum(t) for k, t in tensors.items()}
    if change is not None:
        change(header, tensors)
    save_file(tensors, path, metadata={"regraft.ticket": json.dumps(header)})


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("redraw", [False, True])
def test_an_old_ticket_is_read_as_it_was_written(tmp_path, law, redraw):
    model = search(law, redraw)
    about = {"classes": ["a", "b"], "model": {"name": "m"}}
    save_old(tmp_path / "ticket.safetensors", model, about=about)
    ticket = load_ticket(tmp_path)
    x, _ = images(seed=9)
    assert torch.equal(fill(conv_net(), ticket).eval()(x), model(x))
    assert all(torch.equal(m, masks(model)[n]) for n, m in ticket.masks().items())
    assert ticket.about == about
    assert ticket.size == (tmp_path / "ticket.safetensors").stat().st_size
    assert ticket.bytes_by_part()["masks"] == sum(-(-m.numel() // 8) for m in masks(model).values())


@pytest.mark.parametrize("law", LAWS)
def test_packed_again_it_is_the_file_that_a_search_writes_today(tmp_path, law):
    model = search(law)
    save_old(tmp_path / "old.safetensors", model)
    data = pack(load_ticket(tmp_path / "old.safetensors"))
    assert data == pack(gather(model))
    assert len(data) < (tmp_path / "old.safetensors").stat().st_size
    assert unpack(data).header["schema"] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, t: h.update(schema=99), "schema 99"),
        (lambda h, t: h.update(stream=99), "stream 99"),
        (lambda h, t: h.pop("masks"), "damaged"),
        (lambda h, t: h.update(masks=[]), "'masks' is no JSON object, or empty"),
        (lambda h, t: h.update(masks={}), "'masks' is no JSON object, or empty"),
        (lambda h, t: h.update(masks=["7.weight"]), "'masks' is no JSON object, or empty"),
        (lambda h, t: h.update(checksums=list(t)), "'checksums' is no JSON object, or empty"),
        (lambda h, t: h["masks"].update({"7.weight": []}), "damaged"),
        (lambda h, t: h["masks"]["7.weight"].update(source=[]), "damaged"),
        (lambda h, t: h["masks"]["7.weight"].update(tied=3), "damaged"),
        (lambda h, t: t.pop("mask/7.weight"), "missing or too many"),
        (lambda h, t: t["mask/7.weight"].bitwise_not_(), "checksum of mask/7.weight"),
        (lambda h, t: t["state/1.running_mean"].add_(1e-6), "checksum of state/1.running_mean"),
        (lambda h, t: h["masks"]["7.weight"].update(kept=3), "does not fit its header"),
    ],
)
def test_a_damaged_or_newer_old_ticket_is_refused(tmp_path, change, message):
    save_old(tmp_path / "t.safetensors", search(), change)
    with pytest.raises(InputError, match=message):
        load_ticket(tmp_path / "t.safetensors")


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "3", "{"])
def test_an_old_header_of_nonsense_is_refused(tmp_path, text):
    save_file({"x": torch.zeros(1)}, tmp_path / "t.safetensors", metadata={"regraft.ticket": text})
    with pytest.raises(InputError, match="is a damaged ticket"):
        load_ticket(tmp_path / "t.safetensors")


def test_a_truncated_old_ticket_is_refused(tmp_path):
    path = tmp_path / "t.safetensors"
    save_old(path, search())
    data = path.read_bytes()
    assert "mask/7.weight" in load_file(path)
    for length in (0, 7, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match=r"damaged|not a ticket"):
            load_ticket(path)

import base64
import hashlib
import json
import os
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import conv_net, images
from safetensors.torch import save_file
from searches import resigned, search
from torch import nn

from regraft.errors import InputError
from regraft.tickets import (
    Freezing,
    IteRand,
    bake,
    edge_popup,
    fill,
    gather,
    gather_state,
    load_ticket,
    masks,
    save_ticket,
    stored_bytes,
)
from regraft.tickets.file.packed import pack, unpack

LAWS = ["signed_kaiming_constant", "kaiming_uniform", "kaiming_normal"]


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("redraw", [False, True])
@pytest.mark.parametrize("freezing", [None, Freezing(0.2, 0.2)])
@pytest.mark.parametrize("more", [{}, {"scope": "global", "dynamic_scale": True}])
def test_a_ticket_rebuilds_the_network_bit_by_bit(tmp_path, law, redraw, freezing, more):
    model = search(law, redraw, freezing=freezing, **more)
    size = save_ticket(tmp_path / "model.ticket", model)
    ticket = load_ticket(tmp_path)
    x, _ = images(seed=9)
    assert torch.equal(fill(conv_net(), ticket).eval()(x), model(x))
    assert all(torch.equal(m, masks(model)[n]) for n, m in ticket.masks().items())
    assert size == (tmp_path / "model.ticket").stat().st_size == ticket.size
    assert sum(ticket.bytes_by_part().values()) == size
    weights = bake(model).state_dict()
    assert all(torch.equal(t, weights[k]) for k, t in ticket.state_dict().items())
    assert {k: tuple(t.shape) for k, t in weights.items()} == ticket.shapes()


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("freezing", [None, Freezing(0.2, 0.2)])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_state_dict_alone_gives_the_same_bytes(law, freezing, prefix):
    model = search(law, True, freezing=freezing, scope="global", dynamic_scale=True)
    state = {prefix + key: tensor for key, tensor in model.state_dict().items()}
    assert pack(gather_state(state)) == pack(gather(model))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("freezing", [None, Freezing(0.2, 0.2)])
def test_a_ticket_of_a_double_precision_model_is_the_same_network(law, freezing):
    model = search(law, True, freezing=freezing, dynamic_scale=True).double()
    filled = fill(conv_net().double(), gather(model)).eval()
    for name, tensor in bake(model).state_dict().items():
        assert torch.equal(filled.state_dict()[name], tensor), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_ticket_of_a_half_precision_model_is_the_same_without_a_dynamic_scale(dtype):
    plain = search("kaiming_normal", freezing=Freezing(0.2, 0.2)).to(dtype)
    weights = fill(conv_net().to(dtype), gather(plain)).state_dict()
    for name, tensor in bake(plain).state_dict().items():
        assert torch.equal(weights[name], tensor), name
    scaled = search("kaiming_normal", freezing=Freezing(0.2, 0.2), dynamic_scale=True).to(dtype)
    weights = fill(conv_net().to(dtype), gather(scaled)).state_dict()
    eps = torch.finfo(dtype).eps
    for name, tensor in bake(scaled).state_dict().items():
        # W, c and their product are rounded on their own here, the product alone in the ticket.
        torch.testing.assert_close(weights[name], tensor, rtol=3 * eps, atol=1e-6)


def test_tied_weights_fill_every_owner(tmp_path):
    def tied():
        net = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
        net[1].weight = net[0].weight
        return net

    model = edge_popup(tied(), seed=1)
    save_ticket(tmp_path / "t.ticket", model)
    x = torch.randn(3, 6)
    assert torch.equal(fill(tied(), load_ticket(tmp_path / "t.ticket"))(x), model(x))
    assert pack(gather_state(model.state_dict())) == (tmp_path / "t.ticket").read_bytes()


def test_tied_tensors_that_are_not_masked_are_stored_once(tmp_path):
    def tied():
        net = nn.Sequential(nn.Embedding(50, 40), nn.Linear(40, 40), nn.Linear(40, 50, bias=False))
        net[2].weight = net[0].weight
        return net

    model = edge_popup(tied(), params=["1.weight"])
    size = save_ticket(tmp_path / "t.ticket", model)
    assert size < 1.3 * 4 * 50 * 40
    filled = fill(tied(), load_ticket(tmp_path / "t.ticket"))
    assert torch.equal(filled[2].weight, model[2].weight)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(sparsity=st.floats(0, 1), seed=st.integers(0, 2**63))
def test_any_sparsity_and_seed_survive(tmp_path, sparsity, seed):
    model = edge_popup(nn.Linear(13, 7), sparsity=sparsity, seed=seed)
    save_ticket(tmp_path / "t.ticket", model)
    plain = fill(nn.Linear(13, 7), load_ticket(tmp_path / "t.ticket"))
    assert torch.equal(plain.weight, model.weight)


def test_pruned_weights_are_positive_zero(tmp_path):
    save_ticket(tmp_path / "t.ticket", edge_popup(nn.Linear(40, 40, bias=False)))
    weight = load_ticket(tmp_path / "t.ticket").state_dict()["weight"]
    assert not torch.signbit(weight[weight == 0]).any()


@pytest.mark.parametrize("sparsity", [0.5, 0.7, 0.95])
def test_a_million_weights_come_within_a_kilobyte_of_the_bound(sparsity):
    model = nn.Sequential(*(nn.Linear(500, 500, bias=False) for _ in range(4)))
    ticket = unpack(pack(gather(edge_popup(model, sparsity=sparsity))))
    d = 1 - sparsity
    bound = 1e6 * -(d * np.log2(d) + sparsity * np.log2(sparsity)) / 8
    assert ticket.entropy_bound() == pytest.approx(bound, rel=1e-3)
    assert ticket.entropy_bound() <= ticket.bytes_by_part()["masks"] + 1 <= bound + 64
    assert ticket.size < bound + 1024


def test_frozen_positions_cost_nothing():
    layer = edge_popup(nn.Linear(1000, 1000, bias=False), freezing=Freezing(0.35, 0.35))
    ticket = unpack(pack(gather(layer)))
    assert ticket.bytes_by_part()["masks"] == pytest.approx(300_000 / 8, abs=16)
    assert ticket.layers["weight"].pruned == ticket.layers["weight"].locked == 350_000


def test_redrawn_signs_cost_the_entropy_of_their_flips():
    model = edge_popup(nn.Linear(1000, 1000, bias=False), sparsity=0.75)
    iterand = IteRand(model, every=1, rate=0.4)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            model.parametrizations.weight.original.normal_(generator=generator)
        iterand.step()
    ticket = unpack(pack(gather(model)))
    first = ticket.layers["weight"].source.draw().reshape(1000, 1000)
    kept = masks(model)["weight"]
    share = (model.weight.sign() != first.sign())[kept].float().mean().item()
    bound = int(kept.sum()) / 8 * -(share * np.log2(share) + (1 - share) * np.log2(1 - share))
    assert 0.1 < share < 0.4
    assert ticket.bytes_by_part()["signs"] == pytest.approx(bound, rel=1e-3)
    assert ticket.bytes_by_part()["draws"] == 0


def test_constant_tensors_all_but_vanish():
    model = nn.Sequential(nn.Linear(8, 4096), nn.BatchNorm1d(4096), nn.Linear(4096, 2))
    parts = unpack(pack(gather(edge_popup(model)))).bytes_by_part()
    assert parts["state"] < 400  # five tensors of 4,096 values, none of them seen any data


def test_what_it_is_about_comes_along(tmp_path):
    about = {"classes": ["katze", "ключ"], "model": {"name": "m:f"}, "mean": [0.1]}
    save_ticket(tmp_path / "t.ticket", search(), about=about)
    ticket = load_ticket(tmp_path / "t.ticket")
    assert ticket.about == ticket.header["about"] == about
    assert ticket.header["seed"] == 5
    assert ticket.header["masks"]["7.weight"]["shape"] == [5, 384]


def test_a_small_header_is_small():
    model = search(redraw=False)
    assert unpack(pack(gather(model))).bytes_by_part()["header"] < 350


def test_equal_tickets_give_equal_bytes():
    assert pack(gather(search())) == pack(gather(search()))
    ticket = unpack(pack(gather(search("kaiming_normal"))))
    assert pack(ticket) == pack(unpack(pack(ticket)))


@pytest.mark.slow
def test_another_process_gives_the_same_logits_on_every_thread_count(tmp_path):
    model = search("kaiming_normal", True, freezing=Freezing(0.2, 0.2), dynamic_scale=True)
    save_ticket(tmp_path / "t.ticket", model)
    x, _ = images(seed=9)
    code = (
        "import sys, torch\n"
        "from networks import conv_net, images\n"
        "from regraft.tickets import fill, load_ticket\n"
        "for threads in (1, 2, 4):\n"
        "    torch.set_num_threads(threads)\n"
        "    net = fill(conv_net(), load_ticket(sys.argv[1])).eval()\n"
        "    assert torch.get_num_threads() == threads\n"
        "    print([v.hex() for v in net(images(seed=9)[0]).flatten().tolist()])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "t.ticket")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )
    assert done.stdout.splitlines() == 3 * [str([v.hex() for v in model(x).flatten().tolist()])]


def test_a_plain_model_has_no_ticket(tmp_path):
    with pytest.raises(InputError, match="no edge-popup mask"):
        save_ticket(tmp_path / "t.ticket", conv_net())
    with pytest.raises(InputError, match="no edge-popup mask"):
        gather_state(conv_net().state_dict())


def test_what_is_no_json_is_refused(tmp_path):
    for about in ({"x": object()}, {"x": float("nan")}):
        with pytest.raises(InputError, match="about: "):
            save_ticket(tmp_path / "t.ticket", search(), about=about)
    assert not list(tmp_path.iterdir())


def test_an_unwritable_path_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        save_ticket(tmp_path / "file" / "t.ticket", search())


def test_a_missing_ticket_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such ticket"):
        load_ticket(tmp_path)


def test_a_file_that_is_no_ticket_is_refused(tmp_path):
    (tmp_path / "a").write_bytes(b"hello, this is text")
    (tmp_path / "b").write_bytes(b"")
    save_file({"x": torch.zeros(1)}, tmp_path / "c")
    for name in "abc":
        with pytest.raises(InputError, match=f"{name}.* not a ticket"):
            load_ticket(tmp_path / name)


def test_a_newer_schema_says_so(tmp_path):
    data = bytearray(pack(gather(search())))
    data[8] = 9
    with pytest.raises(InputError, match=r"checksum, or from a newer schema \(9\)"):
        unpack(bytes(data))
    with pytest.raises(
        InputError, match=r"x has schema 9, this version reads .* 2: update regraft"
    ):
        unpack(resigned(bytes(data)), "x")


@pytest.mark.parametrize("key", ["stream", "coder"])
def test_another_stream_or_coder_says_so(key):
    data = resigned(pack(gather(search())), lambda h: h.update({key: 99}))
    with pytest.raises(InputError, match=f"needs .*{key} 99.*: update regraft"):
        unpack(data)


def test_a_coder_that_has_changed_is_noticed(monkeypatch):
    data = pack(gather(search()))
    pop = np.random.default_rng(0)

    def shuffled(decoder, m, table):
        out = honest(decoder, m, table)
        return pop.permutation(out)

    from regraft.tickets.file.coder import Decoder

    honest = Decoder.pop
    monkeypatch.setattr(Decoder, "pop", shuffled)
    with pytest.raises(InputError, match=r"number of ones|decode to other values"):
        unpack(data)


def test_a_ticket_of_another_architecture_names_the_first_tensor_that_differs(monkeypatch):
    ticket = unpack(pack(gather(search(), {"model": {"name": "mine"}})))

    def never(self):
        raise AssertionError("made a weight before comparing shapes")

    monkeypatch.setattr("regraft.tickets.ticket.TicketLayer.weight", never)
    with pytest.raises(
        InputError, match=r"'7.weight' has shape \(5, 384\) in the ticket and \(4, 384\).*\(mine\)"
    ):
        fill(conv_net(classes=4), ticket)
    with pytest.raises(InputError, match=r"'7\.weight' that the model lacks"):
        fill(conv_net()[:7], ticket)
    with pytest.raises(InputError, match=r"'8\.weight' that the ticket lacks"):
        fill(nn.Sequential(*conv_net(), nn.Linear(5, 5)), ticket)


def test_a_refused_model_is_left_as_it_was():
    ticket = unpack(pack(gather(search())))
    other = conv_net(classes=4)
    before = [p.clone() for p in other.parameters()]
    with pytest.raises(InputError):
        fill(other, ticket)
    assert all(torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))


def test_the_header_is_json_that_a_person_can_read():
    data = pack(gather(search("kaiming_normal")))
    size = int.from_bytes(data[10:14], "little")
    header = json.loads(zlib.decompress(data[18 : 18 + size]))
    assert (header["schema"], header["law"], header["seed"]) == (2, "kaiming_normal", 5)
    assert list(header["masks"]) == ["0.weight", "3.weight", "7.weight"]
    assert list(header["parts"]) == ["masks", "draws", "state"]


def test_stored_bytes_counts_what_floats():
    assert stored_bytes(nn.BatchNorm1d(10)) == 4 * 40


GOLDEN = (
    "iF9jp4GJ0x0stQY008R&004N}ZIR24!ypVr|HW&j;?*>hU#Y6f5T}ju6cANam46@8sU}&>0ts`k57+R5=<hTjR9Zkx"
    "fpCCI3Gh=*0V)VM#xHGwMWUJ|)_Q!f(qTKa<L$bPZ8L>|9XD)8b{wp-TA5>^&B@5`BX`u#5r@`aqsN}0N?{=Z1I8{w"
    "^#XZ#P<y+lypMOB*>N^fXn7IP(ah(n{1z~WWqe1_k~2)c%SFNagf3I%DnS2(vcha6U2Y(4H;&Rf4ujB5%bVhRjFC9!"
    "8IWgmygaWOF6*ZwYv%GPuI`!gi7NOW4Cy`K-=rV0;EVayeaFw}Oz9euH88FY_}Kewx%rCX=-jFC*%uQg+WFLJXSC=v"
    "H9m)&``;gt+OF&R0~+9!Mh8d*!|l5GFYdy@*q8$6AC)YiWa_E$`_wuLPP|i@CHP3vv!vhB+|Vngl~~C<VFo@v#s^1p"
    "XO-O697MGsPI%g5U}RjVD9(TZ01?9g+&Jl*BpvQ&ihhjYjar*EWs+0^1Davc^40{HY%E2|EO^@O%*_gdKoo{yyOTKU"
    "gN#3jxM>%34I#r(#~;EmoUsTIx{NNjQCvu^Y|*AZn8h4;-p9t8)`MfquI35pv=oZ#meP~RAnGC0x3ho<4uKB{s-*FE"
    "j1e-@#G5=<LMwA&7{&tvvy+O{67D^B0X_CkLv-8;J0D;}(e-EEc2ZWd;I$yRE@Kkt1uvNkwd*RTfPOevuA(YRy)Ixd"
    "2FwJ8?KtbdFYmtlrS}8`!mD77B$tuB&O<g#Wmoj1D!W$"
)


def test_a_file_of_this_schema_stays_readable_for_ever():
    """The file is committed: freezing, events, both checksums and a scaled layer are in it."""
    state = unpack(base64.b85decode(GOLDEN)).state_dict()
    found = hashlib.blake2b(digest_size=16)
    for key, tensor in sorted(state.items()):
        found.update(key.encode())
        found.update(tensor.contiguous().numpy().tobytes())
    assert found.hexdigest() == "5e4c27511306e3ecfe52bbde252996c5"

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from searches import resigned, search

from regraft.errors import InputError
from regraft.tickets import Freezing, bake, edge_popup, gather, read_unpacked, write_unpacked
from regraft.tickets.file.packed import pack, unpack

LAWS = ["signed_kaiming_constant", "kaiming_uniform"]


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("redraw", [False, True])
@pytest.mark.parametrize("freezing", [None, Freezing(0.2, 0.2)])
def test_packing_an_unpacked_ticket_gives_the_same_bytes(tmp_path, law, redraw, freezing):
    model = search(law, redraw, freezing=freezing, scope="global", dynamic_scale=True)
    data = pack(gather(model, {"classes": ["ä", "b"], "mean": [0.1]}))
    write_unpacked(tmp_path / "folder", unpack(data))
    assert pack(read_unpacked(tmp_path / "folder")) == data


def test_a_person_can_read_the_masks(tmp_path):
    model = search(freezing=Freezing(0.2, 0.2))
    ticket = gather(model)
    write_unpacked(tmp_path, ticket)
    header = json.loads((tmp_path / "ticket.json").read_text())
    weights = bake(model).state_dict()
    for name, codes in load_file(tmp_path / "masks.safetensors").items():
        assert codes.shape == weights[name].shape
        assert torch.equal((codes == 1) | (codes == 3), weights[name] != 0)
        assert int((codes == 2).sum()) == header["masks"][name]["pruned"]
        assert int((codes == 3).sum()) == header["masks"][name]["locked"]
    assert torch.equal(load_file(tmp_path / "state.safetensors")["7.bias"], torch.zeros(5))
    draws = load_file(tmp_path / "draws.safetensors")
    assert draws["sign/0.weight"].sum() == ticket.layers["0.weight"].flips.ones > 0


def test_a_changed_mask_is_packed_as_it_is(tmp_path):
    write_unpacked(tmp_path, gather(edge_popup(torch.nn.Linear(10, 4, bias=False))))
    codes = torch.zeros(4, 10, dtype=torch.uint8)
    codes[0] = 1
    save_file({"weight": codes}, tmp_path / "masks.safetensors")
    ticket = unpack(pack(read_unpacked(tmp_path)))
    assert torch.equal(ticket.masks()["weight"], codes == 1)
    assert ticket.header["masks"]["weight"]["kept"] == 10


def test_an_older_unpacked_ticket_is_replaced_whole(tmp_path):
    write_unpacked(tmp_path, gather(search()))
    plain = gather(search(redraw=False))
    write_unpacked(tmp_path, plain)
    assert not (tmp_path / "draws.safetensors").exists()
    assert pack(read_unpacked(tmp_path)) == pack(plain)


def test_a_file_of_few_bytes_makes_no_folder_of_many(tmp_path):
    def grow(shape, **more):
        entry = {"shape": shape, "kept": 0, **more}
        return lambda h: h["masks"].update(x=entry)

    data = pack(gather(search(redraw=False)))
    for change in (grow([1 << 14, 1 << 13]), grow([1 << 14, 1 << 13], pruned=5)):
        ticket = unpack(resigned(data, change))
        with pytest.raises(
            InputError, match=r"claims 13421\d\d\d\d weights that it has no bits for"
        ):
            write_unpacked(tmp_path / "folder", ticket)
    assert not (tmp_path / "folder").exists()
    honest = gather(edge_popup(torch.nn.Linear(2, 2), sparsity=0.0))
    write_unpacked(tmp_path / "folder", unpack(pack(honest)))
    frozen = gather(edge_popup(torch.nn.Linear(5000, 4000), freezing=Freezing(0.45, 0.45)))
    write_unpacked(tmp_path / "frozen", unpack(pack(frozen)))


def test_a_folder_with_something_else_is_refused_and_kept(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match=r"holds thesis\.tex"):
        write_unpacked(tmp_path, gather(search()))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def change_codes(**changes):
    def change(folder):
        tensors = load_file(folder / "masks.safetensors")
        for name, value in changes.items():
            value(tensors, name)
        save_file(tensors, folder / "masks.safetensors")

    return change


def change_header(change):
    def write(folder):
        header = json.loads((folder / "ticket.json").read_text())
        del header["regraft.digest"]  # as whoever changes it on purpose does
        change(header)
        (folder / "ticket.json").write_text(json.dumps(header))

    return write


def frozen_kept(tensors, _):
    codes = tensors["0.weight"].reshape(-1)
    codes[int((codes == 2).nonzero()[0])] = 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "ticket.json").unlink(), "ticket.json"),
        (lambda f: (f / "ticket.json").write_text("{"), "no unpacked ticket"),
        (lambda f: (f / "ticket.json").write_text("[]"), "no JSON object"),
        (lambda f: (f / "ticket.json").write_text("[" * 100_000), "no unpacked ticket"),
        (change_header(lambda h: h.update(schema=3)), "ticket.json has schema 3, .*update regraft"),
        (change_header(lambda h: h.pop("schema")), "ticket.json has schema None"),
        (change_header(lambda h: h.update(aliases={"\ud800": "7.bias"})), "no Unicode text"),
        (lambda f: (f / "masks.safetensors").unlink(), "'0.weight' is in one of the two"),
        (lambda f: (f / "masks.safetensors").write_bytes(b"x"), "no unpacked ticket"),
        (change_codes(x=lambda t, _: t.pop("0.weight")), "'0.weight' is in one"),
        (change_codes(x=lambda t, n: t.update({n: torch.zeros(1)})), "'x' is in one"),
        (change_codes(x=lambda t, _: t["0.weight"].fill_(1)), "freezes a position"),
        (change_codes(x=lambda t, _: t["0.weight"].masked_fill_(t["0.weight"] == 1, 7)), "above 1"),
        (change_codes(x=lambda t, _: t.update({"0.weight": t["0.weight"].float()})), "not uint8"),
        (change_codes(x=frozen_kept), "freezes a position"),
        (
            lambda f: save_file({"sign/no": torch.zeros(1)}, f / "draws.safetensors"),
            "'sign/no' in draws.safetensors is of no mask",
        ),
        (
            lambda f: save_file({"sign/0.weight": torch.zeros(1)}, f / "draws.safetensors"),
            "sign/0.weight is",
        ),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path, change, message):
    write_unpacked(tmp_path, gather(search(freezing=Freezing(0.2, 0.2))))
    change(tmp_path)
    with pytest.raises(InputError, match=message):
        read_unpacked(tmp_path)

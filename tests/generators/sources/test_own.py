"""Files of generators that were trained here: read with care, since anybody can have written them."""

import json

import pytest
import torch

from regraft.config import SourceConfig
from regraft.errors import InputError
from regraft.files import write_tensors
from regraft.generators.sources import load_source, make_generator
from regraft.generators.sources.own import KEY
from regraft.streams import Counter

VAE = {
    "kind": "vae",
    "options": {"latent": 2, "hidden": 8},
    "image_shape": [1, 8, 8],
    "classes": ["a", "b"],
}
FLOW = {**VAE, "kind": "flow", "options": {"width": 4, "steps": 2}}


def write(path, about, **changes):
    torch.manual_seed(0)
    made = make_generator(
        about["kind"], tuple(about["image_shape"]), len(about["classes"]), **about["options"]
    )
    write_tensors(path, dict(made.state_dict()), {KEY: json.dumps({**about, **changes})})
    return SourceConfig(name=str(path))


@pytest.mark.parametrize("about", [VAE, FLOW])
def test_a_generator_comes_back_from_its_file_and_from_its_folder(tmp_path, about):
    config = write(tmp_path / "generator.safetensors", about)
    source = load_source(config)
    assert source.class_names == ("a", "b")
    folder = load_source(SourceConfig(name=str(tmp_path)))
    asked = {"labels": torch.tensor([0, 1, 1]), "generator": Counter(0)}
    first = source.sample(3, **asked)
    assert first.shape == (3, 1, 8, 8)
    asked["generator"] = Counter(0)
    assert torch.equal(folder.sample(3, **asked), first)


@pytest.mark.parametrize("at", [-1, -400])
def test_a_flipped_bit_is_noticed(tmp_path, at):
    path = tmp_path / "generator.safetensors"
    config = write(path, VAE)
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="is not as Regraft wrote it"):
        load_source(config)


@pytest.mark.parametrize(
    ("about", "changes", "message"),
    [
        (FLOW, {"image_shape": [1, 1 << 20, 1 << 20]}, "1048576 where a whole number"),
        (FLOW, {"image_shape": [1, 1 << 17, 1 << 17]}, r"images of \[1, 131072, 131072\]"),
        (FLOW, {"image_shape": [1, 8]}, r"images of \[1, 8\]"),
        (FLOW, {"options": {"width": 4, "steps": 10**9}}, "1000000000 where a whole number"),
        (FLOW, {"options": {"width": 16384, "steps": 2}}, "first.weight has shape"),
        (VAE, {"options": {"latent": 2, "hidden": 16384}}, "encoder.0.weight has shape"),
        (VAE, {"options": {"latent": 2, "hidden": -1}}, "-1 where a whole number"),
        (VAE, {"options": {"latent": 2, "hidden": "8"}}, "8 where a whole number"),
        (VAE, {"options": {"layers": 2}}, "takes no such option"),
        (VAE, {"classes": ["a"] * 20000}, "20000 where a whole number"),
        (VAE, {"classes": ["a", "b", "c"]}, "encoder.0.weight has shape"),
        (VAE, {"classes": 3}, "is damaged"),
        (VAE, {"kind": "gan"}, "expected one of vae, flow"),
    ],
)
def test_a_header_that_asks_for_something_else_is_refused_before_memory_is_spent(
    tmp_path, monkeypatch, about, changes, message
):
    config = write(tmp_path / "generator.safetensors", about, **changes)
    real = []

    def counted(*args, **options):
        real.append(torch.empty(0).device.type)
        return make_generator(*args, **options)

    monkeypatch.setattr("regraft.generators.sources.own.make_generator", counted)
    with pytest.raises(InputError, match=message):
        load_source(config)
    assert "cpu" not in real


def test_a_file_of_something_else_is_no_generator(tmp_path):
    write_tensors(tmp_path / "x.safetensors", {"w": torch.zeros(2)}, {"regraft.model": "{}"})
    with pytest.raises(InputError, match="is no generator of regraft's"):
        load_source(SourceConfig(name=str(tmp_path / "x.safetensors")))


def test_a_run_knows_a_generator_by_what_its_files_hold(tmp_path):
    from regraft.jobs.base import to_json

    one = write(tmp_path / "a" / "generator.safetensors", VAE)
    same = write(tmp_path / "b" / "generator.safetensors", VAE)
    assert to_json(one) == to_json(same) == to_json(SourceConfig(name=str(tmp_path / "b")))
    other = write(tmp_path / "b" / "generator.safetensors", FLOW)
    assert to_json(other) != to_json(one)
    (tmp_path / "w.pth").write_bytes(b"1")
    factory = SourceConfig(name="a:b", weights=str(tmp_path / "w.pth"))
    before = to_json(factory)
    (tmp_path / "w.pth").write_bytes(b"2")
    assert to_json(factory) != before

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from foreign_generators import Decoder, EmbeddedLabels

from regraft.config import SourceConfig
from regraft.errors import InputError, MissingExtraError, RegraftError
from regraft.generators.sources import (
    CachedBank,
    ImageSource,
    ModuleSource,
    PipelineSource,
    load_source,
    write_bank,
)
from regraft.generators.sources.module import ModuleSource as Module
from regraft.streams import Counter

DECODER = "foreign_generators:Decoder"


def weights(tmp_path, module=None):
    torch.manual_seed(4)
    path = tmp_path / "decoder.pth"
    torch.save((module or Decoder()).state_dict(), path)
    return str(path)


def config(tmp_path, **more):
    return SourceConfig(
        **{"name": DECODER, "weights": weights(tmp_path), "classes": 4, "latent": 6, **more}
    )


def test_a_factory_gets_its_weights_and_says_what_was_found(tmp_path):
    source = load_source(config(tmp_path))
    torch.manual_seed(4)
    expected = ModuleSource(Decoder(), classes=4, latent=6)
    args = {"labels": torch.arange(4), "generator": Counter(0)}
    torch.testing.assert_close(
        source.sample(4, **args), expected.sample(4, labels=torch.arange(4), generator=Counter(0))
    )
    assert source.notes[0].startswith("called as decode(z [n, 6], onehot float [n, 4])")
    unfilled = load_source(SourceConfig(name=DECODER, classes=4, latent=6))
    assert "no weights were loaded" in unfilled.notes[-1]


def test_a_checkpoint_that_does_not_fit_its_class_is_refused(tmp_path):
    (tmp_path / "other").mkdir()
    file = weights(tmp_path / "other", EmbeddedLabels())
    with pytest.raises(InputError, match=r"(emb|enc)\.weight"):
        load_source(config(tmp_path, weights=file))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"name": "foreign_generators:Nothing"}, "has no 'Nothing'"),
        ({"name": "nowhere"}, "weights .* are of a factory and nowhere is none"),
        ({"name": "nowhere", "weights": None}, "is no factory, folder or file"),
        ({"latent": 7}, "set the latent, the classes or the labels"),
    ],
)
def test_what_is_no_source_is_refused(tmp_path, more, message):
    with pytest.raises(InputError, match=message):
        load_source(config(tmp_path, **more))


def bank(tmp_path, count=50, **more):
    source = load_source(config(tmp_path))
    return write_bank(source, tmp_path / "bank", count=count, seed=3, batch_size=16, **more), source


def test_a_bank_holds_what_the_source_makes_and_stays_on_the_disk(tmp_path):
    _, source = bank(tmp_path)
    again = load_source(SourceConfig(name=str(tmp_path / "bank")))
    assert isinstance(again, CachedBank)
    labels = torch.from_numpy(np.load(tmp_path / "bank" / "labels.npy"))
    expected = source.sample(50, labels=labels, generator=Counter(3, "bank"))
    assert torch.equal(again.pixels, (expected * 255).round().to(torch.uint8))
    mapped = np.load(tmp_path / "bank" / "images.npy", mmap_mode="r")
    assert isinstance(mapped, np.memmap)
    assert again.pixels.untyped_storage().nbytes() == mapped.nbytes
    x = again.sample(20, labels=torch.arange(20) % 4, generator=Counter(0))
    for image, label in zip(x, torch.arange(20) % 4, strict=True):
        same = ((again.pixels.float() / 255 - image).abs().amax((1, 2, 3)) == 0) & (labels == label)
        assert same.any()
    about = json.loads((tmp_path / "bank" / "bank.json").read_text())
    assert about["digest"] == source.digest()
    assert about["count"] == 50
    assert about["notes"] == source.notes


def test_an_interrupted_bank_ends_with_the_same_bytes(tmp_path):
    _, source = bank(tmp_path)

    def stop(done, count, _):
        if done >= 32:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_bank(source, tmp_path / "b", count=50, seed=3, batch_size=16, progress=stop)
    assert not (tmp_path / "b" / "bank.json").exists()
    shown = []
    write_bank(
        source,
        tmp_path / "b",
        count=50,
        seed=3,
        batch_size=16,
        progress=lambda n, *_: shown.append(n),
    )
    assert shown == [48, 50]
    for name in ("images.npy", "labels.npy", "bank.json"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "bank" / name).read_bytes()
    with pytest.raises(InputError, match="holds another bank"):
        write_bank(source, tmp_path / "b", count=51, seed=3)
    with pytest.raises(KeyboardInterrupt):
        write_bank(source, tmp_path / "c", count=50, seed=3, batch_size=16, progress=stop)
    making = tmp_path / "c" / "making.json"
    making.write_text(making.read_text().replace('"made": ', '"made": 1'))
    begun = (tmp_path / "c" / "images.npy").read_bytes()
    with pytest.raises(InputError, match=r"making\.json is damaged"):
        write_bank(source, tmp_path / "c", count=50, seed=4)
    assert (tmp_path / "c" / "images.npy").read_bytes() == begun


def test_a_run_knows_its_source_by_what_it_holds(tmp_path):
    _, source = bank(tmp_path)
    config = SourceConfig(name=str(tmp_path / "bank"))
    known = config.config()
    moved = (tmp_path / "bank").rename(tmp_path / "moved")
    assert SourceConfig(name=str(moved)).config() == known
    write_bank(source, tmp_path / "bank", count=50, seed=4)
    assert config.config() != known
    pictures = tmp_path / "pictures" / "ant"
    pictures.mkdir(parents=True)
    (pictures / "0.png").write_bytes(b"first")
    config = SourceConfig(name=str(tmp_path / "pictures"))
    known = config.config()
    assert config.config() == known
    (pictures / "1.png").write_bytes(b"second")
    assert config.config() != known


def test_a_bank_of_images_that_are_not_finite_is_refused(tmp_path):
    source = load_source(config(tmp_path))
    source.module.dec.bias.data[5] = float("nan")
    with pytest.raises(RegraftError, match="not finite"):
        write_bank(source, tmp_path / "bank", count=20, seed=0)
    assert not (tmp_path / "bank" / "bank.json").exists()


def test_a_damaged_bank_is_refused(tmp_path):
    bank(tmp_path)
    np.save(tmp_path / "bank" / "labels.npy", np.zeros(3, dtype=np.int64))
    with pytest.raises(InputError, match=r"is damaged .*make the bank again"):
        load_source(SourceConfig(name=str(tmp_path / "bank")))
    with pytest.raises(InputError, match="at least one image of each of 4 classes"):
        write_bank(load_source(config(tmp_path)), tmp_path / "c", count=3, seed=0)


def shard(path, labelled=True, json_labels=False):
    image = pytest.importorskip("PIL.Image")
    with tarfile.open(path, "w") as tar:
        for i in range(6):
            buffer = io.BytesIO()
            image.new("L", (8, 8), 40 * i).save(buffer, "PNG")
            parts = {"png": buffer.getvalue()}
            if labelled:
                name = ["cat", "dog"][i % 2]
                parts["json" if json_labels else "cls"] = (
                    json.dumps({"label": name}) if json_labels else str(i % 2)
                ).encode()
            for ending, data in parts.items():
                member = tarfile.TarInfo(f"part/{i:04}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("json_labels", [False, True])
def test_tar_shards_are_images_with_labels(tmp_path, json_labels):
    for i in range(2):
        shard(tmp_path / f"{i}.tar", json_labels=json_labels)
    source = load_source(SourceConfig(name=str(tmp_path)))
    assert isinstance(source, ImageSource)
    assert source.class_names == (("cat", "dog") if json_labels else ("0", "1"))
    assert source.image_shape == (1, 8, 8)
    x = source.sample(8, labels=torch.tensor([1] * 8), generator=Counter(0))
    shades = (x[:, 0, 0, 0] * 255).round().long()
    assert set(shades.tolist()) <= {40, 120, 200}
    shard(tmp_path / "0.tar", labelled=False)
    with pytest.raises(InputError, match="part/0000 has no label"):
        load_source(SourceConfig(name=str(tmp_path / "0.tar")))
    (tmp_path / "1.tar").write_bytes(b"no tar")
    with pytest.raises(InputError, match="cannot be read as a tar shard"):
        load_source(SourceConfig(name=str(tmp_path / "1.tar")))


def labelled_shard(path, labels):
    """One grey picture for each text that stands in its .json."""
    picture = pytest.importorskip("PIL.Image").new("L", (8, 8), 90)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    with tarfile.open(path, "w") as tar:
        for i, label in enumerate(labels):
            for ending, data in {"png": buffer.getvalue(), "json": label.encode()}.items():
                member = tarfile.TarInfo(f"{i:04}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return SourceConfig(name=str(path))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["0", "1", "1000000000000"], "holds 3 images and one of class 1000000000000"),
        (["0", "1", "3"], "holds 3 images and one of class 3"),
        (["0", '{"label": -1}'], "is class -1"),
        (["0", '{"label": 0.5}'], "has the label 0.5: expected a number or a name"),
        (["0", '{"label": true}'], "has the label True"),
        (["0", "[" * 100000], "is damaged"),
    ],
)
def test_labels_of_shards_that_mean_no_class_are_refused(tmp_path, labels, message):
    with pytest.raises(InputError, match=message):
        load_source(labelled_shard(tmp_path / "x.tar", labels))


def test_labels_of_shards_may_be_numbers_and_names(tmp_path):
    source = load_source(labelled_shard(tmp_path / "x.tar", ["0", '{"cls": "cat"}', "0"]))
    assert source.class_names == ("0", "cat")


def test_a_huge_member_of_a_shard_is_refused_unread(tmp_path, monkeypatch):
    config = labelled_shard(tmp_path / "x.tar", ["0", "1"])
    monkeypatch.setattr("regraft.generators.sources.shards.MOST_BYTES", 50)
    with pytest.raises(InputError, match=r"0000\.png has more than"):
        load_source(config)


class Images:
    def __init__(self, images):
        self.images = images


class LabelPipeline:
    """Called as DiT is: labels and a list of generators, no latents."""

    class transformer:  # noqa: N801
        class config:  # noqa: N801
            num_embeds_ada_norm = 3

    def __call__(self, class_labels, generator=None, output_type="pil", steps=2):
        rows = [
            torch.rand(4, 4, 3, generator=g) * 0.1 + 0.3 * c
            for g, c in zip(generator, class_labels, strict=True)
        ]
        return Images(torch.stack(rows).numpy())


class TextPipeline(LabelPipeline):
    def __call__(self, prompt, generator=None, output_type="pil"):
        return super().__call__([len(p) for p in prompt], generator)


class CountedPipeline:
    """Called as ConsistencyModelPipeline is: latents, and their number; noise of later steps by image."""

    class unet:  # noqa: N801
        class config:  # noqa: N801
            num_class_embeds, sample_size, in_channels = 3, 4, 3

    def __call__(
        self, batch_size=1, class_labels=None, latents=None, generator=None, output_type="pil"
    ):
        if latents.shape != (batch_size, 3, 4, 4):
            raise ValueError(f"expected {batch_size} latents")
        noise = torch.cat([torch.rand(1, 4, 4, 3, generator=g) for g in generator])
        rows = 0.1 * latents.sigmoid().permute(0, 2, 3, 1) + 0.1 * noise
        return Images((rows + 0.3 * class_labels.view(-1, 1, 1, 1)).numpy())


class GlobalPipeline(LabelPipeline):
    """Its scheduler takes no generator and draws from torch's global stream."""

    def __call__(self, class_labels, generator=None, output_type="pil"):
        return Images(torch.rand(len(class_labels), 4, 4, 3).numpy())


def test_pipelines_with_latents_are_told_their_number_and_have_noise_by_image():
    source = PipelineSource(CountedPipeline())
    assert (source.classes, source.latent_shape, source.deterministic) == (3, (3, 4, 4), True)
    whole = source.sample(6, labels=torch.arange(6) % 3, generator=Counter(0))
    counter = Counter(0)
    parts = [source.sample(3, labels=torch.arange(3), generator=counter) for _ in range(2)]
    assert torch.allclose(whole, torch.cat(parts), atol=1e-6)


def test_noise_of_the_global_stream_is_said_and_seeded():
    source = PipelineSource(GlobalPipeline())
    assert not source.deterministic
    assert any("noise of its own" in note for note in source.notes)
    before = torch.random.get_rng_state()
    one, two = (source.sample(3, labels=torch.arange(3), generator=Counter(0)) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_pipeline_that_raises_is_named_with_its_options():
    with pytest.raises(RegraftError, match=r"LabelPipeline cannot be called .*set now: guidance"):
        PipelineSource(LabelPipeline(), options={"guidance": 3})


def test_pipelines_are_called_by_label_or_by_text():
    source = PipelineSource(LabelPipeline())
    assert (source.classes, source.image_shape, source.latent_shape) == (3, (3, 4, 4), (1,))
    whole = source.sample(6, labels=torch.arange(6) % 3, generator=Counter(0))
    counter = Counter(0)
    parts = [source.sample(3, labels=torch.arange(3), generator=counter) for _ in range(2)]
    assert torch.equal(whole, torch.cat(parts))
    assert not source.latent_gradients
    text = PipelineSource(TextPipeline(), prompts=("a", "bb"))
    assert text.classes == 2
    x = text.sample(2, labels=torch.tensor([0, 1]), generator=Counter(0))
    assert x[0].mean() < x[1].mean()
    with pytest.raises(InputError, match="give one for each class as prompts"):
        PipelineSource(TextPipeline())


def test_a_folder_of_diffusers_names_what_is_missing(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    try:
        import diffusers  # noqa: F401
    except ImportError:
        with pytest.raises(MissingExtraError, match=r"regraft\[generate\]"):
            load_source(SourceConfig(name=str(tmp_path)))
    else:
        with pytest.raises(InputError, match="cannot be loaded as a diffusers pipeline"):
            load_source(SourceConfig(name=str(tmp_path)))


def test_a_generator_saved_on_a_gpu_is_read_to_the_cpu(tmp_path):
    source = load_source(config(tmp_path, method="decode", labels="onehot", pixels="[0,1]"))
    assert isinstance(source, Module)
    assert source.device.type == "cpu"

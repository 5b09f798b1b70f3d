import pytest

from regraft.config import ModelConfig
from regraft.errors import InputError
from regraft.models import build

timm = pytest.importorskip("timm")
SHAPE = {"num_classes": 3, "channels": 3, "image_size": 32}


def failing(error, cause=None):
    def create_model(**_):
        raise error from cause

    return create_model


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ConnectionError("no route to host"), None),
        (OSError("we could not connect"), None),
        (RuntimeError("download failed"), TimeoutError("timed out")),
    ],
)
def test_weights_that_cannot_be_fetched_are_named_with_the_way_out(monkeypatch, error, cause):
    monkeypatch.setattr(timm, "create_model", failing(error, cause))
    config = ModelConfig(name="timm/resnet10t", options={"pretrained": True})
    with pytest.raises(
        InputError, match=r"could not be fetched .*--checkpoint FILE, which takes a"
    ):
        build(config, **SHAPE)


def test_other_failures_and_networks_without_weights_are_told_as_before(monkeypatch):
    monkeypatch.setattr(timm, "create_model", failing(TypeError("no such option")))
    config = ModelConfig(name="timm/resnet10t", options={"pretrained": True})
    with pytest.raises(InputError, match=r"could not be built .*no such option"):
        build(config, **SHAPE)
    monkeypatch.setattr(timm, "create_model", failing(OSError("a file")))
    with pytest.raises(InputError, match=r"could not be built .*a file"):
        build(ModelConfig(name="timm/resnet10t"), **SHAPE)

import socket

import pytest
import torch
from torch import nn

from regraft.errors import InputError
from regraft.jobs.predict.network import network_of
from regraft.tickets import edge_popup, gather, save_ticket

ABOUT = {
    "classes": ["ant", "bee", "cat"],
    "input": {"channels": 3, "image_size": 32},
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.25, 0.3],
}


@pytest.fixture
def no_network(monkeypatch):
    def never(*_, **__):
        raise AssertionError("reached for the network")

    monkeypatch.setattr(socket.socket, "connect", never)
    monkeypatch.setattr(socket, "getaddrinfo", never)


@pytest.mark.parametrize(
    "name", ["timm/hf-hub:some/model", "timm/hf_hub:x", "timm/local-dir:/tmp/x", "timm/some/model"]
)
def test_a_header_cannot_point_to_a_hub(refused, image_folder, name, no_network):
    about = {**ABOUT, "model": {"name": name}}
    save_ticket("a.ticket", edge_popup(nn.Linear(4, 3)), about=about)
    for words in (("run", "a.ticket", image_folder), ("bake", "a.ticket", "--out", "m")):
        assert f"pass --model {name} if you trust it" in refused("ticket", *words)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("torchvision/resnet18", {"weights": "DEFAULT"}),
        ("timm/resnet10t", {"pretrained": True}),
        ("timm/resnet10t", {"checkpoint_path": "no/such/file"}),
        ("timm/resnet10t", {"pretrained_cfg": {"url": "http://localhost/x"}, "pretrained": True}),
    ],
)
def test_a_header_cannot_fetch_weights(name, options, no_network, tmp_path):
    package, _, kind = name.partition("/")
    if package == "timm":
        make = pytest.importorskip("timm").create_model
    else:
        models = pytest.importorskip("torchvision").models
        make = models.get_model
    torch.manual_seed(0)
    model = edge_popup(make(kind, num_classes=3), seed=2).eval()
    about = {**ABOUT, "model": {"name": name, "options": options}}
    filled = network_of(gather(model, about), tmp_path / "a.ticket")
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(filled(x), model(x))


def test_a_network_that_cannot_be_sketched_is_still_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("regraft.models.bounded._MAX_UNSKETCHED", 1 << 10)
    model = edge_popup(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), seed=2)
    about = {**ABOUT, "model": {"name": "conv2"}, "input": {"channels": 3, "image_size": 2}}
    made = []

    def build(config, **_):
        if torch.empty(0).device.type == "meta":
            raise InputError("cannot be sketched")
        made.append(config)
        return nn.Sequential(nn.Flatten(), nn.Linear(12, width[0]), nn.Linear(width[0], 3))

    monkeypatch.setattr("regraft.models.build", build)
    width = [1000]
    with pytest.raises(InputError, match="more than 1180 weights, far more than its file"):
        network_of(gather(model, about), tmp_path / "a.ticket")
    width = [4]
    with pytest.raises(InputError, match="has shape"):
        network_of(gather(model, about), tmp_path / "a.ticket")
    assert len(made) == 2
    nn.Linear(100, 100)  # the bound is gone with the build


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"std": [0, 0, 0]}, "std=[0, 0, 0]: expected numbers above 0"),
        ({"std": [0.2, -0.2, 0.2]}, "expected numbers above 0"),
        ({"mean": [True, 0.5, 0.5]}, "mean=[True, 0.5, 0.5] for images of 3"),
        ({"mean": [10**400, 0, 0]}, "for images of 3 channel(s)"),
        ({"classes": [1, 2, 3]}, "says what it is of in a way"),
    ],
)
def test_a_header_that_would_give_nonsense_is_refused(refused, image_folder, wrong, said):
    about = {**ABOUT, "model": {"name": "conv2"}}
    save_ticket("a.ticket", edge_popup(nn.Linear(4, 3)), about={**about, **wrong})
    assert said in refused("ticket", "run", "a.ticket", image_folder)

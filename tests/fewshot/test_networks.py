"""Networks that others wrote, inside episodes: nothing they compute is left out."""

import pytest
import torch
from fewshot_twin import WAYS, close, conv, episodes, masked, mlp
from torch import nn

from regraft.errors import InputError
from regraft.fewshot import MAML, FrozenEncoder, ProtoNet
from regraft.fewshot.linear_step import read_stack

IMAGES = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def unadapted(learner, x):
    """Outputs of a learner before any step, each task normalised by itself."""
    plain = learner.call({**dict(learner.network.named_parameters()), **learner.buffers_of()}, x)
    vmapped = torch.func.vmap(
        lambda one: learner.call(
            {**dict(learner.network.named_parameters()), **learner.buffers_of()}, one
        )
    )(x[None])[0]
    torch.testing.assert_close(plain, vmapped)
    return plain


@pytest.mark.parametrize("name", ["efficientnet_lite0", "mobilenetv3_small_050", "resnet10t"])
def test_a_network_of_timm_computes_in_an_episode_what_it_does_in_training(name):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=WAYS, drop_rate=0.0).double()
    learner = MAML(network)
    with torch.no_grad():
        want = network.train()(IMAGES)
        torch.testing.assert_close(unadapted(learner, IMAGES), want)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "googlenet"])
def test_a_network_of_torchvision_computes_in_an_episode_what_it_does_in_training(name):
    torchvision = pytest.importorskip("torchvision")
    more = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    torch.manual_seed(0)
    network = getattr(torchvision.models, name)(num_classes=WAYS, **more).double()
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    learner = MAML(network)
    with torch.no_grad():
        want = network.train()(IMAGES)
        torch.testing.assert_close(unadapted(learner, IMAGES), want)


class Scaled(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked(norm):
    norm.register_forward_hook(lambda module, inputs, output: 2 * output)
    return norm


def patched(norm):
    norm.forward = lambda x: x
    return norm


class DropPath(nn.Module):
    drop_prob = 0.1

    def forward(self, x):
        return x


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Scaled(4), "forward pass or hooks of its own"),
        (hooked(nn.BatchNorm2d(4)), "hooks of its own"),
        (patched(nn.BatchNorm2d(4)), "hooks of its own"),
        (DropPath(), "dropout with p=0.1"),
        (nn.RReLU(0.1, 0.3), "dropout with p=0.2"),
        (nn.MultiheadAttention(4, 2, dropout=0.2), "dropout with p=0.2"),
    ],
)
def test_a_layer_that_an_episode_cannot_compute_is_refused(layer, reason):
    network = nn.Sequential(nn.Conv2d(1, 4, 3), layer, nn.Flatten(), nn.Linear(36, WAYS))
    with pytest.raises(InputError, match=reason):
        MAML(network)


def shared(what):
    """A stack in which one module, or one weight, is used twice."""
    torch.manual_seed(0)
    relu, norm, linear = nn.ReLU(), nn.BatchNorm1d(25), nn.Linear(25, 25)
    other = nn.Linear(25, 25)
    other.weight = linear.weight
    layers = {
        "relu": [nn.Linear(25, 25), relu, nn.Linear(25, 25), relu],
        "norm": [nn.Linear(25, 25), norm, relu, nn.Linear(25, 25), norm, nn.ReLU()],
        "linear": [linear, nn.ReLU(), linear, nn.ReLU()],
        "weight": [linear, nn.ReLU(), other, nn.ReLU()],
    }[what]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(25, WAYS)).double()


@pytest.mark.parametrize("what", ["relu", "norm", "linear", "weight"])
def test_a_layer_that_is_used_twice_stays_so_on_every_path(what):
    tasks = episodes()
    network = shared(what)
    learner = MAML(network, lr=0.1, steps=2)
    assert (read_stack(learner._plain[0]) is not None) is (what == "relu")
    parameters = list(network.parameters())
    ours = torch.autograd.grad(learner(tasks), parameters)
    loop = MAML(network, lr=0.1, steps=2, path="loop")
    close(ours, torch.autograd.grad(loop(tasks), parameters))
    values = {**dict(network.named_parameters()), **learner.buffers_of()}
    with torch.no_grad():
        x = tasks.support_x[0]
        torch.testing.assert_close(learner.call(values, x), network.train()(x))


def test_a_network_with_hooks_is_no_stack():
    network = mlp()
    network.head.register_forward_hook(lambda module, inputs, output: 2 * output)
    learner = MAML(network, lr=0.1)
    assert learner._layers is None
    backward = mlp()
    backward.head.register_full_backward_hook(lambda module, before, after: None)
    assert MAML(backward)._layers is None
    values = {**dict(network.named_parameters()), **learner.buffers_of()}
    x = episodes().support_x[0]
    torch.testing.assert_close(learner.call(values, x), network.train()(x))


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("kind", ["ticket", "rates"])
def test_all_paths_of_a_masked_network_have_one_first_order_gradient(kind, steps):
    tasks, got = episodes(), []
    for path in ("exact", "vmap", "loop"):
        if kind == "ticket":
            learner = masked(mlp(), path=path, steps=steps, first_order=True)
        else:
            torch.manual_seed(0)
            masks = {"features.1.weight": (torch.rand(12, 25) > 0.5).double()}
            learner = MAML(
                mlp(),
                lr=0.3,
                path=path,
                steps=steps,
                first_order=True,
                learn_rates=True,
                masks=masks,
            )
        trained = [p for p in learner.parameters() if p.requires_grad]
        grads = torch.autograd.grad(learner(tasks), trained, allow_unused=True)
        got.append(
            [torch.zeros_like(p) if g is None else g for p, g in zip(trained, grads, strict=True)]
        )
    close(got[0], got[2])
    close(got[1], got[2])


def test_every_learned_rate_has_a_gradient_so_that_ddp_does_not_wait():
    learner = MAML(mlp(), lr=0.3, learn_rates=True, path="exact")
    learner(episodes()).backward()
    assert all(p.grad is not None for p in learner.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("masks", "reason"),
    [
        ({"features.0": torch.ones(12, 25)}, "no parameter 'features.0'"),
        ({"features.1.weight": torch.ones(25)}, r"its mask \[25\]"),
    ],
)
def test_a_mask_that_belongs_to_no_parameter_is_refused(masks, reason):
    with pytest.raises(InputError, match=reason):
        MAML(mlp(), masks=masks)
    with pytest.raises(InputError, match="learns its own"):
        masked(mlp(), masks=masks)


@pytest.mark.parametrize("make", [FrozenEncoder, ProtoNet])
def test_weights_loaded_later_are_those_that_embed(make):
    tasks = episodes()
    late = make(conv(seed=0))
    late.load_state_dict(make(conv(seed=1)).state_dict())
    want = make(conv(seed=1)).logits(tasks)
    torch.testing.assert_close(late.logits(tasks), want)
    half = make(conv(seed=1)).float().logits(tasks.to(torch.float32))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), want, rtol=1e-3, atol=1e-3)


def test_a_weight_that_the_head_shares_embeds_as_it_is_now():
    network = nn.Sequential(nn.Flatten(), nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 9))
    network[3].weight = network[1].weight
    encoder = FrozenEncoder(network)
    x = torch.rand(4, 1, 3, 3)
    with torch.no_grad():
        network[1].weight.mul_(2)
        want = network[:3](x)
    torch.testing.assert_close(encoder.features(x), want)
    shared = FrozenEncoder(OwnOrder())
    with torch.no_grad():
        shared.network.body.weight.mul_(2)
        torch.testing.assert_close(shared.features(x), shared.network.body(x.flatten(1)))


class OwnOrder(nn.Module):
    """The head is registered before the body whose weight it shares."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(9, 9, bias=False)
        self.body = nn.Linear(9, 9, bias=False)
        self.body.weight = self.head.weight

    def get_classifier(self):
        return self.head

    def forward(self, x):
        return self.head(self.body(x.flatten(1)))

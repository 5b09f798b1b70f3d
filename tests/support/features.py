"""Every fine-tuning method; the conformance test puts each to the proof.

A new method is one more line in `METHODS`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from regraft.features import METHODS as REGISTERED
from regraft.features import Method, build

STEPS = 6
CLASSES, WIDTH = 3, 8


def network(seed=0, classes=CLASSES, *, norm=True):
    """Return a small convolutional network with a fresh classifier."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1),
            nn.BatchNorm2d(6) if norm else nn.Identity(),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, WIDTH, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(WIDTH, classes),
        )


def batch(n=12, seed=0, classes=CLASSES, dtype=torch.float32):
    """Return images of which the class can be told, every class among them."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    x = torch.randn(n, 1, 8, 8, generator=generator) + y[:, None, None, None] / 2
    return x.to(dtype), y


def pretrained(seed=0):
    """Return the network after training on twice as many classes, with a fresh classifier."""
    net = network(5, 2 * CLASSES)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for step in range(150):
        x, y = batch(32, seed=10_000 + step, classes=2 * CLASSES)
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    net[-1] = network(seed)[-1]
    return net


def loader(n=5, dtype=torch.float32, share=slice(None)):
    whole = [batch(seed=100 + i, dtype=dtype) for i in range(n)]
    return [(x[share], y[share]) for x, y in whole]


@dataclass(frozen=True)
class Case:
    """A method as a test makes it.

    `across` says that its term is no mean over images, or that it depends on their order, `draws`
    that processes draw different random numbers: then two processes are not one.
    """

    name: str
    make: Callable[[int], Method]
    across: bool = False
    draws: bool = False

    def build(self, seed=1, *, norm=True, dtype=torch.float32, net=None, share=slice(None)):
        """Return a network and the method prepared on it."""
        model = (net or network(seed, norm=norm)).to(dtype)
        method = self.make(seed)
        return model, method.prepare(model, loader(dtype=dtype, share=share), steps=STEPS)


def case(name, *, across=False, draws=False, **options):
    return Case(name, lambda seed: build(name, seed=seed, **options), across, draws)


def source_head():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return nn.Linear(WIDTH, 6)


METHODS = {
    "plain": case("plain"),
    "adarand": case("adarand", draws=True),
    "adarand_orthogonal": case("adarand", prior="orthogonal", spread="isotropic", draws=True),
    "adarand_sampled": case("adarand", prior="orthogonal", negatives=2, spread="none"),
    "adarand_no_spread": case("adarand", spread="none", prior_lr=0.01),
    "randreg_uniform": case("randreg", kind="uniform", draws=True),
    "randreg_normal": case("randreg", kind="normal", draws=True),
    "randreg_source": case("randreg", kind="source", draws=True),
    "randreg_class": case("randreg", kind="class", draws=True),
    "feature_norm": case("feature_norm"),
    "l2sp": case("l2sp"),
    "delta": case("delta"),
    "delta_attention": case("delta", attention=True, attention_batches=1, across=True),
    "bss": case("bss", across=True),
    "supcon": case("supcon", across=True),
    "core_tuning": case("core_tuning", across=True, draws=True),
    "co_tuning": case("co_tuning", source_head=source_head()),
    "dr_tune": case("dr_tune", queue=40, every=2, across=True),
    "lp_ft": case("lp_ft", across=True),
    "linear_probe": case("linear_probe", across=True),
    "bitfit": case("bitfit"),
}


def missing():
    """Return registered methods without a case."""
    return set(REGISTERED) - {c.name for c in METHODS.values()}


def sgd(model, method, lr=0.02):
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.SGD([{"params": trained}, *method.param_groups(lr)], lr=lr, momentum=0.9)


def train(model, method, optimizer, first, last, *, forward=None, share=slice(None), dtype=None):
    """Train from step `first` to before `last` as anybody would, and return the losses."""
    losses = []
    dtype = dtype or next(model.parameters()).dtype
    model.train()
    for step in range(first, last):
        x, y = batch(seed=step, dtype=dtype)
        optimizer.zero_grad()
        out = (forward or model)(x[share])
        loss = method(F.cross_entropy(out, y[share]), y[share])
        loss.backward()
        optimizer.step()
        method.step()
        losses.append(loss.detach())
    return losses


def state(model, method, optimizer) -> dict:
    """Return everything a checkpoint needs."""
    return {
        "model": model.state_dict(),
        "method": method.state_dict(),
        "optimizer": optimizer.state_dict(),
    }


def restore(model, method, optimizer, saved) -> None:
    """Take up what `state` returned."""
    model.load_state_dict(saved["model"])
    method.load_state_dict(saved["method"])
    optimizer.load_state_dict(saved["optimizer"])

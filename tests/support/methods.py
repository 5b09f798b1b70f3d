"""Every method that plugs into somebody else's loop; the conformance test puts each to the proof.

A new method is one more line in `METHODS`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from networks import conv_net, images
from torch import nn

from regraft.config import TicketConfig
from regraft.tickets import Arm, prepare

STEPS = 6


@dataclass(frozen=True)
class Method:
    """How a method takes hold of a network: plain network and seed -> model, steppers, penalty."""

    take: Callable[[nn.Module, int], Arm]
    arm: str | None = None

    def build(self, seed: int, *, batch_norm: bool = True) -> Arm:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = conv_net()
        if not batch_norm:
            network[1] = nn.Identity()
        return self.take(network, seed)


def ticket(method: str, **options) -> Method:
    config = TicketConfig(method=method, every=2, rate=0.5, **options)
    return Method(lambda model, seed: prepare(model, config, seed=seed, steps=STEPS), method)


METHODS = {
    "edge_popup": ticket("edge_popup"),
    "edge_popup_global": ticket(
        "edge_popup", scope="global", score="magnitude", weight_init="kaiming_uniform"
    ),
    "edge_popup_annealed": ticket("edge_popup", anneal=0.7, sparsity=0.8),
    "edge_popup_penalty": ticket("edge_popup", penalty=1e-3),
    "iterand_constant": ticket("iterand"),
    "ternary": ticket("ternary", sparsity=0.6),
    "magnitude_pruned": ticket("magnitude_pruned", sparsity=0.6),
    "iterand_uniform": ticket("iterand", weight_init="kaiming_uniform"),
    "iterand_normal": ticket("iterand", weight_init="kaiming_normal"),
    "frozen": ticket("edge_popup", sparsity=0.6, pruned=0.3, locked=0.2, dynamic_scale=True),
    "frozen_global": ticket(
        "edge_popup",
        scope="global",
        score="magnitude",
        sparsity=0.5,
        pruned=0.2,
        locked=0.3,
        allocation="erk",
    ),
    "frozen_iterand": ticket("iterand", weight_init="kaiming_uniform", pruned=0.1, locked=0.2),
    "random_mask_trained": ticket("random_mask_trained"),
    "dense": ticket("dense"),
}

UNTRAINED = {"quantised", "quantised_coded", "random_mask", "shuffled_mask"}
"""Arms that train nothing: there is no loop for them to plug into."""


def sgd(arm: Arm) -> torch.optim.Optimizer:
    """SGD with momentum over what the method leaves trainable."""
    return torch.optim.SGD(
        [p for p in arm.model.parameters() if p.requires_grad], lr=0.2, momentum=0.9
    )


def train(arm: Arm, optimizer, first: int, last: int, *, forward=None, share=slice(None)):
    """Train from step `first` to before `last` as anybody would, and return the losses."""
    losses = []
    dtype = next(arm.model.parameters()).dtype
    for step in range(first, last):
        x, y = images(8, seed=step)
        optimizer.zero_grad()
        out = (forward or arm.model)(x[share].to(dtype))
        loss = F.cross_entropy(out, y[share])
        if arm.penalty is not None:
            loss = loss + arm.penalty(arm.model)
        loss.backward()
        optimizer.step()
        for stepper in arm.steppers.values():
            stepper.step()
        losses.append(loss.detach())
    return losses


def state(arm: Arm, optimizer) -> dict:
    """Return everything a checkpoint needs."""
    return {
        "model": arm.model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "steppers": {name: s.state_dict() for name, s in arm.steppers.items()},
    }


def restore(arm: Arm, optimizer, saved: dict) -> None:
    """Take up what `state` returned."""
    arm.model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    for name, stepper in arm.steppers.items():
        stepper.load_state_dict(saved["steppers"][name])

"""From a config to a learner, and from a file of one back to what adapts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regraft import streams
from regraft.config import FewshotConfig
from regraft.config.fewshot import FROZEN
from regraft.fewshot import (
    MAML,
    FrozenEncoder,
    Learner,
    MetaTicket,
    MGAug,
    ProtoNet,
    Reptile,
    head_name,
)
from regraft.tickets import WeightSource
from regraft.tickets.edge_popup import choose

_ADAPTS = {
    "anil": "head",
    "meta-ticket-anil": "head",
    "boil": "body",
    "meta-ticket-boil": "body",
}


def make_learner(
    network: nn.Module,
    config: FewshotConfig,
    *,
    seed: int,
    masks: Mapping[str, Tensor] | None = None,
    keep: bool = False,
) -> Learner:
    """Return the learner of a method on a network, which is changed in place.

    Every method starts from the same random weights: those that a ticket of this seed keeps.

    Args:
        network: A freshly built network.
        config: The method.
        seed: Seed of the random weights and scores.
        masks: For the controls: what is kept.
        keep: Start from the network's own weights instead.
    """
    method = config.method
    if method in FROZEN:
        return FrozenEncoder(network, classifier=method)  # pyrefly: ignore
    how: dict[str, Any] = {"batchnorm": config.batchnorm}
    if method == "protonet":
        if not keep:
            random_weights_(network, config.weight_init, seed)
        return ProtoNet(network, **how)
    how |= {
        "lr": config.inner_lr,
        "steps": config.inner_steps,
        "test_steps": config.test_steps,
        "first_order": config.first_order,
        "adapts": _ADAPTS.get(method, "all"),
    }
    if method.startswith("meta-ticket"):
        return MetaTicket(
            network, seed=seed, sparsity=config.sparsity, weight_init=config.weight_init, **how
        )
    if not keep:
        random_weights_(network, config.weight_init, seed)
    if method == "reptile":
        return Reptile(network, **how)
    if method == "mgaug":
        return MGAug(network, seed=seed, masks=masks, **how)
    return MAML(network, learn_rates=method == "meta-sgd", masks=masks, **how)


@torch.no_grad()
def random_weights_(network: nn.Module, init: str, seed: int) -> None:
    """Draw the weights of all layers but the classifier as a ticket's, with biases zero."""
    spared = (f"{head_name(network)}.*",)
    for owner, _, name, parameter in choose(network, trainable=spared):
        parameter.copy_(WeightSource(init, seed, name, tuple(parameter.shape)).rebuild())
        bias = getattr(owner, "bias", None)
        if isinstance(bias, Tensor):
            bias.zero_()


def random_masks_at(
    sparsity: Mapping[str, float], network: nn.Module, seed: int
) -> dict[str, Tensor]:
    """Return a random mask for each weight, of its own sparsity."""
    masks = {}
    for name, share in sparsity.items():
        weight = network.get_parameter(name)
        order = streams.permutation(seed, f"{name}#random_mask", 0, weight.numel())
        masks[name] = (order >= round(share * weight.numel())).reshape(weight.shape)
    return masks

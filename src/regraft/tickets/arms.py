"""Every way to use a random network, as data: the search methods and their controls.

An arm takes a freshly built model and gives back the model to train, what is stepped while it
trains, and what is added to its loss. Recipes and the command line choose arms by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor, nn

from regraft.config import TicketConfig
from regraft.errors import InputError
from regraft.protocols import Stepper

from .controls import apply_masks, random_masks
from .edge_popup import edge_popup
from .freeze import Freezing
from .iterand import IteRand
from .schedule import SparsitySchedule, score_penalty
from .trained import by_magnitude


@dataclass
class Arm:
    """A model made ready for one method.

    Attributes:
        model: The network to train.
        steppers: What is stepped after every optimiser step, by name.
        penalty: What is added to the loss, or None.
        trains: Whether there is anything to train.
    """

    model: nn.Module
    steppers: dict[str, Stepper] = field(default_factory=dict)
    penalty: Callable[[nn.Module], Tensor] | None = None
    trains: bool = True


def prepare(model: nn.Module, config: TicketConfig, *, seed: int, steps: int) -> Arm:
    """Make `model` ready for the method of `config`, in place.

    Args:
        model: A freshly built network.
        config: The method and its hyperparameters.
        seed: Seed of weights, scores and masks.
        steps: Length of training in optimiser steps, for what is annealed.

    Raises:
        InputError: A hyperparameter out of range, or a model with nothing to mask.
    """
    if config.method not in ARMS:
        raise InputError(f"method={config.method!r}: expected one of {', '.join(ARMS)}")
    return ARMS[config.method](model, config, seed, steps)


def _search(model: nn.Module, config: TicketConfig, seed: int, steps: int) -> Arm:
    edge_popup(
        model,
        sparsity=config.sparsity,
        scope=config.scope,
        score=config.score,
        weight_init=config.weight_init,
        score_init=config.score_init,
        rescale=config.rescale,
        dynamic_scale=config.dynamic_scale,
        freezing=Freezing(config.pruned, config.locked, config.allocation),
        trainable=config.trainable,
        seed=seed,
    )
    arm = Arm(model)
    if config.anneal > 0:
        ramp = max(int(steps * config.anneal), 1)
        arm.steppers["sparsity"] = SparsitySchedule(model, steps=ramp)
    if config.penalty > 0:
        arm.penalty = partial(_weighted_penalty, config.penalty)
    return arm


def _weighted_penalty(weight: float, model: nn.Module) -> Tensor:
    return weight * score_penalty(model)


def _iterand(model: nn.Module, config: TicketConfig, seed: int, steps: int) -> Arm:
    arm = _search(model, config, seed, steps)
    arm.steppers["iterand"] = IteRand(model, every=config.every, rate=config.rate)
    return arm


def _dense(model: nn.Module, config: TicketConfig, seed: int, steps: int) -> Arm:
    return Arm(model)


def _quantised(model: nn.Module, config: TicketConfig, seed: int, steps: int) -> Arm:
    # The caller loads the finished training into this model and then rounds its weights.
    return Arm(model, trains=False)


def _random_mask(model: nn.Module, config: TicketConfig, seed: int, steps: int) -> Arm:
    # The first scores are random, so the subnetwork a search starts from is a random mask.
    return Arm(_search(model, replace(config, anneal=0.0), seed, steps).model, trains=False)


def _random_mask_trained(model: nn.Module, config: TicketConfig, seed: int, steps: int) -> Arm:
    masks = random_masks(
        model, config.sparsity, allocation=config.allocation, trainable=config.trainable, seed=seed
    )
    if config.rescale:
        for name, mask in masks.items():
            model.get_parameter(name).data.mul_(mask.float().mean().clamp(min=1e-12).rsqrt())
    return Arm(apply_masks(model, masks))


def _shuffled_mask(model: nn.Module, config: TicketConfig, seed: int, steps: int) -> Arm:
    # The caller loads the finished search into this model and then shuffles its masks.
    return Arm(_search(model, replace(config, anneal=0.0), seed, steps).model, trains=False)


def _by_magnitude(model: nn.Module, config: TicketConfig, seed: int, steps: int) -> Arm:
    ternary = config.method == "ternary"
    return Arm(by_magnitude(model, config.sparsity, ternary=ternary, trainable=config.trainable))


ARMS: dict[str, Callable[[nn.Module, TicketConfig, int, int], Arm]] = {
    "iterand": _iterand,
    "edge_popup": _search,
    "dense": _dense,
    "quantised": _quantised,
    "quantised_coded": _quantised,
    "ternary": _by_magnitude,
    "magnitude_pruned": _by_magnitude,
    "random_mask": _random_mask,
    "random_mask_trained": _random_mask_trained,
    "shuffled_mask": _shuffled_mask,
}
"""The arms by name; a new method is one more line."""

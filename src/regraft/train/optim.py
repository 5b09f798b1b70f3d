"""torch's optimisers with the papers' schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from regraft.config import OptimConfig
from regraft.errors import InputError

_DROPS = {"multistep": (0.5, 0.75), "multistep-30-60-80": (0.3, 0.6, 0.8)}
"""After which shares of the epochs the learning rate falls to a tenth."""


def make_optimizer(
    model: nn.Module, config: OptimConfig, *, groups: Sequence[dict[str, Any]] | None = None
) -> Optimizer:
    """Return SGD or AdamW over the parameters of `model` that take gradients.

    Args:
        model: The network.
        config: Optimiser, learning rate, momentum, weight decay.
        groups: Parameter groups to train instead; what a group says wins over `config`.

    Raises:
        InputError: No parameter takes gradients, the optimiser is unknown, or a value is out of its
            range.
    """
    own = [p for p in model.parameters() if p.requires_grad]
    parameters: list[Any] = own if groups is None else [dict(group) for group in groups]
    if not parameters:
        raise InputError("model has no trainable parameter: nothing to optimise")
    shared = {"lr": config.lr, "weight_decay": config.weight_decay}
    try:
        if config.optimizer == "sgd":
            return torch.optim.SGD(
                parameters, momentum=config.momentum, nesterov=config.nesterov, **shared
            )
        if config.optimizer == "adamw":
            return torch.optim.AdamW(parameters, **shared)
    except ValueError as error:
        raise InputError(f"optimizer={config.optimizer!r}: {error}") from error
    raise InputError(f"optimizer={config.optimizer!r}: expected 'sgd' or 'adamw'")


def lr_factor(config: OptimConfig, steps_per_epoch: int) -> Callable[[int], float]:
    """Return step -> lr(step) / lr, a pure function, so that resuming needs no scheduler state.

    With W warm-up, C cool-down and E epochs in all: lr (e + 1) / W in warm-up epoch e; then
    `epoch-cosine` lr (1 + cos(pi e / (E - W - C))) / 2, constant within each epoch e counted from
    the end of warm-up, `cosine` the same with a fractional e, `linear` lr (1 - e / (E - W - C)),
    `multistep` a tenth of lr from half of these epochs on and a hundredth from three quarters on,
    `multistep-30-60-80` a tenth more from each of these shares of the epochs on, or `constant`;
    then `cooldown_lr`.

    Raises:
        InputError: Fewer than 0 epochs, or warm-up and cool-down that leave none between them.
    """
    middle = config.epochs - config.warmup_epochs - config.cooldown_epochs
    if config.epochs < 0:
        raise InputError(f"epochs={config.epochs}: expected at least 0")
    if config.epochs > 0 and middle < 1:
        raise InputError(
            f"epochs={config.epochs}: {config.warmup_epochs} warm-up and {config.cooldown_epochs} "
            "cool-down epochs leave none between them"
        )

    def factor(step: int) -> float:
        epoch = step // steps_per_epoch
        if epoch < config.warmup_epochs:
            return (epoch + 1) / config.warmup_epochs
        if config.cooldown_epochs and epoch >= config.epochs - config.cooldown_epochs:
            return config.cooldown_lr / config.lr
        if config.schedule == "constant":
            return 1.0
        at = epoch if config.schedule == "epoch-cosine" else step / steps_per_epoch
        done = min((at - config.warmup_epochs) / max(middle, 1), 1.0)
        if config.schedule == "linear":
            return 1.0 - done
        if config.schedule in _DROPS:
            return 0.1 ** sum(done >= share for share in _DROPS[config.schedule])
        return 0.5 * (1.0 + math.cos(math.pi * done))

    return factor


def make_scheduler(optimizer: Optimizer, config: OptimConfig, steps_per_epoch: int) -> LambdaLR:
    """Return the schedule as a torch scheduler, stepped once after every optimiser step."""
    return LambdaLR(optimizer, lr_factor(config, steps_per_epoch))

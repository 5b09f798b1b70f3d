"""The contract of every fine-tuning method: prepare once, a loss for each batch, a step, a state.

    method = AdaRand().prepare(model, loader, steps=len(loader) * epochs)
    optimizer = SGD([*model.parameters(), *method.extra_parameters()], ...)
    for x, y in loader:
        loss = method(F.cross_entropy(model(x), y), y)
        loss.backward(); optimizer.step(); optimizer.zero_grad()
        method.step()

A method is an `nn.Module`, so that devices, checkpoints and copies see all it holds, and a
`Stepper`. The network itself stays as it is: what a method needs of it comes through a `Tap`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from regraft.errors import InputError
from regraft.models.classifier import unwrap

from .parallel import world
from .samples import Samples
from .tap import Captured, Tap, head_size, tap

Mode = Literal["train", "eval", "as_is"]
NormMode = Literal["eval", "train"]
"""Whose statistics BatchNorm uses in what is frozen or copied: the source's, or those of each batch."""


@dataclass(frozen=True)
class Context(Captured):
    """What a loss may look at besides features and targets.

    Attributes:
        tap: The tap on the network; `tap.model`, `tap.classifier` and `tap.head(features)`.
        autocast: The type the forward pass computed in under autocast, else None.
    """

    tap: Tap | None = None
    autocast: torch.dtype | None = None


class Method(nn.Module):
    """Base of all methods; by itself it is plain fine-tuning.

    Subclasses override `_prepare` (statistics, copies of weights, a new head, what is trained) and
    `loss`, and `step` where something happens over time.

    Attributes:
        replaces_loss: The base loss is not looked at: `loss` is the whole objective.
        takes_soft_targets: `loss` takes targets [b, K] of mixup as well.
        takes_ignored: Images with a class below 0, which cross-entropy can ignore, are no harm to it.
        needs_pretrained: It holds on to what pretrained weights know, and means nothing for others.
        needs_source_head: It takes the classifier that the source had, as `source_head`.
        decays_itself: It draws weights to a point of its own: the optimiser's decay should be 0.
        rate_scale: Learning rates that suit it, over those of plain fine-tuning.
        tap: The tap on the network, once prepared.
        num_classes: K, once prepared.
        num_features: d, once prepared.
    """

    replaces_loss: bool = False
    takes_soft_targets: bool = True
    takes_ignored: bool = True
    needs_pretrained: bool = False
    needs_source_head: bool = False
    decays_itself: bool = False
    rate_scale: float = 1.0
    learning_rate_scale: float = 1.0
    """Learning rate of `extra_parameters` over that of the network's head."""

    weight: float = 1.0
    """lambda; it may be changed while training."""

    normalise: bool = False
    """Divide lambda by mean_d Var(f) of the pretrained features."""

    num_classes: int = 0
    num_features: int = 0

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed
        self.tap: Tap | None = None
        self.variance = 1.0
        self._draws = 0
        self._steps = 0

    def prepare(
        self,
        model: nn.Module,
        loader: Any = None,
        *,
        steps: int | None = None,
        num_classes: int | None = None,
        classifier: str | None = None,
        mode: Mode = "train",
    ) -> Self:
        """Tap the network and take what the method needs of it before training; return `self`.

        Call it on the pretrained network with its new head, on the device and in the precision of
        training, before the optimiser is made and before a checkpoint is loaded. Buffers (those of
        BatchNorm too), modes and torch's random state are as before afterwards.

        Args:
            model: The network.
            loader: The target's training batches: any iterable of (inputs, labels, ...) or of
                mappings with `labels`, gone through at most once, or a `BatchSource`. In a
                distributed run each process has to see other images: a `BatchSource` is asked for
                the process's share, other loaders need a sampler such as `DistributedSampler`.
            steps: Optimiser steps of the whole run.
            num_classes: K, where the classifier does not tell.
            classifier: Name of the classifier, where it is not found by itself.
            mode: The mode in which statistics are taken; that of training by default. `as_is`
                leaves each module in the mode it is in, for a network with frozen BatchNorm.

        Raises:
            InputError: No classifier, no batches where they are needed, labels outside [0, K),
                one class, or an argument out of its range.
        """
        if mode not in ("train", "eval", "as_is"):
            raise InputError(f"mode={mode!r}: expected 'train', 'eval' or 'as_is'")
        if steps is not None and steps < 1:
            raise InputError(f"steps={steps}: expected the optimiser steps of the run, at least 1")
        samples = None if loader is None else Samples(loader, unwrap(model))
        self.remove()
        try:
            # A DataLoader draws its order from torch's generator.
            with torch.random.fork_rng(devices=[]):
                example = None if samples is None else samples.example()
                self.tap = tap(model, classifier=classifier, example=example)
                size = head_size(self.tap.classifier)
                self.num_features, self.num_classes = size or (0, 0)
                self.num_classes = num_classes or self.num_classes
                self._draws = self._steps = 0
                self._prepare(samples, steps, mode)
        except BaseException:  # no hook stays, and nobody takes the method for a prepared one
            self.remove()
            raise
        self.tap.clear()
        return self

    def _prepare(self, samples: Samples | None, steps: int | None, mode: Mode) -> None:
        """Do what the method does before training."""

    def loss(self, features: Tensor, targets: Tensor, context: Context | None = None) -> Tensor:
        """Return what is added to the base loss, or with `replaces_loss` the objective: a scalar.

        Args:
            features: Penultimate features [b, d], of any floating type.
            targets: Classes [b], or probabilities [b, K] where `takes_soft_targets`.
            context: What else the forward pass left; methods that need it say so.
        """
        return features.new_zeros((), dtype=wide(features))

    def forward(self, base: Tensor, targets: Tensor) -> Tensor:
        """Return the whole objective for the latest forward pass of the network.

        What looks at images is 0 for an empty batch, also where the base loss is no number.

        Args:
            base: The base loss, a scalar; not used where `replaces_loss`.
            targets: Classes [b], or probabilities [b, K] where `takes_soft_targets`.

        Raises:
            InputError: Not prepared, no forward pass, or one that the base loss is not of; targets
                that do not fit the features.
        """
        taken = self._tapped().take()
        targets = self._check(taken.features, targets)
        if not (self.replaces_loss or taken.is_part_of(base)):
            raise InputError(
                f"the network was called again between the forward pass of the loss and "
                f"{type(self).__name__}, which would now take the features of that other batch: compute "
                "method(loss, targets) first, or call the network inside of `with method.tap.paused()`"
            )
        kind = taken.features.device.type
        narrow = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        context = Context(**vars(taken), tap=self.tap, autocast=narrow)
        # Regularisers are computed in float32 whatever autocast does to the network.
        with torch.autocast(kind, enabled=False):
            if len(targets):
                return self.objective(base, taken.features, targets, context)
            # A process's share may be empty, and a mean over nothing is no number. The graph stays: other
            # processes may wait for this one in the backward pass, and penalties do not look at images.
            whole = self.objective(base.nan_to_num(0.0), taken.features, targets, context)
            return whole.nan_to_num(0.0)

    def objective(
        self, base: Tensor, features: Tensor, targets: Tensor, context: Context
    ) -> Tensor:
        """Return base loss and `loss` together; their sum, or `loss` where `replaces_loss`."""
        added = self.loss(features, targets, context)
        return added if self.replaces_loss else base + added

    @property
    def effective_weight(self) -> float:
        """lambda, divided by the pretrained features' variance where `normalise`."""
        return self.weight / self.variance if self.normalise else self.weight

    def step(self) -> None:
        """Advance by one optimiser step."""
        self._steps += 1

    def follow(self, optimizer: torch.optim.Optimizer) -> RemovableHandle:
        """Step with every step of an optimiser from now on, for loops with no place for `step()`.

        A step that a loss scaler skips is no step. Do not call `step()` as well.

        Returns:
            A handle to remove it.
        """
        return optimizer.register_step_post_hook(lambda *_: self.step())

    def remove(self) -> None:
        """Take the hooks off the network, when training is over."""
        if self.tap is not None:
            self.tap.remove()
            self.tap = None

    def extra_parameters(self) -> list[nn.Parameter]:
        """Return the trainable parameters of the method itself, for the optimiser."""
        return [p for p in self.parameters() if p.requires_grad]

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return `extra_parameters` as an optimiser's groups, none or one, at their learning rate."""
        extra = self.extra_parameters()
        return [{"params": extra, "lr": lr * self.learning_rate_scale}] if extra else []

    def get_extra_state(self) -> dict[str, Any]:
        """Return seed, counters and scale; the rest of the state are buffers and parameters."""
        return {
            "seed": self.seed,
            "draws": self._draws,
            "steps": self._steps,
            "variance": self.variance,
        }

    def set_extra_state(self, state: Any) -> None:
        """Restore what `get_extra_state` returned."""
        self.seed = int(state["seed"])
        self._draws, self._steps = int(state["draws"]), int(state["steps"])
        self.variance = float(state["variance"])

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Restore what `state_dict` returned, into a method prepared on the same kind of network.

        Raises:
            InputError: The state is of another method, network or number of classes.
        """
        try:
            return super().load_state_dict(state_dict, strict=strict, assign=assign)
        except (RuntimeError, KeyError, TypeError) as error:
            first = " ".join(str(error).split())[:300]
            raise InputError(
                f"the state does not fit this {type(self).__name__} ({first}): prepare the same "
                "method on the same network and classes before loading it"
            ) from error

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move all that the method holds, but keep it in float32 where a network is narrowed."""

        def keep(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            narrowed = moved.is_floating_point() and moved.itemsize < min(tensor.itemsize, 4)
            return moved.to(tensor.dtype) if narrowed else moved

        return super()._apply(keep, recurse)

    def noise(self, like: Tensor) -> Tensor:
        """Return standard normal values shaped like a tensor, other ones at every call."""
        generator = self.generator(like.device)
        return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)

    def generator(
        self, device: torch.device | str = "cpu", *, shared: bool = False
    ) -> torch.Generator:
        """Return a generator that depends on seed, process and the number of draws so far.

        So nothing but a counter is needed to go on exactly after resuming.

        Args:
            device: Where to draw.
            shared: Depend on the step instead, the same in all processes.
        """
        at = f"step {self._steps}" if shared else f"process {world()[0]} draw {self._draws}"
        self._draws += not shared
        text = f"{type(self).__name__}/{self.seed}/{at}"
        key = hashlib.blake2b(text.encode(), digest_size=8).digest()
        return torch.Generator(device).manual_seed(int.from_bytes(key, "little") >> 1)

    def _tapped(self) -> Tap:
        if self.tap is None:
            raise InputError(
                f"{type(self).__name__} is not prepared: call prepare(model, loader) before training"
            )
        return self.tap

    def _check(self, features: Tensor, targets: Tensor) -> Tensor:
        """Return the targets, classes as int64: others would choose rows as a mask, or not at all."""
        kind = type(self).__name__
        if targets.dim() not in (1, 2) or len(targets) != len(features):
            raise InputError(
                f"targets of shape {tuple(targets.shape)} with features {tuple(features.shape)}: "
                "expected classes [b], or probabilities [b, K], for the batch that was just forwarded"
            )
        if targets.dim() == 1:
            if targets.is_floating_point() or targets.dtype == torch.bool:
                raise InputError(f"targets of {targets.dtype}: expected classes as integers")
            if not self.takes_ignored and bool((targets < 0).any()):
                raise InputError(
                    f"targets have {int(targets.min())}: {kind} needs the class of every image; leave "
                    "images without one out of the batch"
                )
            # Elsewhere looking would wait for the device, and the base loss looks.
            last = int(targets.max()) if targets.is_cpu and len(targets) else 0
            if self.num_classes and last >= self.num_classes:
                raise InputError(
                    f"targets have {last}: expected 0 to {self.num_classes - 1}, or below 0 without a class"
                )
            return targets.long()
        if not self.takes_soft_targets:
            raise InputError(
                f"{kind} needs one class an image, not probabilities {tuple(targets.shape)}: leave "
                "out mixup and cutmix, or take another method"
            )
        if self.num_classes and targets.shape[1] != self.num_classes:
            raise InputError(
                f"targets of shape {tuple(targets.shape)}: expected probabilities of "
                f"{self.num_classes} classes"
            )
        return targets


class Plain(Method):
    """Plain fine-tuning, the control: nothing is added to the base loss."""


def without_ignored(each: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of values [b, ...] over the images whose class is not below 0, and all else."""
    if targets.dim() == 2:
        return each.mean()
    kept = targets >= 0
    counted = torch.where(kept.view(-1, *[1] * (each.dim() - 1)), each, 0.0)
    # The factor is exactly 1 where no image is ignored.
    return counted.mean() * (len(kept) / kept.sum().clamp(min=1))


def wide(features: Tensor) -> torch.dtype:
    """Return the type regularisers are computed in: float32, or float64 for float64 features."""
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def one_hot(targets: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    """Return targets as probabilities [b, K]."""
    if targets.dim() == 2:
        return targets.to(dtype)
    return nn.functional.one_hot(targets, num_classes).to(dtype)


def positive(**values: float) -> None:
    """Refuse numbers that are not finite and at least 0.

    Raises:
        InputError: The first such number, by name.
    """
    for name, value in values.items():
        if not 0.0 <= value < float("inf"):
            raise InputError(f"{name}={value}: expected a finite number, at least 0")


def one_of(name: str, value: str, options: Iterable[str]) -> None:
    """Refuse a word that is not among the options.

    Raises:
        InputError: It is not.
    """
    if value not in (options := tuple(options)):
        raise InputError(f"{name}={value!r}: expected one of {', '.join(options)}")

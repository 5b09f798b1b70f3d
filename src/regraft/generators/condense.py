"""Dataset condensation: a few synthetic images a class on which networks learn as on all data.

Three methods share one loop over random networks ("restarts"):

* `dc`: the gradients of real and synthetic images agree, class by class, while the network is
  trained on the synthetic ones;
* `dsa`: the same, under one random transform of both (differentiable siamese augmentation);
* `dm`: the mean embeddings of an untrained network agree, class by class.

Every draw belongs to the seed and to the number of its restart and step, so a condensation that was
interrupted goes on to the same bits.

References:
    Zhao, Mopuri and Bilen, "Dataset condensation with gradient matching", ICLR 2021 (algorithm 1).
    Zhao and Bilen, "Dataset condensation with differentiable siamese augmentation", ICML 2021.
    Zhao and Bilen, "Dataset condensation with distribution matching", WACV 2023.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regraft import streams
from regraft.data import FileSet, ImageSet, channel_moments
from regraft.errors import DivergenceError, InputError
from regraft.protocols import BatchSource

from . import distribution_matching, gradient_matching, siamese
from .condensed_set import CondensedSet
from .networks import freeze_norms_, fresh, refuse_misfit
from .real_images import RealImages
from .settings import CondenseConfig, Method
from .state import read_state, refuse_other, signature, write_state

_EXTREME = 1000.0
"""No pixel is so many standard deviations from the mean: its images have been lost for long."""

Progress = Callable[[int, int, dict[str, float]], None]
"""Called as `progress(restart, restarts, {"loss": ...})`."""


def condense(
    source: ImageSet | FileSet | BatchSource,
    network: Callable[[], nn.Module],
    *,
    checkpoint: Path | str | None = None,
    checkpoint_seconds: float = 30.0,
    max_seconds: float | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> CondensedSet:
    """Condense a set of images into `per_class` synthetic images of each class.

    With `checkpoint` an interrupted call goes on where it stopped, to the same bits, and a finished
    one returns its result again.

    Args:
        source: The real images: an `ImageSet`, a `FileSet`, or any `BatchSource`, of which one
            epoch is read into memory.
        network: Makes a network with fresh random weights from torch's generator, which is seeded
            for it. It maps [b, C, H, W] to logits [b, K] and is used in evaluation mode.
        checkpoint: File for the state of an unfinished condensation.
        checkpoint_seconds: Least time between two writes of it.
        max_seconds: Stop after the restart that passes this time; the result is what there is.
        progress: Called after every restart.
        options: Those of `Condenser`.

    Raises:
        InputError: An unknown method or setting, a class with fewer than `per_class` images, a
            network that does not fit, or a checkpoint of another condensation.
        DivergenceError: The matching loss is not finite, or the images ran away; the message names
            restart and step.
    """
    condenser = Condenser(source, network, **options)
    condenser.run(
        checkpoint=checkpoint,
        checkpoint_seconds=checkpoint_seconds,
        max_seconds=max_seconds,
        progress=progress,
    )
    return condenser.result()


class Condenser:
    """A condensation under way; follows `regraft.protocols.Stepper`, a step being one restart.

    Errors are those of `condense`.

    Args:
        source: The real images.
        network: Makes a network.
        per_class: Synthetic images of each class.
        method: `dc`, `dsa` or `dm`.
        config: Further settings.
        mean: Mean of each channel, for pixels in [0, 1], by which images are normalised for the
            network; by default that of an `ImageSet`. (0,) and (1,) leave pixels as they are.
        std: Standard deviation of each channel.
        classes: Name of every class; by default its index.
        seed: Seed of everything.
        device: Where to compute.

    Attributes:
        config: The settings, none of them left open.
        losses: Mean matching loss of each restart so far, for one class and step.
        images: The synthetic images in the network's scale, [K, n, C, H, W].
        seconds: Time spent in restarts.
    """

    def __init__(
        self,
        source: ImageSet | FileSet | BatchSource,
        network: Callable[[], nn.Module],
        *,
        per_class: int = 10,
        method: Method = "dc",
        config: CondenseConfig | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        classes: Sequence[str] | None = None,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        config = config or CondenseConfig()
        config.resolved(method, per_class, linear=True)  # refused before anything is computed
        if mean is None or std is None:
            if not isinstance(source, ImageSet):
                raise InputError(
                    f"mean and std are not given and a {type(source).__name__} does not tell them: "
                    "give one number for each channel"
                )
            own = channel_moments(source.images)
            mean, std = (g if g is not None else o for g, o in zip((mean, std), own, strict=True))
        self.real = RealImages(
            source, mean=mean, std=std, classes=classes, seed=seed, device=device
        )
        self.device = self.real.device
        self.seed, self.per_class, self.method = seed, per_class, method
        for name, count in zip(self.real.classes, self.real.counts, strict=True):
            if count < per_class:
                raise InputError(
                    f"--per-class {per_class}: class {name!r} has {count} image(s); ask for at most "
                    f"{min(self.real.counts)} of each class"
                )
        self._factory = network
        first = self._network(0)
        weights = gradient_matching.matched(first)
        self.config = config.resolved(
            method, per_class, linear=all(w.ndim == 2 for w in weights.values())
        )
        refuse_misfit(first, self.real.shape, self.real.num_classes)
        self._dtype = next(iter(weights.values())).dtype
        self.losses: list[float] = []
        self.seconds = 0.0
        self.images = self._start()
        self._classifier: str | None = None
        if method == "dm":
            self._classifier = distribution_matching.classifier_of(first, self.images.flatten(0, 1))
        self._velocity = torch.zeros_like(self.images)
        self._identity = {
            "method": method,
            "per_class": per_class,
            "seed": seed,
            "settings": json.loads(json.dumps(asdict(self.config))),
            "classes": list(self.real.classes),
            "mean": list(self.real.mean),
            "std": list(self.real.std),
            "images": self.real.digest(),
            "network": signature(first),
        }

    @property
    def restarts(self) -> int:
        """Restarts asked for."""
        return self.config.restarts or 0

    @property
    def done(self) -> bool:
        """Whether all restarts are done."""
        return len(self.losses) >= self.restarts

    def run(
        self,
        *,
        checkpoint: Path | str | None = None,
        checkpoint_seconds: float = 30.0,
        max_seconds: float | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Go on to the last restart, or to the first that passes `max_seconds`; see `condense`."""
        path = None if checkpoint is None else Path(checkpoint)
        if path is not None and path.exists():
            self.load_state_dict(read_state(path))
        began = saved = time.monotonic()
        while not self.done:
            self.step()
            now = time.monotonic()
            if progress is not None:
                progress(len(self.losses), self.restarts, {"loss": self.losses[-1]})
            over = max_seconds is not None and now - began >= max_seconds
            if path is not None and (now - saved >= checkpoint_seconds or over or self.done):
                write_state(path, self.state_dict())
                saved = time.monotonic()
            if over:
                return

    def step(self) -> None:
        """Match one more random network.

        Raises:
            DivergenceError: As `condense`; the images stay as they became.
        """
        began = time.monotonic()
        restart = len(self.losses)
        network = self._network(restart)
        losses = []
        outer, inner = self.config.outer or 1, self.config.inner or 0
        for i in range(outer):
            event = restart * outer + i
            real = [self.real.batch(c, self.config.real_batch, event) for c in self._labels]
            real = [batch.to(self._dtype) for batch in real]
            # A network that was trained a little has other statistics than the fresh one.
            freeze_norms_(network, torch.cat([b[: self.config.norm_batch] for b in real]))
            losses.append(self._match(network, real, event, f"restart {restart + 1}, step {i + 1}"))
            if i < outer - 1:
                self._train(network, inner, event)
        self.losses.append(math.fsum(losses) / len(losses) / self.real.num_classes)
        self.seconds += time.monotonic() - began

    def state_dict(self) -> dict[str, Any]:
        """Return everything that is needed to go on."""
        return {
            "images": self.images.clone(),
            "velocity": self._velocity.clone(),
            "losses": list(self.losses),
            "seconds": self.seconds,
            "identity": dict(self._identity),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            InputError: The state is that of another condensation.
        """
        refuse_other(state["identity"], self._identity)
        self.images.copy_(state["images"])
        self._velocity.copy_(state["velocity"])
        self.losses = [float(loss) for loss in state["losses"]]
        self.seconds = float(state["seconds"])

    def result(self) -> CondensedSet:
        """Return the images as they are now, in the scale of pixels."""
        shape = (1, -1, 1, 1)
        mean, std = (torch.tensor(v, dtype=torch.float64).view(shape) for v in self._moments)
        pixels = self.images.flatten(0, 1).cpu().double() * std + mean
        labels = torch.arange(self.real.num_classes).repeat_interleave(self.per_class)
        about = {
            **{k: v for k, v in self._identity.items() if k in ("seed", "settings", "network")},
            "data": self._identity["images"],
            "restarts": len(self.losses),
            "seconds": round(self.seconds, 3),
            "loss": self.losses[-1] if self.losses else None,
        }
        return CondensedSet(
            pixels.float(), labels, self.real.classes, *self._moments, self.method, about
        )

    @property
    def _moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self.real.mean, self.real.std

    @property
    def _labels(self) -> range:
        return range(self.real.num_classes)

    def _network(self, restart: int) -> nn.Module:
        """Return a fresh network whose weights depend on seed and restart alone."""
        word = int(streams.raw(self.seed, "condense/network", restart, 1)[0] >> 1)
        return fresh(self._factory, word, self.device)

    def _start(self) -> Tensor:
        shape = (self.real.num_classes, self.per_class, *self.real.shape)
        if self.config.init == "real":
            images = self.real.first(self.per_class).view(shape)
        else:
            size = math.prod(shape[1:])
            rows = [
                streams.normal(self.seed, f"condense/init/{name}", 0, size)
                for name in self.real.classes
            ]
            images = torch.stack(rows).view(shape)
        return images.to(device=self.device, dtype=self._dtype)

    def _match(self, network: nn.Module, real: list[Tensor], event: int, where: str) -> float:
        """Move the images one step towards the real ones and return the distance before it."""
        images = self.images.detach().requires_grad_()
        synthetic = images
        if self.config.transforms:
            kind = self._kind("condense/transform", event)
            values = siamese.draw_values(self.real.classes, seed=self.seed, event=event)
            values = values.to(self.device)
            real = [
                siamese.transform(kind, batch, row.expand(len(batch), -1))
                for batch, row in zip(real, values, strict=True)
            ]
            rows = values.repeat_interleave(self.per_class, 0)
            synthetic = siamese.transform(kind, images.flatten(0, 1), rows).view_as(images)
        if self.method == "dm":
            with torch.no_grad():
                target = distribution_matching.class_means(network, real, self._classifier)
            means = distribution_matching.class_means(network, list(synthetic), self._classifier)
            loss = distribution_matching.distance(means, target)
        else:
            wanted = gradient_matching.real_gradients(network, real)
            gradients = gradient_matching.synthetic_gradients(
                network, synthetic, vectorise=self.config.vectorise
            )
            loss = gradient_matching.distance(gradients, wanted)
        (direction,) = torch.autograd.grad(loss, images)
        value = loss.item()
        self._velocity.mul_(self.config.momentum).add_(direction)
        self.images.add_(self._velocity, alpha=-(self.config.lr_images or 0.0))
        extreme = self.images.abs().max().item()
        if not (math.isfinite(value) and extreme < _EXTREME):
            raise DivergenceError(
                f"the images ran away at {where}, to {extreme:.3g} deviations at a matching loss of "
                f"{value:.3g}: lower lr_images (now {self.config.lr_images:g}) or lr_network"
            )
        return value

    def _kind(self, name: str, event: int) -> str:
        kinds = self.config.transforms or ()
        return siamese.draw_kind(kinds, seed=self.seed, name=name, event=event)

    def _train(self, network: nn.Module, epochs: int, event: int) -> None:
        """Train the network in place on the synthetic images; norms keep their statistics."""
        images = self.images.flatten(0, 1)
        labels = torch.arange(len(self.images), device=self.device)
        labels = labels.repeat_interleave(self.per_class)
        weights: list[Tensor] = [p for p in network.parameters() if p.requires_grad]
        size, n = self.config.network_batch, len(labels)
        for epoch in range(epochs):
            count = event * epochs + epoch
            order = (
                None if n <= size else streams.permutation(self.seed, "condense/order", count, n)
            )
            for rows in (None,) if order is None else order.to(self.device).split(size):
                x, y = (images, labels) if rows is None else (images[rows], labels[rows])
                if self.config.transforms:
                    kind = self._kind("condense/augment/transform", count)
                    values = streams.uniform(self.seed, "condense/augment", count, 4 * n)
                    values = values.view(n, 4).to(self.device)
                    x = siamese.transform(kind, x, values if rows is None else values[rows])
                gradients = torch.autograd.grad(F.cross_entropy(network(x), y), weights)
                with torch.no_grad():
                    torch._foreach_add_(weights, gradients, alpha=-self.config.lr_network)

"""PP: pre-training of a network, of any architecture, on images that a source makes.

    min over theta of CE(f_theta(strong(G(z, y))), y),    y uniform over the classes, z normal

References:
    Yamaguchi et al., "Transfer learning with pre-trained conditional generative models", 2022
    (arXiv 2204.12833).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regraft.data.views import Views, strong
from regraft.errors import DivergenceError, InputError
from regraft.generators.sources import Source, draw_labels
from regraft.models.modes import evaluating
from regraft.streams import Counter, integers

Progress = Callable[[int, int, dict[str, float]], None]


class Pretraining:
    """A pre-training under way; follows `regraft.protocols.Stepper`.

    SGD with momentum 0.9 (or AdamW) under a cosine to zero. What a step draws is a function of the seed
    and its number, so one that was interrupted ends with the same weights.

    Args:
        network: Takes normalised images [b, C, H, W], gives logits of the source's classes.
        source: The generator, or a bank of its images.
        steps: Optimiser steps.
        batch_size: Images a step.
        lr: Learning rate at the start.
        weight_decay: Weight decay.
        optimizer: `sgd` or `adamw`.
        views: Views of the images; by default strong ones.
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel.
        seed: Seed of everything that is drawn.

    Raises:
        InputError: A setting out of its range, or a network that does not fit the source.
    """

    def __init__(
        self,
        network: nn.Module,
        source: Source,
        *,
        steps: int,
        batch_size: int = 64,
        lr: float = 0.05,
        weight_decay: float = 1e-4,
        optimizer: str = "sgd",
        views: Views | None = None,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        seed: int = 0,
    ) -> None:
        if steps < 1 or batch_size < 2:
            raise InputError(f"steps={steps}, batch_size={batch_size}: expected at least 1 and 2")
        if not (math.isfinite(lr) and lr > 0):
            raise InputError(f"lr={lr}: expected a finite number above 0")
        if source.classes < 2:
            raise InputError(
                "the source has a single class: there is nothing to tell apart, give one of two at least"
            )
        self.network, self.source = network, source
        self.steps, self.batch_size, self.at, self.seed = steps, batch_size, 0, seed
        self.views = strong() if views is None else views
        like = next(p for p in network.parameters() if p.is_floating_point())
        self._device, self._dtype = like.device, like.dtype
        self._mean = torch.tensor(mean).view(1, -1, 1, 1).to(self._device)
        self._std = torch.tensor(std).view(1, -1, 1, 1).to(self._device)
        self._refuse_misfit()
        trained = [p for p in network.parameters() if p.requires_grad]
        kinds = {
            "sgd": lambda: torch.optim.SGD(trained, lr, momentum=0.9, weight_decay=weight_decay),
            "adamw": lambda: torch.optim.AdamW(trained, lr, weight_decay=weight_decay),
        }
        if optimizer not in kinds:
            raise InputError(f"optimizer={optimizer!r}: expected sgd or adamw")
        self.optimizer: torch.optim.Optimizer = kinds[optimizer]()
        self._lr = lr
        self.newest = {"loss": math.nan, "accuracy": math.nan}

    @property
    def done(self) -> bool:
        """Whether all steps are taken."""
        return self.at >= self.steps

    def step(self) -> None:
        """Take one optimiser step.

        Raises:
            DivergenceError: The loss is not finite.
            RegraftError: The source made images that are not finite.
        """
        first, n = self.at * self.batch_size, self.batch_size
        labels = draw_labels(Counter(self.seed, "pretrain"), first, n, self.source.classes)
        images = self.source.sample(
            n, labels=labels, generator=Counter(self.seed, "pretrain", first)
        )
        images = self.views(images.to(self._device), Counter(self.seed, "pretrain/views", first))
        labels = labels.to(self._device)
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr * 0.5 * (1 + math.cos(math.pi * self.at / self.steps))
        self.network.train()
        images = ((images - self._mean) / self._std).to(self._dtype)
        with self._dropout():
            logits = self.network(images)
        loss = F.cross_entropy(logits, labels)
        value = loss.item()
        if not math.isfinite(value):
            raise DivergenceError(
                f"the loss became {value} at step {self.at + 1} of the pre-training: lower the "
                f"learning rate (now {self._lr:g})"
            )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.at += 1
        right = (logits.argmax(1) == labels).double().mean().item()
        self.newest = {"loss": value, "accuracy": 100 * right}

    def state_dict(self) -> dict[str, Any]:
        """Return everything that is needed to go on."""
        return {
            "at": self.at,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.at = int(state["at"])
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])

    @contextlib.contextmanager
    def _dropout(self) -> Iterator[None]:
        """Let what draws from torch's own generators (dropout) draw numbers of the step."""
        seed = int(integers(self.seed, "pretrain/dropout", self.at, 1, 2**31 - 1))
        on_gpu = self._device.type == "cuda"
        with torch.random.fork_rng([self._device] if on_gpu else []):
            torch.random.default_generator.manual_seed(seed)
            if on_gpu:
                with torch.cuda.device(self._device):
                    torch.cuda.manual_seed(seed)
            yield

    def _refuse_misfit(self) -> None:
        """Pass one blank batch through the network."""
        shape = self.source.image_shape
        blank = torch.zeros(2, *shape, device=self._device, dtype=self._dtype)
        size = "x".join(map(str, shape))
        try:
            with torch.no_grad(), evaluating(self.network):
                out: Any = self.network(blank)
        # The network is somebody else's code, which may raise anything.
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"the network cannot take the generator's images of {size} ({type(error).__name__}: "
                f"{reason}): take a network for images of this size, or another generator"
            ) from error
        if not isinstance(out, Tensor) or out.shape != (2, self.source.classes):
            form = tuple(out.shape[1:]) if isinstance(out, Tensor) else type(out).__name__
            raise InputError(
                f"the network gives {form} for an image and the generator has {self.source.classes} "
                "classes: give the network as many outputs for the pre-training"
            )


def pretrain(
    network: nn.Module,
    source: Source,
    *,
    steps: int,
    progress: Progress | None = None,
    **options: Any,
) -> nn.Module:
    """Pre-train `network` in place on a source's images and return it.

    Afterwards put a new classifier on it for the target's classes and fine-tune.

    Args:
        network: Takes normalised images, gives logits of the source's classes.
        source: The generator, or a bank of its images.
        steps: Optimiser steps.
        progress: Called as `progress(step, steps, {"loss": ..., "accuracy": ...})`.
        options: Further settings of `Pretraining`.

    Raises:
        InputError, DivergenceError, RegraftError: As `Pretraining`.
    """
    work = Pretraining(network, source, steps=steps, **options)
    while not work.done:
        work.step()
        if progress is not None:
            progress(work.at, work.steps, work.newest)
    return network

"""The images that a transfer matches on, measures on and trains on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from regraft import streams
from regraft.config import Augmentation, OptimConfig
from regraft.data import FileSet, ImageSet, Splits, batches
from regraft.protocols import BatchSource
from regraft.report.wording import chosen_on_tested
from regraft.symmetry.merge.connectivity import Kept, measure
from regraft.train import Batches, outputs

from .config import TransferConfig

State = dict[str, Tensor]

PARTS = ("validation", "test")
_EVALUATED = 500
"""Images in a batch that is only evaluated, of those that lie in memory."""
_APART = 100
"""Factor on the seed of the batches that gradients are of: no training here has their order."""


class Images:
    """Batches of one data set, whose labels are rows of the classifier.

    Args:
        splits: The data set.
        config: How many images are for what.
        device: Where the batches are for.
        seed: Seed of the order of training.
        augment: How images are varied for gradients and for training, as the source's were.

    Attributes:
        chosen_on: Name of the part that steps are chosen on.
        tested_on: Name of the part that scores are told of.
    """

    def __init__(
        self,
        splits: Splits,
        config: TransferConfig,
        *,
        device: torch.device,
        seed: int,
        augment: Augmentation = "none",
    ) -> None:
        self.splits, self.config, self.device = splits, config, device
        self.seed, self.augment = seed, augment
        self.chosen_on = "training" if splits.validation is None else "validation"
        there = (p for p in ("test", "validation") if getattr(splits, p) is not None)
        self.tested_on = next(there, "train")
        self._parts: dict[str, ImageSet | FileSet] = {
            "validation": splits.validation or splits.train,
            "test": getattr(splits, self.tested_on),
        }
        self._all = {part: self._plain(images) for part, images in self._parts.items()}

    @cached_property
    def few(self) -> dict[str, Kept]:
        """By part: batches of the images for scores along the steps and on paths, read once."""
        some = {part: _some(own, self.config.curve_images) for part, own in self._parts.items()}
        return {part: Kept(self._plain(images)) for part, images in some.items()}

    @cached_property
    def statistics(self) -> Kept:
        """Batches that BatchNorm statistics are taken from, read once.

        They are mixed: the images of a folder lie in the order of their classes.
        """
        images = _some(self.splits.train, self.config.statistics_images)
        return Kept(self._plain(images, shuffle=True))

    def gradients(self, part: str = "train") -> BatchSource:
        """Return batches of a part as in the source's training, in an order that no training has."""
        images = self.splits.train if part == "train" else self._parts[part]
        seed = _APART * self.seed
        return self._loader(
            images, self.config.batch_size, shuffle=True, augment=self.augment, seed=seed
        )

    def training(self, optim: OptimConfig) -> Batches:
        """Return the batches of a training, and those that it is validated and tested on."""
        train = self._loader(
            self.splits.train, optim.batch_size, shuffle=True, augment=self.augment
        )
        return Batches(train, self._all["validation"], self._all["test"])

    def score(
        self,
        model: nn.Module,
        state: State,
        *,
        everything: bool = False,
        parts: Sequence[str] = PARTS,
    ) -> dict[str, float]:
        """Return loss and accuracy of a state, on all images or on those for the curves."""
        model.load_state_dict(state)
        measured: dict[str, float] = {}
        for part in parts:
            scores = measure(model, [self._all[part] if everything else self.few[part]])
            measured |= {f"{part}_accuracy": scores.accuracy, f"{part}_loss": scores.loss}
        return measured

    def right(self, model: nn.Module, state: State) -> Tensor:
        """Return which of all validation images a state classifies right, bool [n]."""
        model.load_state_dict(state)
        logits, labels = outputs(model, self._all["validation"])
        return logits.argmax(1) == labels

    def note_on_choices(self, chosen: Sequence[str]) -> str | None:
        """Return what to say where choices were not made on validation images apart from the test.

        Args:
            chosen: What was chosen, as in "the best step"; nothing where there was no choice.
        """
        if not chosen:
            return None
        what = f"{' and '.join(chosen)} {'were' if len(chosen) > 1 else 'was'} chosen"
        if self._parts["validation"] is self._parts["test"]:
            return chosen_on_tested(self.splits.name, self.tested_on, what)
        if self.chosen_on == "training":
            return f"{self.splits.name} has no validation images: {what} on training ones"
        return None

    def describe(self) -> dict[str, Any]:
        """Return what the images are, for the card."""
        return {
            "name": self.splits.name,
            "train_images": len(self.splits.train),
            "tested_on": self.tested_on,
            "test_images": len(self._parts["test"]),
            "mean": list(self.splits.mean),
            "std": list(self.splits.std),
        }

    def _plain(self, images: ImageSet | FileSet, *, shuffle: bool = False) -> BatchSource:
        size = _EVALUATED if isinstance(images, ImageSet) else self.config.batch_size
        return self._loader(images, size, shuffle=shuffle)

    def _loader(
        self,
        images: ImageSet | FileSet,
        size: int,
        *,
        shuffle: bool = False,
        augment: Augmentation = "none",
        seed: int | None = None,
    ) -> BatchSource:
        return batches(
            images,
            batch_size=size,
            mean=self.splits.mean,
            std=self.splits.std,
            shuffle=shuffle,
            augment=augment,
            seed=self.seed if seed is None else seed,
            device=self.device,
        )


def _some(images: ImageSet | FileSet, limit: int | None) -> ImageSet | FileSet:
    """Return at most `limit` images, the same whatever the seed, so that seeds can be compared."""
    if limit is None or limit >= len(images):
        return images
    order = streams.permutation(0, "transfer/some", 0, len(images))
    return images.subset(order[:limit].sort().values)

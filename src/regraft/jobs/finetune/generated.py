"""A loss on generated images as a further loss of a fine-tuning: the methods mgr and pcr."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from regraft.config import MGRConfig, SourceConfig
from regraft.data import ImageSet
from regraft.errors import InputError
from regraft.features import METHODS
from regraft.generators.mgr import MGR
from regraft.generators.sources import load_source

from .extra import TermContext


@dataclass(frozen=True, kw_only=True)
class GeneratedTerm:
    """MGR or PCR on the images of a generator.

    Attributes:
        name: `mgr` or `pcr`.
        source: The generator.
        loss: The loss, and how its images are chosen.
    """

    name: str = "mgr"
    source: SourceConfig
    loss: MGRConfig = field(default_factory=MGRConfig)

    def check(self, method: str) -> None:
        """Refuse a method of features that such a loss means nothing to.

        Raises:
            InputError: It trains the classifier alone, or its loss takes the place of the base loss.
        """
        kind = METHODS.get(method)
        why = ""
        if kind is not None and not getattr(kind, "trains_backbone", True):
            why = "it trains the classifier alone, which a loss on features has no gradient to"
        elif kind is not None and kind.replaces_loss:
            why = "it mixes features and replaces the base loss, and is no sum that a term can join"
        if why:
            raise InputError(
                f"--method {method}+{self.name}: {method} does not combine with a loss on generated "
                f"images: {why}; take plain, adarand or another method of features"
            )

    def term(self, model: nn.Module, context: TermContext) -> MGR:
        """Return the loss for a network that is about to be trained."""
        source = load_source(self.source, device=context.device)
        splits = context.splits
        train: Any = splits.train
        images = train.images if isinstance(train, ImageSet) else train
        return MGR(source, self.loss, seed=context.seed).prepare(
            model,
            images,
            train.labels,
            mean=splits.mean,
            std=splits.std,
            batch=context.batch_size,
            classifier=context.classifier,
            classes=splits.classes,
        )

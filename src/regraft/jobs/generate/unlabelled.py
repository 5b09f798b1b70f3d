"""P-SSL in a fine-tuning: what `regraft finetune --unlabelled` adds to the loss of every step."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regraft.checkpoints.read import read_checkpoint
from regraft.config import SourceConfig, SslConfig
from regraft.data import Splits
from regraft.data.channels import to_channels
from regraft.data.folder import image_files
from regraft.data.memory import in_memory, refuse_too_many
from regraft.digests import weights_digest
from regraft.errors import InputError, RegraftError
from regraft.generators.pseudo import ImagePool, PseudoSamples, PseudoTerm, Unlabelled, conditions
from regraft.generators.sources import CachedBank, ImageSource, Source, load_source
from regraft.generators.sources.load import makes_images
from regraft.jobs.base import to_json
from regraft.jobs.finetune.extra import TermContext
from regraft.jobs.predict.finetuned import load_finetuned
from regraft.jobs.predict.pictures import decoded, readable
from regraft.machine import expanded

from .verbs import collapse_warning


@dataclass(frozen=True, kw_only=True)
class UnlabelledTerm:
    """What makes the loss on images without labels; an `ExtraTerm` of a fine-tuning.

    Attributes:
        source: A generator, a bank of one, or a folder of images, whatever its subfolders are called.
        ssl: The loss.
        classifier: Model file of the source classifier whose answers are the generator's conditions;
            without it they are uniform.
        unreadable: What is done about files of a folder that cannot be decoded.
    """

    source: SourceConfig
    ssl: SslConfig = field(default_factory=SslConfig)
    classifier: str | None = None
    unreadable: Literal["refuse", "skip"] = "refuse"

    def config(self) -> dict[str, Any]:
        """Return the JSON form, the classifier by what it holds."""
        digest = None if self.classifier is None else weights_digest(self.classifier)
        source, ssl = to_json(self.source), to_json(self.ssl)
        how = {"source": source, "ssl": ssl, "classifier": digest}
        return how if self.unreadable == "refuse" else {**how, "unreadable": self.unreadable}

    def term(self, model: nn.Module, context: TermContext) -> PseudoTerm:
        """Return the loss for a network that is about to be trained.

        Raises:
            InputError: Images of another size, a classifier of other classes than the generator's, or
                a source that cannot be loaded.
        """
        splits = context.splits
        return PseudoTerm.of(
            self._images(context),
            self.ssl,
            mean=splits.mean,
            std=splits.std,
            seed=context.seed,
            classifier=context.classifier,
        )

    def _images(self, context: TermContext) -> Unlabelled:
        splits, seed = context.splits, context.seed
        folder = expanded(self.source.name)
        if folder.is_dir() and not makes_images(folder):
            return ImagePool(self._pictures(folder, splits), seed=seed, device=context.device)
        source = load_source(self.source, device=context.device)
        wanted = (splits.channels, splits.image_size, splits.image_size)
        if source.image_shape != wanted:
            sizes = ["x".join(map(str, s)) for s in (source.image_shape, wanted)]
            raise InputError(
                f"the generator makes images of {sizes[0]} and the target's are {sizes[1]}: bring the "
                "target to that size with --image-size and --channels, or take another generator"
            )
        bank = isinstance(source, CachedBank)
        if bank or not isinstance(source, ImageSource):
            warned = collapse_warning(source, seed=seed)
            if warned:
                warnings.warn(warned, stacklevel=2)
        if bank:
            return ImagePool(source.pixels, seed=seed, device=context.device)
        samples = PseudoSamples(source, self._conditions(source, splits), seed=seed)
        if samples.fallback:
            warnings.warn(f"--conditions {self.ssl.conditions}: {samples.fallback}", stacklevel=2)
        return samples

    def _pictures(self, folder: Path, splits: Splits) -> Tensor:
        """Return images without labels as the target's are: uint8 [n, C, H, W]."""
        files = image_files(folder)
        if not files:
            raise InputError(
                f"--unlabelled {folder} holds no images: expected files such as .jpg or .png in it"
            )
        size, channels = splits.image_size, splits.channels
        refuse_too_many(len(files), (channels, size, size), f"--unlabelled of {len(files)} images")
        left: dict[Path, str] | None = {} if self.unreadable == "skip" else None
        pixels = torch.cat(list(decoded(files, 3, size, unreadable=left)))
        readable(files, left)
        return to_channels(pixels, channels)

    def _conditions(self, source: Source, splits: Splits) -> Tensor:
        if self.classifier is None or self.ssl.conditions == "uniform":
            return torch.full((1, source.classes), 1 / source.classes)
        classifier, mean, std = read_classifier(self.classifier)
        train = in_memory(splits.train, f"--conditions {self.ssl.conditions}")
        images = train.images.float() / 255
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (mean, std))
        return conditions(
            classifier,
            (images - mean) / std,
            source.classes,
            kind=self.ssl.conditions,
            temperature=self.ssl.temperature,
        )


def read_classifier(
    path: str,
) -> tuple[Callable[[Tensor], Tensor], tuple[float, ...], tuple[float, ...]]:
    """Return the network of a Regraft model file, in evaluation mode, and the moments of its images.

    Raises:
        InputError: The file does not say what it is of, or its weights do not fit.
    """
    if not read_checkpoint(path).about:
        raise InputError(
            f"--source-classifier {path} does not say which network it is of: expected what `regraft "
            "finetune`, `pretrain` or `ticket find --method dense` wrote"
        )
    loaded = load_finetuned(Path(path), model=None, device="cpu")
    network, shape = loaded.network.requires_grad_(False), loaded.about["input"]

    def classify(images: Tensor) -> Tensor:
        try:
            return network(images)
        except RuntimeError as error:
            raise RegraftError(
                f"{path} cannot classify images of {'x'.join(map(str, images.shape[1:]))}: it is of "
                f"{shape['channels']}x{shape['image_size']}x{shape['image_size']}"
            ) from error

    return classify, loaded.preparation.mean, loaded.preparation.std

"""diffusers pipelines from a local folder: class-conditional, consistency, and text-to-image ones."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regraft.config import SourceConfig
from regraft.errors import InputError, MissingExtraError, RegraftError
from regraft.streams import seeded

from .source import Source

_LABELS = ("class_labels", "prompt")


class PipelineSource(Source):
    """A pipeline that is called with labels, or with a text for each, and a seed for each image.

    Pipelines run without gradients and take no mixed labels: labels are drawn from probabilities, and
    latents have no gradient. Where the call takes `latents` they are the source's; elsewhere the
    latent is a seed, one number. Noise of later steps comes from a generator for each image, seeded by its
    latent; of schedulers that take none, from torch's global stream, which is seeded for each batch.

    Args:
        pipeline: The pipeline, called with `class_labels` or `prompt`.
        classes: Number of classes; of a text-to-image pipeline that of its `prompts`.
        prompts: A text for each class, for a pipeline that is called with `prompt`.
        options: Further arguments of every call, e.g. `num_inference_steps`.
        device: Where to compute.

    Raises:
        InputError: A pipeline that takes neither, or no number of classes.
        RegraftError: It cannot be called so, or made something else than images.
    """

    def __init__(
        self,
        pipeline: Any,
        *,
        classes: int | None = None,
        prompts: tuple[str, ...] = (),
        options: dict[str, Any] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.device = torch.device(device or "cpu")
        self.pipeline, self.prompts = pipeline, prompts
        own = getattr(pipeline, "device", None)
        self._devices = (self.device, *([own] if isinstance(own, torch.device) else []))
        self.options = dict(options or {})
        takes = inspect.signature(type(pipeline).__call__).parameters
        self._key = next((k for k in _LABELS if k in takes), "")
        if not self._key:
            raise InputError(f"{type(pipeline).__name__} takes neither class_labels nor a prompt")
        self.classes = classes or (len(prompts) if self._key == "prompt" else _classes(pipeline))
        if (self._key == "prompt" and len(prompts) != self.classes) or self.classes < 1:
            raise InputError(
                f"{type(pipeline).__name__} is called with a text: give one for each class as prompts, "
                'as in {"prompts": ["a photo of a cat", "a photo of a dog"]}'
            )
        self.class_names = prompts
        self._latents_taken = "latents" in takes and self._key == "class_labels"
        self._counts = "batch_size" in takes
        self.latent_shape = _latent_shape(pipeline) if self._latents_taken else (1,)
        self.deterministic, self.soft_conditions, self.latent_gradients = True, False, False
        self.notes += [
            f"{type(pipeline).__name__}, called with {self._key}"
            + ("" if self._latents_taken else " and a seed for each image"),
            "no mixed labels: the label of an image is drawn from its probabilities",
            "no gradients to its latents",
        ]
        self.image_shape = (1, 1, 1)
        blank = (torch.zeros(1, *self.latent_shape), torch.zeros(1, dtype=torch.int64))
        with seeded(0, *self._devices):
            first = self._made(*blank)
        self.image_shape = (first.shape[1], first.shape[2], first.shape[3])
        with seeded(1, *self._devices):
            again = self._made(*blank)
        if not torch.equal(first, again):
            self.deterministic = False
            self.notes.append(
                "it draws noise of its own: seeded for each batch, so that images depend on the batch "
                "they are made in"
            )

    @classmethod
    def from_folder(
        cls, folder: Path, config: SourceConfig, *, device: torch.device | str | None = None
    ) -> PipelineSource:
        """Return the pipeline of a local folder; nothing is fetched.

        Raises:
            MissingExtraError: diffusers is not installed.
            InputError: The folder is no pipeline.
        """
        try:
            from diffusers import DiffusionPipeline  # pyrefly: ignore
        except ImportError as error:
            raise MissingExtraError("diffusers", "generate", "a diffusers pipeline") from error
        try:
            pipeline = DiffusionPipeline.from_pretrained(str(folder), local_files_only=True)
        # Loading a folder of somebody else's may raise anything.
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"{folder} cannot be loaded as a diffusers pipeline ({reason})"
            ) from error
        pipeline.set_progress_bar_config(disable=True)
        options = dict(config.options)
        prompts = tuple(map(str, options.pop("prompts", ())))
        return cls(
            pipeline.to(device or "cpu"),
            classes=config.classes,
            prompts=prompts,
            options=options,
            device=device,
        )

    def generate(self, latents: Tensor, condition: Tensor) -> Tensor:
        """Make images; see `Source.generate`."""
        return self._made(latents, condition)

    def _made(self, latents: Tensor, labels: Tensor) -> Tensor:
        names: Any = labels.tolist()
        if self._key == "prompt":
            names = [self.prompts[i] for i in names]
        elif self._latents_taken:
            names = labels
        seeds = [_seed(z) for z in latents.cpu()]
        arguments: dict[str, Any] = {
            self._key: names,
            "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
            **self.options,
            "output_type": "np",
        }
        if self._latents_taken:
            arguments["latents"] = latents
        if self._counts:
            arguments["batch_size"] = len(labels)
        images = torch.as_tensor(self._called(arguments, seeds).images)
        if images.ndim != 4 or len(images) != len(labels):
            raise RegraftError(
                f"{type(self.pipeline).__name__} made {tuple(images.shape)} for {len(labels)} labels"
            )
        return images.permute(0, 3, 1, 2).to(self.device, torch.float32).clamp(0, 1)

    def _called(self, arguments: dict[str, Any], seeds: list[int]) -> Any:
        try:
            if self.deterministic:
                return self.pipeline(**arguments)
            with seeded(seeds[0] if seeds else 0, *self._devices):
                return self.pipeline(**arguments)
        # The pipeline is somebody else's code, which may raise anything.
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            now = ", ".join(sorted(self.options)) or "none"
            raise RegraftError(
                f"{type(self.pipeline).__name__} cannot be called with {self._key} "
                f"({type(error).__name__}: {reason}): look at --source-options (set now: {now})"
            ) from error

    def digest(self) -> str:
        """Return 16 hex digits of the pipeline's weights and how it is called."""
        hashed = hashlib.blake2b(
            repr((self._key, self.prompts, self.options)).encode(), digest_size=8
        )
        for name, part in sorted(getattr(self.pipeline, "components", {}).items()):
            if isinstance(part, torch.nn.Module):
                for key, value in sorted(part.state_dict().items()):
                    hashed.update(f"{name}.{key}".encode())
                    hashed.update(
                        value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
                    )
        return hashed.hexdigest()


def _seed(latent: Tensor) -> int:
    return int.from_bytes(hashlib.blake2b(latent.numpy().tobytes(), digest_size=7).digest())


def _inner(pipeline: Any) -> Any:
    for name in ("unet", "transformer"):
        if getattr(pipeline, name, None) is not None:
            return getattr(pipeline, name)
    raise InputError(f"{type(pipeline).__name__} has neither a unet nor a transformer")


def _classes(pipeline: Any) -> int:
    config = _inner(pipeline).config
    return int(
        getattr(config, "num_class_embeds", None)
        or getattr(config, "num_embeds_ada_norm", None)
        or 0
    )


def _latent_shape(pipeline: Any) -> tuple[int, ...]:
    config = _inner(pipeline).config
    side = config.sample_size
    height, width = side if isinstance(side, tuple | list) else (side, side)
    return (int(config.in_channels), int(height), int(width))

"""What a network that is fine-tuned must be, and how it is built again from its options alone."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from regraft.config import ModelConfig
from regraft.errors import InputError
from regraft.features import freeze_batchnorm_
from regraft.features.samples import preserved
from regraft.models.copying import copy_module
from regraft.models.external import FETCHING

HUBS = ("timm/", "torchvision/")
# What torchvision changes in a network when it is asked for weights, as the network's attributes.
_EFFECTIVE = ("transform_input", "aux_logits", "image_size")
_AUXILIARY = ("aux1", "aux2", "AuxLogits")


def asks_for_weights(config: ModelConfig) -> bool:
    """Whether the options of a network from a hub bring weights along."""
    return config.name.startswith(HUBS) and any(config.options.get(key) for key in FETCHING)


def random_start(name: str) -> str:
    """Return the sentence that says that nothing is inherited, with its cure."""
    if name.startswith(HUBS):
        return f"{name} starts from random weights: give --pretrained or --checkpoint FILE"
    if ":" in name:
        return f"weights as {name} makes them: give --checkpoint FILE for others"
    return "random weights: give --checkpoint FILE to inherit some"


def drop_auxiliary_(model: nn.Module, name: str) -> tuple[str, ...]:
    """Take off the auxiliary classifiers of torchvision's GoogLeNet and Inception.

    They have losses of their own in training and are not used afterwards.

    Returns:
        The names of what has been taken off.
    """
    if not (name.startswith("torchvision/") and getattr(model, "aux_logits", False)):
        return ()
    model.aux_logits = False  # pyrefly: ignore
    dropped = tuple(part for part in _AUXILIARY if getattr(model, part, None) is not None)
    for part in dropped:
        setattr(model, part, None)
    return dropped


def rebuilding(config: ModelConfig, model: nn.Module) -> ModelConfig:
    """Return the config that builds a network again, without weights but of the same form.

    torchvision changes some options when it is asked for weights: the network tells what they are.
    """
    options = {k: v for k, v in config.options.items() if k not in FETCHING}
    if config.name.startswith("torchvision/"):
        effective = {k: getattr(model, k) for k in _EFFECTIVE if hasattr(model, k)}
        options |= effective
        if "aux_logits" in effective:
            options["init_weights"] = False  # slow, and every weight is loaded afterwards
    return replace(config, options=options)


def try_in_training(model: nn.Module, name: str, images: Tensor) -> None:
    """Pass images through in the mode of training, which leaves the network as it was.

    Raises:
        InputError: It fails, or gives something else than a tensor of logits.
    """
    try:
        with preserved(model, "train"):
            output = model(images)
    # The network is somebody else's code, which may raise anything.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"model {name} cannot be trained on images of {list(images.shape[1:])} ({reason}): check "
            "--image-size and --model-options"
        ) from error
    if not isinstance(output, Tensor) or output.dim() != 2 or len(output) != len(images):
        kind = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(
            f"model {name} gives {kind} for {len(images)} images in the mode of training: expected "
            "logits [images, classes] alone; switch auxiliary outputs off with --model-options"
        )


def refuse_single_images(model: nn.Module, images: Tensor, *, frozen: bool) -> None:
    """Refuse a network whose BatchNorm cannot normalise one image by itself.

    Args:
        model: The network, which stays as it is.
        images: One image [1, C, H, W].
        frozen: BatchNorm stays in evaluation mode.

    Raises:
        InputError: It cannot.
    """
    tried = freeze_batchnorm_(copy_module(model)) if frozen else model
    try:
        with preserved(tried, "train"):
            tried(images)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise InputError(
            "a step would see a single image, which BatchNorm cannot normalise by itself: give a larger "
            "--batch-size, a smaller --accumulate, or --freeze-batchnorm"
        ) from error

"""The network that fine-tuning starts from: its weights, its new classifier, its normalisation."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from regraft.checkpoints.names import unwrapped, with_positions
from regraft.checkpoints.read import Checkpoint, check_finite
from regraft.config import ModelConfig
from regraft.errors import InputError
from regraft.features import find_classifier
from regraft.models import build
from regraft.models.packaged import package_of, packaged_file

from .start_network import (
    asks_for_weights,
    drop_auxiliary_,
    random_start,
    rebuilding,
    try_in_training,
)


@dataclass(frozen=True, eq=False)
class Start:
    """A network to fine-tune.

    `classifier` is the name of its new head and `source` the classifier that it replaces, where
    there was one; `mean` and `std` are what its weights were trained with, None where unknown.
    `config` builds the network again without weights, and `inherits` is False where it is known to
    start from random ones.
    """

    model: nn.Module
    classifier: str
    source: nn.Module | None
    notes: tuple[str, ...]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    config: ModelConfig | None = None
    inherits: bool = True


def start_from(
    config: ModelConfig,
    *,
    classes: Sequence[str],
    channels: int,
    image_size: int,
    checkpoint: Checkpoint | None = None,
    pretrained: bool = False,
    want_source: bool = False,
) -> Start:
    """Build the network with a new classifier and the weights it starts from.

    Args:
        config: The network.
        classes: The target's classes.
        channels: Channels of the images.
        image_size: Side of the images in pixels.
        checkpoint: Weights; those of the classifier are taken where they fit.
        pretrained: Take the weights that timm's or torchvision's hub has instead.
        want_source: Keep the source's classifier, for Co-Tuning.

    Raises:
        InputError: The network cannot be built or has no classifier, gives something else than
            logits in the mode of training, or the checkpoint is of another network.
        MissingExtraError: timm or torchvision is not installed.
    """
    shape = {"channels": channels, "image_size": image_size}
    if pretrained and checkpoint is not None:
        raise InputError("--pretrained and --checkpoint exclude each other: give one")
    if pretrained:
        config = _from_hub(config)
    elif checkpoint is None:
        pretrained = asks_for_weights(config)
    model = build(config, num_classes=len(classes), channels=channels, image_size=image_size)
    example = torch.zeros(2, channels, image_size, image_size)
    name, _ = find_classifier(model, example=example)
    dropped = drop_auxiliary_(model, config.name)
    mean, std = _statistics(config.name, model) if pretrained or checkpoint else (None, None)
    source, notes = None, () if pretrained else (random_start(config.name),)
    if checkpoint is not None:
        check_finite(checkpoint)
        own = model.state_dict()
        checkpoint = with_positions(unwrapped(_without(checkpoint, dropped), own), own)
        source, notes = _load(model, config.name, name, checkpoint, classes)
        if {"mean", "std"} <= set(checkpoint.about):
            mean, std = (tuple(checkpoint.about[k]) for k in ("mean", "std"))
    elif pretrained:
        where = package_of(config.name) if packaged_file(config.name) else None
        origin = "its hub" if where is None else f"the package {where}"
        notes = (f"weights of {config.name} from {origin}, with a new classifier",)
        if want_source:
            source = _hub_classifier(config, shape)
    if mean is not None and len(mean) != channels:
        mean = std = None
    if dropped:
        notes += (f"without the auxiliary classifiers {', '.join(dropped)}",)
    try_in_training(model, config.name, example)
    inherits = pretrained or checkpoint is not None or ":" in config.name
    return Start(model, name, source, notes, mean, std, rebuilding(config, model), inherits)


def _without(checkpoint: Checkpoint, dropped: tuple[str, ...]) -> Checkpoint:
    kept = {name: name for name in checkpoint if name.partition(".")[0] not in dropped}
    return checkpoint.renamed(kept)


def _from_hub(config: ModelConfig) -> ModelConfig:
    if config.name.startswith("timm/"):
        return replace(config, options={"pretrained": True, **config.options})
    if config.name.startswith("torchvision/"):
        return replace(config, options={"weights": "DEFAULT", **config.options})
    raise InputError(
        f"--pretrained: {config.name} has no hub of weights; give --checkpoint FILE.safetensors, or a "
        "network timm/NAME or torchvision/NAME"
    )


def _hub_classifier(config: ModelConfig, shape: dict[str, int]) -> nn.Module:
    """Return the classifier over the source's classes of a network from a hub."""
    classes = 1000
    if config.name.startswith("timm/"):
        import timm

        hub = timm.get_pretrained_cfg(config.name.removeprefix("timm/"))
        classes = hub.num_classes if hub is not None else classes
    options = dict(config.options)
    if config.name.startswith("torchvision/"):
        import torchvision

        whole = getattr(torchvision.models, config.name.removeprefix("torchvision/"))(**options)
    else:
        whole = build(
            config, num_classes=classes, channels=shape["channels"], image_size=shape["image_size"]
        )
    example = torch.zeros(2, shape["channels"], shape["image_size"], shape["image_size"])
    return copy.deepcopy(find_classifier(whole, example=example)[1])


def _statistics(name: str, model: nn.Module) -> tuple[Any, Any]:
    """Return the mean and std that weights of a network from elsewhere were trained with."""
    if name.startswith("torchvision/"):
        return (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    hub = getattr(model, "pretrained_cfg", None)
    if name.startswith("timm/") and isinstance(hub, dict) and {"mean", "std"} <= set(hub):
        return tuple(hub["mean"]), tuple(hub["std"])
    return None, None


def _load(
    model: nn.Module, what: str, classifier: str, checkpoint: Checkpoint, classes: Sequence[str]
) -> tuple[nn.Module | None, tuple[str, ...]]:
    """Load a checkpoint in place; return the source's classifier and what is to be said."""
    stored, path = dict(checkpoint), checkpoint.path
    own = model.state_dict()
    heads = {k for k in {**own, **stored} if k.startswith(f"{classifier}.")}
    for key, tensor in own.items():
        if key in heads:
            continue
        if key not in stored:
            if key.endswith("num_batches_tracked"):
                continue
            raise InputError(
                f"checkpoint {path} is of another model than {what}: it has no tensor {key!r} "
                f"{list(tensor.shape)} (it begins with {next(iter(stored))!r}); check --model"
            )
        if stored[key].shape != tensor.shape:
            raise InputError(
                f"checkpoint {path} is of another model than {what}: its tensor {key!r} is "
                f"{list(stored[key].shape)}, the network's {list(tensor.shape)}; check --model, "
                "--channels and --image-size"
            )
    strange = [k for k in stored if k not in own and k not in heads]
    if strange:
        raise InputError(
            f"checkpoint {path} is of another model than {what}: its tensor {strange[0]!r} has no "
            "place in the network; check --model"
        )
    fitting = {k: v for k, v in stored.items() if k in own and k not in heads}
    weight, here = stored.get(f"{classifier}.weight"), own[f"{classifier}.weight"]
    fits = all(k in stored and stored[k].shape == own[k].shape for k in heads if k in own)
    others = checkpoint.about.get("classes")
    same = others is None or list(others) == list(classes)
    if fits and same:
        fitting |= {k: stored[k] for k in heads if k in own}
    model.load_state_dict(fitting, strict=False)
    notes = [f"weights from {path}", *checkpoint.notes]
    if weight is None:
        notes.append(
            f"the classifier {classifier} is new ({here.shape[0]} classes): {path} has none"
        )
    elif fits and not same:
        notes.append(f"the classifier {classifier} is new: that of {path} is for other classes")
    elif not fits:
        notes.append(
            f"the classifier {classifier} is new: that of {path} has {weight.shape[0]} classes and "
            f"the data {here.shape[0]}"
        )
    source = None if weight is None else _linear(weight, stored.get(f"{classifier}.bias"))
    return source, tuple(notes)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Module:
    weight = weight.flatten(1).float()
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer

"""From a `ModelConfig` to a network: a built-in one, torchvision's, timm's, or the user's own.

Networks for graphs are built in or the user's own.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from regraft.config import ModelConfig
from regraft.errors import InputError

from .base import scaled
from .conv import ConvN, ConvSmall
from .external import Shape, call, from_factory, from_timm, from_torchvision
from .graph import GAT, GCN, GIN, GraphNetwork
from .mlp import MLP
from .resnet import ResNet, ThinResNet


def model_names(*, graph: bool = False) -> tuple[str, ...]:
    """Return the names of the built-in networks for images, or of those for graphs, sorted."""
    return tuple(sorted(_FOR_GRAPHS if graph else _BUILT_IN))


def build(
    config: ModelConfig,
    *,
    num_classes: int,
    channels: int = 0,
    image_size: int = 0,
    graph: bool = False,
    features: int = 0,
) -> nn.Module:
    """Build a network for images [b, channels, image_size, image_size], or for a graph.

    A network for a graph is called with features [n, features] and edges int64 [2, e].

    `config.name` is a built-in network, `torchvision/NAME`, `timm/NAME`, or
    `package.module:factory`, importable also from the current folder. A factory is given
    `num_classes`, `in_channels` or `in_chans`, `image_size` or `img_size`, and `width` where its
    signature has them. `config.options` goes to the factory of any kind and wins over these.

    Networks that are not built in are tried on one blank image or node.

    Args:
        config: Which network, its width factor and further arguments.
        num_classes: Number of classes.
        channels: Channels of the images.
        image_size: Side of the images in pixels.
        graph: Build for a graph: `gcn`, `gin`, `gat`, or a factory, which is given `num_classes` or
            `out_channels`, `num_features` or `in_channels`, and `width`.
        features: Features of a node.

    Raises:
        InputError: An unknown name, a network for images where there is a graph or the other way
            round, a module or attribute that cannot be imported, a factory that
            fails or returns something else than a network for these images, or a width that is
            not positive or not supported.
        MissingExtraError: torchvision, timm or PyTorch Geometric is not installed.
    """
    if config.width <= 0:
        raise InputError(f"width={config.width}: expected a factor above 0")
    if graph:
        return _for_graph(config, num_classes, features)
    if config.name in _FOR_GRAPHS:
        raise InputError(
            f"model name={config.name!r} is a graph network and the data are images: expected one of "
            f"{', '.join(model_names())}, or a graph such as cora for data"
        )
    shape = Shape(num_classes, channels, image_size)
    if config.name in _BUILT_IN:
        factory = partial(_BUILT_IN[config.name], shape, config.width)
        return call(config.name, factory, config.options)
    for prefix, source in (("torchvision/", from_torchvision), ("timm/", from_timm)):
        if config.name.startswith(prefix):
            _refuse_width(config)
            return source(config.name.removeprefix(prefix), shape, config.options)
    if ":" in config.name:
        return from_factory(config.name, shape, config.width, config.options)
    close = difflib.get_close_matches(config.name, _BUILT_IN, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise InputError(
        f"model name={config.name!r} is unknown: {hint}expected one of "
        f"{', '.join(model_names())}, torchvision/NAME, timm/NAME or package.module:factory"
    )


def _for_graph(config: ModelConfig, num_classes: int, features: int) -> nn.Module:
    if config.name in _FOR_GRAPHS:
        factory = partial(_graph, _FOR_GRAPHS[config.name], num_classes, features, config.width)
        return call(config.name, factory, config.options)
    if ":" in config.name and not config.name.startswith("timm/"):
        shape = Shape(num_classes, 0, 0, features)
        return from_factory(config.name, shape, config.width, config.options)
    raise InputError(
        f"model name={config.name!r} takes no graph: expected one of "
        f"{', '.join(model_names(graph=True))}, or package.module:factory"
    )


def _graph(
    kind: type[GraphNetwork], num_classes: int, features: int, width: float, **options: Any
) -> nn.Module:
    default = inspect.signature(kind).parameters["hidden"].default
    hidden = scaled(options.pop("hidden", default), width)
    return kind(features, num_classes, hidden=hidden, **options)  # pyrefly: ignore


def _refuse_width(config: ModelConfig) -> None:
    if config.width != 1.0:
        raise InputError(
            f"width={config.width}: {config.name} has no width factor; leave it at 1 "
            "or choose a built-in network"
        )


def _mlp(shape: Shape, width: float, **options: Any) -> nn.Module:
    widths = [scaled(size, width) for size in options.pop("widths", (256, 256))]
    return MLP(shape.channels * shape.image_size**2, widths, shape.num_classes, **options)


def _conv(depth: int, shape: Shape, width: float, **options: Any) -> nn.Module:
    return ConvN(
        depth,
        shape.num_classes,
        channels=shape.channels,
        image_size=shape.image_size,
        width=width,
        **options,
    )


def _conv_small(shape: Shape, width: float, **options: Any) -> nn.Module:
    return ConvSmall(
        shape.num_classes,
        channels=shape.channels,
        image_size=shape.image_size,
        width=width,
        **options,
    )


def _resnet(depth: int, shape: Shape, width: float, **options: Any) -> nn.Module:
    return ResNet(depth, shape.num_classes, channels=shape.channels, width=width, **options)


def _thin_resnet(depth: int, shape: Shape, width: float, **options: Any) -> nn.Module:
    return ThinResNet(depth, shape.num_classes, channels=shape.channels, width=width, **options)


_BUILT_IN: dict[str, Callable[..., nn.Module]] = {
    "mlp": _mlp,
    "conv2": partial(_conv, 2),
    "conv4": partial(_conv, 4),
    "conv6": partial(_conv, 6),
    "conv8": partial(_conv, 8),
    "conv_small": _conv_small,
    "resnet8": partial(_thin_resnet, 8),
    "resnet18": partial(_resnet, 18),
    "resnet20": partial(_thin_resnet, 20),
    "resnet34": partial(_resnet, 34),
}

_FOR_GRAPHS: dict[str, type[GraphNetwork]] = {"gat": GAT, "gcn": GCN, "gin": GIN}

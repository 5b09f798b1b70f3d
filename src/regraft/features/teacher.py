"""A frozen copy of the pretrained network, and the maps of layers inside of a network."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from regraft.errors import InputError
from regraft.models.copying import copy_module

from .method import Context, NormMode
from .samples import moved
from .tap import Captured, Tap


class LayerTap:
    """Holds what layers gave at the latest forward pass.

    Args:
        model: The network.
        layers: Names of its layers.

    Raises:
        InputError: There is no such layer.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str]) -> None:
        self.maps: dict[str, Tensor] = {}
        self._handles = []
        wanted = []
        for name in layers:
            try:
                wanted.append(model.get_submodule(name))
            except AttributeError:
                raise InputError(
                    f"layers has {name!r}: {type(model).__name__} has no such module; "
                    "model.named_modules() lists them"
                ) from None
        for name, layer in zip(layers, wanted, strict=True):
            self._handles.append(layer.register_forward_hook(_Record(self, name)))

    def take(self) -> dict[str, Tensor]:
        """Return the maps by layer and forget them."""
        maps, self.maps = self.maps, {}
        return maps

    def remove(self) -> None:
        """Take the hooks off the network."""
        for handle in self._handles:
            handle.remove()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"maps": {}}


class _Record:
    """The hook of one layer; an object rather than a closure, so that copies of it are right."""

    def __init__(self, tap: LayerTap, name: str) -> None:
        self.tap, self.name = tap, name

    def __call__(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        output = output[0] if isinstance(output, tuple) else output
        if isinstance(output, Tensor):
            self.tap.maps[self.name] = output


class Teacher(nn.Module):
    """A copy of a network that stays as it is, in evaluation mode.

    Args:
        tap: Tap on the network to copy.
        layers: Layers whose maps are wanted.
        norm: `train` lets BatchNorm use each batch's own statistics.
    """

    def __init__(self, tap: Tap, layers: Sequence[str] = (), *, norm: NormMode = "eval") -> None:
        super().__init__()
        network = copy_module(tap.model)
        for module in network.modules():
            for hooks in (module._forward_pre_hooks, module._forward_hooks):
                for key in [k for k, hook in hooks.items() if _records(hook)]:
                    del hooks[key]
        self.network = network.eval().requires_grad_(False)
        self.norm = norm
        self.train(False)
        self.tap = Tap(network, tap.name, network.get_submodule(tap.name))
        self.layers = LayerTap(network, layers)

    def train(self, mode: bool = True) -> Teacher:
        """Stay in evaluation mode, but for BatchNorm that is to use batch statistics."""
        super().train(False)
        for module in self.network.modules() if self.norm == "train" else ():
            if isinstance(module, _BatchNorm):
                # Batch statistics are used so, and the running ones not updated.
                module.track_running_stats, module.training = False, True
        return self

    @torch.no_grad()
    def forward(self, context: Context) -> tuple[Captured, dict[str, Tensor]]:
        """Return features and layers' maps for what the student was called with, and how."""
        like = next(self.network.parameters())
        args = moved(context.args, like.device, like.dtype)
        kwargs = moved(context.kwargs or {}, like.device, like.dtype)
        narrow = context.autocast
        with torch.autocast(like.device.type, dtype=narrow, enabled=narrow is not None):
            self.network(*args, **kwargs)
        return self.tap.take(), self.layers.take()


def _records(hook: Any) -> bool:
    return isinstance(getattr(hook, "__self__", hook), Tap | LayerTap | _Record)


@contextlib.contextmanager
def zeroed(layer: nn.Module, channel: int) -> Iterator[None]:
    """Set one channel of a layer's output to zero inside of this context."""

    def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        output = output.clone()
        channels_first(output)[:, channel] = 0
        return output

    handle = layer.register_forward_hook(hook, prepend=True)
    try:
        yield
    finally:
        handle.remove()


def channels_first(maps: Tensor) -> Tensor:
    """Return a view of maps [b, C, ...] as [b, C, positions]; tokens [b, n, C] have C last."""
    if maps.dim() == 3:
        return maps.transpose(1, 2)
    return maps.flatten(2) if maps.dim() > 3 else maps[:, :, None]

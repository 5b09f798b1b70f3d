"""Copies of networks in whatever state they are: right after a backward pass, too."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_Module = TypeVar("_Module", bound=nn.Module)


def copy_module(model: _Module) -> _Module:
    """Return a deep copy of a network, also where it keeps tensors that belong to a graph.

    torch refuses to copy a tensor that was computed from parameters. Networks keep such tensors: their
    last activations, weights under `weight_norm`, the weights of a parametrised LSTM. The copy has
    their values, cut off from the graph; tensors that were one stay one.
    """
    with _Detached():
        return copy.deepcopy(model)


class _Detached(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            if id(tensor) not in memo:
                with torch.no_grad():
                    memo[id(tensor)] = tensor.detach().clone()
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))

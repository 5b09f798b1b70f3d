"""A network as a graph of ATen operations, by `torch.export`."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from regraft.errors import InputError


@dataclass(frozen=True)
class Graph:
    """The exported graph, with what its placeholders stand for.

    Attributes:
        graph: ATen operations.
        module: Holder of sub-graphs.
        parameters: Placeholder -> name in the state dict, for parameters.
        buffers: Placeholder -> name of the buffer, stored in the state dict or not.
        values: Buffers by name.
        logits: Which of the outputs are the logits, where the output has a part of that name.
    """

    graph: fx.Graph
    module: fx.GraphModule
    parameters: Mapping[str, str]
    buffers: Mapping[str, str]
    values: Mapping[str, Tensor]
    logits: int | None = None


def inputs_of(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and keyword arguments from what a caller gave as example inputs.

    A mapping is taken as keyword arguments, a tuple or list as positional ones, and anything else
    as the only argument.
    """
    if isinstance(example, Mapping):
        return (), {str(k): v for k, v in example.items()}
    return (tuple(example), {}) if isinstance(example, tuple | list) else ((example,), {})


def export(model: nn.Module, example_inputs: Any) -> Graph:
    """Return the graph of a network in evaluation mode; the network is left as it was.

    Raises:
        InputError: `torch.export` cannot trace it; the message says what stopped it.
    """
    args, kwargs = inputs_of(example_inputs)
    with evaluating(model), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(model, args, kwargs, strict=False)
        # Somebody else's forward may raise anything under tracing.
        except Exception as error:
            raise InputError(_refusal(model, error)) from error
    signature = program.graph_signature
    return Graph(
        program.graph,
        program.graph_module,
        dict(signature.inputs_to_parameters),
        dict(signature.inputs_to_buffers),
        dict(model.named_buffers(remove_duplicate=False)),
        _logits(program),
    )


def _logits(program: Any) -> int | None:
    """Return the place of `logits` among the flattened outputs, or None."""
    spec = program.call_spec.out_spec
    names = torch.utils._pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    found = names.get("logits") if isinstance(names, Mapping) else getattr(names, "logits", None)
    return found if isinstance(found, int) else None


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Keep a network in evaluation mode, without its fused attention path, for a while."""
    modes = {module: module.training for module in model.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        model.eval()
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, mode in modes.items():
            module.training = mode


def double(model: nn.Module) -> nn.Module:
    """Return a float64 copy of a network on the CPU, in evaluation mode."""
    return copy.deepcopy(model).to("cpu", torch.float64).eval()


def cast(inputs: Any, dtype: torch.dtype) -> Any:
    """Return nested inputs on the CPU with their floating tensors in another dtype."""

    def one(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.cpu().to(dtype) if value.is_floating_point() else value.cpu()

    return torch.utils._pytree.tree_map(one, inputs)


def _refusal(model: nn.Module, error: Exception) -> str:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return (
        f"{type(model).__name__} cannot be traced by torch.export ({type(error).__name__}: {reason}): "
        "give example inputs that its forward takes; branches on tensor values, .item() and numpy "
        "calls in forward must be rewritten with torch.where, or left out of the traced part"
    )

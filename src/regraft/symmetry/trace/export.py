"""A network as a graph of ATen operations, by `torch.export`."""

from __future__ import annotations

import contextlib
import operator
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from regraft.errors import InputError
from regraft.models.copying import copy_module
from regraft.models.modes import evaluating

from .known import watching


@dataclass(frozen=True)
class ExportedGraph:
    """The exported graph, with what its placeholders stand for.

    Attributes:
        graph: ATen operations.
        module: Holder of sub-graphs.
        parameters: Placeholder -> name in the state dict, for parameters.
        buffers: Placeholder -> name of the buffer, stored in the state dict or not.
        values: Buffers by name.
        shown: Which of the flattened outputs count; see `counted`.
        read: Stored buffers whose values decided what was traced.
        constants: Placeholder -> tensor that the code of the network holds.
    """

    graph: fx.Graph
    module: fx.GraphModule
    parameters: Mapping[str, str]
    buffers: Mapping[str, str]
    values: Mapping[str, Tensor]
    shown: tuple[int, ...]
    read: frozenset[str] = frozenset()
    constants: Mapping[str, Tensor] = field(default_factory=dict)


def inputs_of(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional and keyword arguments from what a caller gave as example inputs.

    A mapping is taken as keyword arguments, a tuple or list as positional ones, and anything else
    as the only argument.
    """
    if isinstance(example, Mapping):
        return (), {str(k): v for k, v in example.items()}
    return (tuple(example), {}) if isinstance(example, tuple | list) else ((example,), {})


def export(model: nn.Module, example_inputs: Any, outputs: Outputs = None) -> ExportedGraph:
    """Return the graph of a network in evaluation mode; the network is left as it was.

    Args:
        model: The network.
        example_inputs: What its forward is called with.
        outputs: Which of its outputs count; see `counted`.

    Raises:
        InputError: `torch.export` cannot trace it; the message says what stopped it.
    """
    args, kwargs = inputs_of(example_inputs)
    with (
        unfused(model),
        _any_mask(),
        watching(model, args, kwargs) as (known, plain, named),
        warnings.catch_warnings(),
        torch.no_grad(),
    ):
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(model, plain, named, strict=False)
        # Somebody else's forward may raise anything under tracing.
        except Exception as error:
            raise InputError(_refusal(model, error)) from error
    _drop_dead(program.graph_module)
    signature = program.graph_signature
    return ExportedGraph(
        program.graph,
        program.graph_module,
        dict(signature.inputs_to_parameters),
        dict(signature.inputs_to_buffers),
        dict(model.named_buffers(remove_duplicate=False)),
        _shown(program, outputs),
        frozenset(known.read),
        {
            place: program.constants[name]
            for place, name in signature.inputs_to_lifted_tensor_constants.items()
        },
    )


@contextlib.contextmanager
def _any_mask() -> Iterator[None]:
    """Let torch's Transformer take any mask as it is, and not look whether it is a causal one.

    It would only choose a faster kernel that computes the same.
    """
    module: Any = nn.modules.transformer
    looks = module._detect_is_causal_mask
    module._detect_is_causal_mask = lambda mask, is_causal=None, size=None: is_causal is True
    try:
        yield
    finally:
        module._detect_is_causal_mask = looks


def _drop_dead(module: fx.GraphModule) -> None:
    """Drop what nobody reads, such as a slice taken for its shape: it would hold units in place.

    What writes stays, and so do parts under another mode, which may write.
    """
    for part in module.modules():
        if not isinstance(part, fx.GraphModule):
            continue
        for node in reversed(list(part.graph.nodes)):
            schema = getattr(node.target, "_schema", None)
            pure = node.target is operator.getitem or (schema and not schema.is_mutable)
            if node.op == "call_function" and pure and not node.users:
                part.graph.erase_node(node)


_INNER = re.compile(r"(.*_)?(hidden_states?|attentions)|past_key_values")


Outputs = str | int | Sequence[str | int] | None
"""Which outputs count: names or numbers of them, or None for the usual ones."""


def counted(output: Any, chosen: Outputs = None) -> Any:
    """Return the part of an output that must stay: of a mapping with logits, not its inner states.

    Language and vision models of `transformers` may return hidden states, attentions and caches
    beside their logits; whatever else an output holds counts, unless it is said what does.

    Raises:
        InputError: The output has nothing of a name or number that was chosen.
    """
    if chosen is not None:
        keys = [chosen] if isinstance(chosen, str | int) else list(chosen)
        return [_part(output, key) for key in keys]
    if isinstance(output, Mapping) and "logits" in output:
        return {k: v for k, v in output.items() if not _INNER.fullmatch(str(k))}
    return output


def _part(output: Any, key: str | int) -> Any:
    if isinstance(output, Mapping):
        names = [str(name) for name in output]
        if isinstance(key, str) and key in output:
            return output[key]
    else:
        parts = output if isinstance(output, tuple | list) else (output,)
        names = [*getattr(output, "_fields", ()), *map(str, range(len(parts)))]
        if isinstance(key, int) and -len(parts) <= key < len(parts):
            return parts[key]
        if isinstance(key, str) and key in getattr(output, "_fields", ()):
            return getattr(output, key)
    raise InputError(f"outputs={key!r}: the network gives {', '.join(names) or 'nothing'}")


def _shown(program: Any, chosen: Outputs) -> tuple[int, ...]:
    spec = program.call_spec.out_spec
    numbered = torch.utils._pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    leaves = torch.utils._pytree.tree_leaves(counted(numbered, chosen))
    return tuple(leaf for leaf in leaves if isinstance(leaf, int))


@contextlib.contextmanager
def unfused(model: nn.Module) -> Iterator[None]:
    """Keep a network in evaluation mode, without its fused attention path, for a while."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with evaluating(model):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def double(model: nn.Module) -> nn.Module:
    """Return a float64 copy of a network on the CPU, in evaluation mode.

    Raises:
        InputError: Its weights are on the meta device.
    """
    if any(p.is_meta for p in model.parameters()):
        raise InputError(
            f"the weights of {type(model).__name__} are on the meta device, so that nothing can be "
            "computed: trace with check_it=False"
        )
    twin = copy_module(model)
    for tensor in (*twin.parameters(), *twin.buffers()):
        if tensor.is_floating_point() or tensor.is_complex():
            wide = torch.complex128 if tensor.is_complex() else torch.float64
            tensor.data = tensor.data.to("cpu", wide)
        else:
            tensor.data = tensor.data.cpu()
    return twin.eval()


def cast(inputs: Any, dtype: torch.dtype) -> Any:
    """Return nested inputs on the CPU with their floating tensors in another dtype."""

    def one(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.is_complex():
            return value.cpu().to(torch.complex128)
        return value.cpu().to(dtype) if value.is_floating_point() else value.cpu()

    return torch.utils._pytree.tree_map(one, inputs)


def _refusal(model: nn.Module, error: Exception) -> str:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return (
        f"{type(model).__name__} cannot be traced by torch.export ({type(error).__name__}: {reason}): "
        "give example inputs that its forward takes (a dict is taken as keyword arguments: pass "
        "(inputs,) where forward takes one dict); branches on tensor values, .item() and numpy "
        "calls in forward must be rewritten with torch.where, or left out of the traced part"
    )

"""From the graph of a network to its ledger: one pass, one rule an operation.

What no rule understands pins every dimension it touches, and the ledger says so: a symmetry that is
missed costs a little, one that is imagined costs the function.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from regraft.errors import InputError

from .contract import broadcast
from .export import ExportedGraph
from .labels import Dim, pinned
from .rule import Value, Walk, name_is_in_place, name_of, rule
from .rules import RULES
from .rules_elementwise import replaced


def walk(
    graph: ExportedGraph,
    shapes: Mapping[str, Sequence[int]],
    *,
    aliases: Mapping[str, str],
    shared: Collection[str] = (),
) -> Walk:
    """Pass over a graph and return what its operations say.

    Args:
        graph: The exported graph.
        shapes: Shapes of the tensors of the state dict.
        aliases: Name of a tied tensor -> the name it is known under.
        shared: Tensors that lie in the memory of others in another layout.
    """
    state = Walk(graph=graph, tied=frozenset({*aliases, *aliases.values(), *shared}))
    known: dict[fx.Node, Any] = {}
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            state.node = node
            known[node] = _placeholder(state, graph, node, shapes, aliases, shared)
    values = _follow(state, graph.graph, known)
    state.ledger.reason = "the output"
    state.pin([values[i] for i in graph.shown], "it is an output of the network")
    return state


def _follow(state: Walk, graph: fx.Graph, known: dict[fx.Node, Any]) -> Any:
    """Apply the rules to every operation of a graph and return its outputs."""
    written = _written_into(graph)
    for node in graph.nodes:
        state.node = node
        if node.op == "output":
            return _arguments(node.args[0], known)
        if node.op == "get_attr":
            known[node] = _attribute(state, node)
        elif node.op != "placeholder":
            known[node] = _apply(state, node, known)
        if node in written and isinstance(known[node], Value):
            dims = [Dim(d.size) if d.kind == "uniform" else d for d in known[node].dims]
            known[node] = Value(dims, known[node].parameter)  # and no numbers that are known
    return None


_VIEWS = (
    "view", "select", "slice", "narrow", "expand", "permute", "transpose", "squeeze", "unsqueeze",
    "alias", "detach", "chunk", "split", "unbind", "getitem", "diagonal", "t", "unflatten",
)  # fmt: skip


def _written_into(graph: fx.Graph) -> set[fx.Node]:
    """Return the tensors that something is written into later, through whatever views."""
    written: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op != "call_function" or not name_is_in_place(node.target):
            continue
        target = node.args[0] if node.args else None
        if isinstance(target, fx.Node) and replaced(target):
            continue
        while isinstance(target, fx.Node) and target not in written:
            written.add(target)
            through = name_of(target.target) if target.op == "call_function" else ""
            target = target.args[0] if through in _VIEWS or "getitem" in through else None
    return written


def _placeholder(
    state: Walk,
    graph: ExportedGraph,
    node: fx.Node,
    shapes: Mapping[str, Sequence[int]],
    aliases: Mapping[str, str],
    shared: Collection[str],
) -> Any:
    name = graph.parameters.get(node.name)
    buffer = graph.buffers.get(node.name)
    value = node.meta.get("val")
    # What another checkpoint may hold otherwise (a mask as much as a statistic) moves with the units,
    # or holds them in place: what it holds in this network says nothing.
    if buffer in shapes and isinstance(value, Tensor) and value.ndim:
        name = buffer
    if name is not None and node.users:
        parameter = state.parameter(aliases.get(name, name), shapes[name])
        if buffer is not None and graph.values[buffer].is_complex():
            state.pin(parameter, "it is a complex buffer")  # complex tensors cannot be compared
        if buffer in graph.read:
            state.pin(parameter, "its values are read as numbers")
        if name in shared:
            state.pin(parameter, "it shares its memory with another tensor in another layout")
        return parameter
    if buffer is not None:
        return constant(graph.values[buffer])
    if node.name in graph.constants:
        return constant(graph.constants[node.name])
    if not isinstance(value, Tensor):
        return value
    return Value(pinned(value.shape, "it reads an input of the network"))


def constant(value: Tensor) -> Value:
    """Return a tensor that is no trained weight: uniform along axes on which nothing varies."""
    dims = []
    for axis, size in enumerate(value.shape):
        known = size > 1 and not value.is_meta
        same = known and bool((value == value.narrow(axis, 0, 1)).all())
        dims.append(Dim(size, "uniform" if same else "pinned"))
    whole = value.dtype in (torch.int32, torch.int64) and not value.is_meta
    return Value(dims, numbers=value if whole else None)


def _attribute(state: Walk, node: fx.Node) -> Any:
    if state.graph is None:
        return None
    value = operator.attrgetter(str(node.target))(state.graph.module)
    return constant(value) if isinstance(value, Tensor) else value


@rule("wrap_with_set_grad_enabled", "wrap_with_autocast")
def wrapped(walk: Walk, *args: Any, **_: Any) -> Any:
    """A part of the network under another mode: followed as if it stood in its place."""
    at = next(i for i, arg in enumerate(args) if isinstance(arg, fx.GraphModule))
    inner = args[at].graph
    places = [node for node in inner.nodes if node.op == "placeholder"]
    outer = walk.node
    if outer is not None:
        outer_nodes = outer.args[at + 1 :]
        walk.outside |= {
            place: node
            for place, node in zip(places, outer_nodes, strict=True)
            if isinstance(node, fx.Node)
        }
    result = _follow(walk, inner, dict(zip(places, args[at + 1 :], strict=True)))
    walk.node = outer
    return list(result) if isinstance(result, tuple | list) else result


@rule("cond")
def either(walk: Walk, _which: Any, yes: Any, no: Any, operands: Any) -> list[Any]:
    """One of two parts of the network: what each says holds, and their results are permuted alike."""
    outer = walk.node
    results = []
    for part in (yes, no):
        places = [node for node in part.graph.nodes if node.op == "placeholder"]
        result = _follow(walk, part.graph, dict(zip(places, operands, strict=True)))
        results.append(list(result) if isinstance(result, tuple | list) else [result])
        walk.node = outer
    return [
        Value(broadcast(walk.ledger, a.dims, b.dims)) if isinstance(a, Value) else a
        for a, b in zip(*results, strict=True)
    ]


def _arguments(args: Any, known: dict[fx.Node, Any]) -> Any:
    return fx.node.map_arg(args, lambda node: known[node])


def _apply(state: Walk, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    args = _arguments(node.args, known)
    kwargs = _arguments(node.kwargs, known)
    if node.target is operator.getitem:
        return args[0][args[1]]
    for leaf in torch.utils._pytree.tree_leaves(node.meta.get("val")):
        if isinstance(leaf, Tensor):
            _sizes(leaf)
    name = name_of(node.target)
    state.ledger.reason = f"{name}{_place(node)}"
    rule = RULES.get(name)
    try:
        if rule is None:
            raise _UnknownError
        result = rule(state, *args, **kwargs)
        if not _fits(result, node.meta.get("val")):
            raise _UnknownError
    except (_UnknownError, TypeError, IndexError, KeyError, ValueError, AttributeError):
        # A form of the operation that its rule was not made for is as unknown as a new operation.
        state.unknown.setdefault(name, _place(node))
        why = f"operation {name}, which no rule covers{_place(node)}"
        state.pin((args, kwargs), why)
        return _still_like(node.meta.get("val"), why)
    written = node.args[0] if node.args and name_is_in_place(node.target) else None
    if isinstance(written, fx.Node) and isinstance(args[0], Value) and not replaced(written):
        _written(state, args[0], result)
    return result


class _UnknownError(Exception):
    """No rule covers the operation as it was called."""


def _written(state: Walk, before: Value, after: Value) -> None:
    """Pin what is written in place into a tensor that others may know as unmoved."""
    for old, new in zip(before.dims, after.dims, strict=True):
        if new.moves and not old.moves:
            state.ledger.fix(new, f"{state.ledger.reason} writes into a tensor in place")


def _fits(result: Any, meta: Any) -> bool:
    if isinstance(meta, Tensor):
        return isinstance(result, Value) and result.shape == tuple(meta.shape)
    if isinstance(meta, tuple | list):
        return len(result) == len(meta) and all(map(_fits, result, meta))
    return True


def _still_like(meta: Any, why: str) -> Any:
    if isinstance(meta, Tensor):
        return Value(pinned(_sizes(meta), why))
    if isinstance(meta, tuple | list):
        return [_still_like(part, why) for part in meta]
    return meta


def _sizes(meta: Tensor) -> list[int]:
    if not all(isinstance(size, int) for size in meta.shape):
        raise InputError(
            "the network has tensors whose size depends on values of the inputs (boolean indexing or "
            "nonzero): trace the part before or behind, or mask with torch.where"
        )
    return list(meta.shape)


def _place(node: fx.Node) -> str:
    """Return where in the network an operation stands, in words."""
    stack = node.meta.get("nn_module_stack") or {}
    names = [path for path, _kind in stack.values()]
    name = names[-1] if names else ""
    for prefix in ("L['self'].", "L['self']"):
        name = name.removeprefix(prefix)
    return f" in {name}" if name else ""

"""From the graph of a network to its ledger: one pass, one rule an operation.

What no rule understands pins every dimension it touches, and the ledger says so: a symmetry that is
missed costs a little, one that is imagined costs the function.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from .export import Graph
from .labels import Dim, Ledger, pinned


@dataclass(frozen=True, eq=False)
class Value:
    """What is known of one tensor of the graph.

    Attributes:
        dims: Its dimensions.
        parameter: Its name, where it is a parameter itself.
    """

    dims: Sequence[Dim]
    parameter: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the dimensions."""
        return tuple(dim.size for dim in self.dims)


Rule = Callable[..., Any]
"""`rule(walk, *args, **kwargs)` with a `Value` for every tensor; returns one, or a list of them."""

RULES: dict[str, Rule] = {}
"""Rules by the name of the operation without its overload, e.g. `conv2d`."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operations."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


@dataclass
class Walk:
    """The state of a pass over a graph.

    Attributes:
        ledger: What the operations say.
        axes: (tensor, axis) -> the dimension of nodes it was given; nodes [copies, n] where it lies
            over the blocks of another axis.
        over: (tensor, axis) -> that other axis.
        unknown: Operations without a rule, by name, with where they were met first.
        node: The operation at hand.
    """

    ledger: Ledger = field(default_factory=Ledger)
    axes: dict[tuple[str, int], Dim] = field(default_factory=dict)
    over: dict[tuple[str, int], int] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)
    node: fx.Node | None = None

    def output_shape(self, index: int | None = None) -> tuple[int, ...]:
        """Return the shape of the result of the operation at hand, or of one of its results."""
        found: Any = self.node.meta["val"] if self.node is not None else ()
        return tuple(found.shape if index is None else found[index].shape)

    def parameter(self, name: str, shape: Sequence[int]) -> Value:
        """Return a parameter, every axis of which is made of new nodes."""
        dims = []
        for axis, size in enumerate(shape):
            if (name, axis) not in self.axes:
                self.axes[name, axis] = self.ledger.axis(size)
            dims.append(self.axes[name, axis])
        return Value(dims, name)

    def regroup(self, value: Value, axis: int, blocks: Dim, over: int) -> Dim:
        """Give an axis of a parameter nodes of its own for each block of another axis."""
        size = value.dims[axis].size
        if value.parameter is None or size == 1:
            return value.dims[axis]
        key = (value.parameter, axis)
        if key not in self.over:
            nodes = self.ledger.fresh(blocks.size, size)
            if blocks.moves:
                self.ledger.adopt(nodes, blocks.nodes[:, None].repeat(size, axis=1))
            self.axes[key], self.over[key] = Dim(size, "nodes", nodes, [blocks]), over
        return Dim(size, "nodes", self.axes[key].nodes, [blocks])

    def pin(self, values: Any, why: str = "") -> None:
        """Pin every dimension of every tensor among nested values."""
        for value in torch.utils._pytree.tree_leaves(values):
            if isinstance(value, Value):
                for dim in value.dims:
                    self.ledger.fix(dim, why)


def walk(graph: Graph, shapes: Mapping[str, Sequence[int]], *, aliases: Mapping[str, str]) -> Walk:
    """Pass over a graph and return what its operations say.

    Args:
        graph: The exported graph.
        shapes: Shapes of the tensors of the state dict.
        aliases: Name of a tied tensor -> the name it is known under.
    """
    from . import rules as _rules  # registers every rule

    assert _rules is not None
    state = Walk()
    known: dict[fx.Node, Any] = {}
    for node in graph.graph.nodes:
        state.node = node
        if node.op == "placeholder":
            known[node] = _placeholder(state, graph, node, shapes, aliases)
        elif node.op == "output":
            state.ledger.reason = "the output"
            state.pin(_outputs(graph, node, known), "it is an output of the network")
        elif node.op == "get_attr":
            known[node] = _attribute(graph, node)
        else:
            known[node] = _apply(state, node, known)
    return state


def _outputs(graph: Graph, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    """Return the values whose order an output shows: of a mapping with logits, the logits alone."""
    values = _arguments(node.args[0], known)
    return values if graph.logits is None else values[graph.logits]


_STATISTICS = ("batch_norm", "instance_norm")


def _placeholder(
    state: Walk,
    graph: Graph,
    node: fx.Node,
    shapes: Mapping[str, Sequence[int]],
    aliases: Mapping[str, str],
) -> Any:
    name = graph.parameters.get(node.name)
    buffer = graph.buffers.get(node.name)
    if buffer in shapes and _follows_channels(node):
        name = buffer
    if name is not None and node.users:
        return state.parameter(aliases.get(name, name), shapes[name])
    if buffer is not None:
        return constant(graph.values[buffer])
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return value
    return Value(pinned(value.shape, "it reads an input of the network"))


def _follows_channels(node: fx.Node) -> bool:
    """Whether a buffer holds running statistics, which follow their channels."""
    return bool(node.users) and all(
        any(name in str(user.target) for name in _STATISTICS) for user in node.users
    )


def constant(value: Tensor) -> Value:
    """Return a tensor that is no trained weight: uniform along axes on which nothing varies."""
    dims = []
    for axis, size in enumerate(value.shape):
        known = size > 1 and not value.is_meta
        same = known and bool((value == value.narrow(axis, 0, 1)).all())
        dims.append(Dim(size, "uniform" if same else "pinned"))
    return Value(dims)


def _attribute(graph: Graph, node: fx.Node) -> Any:
    found = operator.attrgetter(str(node.target))(graph.module)
    return constant(found) if isinstance(found, Tensor) else found


def _arguments(args: Any, known: dict[fx.Node, Any]) -> Any:
    return fx.node.map_arg(args, lambda node: known[node])


def _apply(state: Walk, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    args = _arguments(node.args, known)
    kwargs = _arguments(node.kwargs, known)
    if node.target is operator.getitem:
        return args[0][args[1]]
    name = name_of(node.target)
    state.ledger.reason = f"{name}{_place(node)}"
    found = RULES.get(name)
    try:
        if found is None:
            raise _UnknownError
        result = found(state, *args, **kwargs)
        if not _fits(result, node.meta.get("val")):
            raise _UnknownError
    except (_UnknownError, TypeError, IndexError, KeyError, ValueError, AttributeError):
        # A form of the operation that its rule was not made for is as unknown as a new operation.
        state.unknown.setdefault(name, _place(node))
        state.pin((args, kwargs), f"operation {name}, which no rule covers{_place(node)}")
        return _still_like(node.meta.get("val"))
    if name_is_in_place(node.target) and args and isinstance(args[0], Value):
        _written(state, args[0], result)
    return result


class _UnknownError(Exception):
    """No rule covers the operation as it was called."""


def name_of(target: Any) -> str:
    """Return the name of an operation without its overload and the mark of being in place."""
    name = _plain(target)
    return name if name.startswith("__") else name.rstrip("_")


def name_is_in_place(target: Any) -> bool:
    """Whether an operation writes into its first argument."""
    name = _plain(target)
    return name.endswith("_") and not name.endswith("__")


def _plain(target: Any) -> str:
    name = str(target)
    if name.startswith("aten."):
        return name.split(".")[1]
    return name.rpartition(".")[0] or name


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


def _still_like(meta: Any) -> Any:
    if isinstance(meta, Tensor):
        return Value(pinned(meta.shape))
    if isinstance(meta, tuple | list):
        return [_still_like(part) for part in meta]
    return meta


def _place(node: fx.Node) -> str:
    """Return where in the network an operation stands, in words."""
    stack = node.meta.get("nn_module_stack") or {}
    names = [path for path, _kind in stack.values()]
    name = names[-1] if names else ""
    for prefix in ("L['self'].", "L['self']"):
        name = name.removeprefix(prefix)
    return f" in {name}" if name else ""

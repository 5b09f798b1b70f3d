"""What a rule is and works with: the values of a graph, the state of the pass, the table of rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from .export import ExportedGraph
from .labels import Dim, Ledger


@dataclass(frozen=True, eq=False)
class Value:
    """What is known of one tensor of the graph.

    Attributes:
        dims: Its dimensions.
        parameter: Its name, where it is a parameter itself.
        numbers: What it holds, where the network itself holds whole numbers and no checkpoint does.
    """

    dims: Sequence[Dim]
    parameter: str | None = None
    numbers: Tensor | None = None

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
        kernels: Axes of kernels, which are positions of a window and no units.
        tied: Tensors that have several names, or share their memory.
        node: The operation at hand.
        graph: The whole graph.
        outside: What stands for it outside, of a placeholder of a part under another mode.
    """

    ledger: Ledger = field(default_factory=Ledger)
    axes: dict[tuple[str, int], Dim] = field(default_factory=dict)
    over: dict[tuple[str, int], int] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)
    kernels: set[tuple[str, int]] = field(default_factory=set)
    tied: frozenset[str] = frozenset()
    node: fx.Node | None = None
    graph: ExportedGraph | None = None
    outside: dict[fx.Node, fx.Node] = field(default_factory=dict)

    def output_shape(self, index: int | None = None) -> tuple[int, ...]:
        """Return the shape of the result of the operation at hand, or of one of its results."""
        value: Any = self.node.meta["val"] if self.node is not None else ()
        return tuple(value.shape if index is None else value[index].shape)

    def parameter(self, name: str, shape: Sequence[int]) -> Value:
        """Return a parameter, every axis of which is made of new nodes."""
        dims = []
        for axis, size in enumerate(shape):
            if (name, axis) not in self.axes:
                self.axes[name, axis] = self.ledger.axis(size)
            dims.append(self.axes[name, axis])
        return Value(dims, name)

    def knows(self, name: str) -> bool:
        """Whether a tensor of the state dict was met."""
        return any(tensor == name for tensor, _ in self.axes)

    def alone(self, name: str) -> bool:
        """Whether the operation at hand is the only one that takes a parameter."""
        takes = []
        for node in self.node.all_input_nodes if self.node is not None else ():
            uses = len(node.users)
            while node in self.outside:
                node = self.outside[node]
                uses = max(uses, len(node.users))
            if self.graph is not None and self.graph.parameters.get(node.name) == name:
                takes.append(uses)
        return takes == [1]

    def regroup(self, value: Value, axis: int, blocks: Dim, over: int) -> Dim:
        """Give an axis of a parameter nodes of its own for each block of another axis."""
        size = value.dims[axis].size
        name = value.parameter or self._made_of(value, axis, over)
        if name is None or size == 1:
            return value.dims[axis]
        key = (name, axis)
        if key not in self.over:
            nodes = self.ledger.fresh(blocks.size, size)
            if blocks.moves:
                self.ledger.adopt(nodes, blocks.nodes[:, None].repeat(size, axis=1))
            self.axes[key], self.over[key] = Dim(size, "nodes", nodes, [blocks]), over
        return Dim(size, "nodes", self.axes[key].nodes, [blocks])

    def _made_of(self, value: Value, axis: int, over: int) -> str | None:
        """Return the parameter that a value was made of, if its axes are still those of the parameter.

        That is so of standardised weights; nothing may have been said about the nodes of the axis.
        """
        for (name, at), dim in self.axes.items():
            same = at == axis and dim is value.dims[axis] and dim.moves
            if same and self.axes.get((name, over)) is value.dims[over]:
                return name if self.ledger.silent_on(dim.nodes) else None
        return None

    def pin(self, values: Any, why: str = "") -> None:
        """Pin every dimension of every tensor among nested values."""
        for value in torch.utils._pytree.tree_leaves(values):
            if isinstance(value, Value):
                for dim in value.dims:
                    self.ledger.fix(dim, why)


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

"""Recurrent layers: each hidden unit holds its rows in every gate, and its column of the recurrence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .contract import broadcast
from .labels import Dim
from .rule import Value, Walk, name_of, rule
from .rules_shape import end_to_end, select

_COUNTS = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


@rule(*_COUNTS)
def recurrent(
    walk: Walk,
    x: Value,
    start: Any,
    parameters: Sequence[Value],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> list[Value]:
    """Layers of W_ih [g h, in], W_hh [g h, h] and biases [g h] over [batch, time, in].

    The units of a layer are read by the next one; those of both directions lie side by side.
    """
    gates = _COUNTS[name_of(walk.node.target if walk.node is not None else "")]
    directions, each = 1 + bidirectional, 4 if has_biases else 2
    if len(x.dims) != 3 or len(parameters) != num_layers * directions * each:
        raise ValueError("no batch, or a projection")
    walk.ledger.fix(x.dims[1 if batch_first else 0], f"its order matters to {walk.ledger.reason}")
    starts = [start] if isinstance(start, Value) else list(start)
    for state in starts:
        walk.ledger.fix(state.dims[0], f"its order matters to {walk.ledger.reason}")
    read, units = x.dims[2], []
    for layer in range(num_layers):
        out = []
        for direction in range(directions):
            at = (layer * directions + direction) * each
            unit = parameters[at + 1].dims[1]
            for state in starts:
                own = select(walk, state, 0, layer * directions + direction)
                unit = walk.ledger.unify(unit, own.dims[1])
            _gates(walk, gates, unit, read, parameters[at : at + each])
            out.append(unit)
        units += out
        read = out[0] if len(out) == 1 else end_to_end(walk, out)
    layers = Dim(len(units))
    last = units[0] if len(units) == 1 else _by_layer(units, layers)
    batch = x.dims[0 if batch_first else 1]
    return [Value([*x.dims[:2], read]), *(Value([layers, batch, last]) for _ in starts)]


@rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def cell(
    walk: Walk, x: Value, start: Any, w_ih: Value, w_hh: Value, *biases: Value | None, **_: Any
) -> Any:
    """One step of such a layer over [batch, in]."""
    gates = _COUNTS[
        name_of(walk.node.target if walk.node is not None else "").removesuffix("_cell")
    ]
    starts = [start] if isinstance(start, Value) else list(start)
    batch, unit = x.dims[0], w_hh.dims[1]
    for state in starts:
        batch, own = broadcast(walk.ledger, [batch, unit], state.dims)
        unit = walk.ledger.unify(unit, own)
    vectors = [bias for bias in biases if bias is not None]
    _gates(walk, gates, unit, x.dims[1], [w_ih, w_hh, *vectors])
    found = [Value([batch, unit]) for _ in starts]
    return found if isinstance(start, list | tuple) else found[0]


def _gates(walk: Walk, gates: int, unit: Dim, read: Dim, parameters: Sequence[Value]) -> None:
    """Tie W_ih [g h, in], W_hh [g h, h] and biases [g h] to the units and to what they read."""
    rows = Dim(gates * unit.size)
    if unit.moves:
        rows = Dim(gates * unit.size, "nodes", np.tile(unit.nodes, gates))
    walk.ledger.unify(parameters[0].dims[1], read)
    walk.ledger.unify(parameters[1].dims[1], unit)
    for tensor in parameters:
        walk.ledger.unify(rows, tensor.dims[0])


def _by_layer(units: Sequence[Dim], layers: Dim) -> Dim:
    """Return the units of all layers as one dimension that depends on the layer."""
    if not all(unit.moves for unit in units):
        raise ValueError("units of some layers stay")
    return Dim(units[0].size, "nodes", np.stack([unit.nodes for unit in units]), [layers])

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

    The units of a layer are read by the next one; those of both directions lie side by side. With a
    projection W_hr [p, h] what is read, by the next step and the next layer, are its p rows instead.
    """
    gates = _COUNTS[name_of(walk.node.target if walk.node is not None else "")]
    directions, each = 1 + bidirectional, 4 if has_biases else 2
    if len(x.dims) != 3 or len(parameters) % (num_layers * directions):
        raise ValueError("no batch")
    each = len(parameters) // (num_layers * directions)
    projected = each - (4 if has_biases else 2) == 1
    walk.ledger.fix(x.dims[1 if batch_first else 0], f"its order matters to {walk.ledger.reason}")
    starts = [start] if isinstance(start, Value) else list(start)
    for state in starts:
        walk.ledger.fix(state.dims[0], f"its order matters to {walk.ledger.reason}")
    read, units, cells = x.dims[2], [], []
    for layer in range(num_layers):
        out = []
        for direction in range(directions):
            at = (layer * directions + direction) * each
            unit = parameters[at + 1].dims[1]
            cell = parameters[at + each - 1].dims[1] if projected else unit
            for i, state in enumerate(starts):
                own = select(walk, state, 0, layer * directions + direction).dims[1]
                if projected and i:  # the state of the cell is not projected
                    cell = walk.ledger.unify(cell, own)
                else:
                    unit = walk.ledger.unify(unit, own)
            cell = cell if projected else unit
            tensors = parameters[at : at + each - projected]
            _gates(walk, gates, cell, read, tensors, unit)
            if projected:
                unit = walk.ledger.unify(unit, parameters[at + each - 1].dims[0])
            out.append(unit)
            cells.append(cell)
        units += out
        read = out[0] if len(out) == 1 else end_to_end(walk, out)
    layers = Dim(len(units))
    batch = x.dims[0 if batch_first else 1]
    last = [
        some[0] if len(some) == 1 else _by_layer(some, layers)
        for some in (units, cells)[: len(starts)]
    ]
    return [Value([*x.dims[:2], read]), *(Value([layers, batch, unit]) for unit in last)]


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
    _gates(walk, gates, unit, x.dims[1], [w_ih, w_hh, *vectors], unit)
    states = [Value([batch, unit]) for _ in starts]
    return states if isinstance(start, list | tuple) else states[0]


def _gates(
    walk: Walk, gates: int, unit: Dim, read: Dim, parameters: Sequence[Value], back: Dim
) -> None:
    """Tie W_ih [g h, in], W_hh [g h, h] and biases [g h] to the units and to what they read.

    `back` is what the recurrence reads: the units themselves, or their projection.
    """
    rows = Dim(gates * unit.size)
    if unit.moves:
        rows = Dim(gates * unit.size, "nodes", np.tile(unit.nodes, gates))
    walk.ledger.unify(parameters[0].dims[1], read)
    walk.ledger.unify(parameters[1].dims[1], back)
    for tensor in parameters:
        walk.ledger.unify(rows, tensor.dims[0])


def _by_layer(units: Sequence[Dim], layers: Dim) -> Dim:
    """Return the units of all layers as one dimension that depends on the layer."""
    if not all(unit.moves for unit in units):
        raise ValueError("units of some layers stay")
    return Dim(units[0].size, "nodes", np.stack([unit.nodes for unit in units]), [layers])

"""How a strong lottery ticket is searched for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from .check import AT_LEAST_1, NOT_NEGATIVE, SHARE

Allocation = Literal["uniform", "erk", "epl", "igq"]
TicketMethod = Literal[
    "iterand",
    "edge_popup",
    "dense",
    "quantised",
    "quantised_coded",
    "ternary",
    "magnitude_pruned",
    "random_mask",
    "random_mask_trained",
    "shuffled_mask",
]


@dataclass(frozen=True, kw_only=True)
class TicketConfig:
    """How a strong lottery ticket is searched for, or which control is run instead.

    `dense` trains the weights normally; `random_mask` leaves a random subnetwork of random weights
    untrained, `random_mask_trained` trains the weights under such a mask, and `shuffled_mask`
    shuffles the masks that a finished search found, layer by layer; `quantised` rounds the weights
    of a finished training to a few bits, and `quantised_coded` counts them after entropy coding. `ternary`
    trains signs and one scale a layer, `magnitude_pruned` the largest weights of each layer.
    """

    method: TicketMethod = "iterand"
    sparsity: Annotated[float, SHARE] = 0.5
    """Fraction of the weights removed, s."""
    scope: Literal["layer", "global"] = "layer"
    score: Literal["signed", "magnitude"] = "signed"
    weight_init: Literal["signed_kaiming_constant", "kaiming_uniform", "kaiming_normal"] = (
        "signed_kaiming_constant"
    )
    score_init: Literal["kaiming_uniform", "kaiming_normal"] = "kaiming_uniform"
    rescale: bool = False
    """Multiply the weights' scale by 1/sqrt(1 - s)."""
    dynamic_scale: bool = False
    """Multiply each layer by 1/sqrt(kept share) at every pass."""
    pruned: Annotated[float, SHARE] = 0.0
    """Share of the weights pruned for good before the search, p; counted in the sparsity."""
    locked: Annotated[float, SHARE] = 0.0
    """Share of the weights locked into the subnetwork, l; the sparsity is at most 1 - l."""
    allocation: Allocation = "uniform"
    """How the frozen shares spread over the layers."""
    every: Annotated[int, AT_LEAST_1] = 300
    """IteRand: iterations between two re-randomisations, K_per."""
    rate: Annotated[float, SHARE] = 0.1
    """IteRand: probability that a pruned weight is redrawn, r."""
    anneal: Annotated[float, SHARE] = 0.0
    """Share of training over which the sparsity grows linearly from 0; 0 keeps it constant."""
    bits: int = 4
    """quantised: bits of a weight, 2 to 8."""
    penalty: Annotated[float, NOT_NEGATIVE] = 0.0
    """Weight of the sum of squared scores in the loss."""
    trainable: tuple[str, ...] = ()
    """Patterns of parameter names to leave unmasked and trainable."""

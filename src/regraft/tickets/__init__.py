"""Strong lottery tickets: good subnetworks of random networks, found without training a weight."""

from .allocate import densities
from .arms import ARMS, Arm, prepare
from .artifact import Ticket, fill, load_ticket, save_ticket, stored_bytes
from .bake import bake
from .controls import apply_masks, random_masks, shuffled, shuffled_masks, unmask
from .edge_popup import edge_popup
from .freeze import Freezing, FrozenPattern
from .frozen import FrozenMask, build_mask
from .iterand import IteRand, rerandomize_
from .mask import FixedMask, GlobalScope, Mask, masks, named_masks, sparsity
from .schedule import SparsitySchedule, score_penalty
from .select import ThresholdSelector, pruned_count, topk_mask
from .source import WeightSource
from .straight_through import masked_weight, partly_masked_weight

__all__ = [
    "ARMS",
    "Arm",
    "FixedMask",
    "Freezing",
    "FrozenMask",
    "FrozenPattern",
    "GlobalScope",
    "IteRand",
    "Mask",
    "SparsitySchedule",
    "ThresholdSelector",
    "Ticket",
    "WeightSource",
    "apply_masks",
    "bake",
    "build_mask",
    "densities",
    "edge_popup",
    "fill",
    "load_ticket",
    "masked_weight",
    "masks",
    "named_masks",
    "partly_masked_weight",
    "prepare",
    "pruned_count",
    "random_masks",
    "rerandomize_",
    "save_ticket",
    "score_penalty",
    "shuffled",
    "shuffled_masks",
    "sparsity",
    "stored_bytes",
    "topk_mask",
    "unmask",
]

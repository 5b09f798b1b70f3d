"""Strong lottery tickets: good subnetworks of random networks, found without training a weight."""

from .allocate import densities
from .arms import ARMS, Arm, prepare
from .bake import bake
from .coded import coded_bytes, coded_weights, decoded_weights
from .controls import apply_masks, random_masks, shuffled, shuffled_masks, unmask
from .edge_popup import edge_popup
from .file.coder import entropy_bits
from .file.packed import find_ticket, load_ticket, save_ticket, write_ticket
from .file.unpacked import read_unpacked, write_unpacked
from .freeze import Freezing, FrozenPattern
from .frozen import FrozenMask, build_mask
from .gather import gather, gather_state
from .iterand import IteRand, rerandomize_
from .mask import FixedMask, GlobalScope, Mask, masks, named_masks, sparsity
from .partly import partly_masked_weight
from .quantise import Quantised, load_quantised, quantise, save_quantised
from .schedule import SparsitySchedule, score_penalty
from .select import ThresholdSelector, pruned_count, topk_mask
from .source import WeightSource
from .straight_through import masked_weight
from .ticket import Ticket, TicketLayer, fill, stored_bytes
from .trained import MagnitudeMask, by_magnitude

__all__ = [
    "ARMS",
    "Arm",
    "FixedMask",
    "Freezing",
    "FrozenMask",
    "FrozenPattern",
    "GlobalScope",
    "IteRand",
    "MagnitudeMask",
    "Mask",
    "Quantised",
    "SparsitySchedule",
    "ThresholdSelector",
    "Ticket",
    "TicketLayer",
    "WeightSource",
    "apply_masks",
    "bake",
    "build_mask",
    "by_magnitude",
    "coded_bytes",
    "coded_weights",
    "decoded_weights",
    "densities",
    "edge_popup",
    "entropy_bits",
    "fill",
    "find_ticket",
    "gather",
    "gather_state",
    "load_quantised",
    "load_ticket",
    "masked_weight",
    "masks",
    "named_masks",
    "partly_masked_weight",
    "prepare",
    "pruned_count",
    "quantise",
    "random_masks",
    "read_unpacked",
    "rerandomize_",
    "save_quantised",
    "save_ticket",
    "score_penalty",
    "shuffled",
    "shuffled_masks",
    "sparsity",
    "stored_bytes",
    "topk_mask",
    "unmask",
    "write_ticket",
    "write_unpacked",
]

"""Labelled images and graphs: known sets and users' folders, splits, batches, augmentation."""

from .augment import Draws, augment, draw
from .channels import with_channels
from .coreset import coreset, herding, k_center
from .decode import decode, picture_size
from .folder import Folder, scan_folder
from .graph import Graph, NodeBatches, graph_fingerprint, load_graph
from .images import ImageSet, Splits, channel_moments, resize
from .known import (
    GraphSource,
    Known,
    KnownSet,
    Listing,
    available,
    data_root,
    get,
    graph_names,
    known_names,
    load_known,
)
from .lazy import FileSet
from .load import load
from .loader import FolderLoader, TensorLoader
from .memory import batches
from .mixup import Mixup
from .partition import load_partition
from .prepare import rotate
from .split import per_class_subset, stratified_split, stratified_subset

__all__ = [
    "Draws",
    "FileSet",
    "Folder",
    "FolderLoader",
    "Graph",
    "GraphSource",
    "ImageSet",
    "Known",
    "KnownSet",
    "Listing",
    "Mixup",
    "NodeBatches",
    "Splits",
    "TensorLoader",
    "augment",
    "available",
    "batches",
    "channel_moments",
    "coreset",
    "data_root",
    "decode",
    "draw",
    "get",
    "graph_fingerprint",
    "graph_names",
    "herding",
    "k_center",
    "known_names",
    "load",
    "load_graph",
    "load_known",
    "load_partition",
    "per_class_subset",
    "picture_size",
    "resize",
    "rotate",
    "scan_folder",
    "stratified_split",
    "stratified_subset",
    "with_channels",
]

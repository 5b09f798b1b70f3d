"""Labelled images: known sets and users' folders, splits, batches, augmentation."""

from .augment import Draws, augment, draw
from .folder import Folder, scan_folder
from .images import ImageSet, Splits, channel_moments, resize
from .known import Known, KnownSet, Listing, available, data_root, get, known_names, load_known
from .lazy import FileSet, decode
from .load import load
from .loader import FolderLoader, TensorLoader
from .split import per_class_subset, stratified_split, stratified_subset

__all__ = [
    "Draws",
    "FileSet",
    "Folder",
    "FolderLoader",
    "ImageSet",
    "Known",
    "KnownSet",
    "Listing",
    "Splits",
    "TensorLoader",
    "augment",
    "available",
    "channel_moments",
    "data_root",
    "decode",
    "draw",
    "get",
    "known_names",
    "load",
    "load_known",
    "per_class_subset",
    "resize",
    "scan_folder",
    "stratified_split",
    "stratified_subset",
]

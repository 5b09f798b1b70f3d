"""What a run is, as plain data: frozen dataclasses without torch, one file a subject.

A recipe is a function that returns these; the command line fills the same ones. Ranges of numbers
stand beside the fields, and `check` reads them. `to_dict` gives the JSON form, and `digest` the
identity by which a run folder knows its own command again.
"""

from .check import Range, check
from .data import Augmentation, DataConfig, Normalisation
from .fewshot import EpisodeConfig, FewshotConfig, FewshotMethod, OuterConfig
from .finetune import FinetuneConfig, SearchConfig
from .generate import GeneratorConfig, PretrainConfig, SetConfig, SourceConfig, SslConfig
from .identity import digest, to_dict
from .images import ImageConfig, check_moments
from .mgr import MGRConfig
from .model import ModelConfig
from .optim import OptimConfig, Schedule
from .runtime import RuntimeConfig
from .ticket import Allocation, TicketConfig, TicketMethod

__all__ = [
    "Allocation",
    "Augmentation",
    "DataConfig",
    "EpisodeConfig",
    "FewshotConfig",
    "FewshotMethod",
    "FinetuneConfig",
    "GeneratorConfig",
    "ImageConfig",
    "MGRConfig",
    "ModelConfig",
    "Normalisation",
    "OptimConfig",
    "OuterConfig",
    "PretrainConfig",
    "Range",
    "RuntimeConfig",
    "Schedule",
    "SearchConfig",
    "SetConfig",
    "SourceConfig",
    "SslConfig",
    "TicketConfig",
    "TicketMethod",
    "check",
    "check_moments",
    "digest",
    "to_dict",
]

"""All fine-tuning methods by name."""

from __future__ import annotations

import difflib
from typing import Any

from regraft.errors import InputError

from .adarand import AdaRand
from .bitfit import BitFit
from .bss import BSS
from .co_tuning import CoTuning
from .contrastive import SupCon
from .core_tuning import CoreTuning
from .delta import Delta
from .dr_tune import DRTune
from .feature_norm import FeatureNorm
from .l2sp import L2SP
from .lp_ft import LPFT, LinearProbe
from .method import Method, Plain
from .randreg import RandReg

METHODS: dict[str, type[Method]] = {
    "adarand": AdaRand,
    "bitfit": BitFit,
    "bss": BSS,
    "co_tuning": CoTuning,
    "core_tuning": CoreTuning,
    "delta": Delta,
    "dr_tune": DRTune,
    "feature_norm": FeatureNorm,
    "l2sp": L2SP,
    "linear_probe": LinearProbe,
    "lp_ft": LPFT,
    "plain": Plain,
    "randreg": RandReg,
    "supcon": SupCon,
}
"""Name -> method; the help of `regraft finetune --method` is made from these names."""

CONTROL = "plain"
"""The method that all others are held against."""
AUTO = "auto"
"""Not a method: the best of `COMPARED` and a linear probe, chosen on validation."""
COMPARED = ("plain", "adarand")
PROBE = "linear_probe"


def build(name: str, **options: Any) -> Method:
    """Return a method by name, e.g. `build("adarand", weight=0.3)`.

    Raises:
        InputError: An unknown name, or an option that the method does not take.
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(METHODS)}"
        raise InputError(f"unknown fine-tuning method {name!r}: {hint}")
    try:
        return METHODS[name](**options)
    except TypeError as error:
        raise InputError(f"method {name!r}: {error}") from error

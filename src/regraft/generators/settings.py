"""The settings of a condensation, and what stands for those that are left open."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal, get_args

from regraft.config import check
from regraft.config.check import AT_LEAST_1, AT_LEAST_2, BELOW_1, NOT_NEGATIVE, POSITIVE
from regraft.errors import InputError

from .siamese import TRANSFORMS, check_transforms

Method = Literal["dc", "dsa", "dm"]


@dataclass(frozen=True, kw_only=True)
class CondenseConfig:
    """How images are condensed; what is None is chosen by method, images a class and network."""

    restarts: Annotated[int | None, AT_LEAST_1] = None
    """Random networks. 100 for dc and dsa (the papers: 1,000); 2,000 for dm (20,000), whose
    restart is one single step."""
    outer: Annotated[int | None, AT_LEAST_1] = None
    """Matching steps for one network: as many as images a class, 50 at most."""
    inner: Annotated[int | None, NOT_NEGATIVE] = None
    """Epochs on the synthetic images between two of them: 500 / outer; 1 for one image a class."""
    lr_images: Annotated[float | None, POSITIVE] = None
    """dc and dsa: 0.1; where the network has linear layers only 0.01 from 1,000 restarts on, as in
    the paper, and 10 / restarts below, at most 0.1. dm: a hundredth of the images a class, as the
    mean of n images moves by 1 / n of what each moves; the paper's 1 is for its own networks,
    and images of those here, whose embeddings are longer, would run away."""
    momentum: Annotated[float, BELOW_1] = 0.5
    """Momentum of the images."""
    lr_network: Annotated[float, POSITIVE] = 0.01
    """Learning rate of the network, plain SGD."""
    real_batch: Annotated[int, AT_LEAST_1] = 256
    """Real images of each class in a step."""
    network_batch: Annotated[int, AT_LEAST_1] = 256
    """Synthetic images in a step of the network."""
    norm_batch: Annotated[int, AT_LEAST_2] = 16
    """Real images of each class from which BatchNorm takes its statistics, then kept."""
    init: Literal["noise", "real"] | None = None
    """Start from standard normal noise (dc) or from random real images (dsa, dm), which get further
    in few restarts."""
    transforms: tuple[str, ...] | None = None
    """Siamese augmentation: one of these at each step. None for dc, all six for dsa and dm; leave
    out `flip` where mirrored images are other images, as of digits."""
    vectorise: bool = True
    """All classes at once by torch.func; False for networks that vmap cannot take."""

    def resolved(self, method: str, per_class: int, *, linear: bool) -> CondenseConfig:
        """Return the settings with nothing left open.

        Args:
            method: `dc`, `dsa` or `dm`.
            per_class: Images of each class.
            linear: The network has linear layers only.

        Raises:
            InputError: An unknown method or transform, or a number out of its range.
        """
        if method not in get_args(Method):
            raise InputError(f"--method {method}: expected one of {', '.join(get_args(Method))}")
        if per_class < 1:
            raise InputError(f"--per-class {per_class}: expected at least 1 image a class")
        outer = (1 if method == "dm" else min(per_class, 50)) if self.outer is None else self.outer
        if method == "dc" and self.transforms:
            raise InputError(
                "--transforms has no effect on --method dc, which augments nothing: take --method dsa, or "
                "leave it out"
            )
        if method == "dm" and (outer != 1 or self.inner):
            raise InputError(
                "--method dm takes one step for each network and trains none: leave out --outer and "
                "--inner"
            )
        restarts = self.restarts
        if restarts is None:
            restarts = 2000 if method == "dm" else 100
        resolved = replace(
            self,
            restarts=restarts,
            outer=outer,
            inner=self._or("inner", 0 if method == "dm" else _inner(per_class, outer)),
            lr_images=self._or("lr_images", _lr_images(method, per_class, restarts, linear)),
            init=self._or("init", "noise" if method == "dc" else "real"),
            transforms=self._or("transforms", () if method == "dc" else TRANSFORMS),
        )
        resolved._check()
        return resolved

    def _or(self, name: str, default: object) -> object:
        value = getattr(self, name)
        return default if value is None else value

    def _check(self) -> None:
        check(self)
        if self.init not in ("noise", "real"):
            raise InputError(f"--init {self.init}: expected noise or real")
        check_transforms(self.transforms or ())


def _lr_images(method: str, per_class: int, restarts: int, linear: bool) -> float:
    if method == "dm":
        return per_class / 100
    # Fewer restarts must go as far: lr times restarts is what the images can move.
    return min(max(10 / max(restarts, 1), 0.01), 0.1) if linear else 0.1


def _inner(per_class: int, outer: int) -> int:
    return 1 if per_class == 1 else max(1, 500 // outer)

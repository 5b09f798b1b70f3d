"""Random views of whole batches: differentiable, drawn for each image, and applied again exactly.

`Views.draw` makes one record for n images, `Views.apply` does what it says, as often as one likes: the
two branches of a consistency loss, both steps of a bilevel method, or a gradient and its finite
difference meet the same views. Every operation is plain tensor code on images in [0, 1], whose gradient
with respect to the images is the true one. Nothing here draws once for a whole batch.

A transform of somebody else's is let in through `checked`, which refuses one that cuts the graph.

References:
    Cubuk et al., "RandAugment: practical automated data augmentation with a reduced search space",
    NeurIPS 2020 (a few operations an image). Sohn et al., "FixMatch", NeurIPS 2020, section 2.3 (weak
    and strong views).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regraft.errors import InputError
from regraft.streams import Counter, counter

from . import operations as ops


@dataclass(frozen=True, eq=False)
class ViewRecord:
    """What happens to each of n images, replayable: parameters by operation, in order.

    Attributes:
        parameters: Parameters of each operation, float32 [n, k] (int64 [n, 1] for a seed of noise).
        on: Whether the operation takes place, bool [n], by the same names.
    """

    parameters: Mapping[str, Tensor]
    on: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.on.values()), ()))

    def __getitem__(self, rows: Any) -> ViewRecord:
        """Return the record of the images at `rows` (int64 [b], bool [n] or a slice)."""
        return self._map(lambda t: t[rows])

    def to(self, device: torch.device | str | None) -> ViewRecord:
        """Return the record on `device`."""
        return self._map(lambda t: t.to(device))

    def _map(self, function: Callable[[Tensor], Tensor]) -> ViewRecord:
        parts = (self.parameters, self.on)
        return ViewRecord(*({k: function(v) for k, v in part.items()} for part in parts))


@dataclass(frozen=True)
class Views:
    """A law of random views.

    Every image gets what is in `always`, in this order, and `some` operations of `choice`, drawn for
    each image without replacement and applied in the order of `OPERATIONS`. The magnitude of each is
    uniform up to its range times `strength`.

    Args:
        always: Operations that every image gets: names of `OPERATIONS`.
        choice: Operations of which each image gets a few.
        some: How many.
        strength: Factor of all ranges, above 0 and at most 1.

    Raises:
        InputError: An unknown operation, `some` or `strength` out of range.
    """

    always: Sequence[str] = ()
    choice: Sequence[str] = ()
    some: int = 0
    strength: float = 1.0

    def __post_init__(self) -> None:
        for name in (*self.always, *self.choice):
            if name not in OPERATIONS:
                raise InputError(
                    f"views hold {name!r}: expected some of {', '.join(sorted(OPERATIONS))}"
                )
        if not 0 <= self.some <= len(self.choice):
            raise InputError(
                f"some={self.some}: each image gets at most the {len(self.choice)} of `choice`"
            )
        if not 0 < self.strength <= 1:
            raise InputError(f"strength={self.strength}: expected a factor above 0 and at most 1")

    def draw(self, n: int, generator: Counter | torch.Generator) -> ViewRecord:
        """Draw what happens to `n` images.

        Args:
            n: Number of images.
            generator: With a `Counter` the draws of an image do not depend on the batch it is in.
        """
        source = counter(generator)
        first = source.advance(n)
        chosen = torch.zeros(n, len(self.choice), dtype=torch.bool)
        if self.some:
            order = source.uniform("views/choice", first, n, len(self.choice)).argsort(dim=1)
            chosen.scatter_(1, order[:, : self.some], True)
        parameters: dict[str, Tensor] = {}
        on: dict[str, Tensor] = {}
        rows = [(name, None) for name in self.always]
        rows += [(name, i) for i, name in enumerate(self.choice)]
        for place, (name, column) in enumerate(rows):
            key = f"{place}/{name}"
            law = OPERATIONS[name]
            values = source.uniform(f"views/{key}", first, n, law.draws)
            parameters[key] = law.parameters(values, self.strength)
            on[key] = torch.ones(n, dtype=torch.bool) if column is None else chosen[:, column]
        return ViewRecord(parameters, on)

    def apply(self, images: Tensor, record: ViewRecord) -> Tensor:
        """Return the views that a record describes.

        Args:
            images: Float [n, C, H, W] in [0, 1].
            record: What `draw` returned for n images.

        Returns:
            [n, C, H, W] in [0, 1], differentiable with respect to `images`.

        Raises:
            InputError: No float images of this shape, or a record of another number of images.
        """
        return apply(images, record)

    def __call__(self, images: Tensor, generator: Counter | torch.Generator) -> Tensor:
        """Draw and apply at once."""
        return apply(images, self.draw(len(images), generator))


def apply(images: Tensor, record: ViewRecord) -> Tensor:
    """Return the views that a record describes; see `Views.apply`."""
    if images.ndim != 4 or not images.is_floating_point():
        raise InputError(
            f"images of shape {tuple(images.shape)} and dtype {images.dtype}: views take float "
            "[n, C, H, W] in [0, 1]; divide uint8 images by 255"
        )
    if record.on and len(record) != len(images):
        raise InputError(
            f"the record is of {len(record)} image(s) and these are {len(images)}: draw for as many"
        )
    record = record.to(images.device)
    for key, on in record.on.items():
        function = OPERATIONS[key.partition("/")[2]].function
        parameters = record.parameters[key]
        if bool(on.all()):
            images = function(images, parameters)
            continue
        rows = on.nonzero().flatten()
        if len(rows):
            # Only where it takes place: an identity that is interpolated would not be one.
            images = images.index_copy(0, rows, function(images[rows], parameters[rows]))
    return images


def weak(*, flip: bool = False) -> Views:
    """Return the weak views: a shift by at most an eighth of the side, and mirroring if `flip`."""
    return Views(always=("flip", "shift") if flip else ("shift",))


def strong(*, flip: bool = False, some: int = 2, strength: float = 1.0) -> Views:
    """Return the strong views: weak ones, `some` of the other operations, and a square cut out."""
    always = (*weak(flip=flip).always, "cutout")
    choice = tuple(name for name in OPERATIONS if name not in ("flip", "shift", "cutout"))
    return Views(always=always, choice=choice, some=some, strength=strength)


def checked(transform: Callable[[Tensor], Tensor], *, name: str = "") -> Callable[[Tensor], Tensor]:
    """Return somebody's own transform, watched: it raises where it would cut the graph of a batch.

    Library transforms often draw anew at each call, so that only some calls cut it: every call on
    images that need a gradient is looked at, at the price of one backward pass through the transform.

    Args:
        transform: Images [n, C, H, W] -> images of the same shape.
        name: What to call it in messages.

    Raises:
        InputError: From the returned function: another shape, no gradient, a gradient that is zero
            everywhere or not finite, or a backward pass that raises.
    """
    what = name or getattr(transform, "__name__", type(transform).__name__)
    cure = "leave it out, or use regraft.data.views, whose operations are differentiable"

    def watched(images: Tensor) -> Tensor:
        out = transform(images)
        if out.shape != images.shape:
            raise InputError(
                f"transform {what} made {tuple(out.shape)} of {tuple(images.shape)}: views keep the "
                "shape of the batch"
            )
        if not (torch.is_grad_enabled() and images.requires_grad):
            return out
        if not out.requires_grad:
            raise InputError(f"transform {what} cuts the graph: its result has no gradient; {cure}")
        try:
            (gradient,) = torch.autograd.grad(
                out.sum(), images, retain_graph=True, allow_unused=True
            )
        except RuntimeError as error:
            reason = str(error).split(".")[0]
            raise InputError(
                f"transform {what} cannot be differentiated ({reason}); {cure}"
            ) from error
        if gradient is None or not gradient.isfinite().all() or not gradient.any():
            raise InputError(
                f"transform {what} passes no gradient on to its images (it is zero or not finite); "
                f"{cure}"
            )
        return out

    return watched


@dataclass(frozen=True)
class Law:
    """An operation, how many uniform numbers it draws, and what it makes of them.

    Attributes:
        function: (images [n, C, H, W], parameters [n, k]) -> images.
        draws: Numbers in (0, 1) an image.
        parameters: (numbers [n, draws], strength) -> parameters [n, k].
    """

    function: Callable[[Tensor, Tensor], Tensor]
    draws: int
    parameters: Callable[[Tensor, float], Tensor]


def _factor(reach: float) -> Callable[[Tensor, float], Tensor]:
    return lambda u, s: 1 + (2 * u - 1) * reach * s


def _affine(u: Tensor, s: float) -> Tensor:
    """Rotation to 20 degrees, shear to 0.2, scale 0.8 to 1.25, shift to 0.1 of the side."""
    t = 2 * u - 1
    angle = t[:, 0] * math.radians(20) * s
    scale = (t[:, 1] * math.log(1.25) * s).exp()
    shear, across, down = t[:, 2] * 0.2 * s, t[:, 3] * 0.2 * s, t[:, 4] * 0.2 * s
    cos, sin = angle.cos() / scale, angle.sin() / scale
    return torch.stack((cos, shear - sin, across, sin, cos, down), dim=1)


def _cutout(u: Tensor, s: float) -> Tensor:
    """A centre anywhere, and a square of up to half the side."""
    return torch.stack((u[:, 0], u[:, 1], u[:, 2] * 0.5 * s), dim=1)


def _noise(u: Tensor, s: float) -> Tensor:
    """A standard deviation up to 0.15, and 24 bits of a seed, which float32 holds exactly."""
    return torch.stack((u[:, 0] * 0.15 * s, (u[:, 1] * 2**24).floor()), dim=1)


OPERATIONS: dict[str, Law] = {
    "flip": Law(ops.flip, 1, lambda u, s: u),
    "shift": Law(ops.shift, 2, lambda u, s: (2 * u - 1) * s / 8),
    "affine": Law(ops.affine, 5, _affine),
    "brightness": Law(ops.brightness, 1, _factor(0.7)),
    "contrast": Law(ops.contrast, 1, _factor(0.7)),
    "saturation": Law(ops.saturation, 1, _factor(0.9)),
    "solarise": Law(ops.solarise, 1, lambda u, s: 1 - u * 0.9 * s),
    "sharpness": Law(ops.sharpness, 1, _factor(0.9)),
    "blur": Law(ops.blur, 1, lambda u, s: 0.1 + 1.4 * u * s),
    "noise": Law(ops.noise, 2, _noise),
    "cutout": Law(ops.cutout, 3, _cutout),
}
"""Operations by name, in the order in which they are applied."""

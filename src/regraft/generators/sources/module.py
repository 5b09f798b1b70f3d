"""Any `nn.Module` that makes images of a latent and a label, as a `Source`.

What one batch can tell is looked up and said in `notes`: how it is called, whether the label is a
number or one-hot, the range and the shape of its images, whether mixed labels work, whether gradients
reach the latents, and whether the images of a batch depend on each other.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regraft.errors import InputError, RegraftError
from regraft.streams import Counter, seeded

from .source import Source

RANGES = {"[-1,1]": (-1.0, 1.0), "[0,1]": (0.0, 1.0), "[0,255]": (0.0, 255.0)}
"""Ranges of pixels by name."""

_BEYOND = 0.25
"""Share of its range by which a generator may miss it: what is beyond is cut off."""

_PROBE = 64


class ModuleSource(Source):
    """A network `G(z, y)` as a source.

    It is put into evaluation mode and its weights are frozen. `y` is tried as int64 [n], then one-hot
    float [n, K]; `z` as [n, *latent_shape], then with two dimensions of 1 behind. With labels as numbers,
    mixed labels are mixed rows of its label embeddings. A module with a method `decode` is called by it.

    Args:
        module: The network.
        classes: Number of classes; by default the module's own `num_classes` or the length of its one
            label embedding.
        latent: Length or shape of a latent; by default the module's own `latent_dim`, `z_dim`, ...
        method: Method to call, or None to look.
        labels: `int`, `onehot`, or None to look.
        pixels: `[-1,1]`, `[0,1]` or `[0,255]`, or None to look.
        image_shape: Channels, height and width, for a flat output that is no square grey image.
        device: Where to compute.

    Raises:
        InputError: It cannot be called so, classes or latent are not known, or what it returns are no
            images; the message names the option.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        classes: int | None = None,
        latent: int | tuple[int, ...] | None = None,
        method: str | None = None,
        labels: str | None = None,
        pixels: str | None = None,
        image_shape: tuple[int, int, int] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.device = torch.device(device or "cpu")
        self.module = module.to(self.device).eval().requires_grad_(False)
        self.classes = classes or _own_classes(module)
        self.latent_shape = _latent_shape(latent, module)
        self._call = _callable(module, method)
        self._embeddings = [
            m for m in module.modules() if isinstance(m, nn.Embedding) and _rows(m, self.classes)
        ]
        self._tail, self._one_hot = 0, False
        with seeded(0, self.device):  # what it draws while it is looked at
            raw = self._look(labels)
        self.image_shape = image_shape or _image_shape(raw)
        if raw[0].numel() != math.prod(self.image_shape):
            raise InputError(
                f"the generator makes {raw[0].numel()} numbers an image, which are no "
                f"{'x'.join(map(str, self.image_shape))}: set the image shape"
            )
        self._low, self._high = self._find_range(raw, pixels)
        with seeded(0, self.device):
            self._probe()

    def generate(self, latents: Tensor, condition: Tensor) -> Tensor:
        """Make images; see `Source.generate`."""
        raw = self._raw(latents, condition).to(torch.float32)
        raw = raw.reshape(len(raw), *self.image_shape)
        images = (raw - self._low) / (self._high - self._low)
        if len(images) and images.isfinite().all():
            low, high = images.detach().aminmax()
            if low < -_BEYOND or high > 1 + _BEYOND:
                raise RegraftError(
                    f"the generator made pixels from {raw.min():.3g} to {raw.max():.3g} and its range is "
                    f"{self._low:g} to {self._high:g}: set the range of its pixels"
                )
        return images.clamp(0, 1)

    def digest(self) -> str:
        """Return 16 hex digits of weights and how the module is called."""
        hashed = hashlib.blake2b(digest_size=8)
        for name, value in sorted(self.module.state_dict().items()):
            hashed.update(f"{name}{tuple(value.shape)}".encode())
            hashed.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        hashed.update(repr((type(self.module).__name__, self._low, self._high)).encode())
        return hashed.hexdigest()

    def _raw(self, latents: Tensor, condition: Tensor) -> Tensor:
        z = latents.reshape(*latents.shape, *(1,) * self._tail)
        if self._one_hot:
            if not condition.is_floating_point():
                condition = F.one_hot(condition, self.classes)
            return self._returned(z, condition.to(torch.float32))
        if not condition.is_floating_point():
            return self._returned(z, condition)
        with _mixed(self._embeddings, condition):
            return self._returned(z, condition.argmax(1))

    def _returned(self, z: Tensor, y: Tensor) -> Tensor:
        if self.deterministic:
            return _tensor(self._call(z, y))
        # The generator's own noise comes from torch's global stream: give it one, and put it back.
        word = int.from_bytes(
            hashlib.blake2b(z.detach().cpu().numpy().tobytes(), digest_size=7).digest()
        )
        with seeded(word, self.device):
            return _tensor(self._call(z, y))

    def _look(self, labels: str | None) -> Tensor:
        """Find how the module is called, and return what it made."""
        if labels not in (None, "int", "onehot"):
            raise InputError(f"labels={labels!r}: expected int or onehot")
        n = _PROBE
        z = self.latents(n, Counter(0, "probe"))
        y = torch.arange(n, device=self.device) % self.classes
        reasons = []
        for self._one_hot in (False, True) if labels is None else (labels == "onehot",):
            for self._tail in (0, 2):
                try:
                    with torch.no_grad():
                        raw = self._raw(z, y)
                # The module is somebody else's code, which may raise anything.
                except Exception as error:
                    text = " ".join(str(error).split())[:160]
                    reasons.append(f"{self._form()}: {type(error).__name__}: {text}")
                    continue
                if not isinstance(raw, Tensor) or len(raw) != n:
                    shape = tuple(raw.shape) if isinstance(raw, Tensor) else type(raw).__name__
                    reasons.append(f"{self._form()}: it returns {shape}")
                    continue
                self.notes.append(f"called as {self._form()}")
                return raw
        raise InputError(
            f"the generator cannot be called with {n} latents of {self.latent_shape} and {self.classes} "
            f"classes ({'; '.join(dict.fromkeys(reasons))}): set the latent, the classes or the labels"
        )

    def _form(self) -> str:
        name = getattr(self._call, "__name__", "forward")
        name = "G" if name == "forward" or isinstance(self._call, nn.Module) else name
        sizes = ", ".join(map(str, (*self.latent_shape, *(1,) * self._tail)))
        y = f"onehot float [n, {self.classes}]" if self._one_hot else "y int64 [n]"
        return f"{name}(z [n, {sizes}], {y})"

    def _find_range(self, raw: Tensor, pixels: str | None) -> tuple[float, float]:
        if pixels is not None and pixels not in RANGES:
            raise InputError(f"pixels={pixels!r}: expected one of {', '.join(RANGES)}")
        if not raw.isfinite().all():
            raise InputError("the generator makes numbers that are not finite: look at its weights")
        low, high = (float(v) for v in raw.aminmax())
        if pixels is None:
            pixels = "[0,1]" if low > -0.05 else "[-1,1]"
            if high > 1 + 2 * _BEYOND:
                pixels = "[0,255]"
            self.notes.append(f"pixels from {low:.3g} to {high:.3g}: taken as {pixels}")
        bounds = RANGES[pixels]
        width = bounds[1] - bounds[0]
        if low < bounds[0] - _BEYOND * width or high > bounds[1] + _BEYOND * width:
            raise InputError(
                f"the generator makes pixels from {low:.3g} to {high:.3g}, which are not in {pixels}: "
                f"set the range to one of {', '.join(RANGES)}, or bring its output into one"
            )
        if high - low < 0.05 * width:
            raise InputError(
                f"the generator makes images of one value (pixels from {low:.3g} to {high:.3g}, of "
                f"{pixels}): look at its weights, and at the range if it was set"
            )
        return bounds

    def _probe(self) -> None:
        """Find what the generator can do, by doing it."""
        z = self.latents(8, Counter(0, "probe/abilities"))
        y = torch.arange(8, device=self.device) % self.classes
        with torch.no_grad():
            first, again = self._raw(z, y), self._raw(z, y)
            self.deterministic = bool(torch.equal(first, again))
            if not self.deterministic:
                self.notes.append(
                    "it draws noise of its own: seeded for each batch, so that images depend on the "
                    "batch they are made in"
                )
            else:
                alone = torch.cat([self._raw(z[i : i + 1], y[i : i + 1]) for i in range(2)])
                if not torch.allclose(alone, first[:2], atol=1e-3):
                    self.deterministic = False
                    self.notes.append("the images of a batch depend on each other")
        self.soft_conditions = self._mixes(z, y)
        self.notes.append(
            "mixed labels work"
            + ("" if self._one_hot else " (by mixing the rows of its label embedding)")
            if self.soft_conditions
            else "no mixed labels: the label of an image is drawn from its probabilities"
        )
        self.latent_gradients = self._passes_gradients(z, y)
        if not self.latent_gradients:
            self.notes.append("no gradients to its latents")

    def _mixes(self, z: Tensor, y: Tensor) -> bool:
        """Whether one-hot rows give the images of the labels, and mixed ones something else."""
        if self.classes < 2 or not (self._one_hot or self._embeddings):
            return False
        hard = F.one_hot(y, self.classes).to(torch.float32)
        mixed = 0.6 * hard + 0.4 * hard.roll(1, 1)
        try:
            with torch.no_grad():
                plain, same, other = (self._raw(z, q) for q in (y, hard, mixed))
        except Exception:  # somebody else's code, see `_look`
            return False
        if not (self.deterministic and other.isfinite().all()):
            return False
        return torch.allclose(plain, same, atol=1e-4) and not torch.allclose(
            plain, other, atol=1e-4
        )

    def _passes_gradients(self, z: Tensor, y: Tensor) -> bool:
        z = z.clone().requires_grad_()
        try:
            with torch.enable_grad():
                (slope,) = torch.autograd.grad(self._raw(z, y).float().pow(2).sum(), z)
        except Exception:  # somebody else's code, see `_look`
            return False
        return bool(slope.isfinite().all() and slope.any())


@contextlib.contextmanager
def _mixed(embeddings: list[nn.Embedding], probabilities: Tensor) -> Iterator[None]:
    """Let embeddings of labels return mixed rows, whatever they are called with."""

    def mix(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        table: Any = module.weight
        return (probabilities.to(table) @ table[: probabilities.shape[1]]).view_as(output)

    handles = [e.register_forward_hook(mix) for e in embeddings]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rows(embedding: nn.Embedding, classes: int) -> bool:
    """Whether an embedding is one of labels; some have a row more, for no label."""
    return embedding.num_embeddings in (classes, classes + 1)


def _tensor(out: Any) -> Any:
    """Return the images of what a network returned: the first of several."""
    if isinstance(out, tuple | list) and out:
        return out[0]
    sample = getattr(out, "sample", None)
    return sample if isinstance(sample, Tensor) else out


def _callable(module: nn.Module, method: str | None) -> Callable[..., Any]:
    if method is None:
        method = "decode" if callable(getattr(module, "decode", None)) else "forward"
    if method == "forward":
        return module
    call = getattr(module, method, None)
    if not callable(call):
        names = [n for n, v in inspect.getmembers(type(module), callable) if not n.startswith("_")]
        own = [n for n in names if n not in dir(nn.Module)]
        raise InputError(
            f"the generator has no method {method!r}: expected forward or one of {', '.join(own)}"
        )
    return call


def _attribute(module: nn.Module, names: tuple[str, ...]) -> Any:
    return next((v for n in names if (v := getattr(module, n, None)) is not None), None)


def _own_classes(module: nn.Module) -> int:
    own = _attribute(module, ("num_classes", "n_classes", "classes", "c_dim"))
    if isinstance(own, int) and own > 0:
        return own
    sizes = {m.num_embeddings for m in module.modules() if isinstance(m, nn.Embedding)}
    if len(sizes) == 1:
        return sizes.pop()
    raise InputError("the generator does not say how many classes it has: set the classes")


def _latent_shape(latent: int | tuple[int, ...] | None, module: nn.Module) -> tuple[int, ...]:
    names = ("latent_shape", "latent_dim", "latent_size", "z_dim", "nz", "dim_z", "noise_dim")
    own = _attribute(module, names) if latent is None else latent
    if isinstance(own, int) and own > 0:
        return (own,)
    if isinstance(own, tuple | list) and own and all(isinstance(v, int) and v > 0 for v in own):
        return tuple(own)
    raise InputError(
        'the generator does not say how long its latent is: set the latent, as in {"latent": 100}'
    )


def _image_shape(raw: Tensor) -> tuple[int, int, int]:
    """Return channels, height and width of what came out, or of the square that it is when flat."""
    if raw.ndim == 4 and raw.shape[1] in (1, 3):
        return (raw.shape[1], raw.shape[2], raw.shape[3])
    if raw.ndim == 3:
        return (1, raw.shape[1], raw.shape[2])
    if raw.ndim == 2:
        for channels in (1, 3):
            side = math.isqrt(raw.shape[1] // channels)
            if channels * side * side == raw.shape[1]:
                return (channels, side, side)
    raise InputError(
        f"the generator makes {tuple(raw.shape[1:])} for an image: expected [1 or 3, H, W] or a flat "
        "square image; set the image shape"
    )

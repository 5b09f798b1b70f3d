"""Real images class by class, in the network's own scale: what a condensed set is matched against."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from regraft import streams
from regraft.data import FileSet, ImageSet
from regraft.errors import InputError
from regraft.protocols import BatchSource


class RealImages:
    """Labelled images from which batches of single classes are drawn.

    The images of a class are drawn without replacement: one random order of the class is cut into
    batches, then comes the next order. A class smaller than a batch gives all its images. The draws
    of a class depend on the seed and the class's name alone, not on other classes or their order.

    Args:
        source: An `ImageSet`, a `FileSet`, or any `BatchSource`, of which epoch 0 is read into
            memory; its batches are taken as normalised by `mean` and `std`.
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel.
        classes: Name of every class; by default its index.
        seed: Seed of the draws.
        device: Where the batches are made.

    Raises:
        InputError: A source of another kind, a class without images, names for another number of
            classes, mean or std for another number of channels, or a std that is not above 0.
    """

    def __init__(
        self,
        source: ImageSet | FileSet | BatchSource,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        classes: Sequence[str] | None,
        seed: int,
        device: torch.device | str | None = None,
    ) -> None:
        self.device = torch.device(device) if device is not None else torch.device("cpu")
        self.seed = seed
        self._source: FileSet | Tensor
        if isinstance(source, FileSet):
            self._source, self.labels, size = source, source.labels, source.num_classes
            self.shape = (source.channels, source.image_size, source.image_size)
        elif isinstance(source, ImageSet):
            self._source, self.labels = source.images.to(self.device), source.labels
            size, self.shape = source.num_classes, tuple(source.images.shape[1:])
        elif isinstance(source, BatchSource):
            images, self.labels = _read(source)
            self._source, self.shape = images.to(self.device), tuple(images.shape[1:])
            size = int(self.labels.max()) + 1
        else:
            raise InputError(
                f"the images to condense are a {type(source).__name__}: expected an ImageSet, a "
                "FileSet or a BatchSource such as TensorLoader"
            )
        self.classes = tuple(str(i) for i in range(size)) if classes is None else tuple(classes)
        if len(self.classes) != size or len(set(self.classes)) != size:
            raise InputError(
                f"classes has {len(self.classes)} name(s), {len(set(self.classes))} of them "
                f"different: expected {size}, one for each class"
            )
        self.mean, self.std = _moments(mean, std, self.shape[0])
        # The arithmetic of TensorLoader: what is condensed here is what networks there will see.
        scale = torch.tensor(self.std, dtype=torch.float64).mul_(255).reciprocal_()
        shift = torch.tensor(self.mean, dtype=torch.float64).mul_(-255).mul_(scale)
        self._affine = tuple(v.float().view(1, -1, 1, 1).to(self.device) for v in (scale, shift))
        labels = self.labels.cpu()
        self._rows = [(labels == c).nonzero().flatten() for c in range(size)]
        self._orders: dict[int, tuple[int, Tensor]] = {}
        for name, rows in zip(self.classes, self._rows, strict=True):
            if len(rows) == 0:
                raise InputError(
                    f"class {name!r} has no images: add images of it, or number the classes "
                    "without gaps"
                )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def counts(self) -> list[int]:
        """Number of images of each class."""
        return [len(rows) for rows in self._rows]

    def at(self, rows: Tensor) -> Tensor:
        """Return the images at `rows`, int64 [n], normalised: float32 [n, C, H, W]."""
        if isinstance(self._source, FileSet):
            images = self._source.subset(rows).decoded().to(self.device)
        else:
            images = self._source[rows.to(self.device)]
        if images.is_floating_point():  # batches of a loader, which has done it
            return images
        scale, shift = self._affine
        return images.float().mul_(scale).add_(shift)

    def batch(self, label: int, size: int, number: int) -> Tensor:
        """Return the `number`-th batch of a class, normalised: float32 [min(size, n), C, H, W]."""
        rows = self._rows[label]
        if size >= len(rows):
            return self.at(rows)
        a_pass = len(rows) // size
        which, place = divmod(number, a_pass)
        if self._orders.get(label, (-1,))[0] != which:
            name = f"condense/real/{self.classes[label]}"
            self._orders[label] = (which, streams.permutation(self.seed, name, which, len(rows)))
        order = self._orders[label][1][place * size : (place + 1) * size]
        return self.at(rows[order])

    def first(self, size: int) -> Tensor:
        """Return `size` random images of every class, by class: float32 [K * size, C, H, W]."""
        orders = [
            streams.permutation(self.seed, f"condense/first/{name}", 0, len(rows))
            for name, rows in zip(self.classes, self._rows, strict=True)
        ]
        chosen = [r[o[:size]] for r, o in zip(self._rows, orders, strict=True)]
        return self.at(torch.cat(chosen))

    def digest(self) -> str:
        """Return 16 hex digits that tell whether these are still the same images."""
        digest = hashlib.blake2b(self.labels.cpu().numpy().tobytes(), digest_size=8)
        if isinstance(self._source, FileSet):
            # Too large to read twice: the files' names, wherever the folder lies.
            names = (f"{p.parent.name}/{p.name}" for p in self._source.paths)
            digest.update("\0".join(names).encode())
        else:
            digest.update(self._source.cpu().contiguous().numpy().data)
        return digest.hexdigest()


def _read(source: BatchSource) -> tuple[Tensor, Tensor]:
    """Return all images and labels of an epoch; a loader that shuffles is read in its order."""
    parts = [(x, y) for x, y, _ in source.batches(0)]
    images, labels = (torch.cat(p) for p in zip(*parts, strict=True))
    if images.ndim != 4 or not images.is_floating_point():
        raise InputError(
            f"the batches are {images.dtype} of shape {list(images.shape)}: expected normalised "
            "images, float [b, C, H, W]"
        )
    return images, labels


def _moments(
    mean: Sequence[float], std: Sequence[float], channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if not len(mean) == len(std) == channels:
        raise InputError(
            f"mean and std have {len(mean)} and {len(std)} values: expected one for each of the "
            f"{channels} channel(s)"
        )
    if not min(std) > 0:
        raise InputError(f"std={tuple(std)}: expected numbers above 0")
    return tuple(map(float, mean)), tuple(map(float, std))

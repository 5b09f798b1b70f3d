"""N-way K-shot episodes, drawn in batches on the device where the images lie.

An episode is a function of (seed, episode number) and nothing else: not of the batch it is drawn in, the
device, or what was drawn before. The classes of an episode, and the images of each class, are drawn
without replacement by Floyd's algorithm from the words of one stream.

References:
    Vinyals et al., "Matching networks for one shot learning", NeurIPS 2016 (episodes; rotations of
    characters as classes of their own).
    Bentley and Floyd, "A sample of brilliance", CACM 1987.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regraft import streams
from regraft.data import FileSet, ImageSet
from regraft.errors import InputError


@dataclass(frozen=True, eq=False)
class Episodes:
    """A batch of T episodes.

    Attributes:
        support_x: [T, S, ...], S = ways x shots, class by class.
        support_y: int64 [T, S] in 0..ways-1, or float [T, S, d] for a regression.
        query_x: [T, Q, ...].
        query_y: As `support_y`, [T, Q] or [T, Q, d].
        classes: int64 [T, ways], the class of the data behind each label; None without classes.
    """

    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor
    classes: Tensor | None = None

    def __post_init__(self) -> None:
        lengths = [len(t) for t in (self.support_x, self.support_y, self.query_x, self.query_y)]
        if len(set(lengths)) != 1:
            raise InputError(f"episodes: tensors of {lengths} tasks; expected as many in each")
        if self.support_y.is_floating_point() or not len(self) or self.support_y.is_cuda:
            return  # a GPU would have to be waited for
        strangers = set(self.query_y.unique().tolist()) - set(self.support_y.unique().tolist())
        if strangers:
            raise InputError(
                f"episodes: the query set has the class {min(strangers)}, which no support set has: "
                "support and query must be of the same classes"
            )

    def __len__(self) -> int:
        return len(self.support_x)

    def __getitem__(self, tasks: slice) -> Episodes:
        """Return some of the episodes."""
        classes = None if self.classes is None else self.classes[tasks]
        return Episodes(
            self.support_x[tasks],
            self.support_y[tasks],
            self.query_x[tasks],
            self.query_y[tasks],
            classes,
        )

    @property
    def ways(self) -> int:
        """Number of classes of an episode."""
        return int(self.support_y.max()) + 1

    def to(self, target: torch.device | torch.dtype | str) -> Episodes:
        """Return the episodes on a device, or their floating-point values with a dtype."""

        def move(t: Tensor) -> Tensor:
            if isinstance(target, torch.dtype) and not t.is_floating_point():
                return t
            return t.to(target)

        return Episodes(
            move(self.support_x),
            move(self.support_y),
            move(self.query_x),
            move(self.query_y),
            self.classes,
        )


class EpisodeSampler:
    """Draws N-way K-shot episodes from labelled images.

    Args:
        images: uint8 [M, C, H, W] (scaled to [0, 1], then normalised) or float (taken as they are).
        labels: int64 [M], any non-negative class numbers; classes may have unequal numbers of images.
        ways: Classes of an episode, N.
        shots: Support images of a class, K.
        queries: Query images of a class.
        seed: Seed of the episodes.
        rotations: Turn by 0, 90, 180 and 270 degrees: four classes out of each, as for Omniglot.
        mean: Mean of each channel.
        std: Standard deviation of each channel.
        names: Names of the classes, for errors.

    Raises:
        InputError: Fewer classes than ways, or a class with fewer than shots + queries images.

    Example:
        >>> sampler = EpisodeSampler(images, labels, ways=5, shots=1, queries=1, seed=1)
        >>> loss = learner.loss(sampler.batch(step * 4, 4))
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        ways: int,
        shots: int,
        queries: int,
        seed: int,
        rotations: bool = False,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        names: Sequence[str] = (),
    ) -> None:
        for name, value in (("ways", ways), ("shots", shots), ("queries", queries)):
            if value < (2 if name == "ways" else 1):
                raise InputError(f"{name}={value}: expected at least {2 if name == 'ways' else 1}")
        if len(images) != len(labels):
            raise InputError(f"{len(images)} images and {len(labels)} labels: expected as many")
        self.images, self.labels = images, labels
        self.ways, self.shots, self.queries, self.seed = ways, shots, queries, seed
        self.rotations = rotations
        self.mean, self.std = tuple(mean), tuple(std)
        order = labels.cpu().sort(stable=True).indices
        kinds, counts = labels.cpu()[order].unique_consecutive(return_counts=True)
        self.kinds = kinds
        self._order = order.to(images.device)
        self._counts = counts.numpy().astype(np.int64)
        self._starts = np.cumsum(self._counts) - self._counts
        turned = len(kinds) * (4 if rotations else 1)
        if turned < ways:
            more = " (rotations included)" if rotations else ""
            raise InputError(
                f"the data have {turned} classes{more} and an episode takes {ways}: lower --ways to "
                f"{turned} or add classes"
            )
        few = np.flatnonzero(self._counts < shots + queries)
        if few.size:
            kind = int(kinds[int(few[0])])
            name = names[kind] if kind < len(names) else str(kind)
            raise InputError(
                f"class {name!r} has {int(self._counts[few[0]])} images and an episode takes {shots} "
                f"for support and {queries} as queries of each class: add images, leave the class "
                "out, or lower --shots or --queries"
            )

    @classmethod
    def of(cls, data: Any, **how: Any) -> EpisodeSampler:
        """Return a sampler of an `ImageSet`, a `FileSet`, or a data set of (image, label) pairs.

        Files are decoded and pairs are read once, so that episodes are drawn from one tensor.

        Raises:
            InputError: As the constructor; an image of another shape than the first.
        """
        return cls(*labelled_tensors(data), **how)

    @property
    def num_classes(self) -> int:
        """Number of classes, rotations counted."""
        return len(self.kinds) * (4 if self.rotations else 1)

    def batch(self, first: int, n: int) -> Episodes:
        """Return the episodes `first` to `first + n - 1`."""
        each = self.shots + self.queries
        size = 2 * self.ways * (1 + each)
        words = np.stack(
            [streams.words32(self.seed, "episode", first + i, size) for i in range(n)]
        ).astype(np.uint64)
        classes = _draw(words[:, : 2 * self.ways], np.full(n, self.num_classes), self.ways)
        kinds, turns = (classes // 4, classes % 4) if self.rotations else (classes, classes * 0)
        rows = words[:, 2 * self.ways :].reshape(n * self.ways, 2 * each)
        counts = self._counts[kinds.reshape(-1)]
        places = _draw(rows, counts, each) + self._starts[kinds.reshape(-1)][:, None]
        at = self._order[
            torch.from_numpy(places.reshape(n, self.ways, each)).to(self._order.device)
        ]
        x = self._turned(self.images[at], torch.from_numpy(turns).to(at.device))
        y = torch.arange(self.ways, device=at.device)[None, :, None].expand(n, -1, each)
        (sx, qx), (sy, qy) = (_divided(t, self.shots) for t in (self.prepared(x), y))
        return Episodes(sx, sy, qx, qy, torch.from_numpy(classes))

    def batches(self, size: int, n: int, *, first: int = 0) -> Iterator[Episodes]:
        """Yield `n` episodes from `first` on, `size` at a time."""
        for start in range(first, first + n, size):
            yield self.batch(start, min(size, first + n - start))

    def prepared(self, images: Tensor) -> Tensor:
        """Return images [..., C, H, W] as the network takes them: the non-episodic way in."""
        if images.dtype == torch.uint8:
            images = images.float() / 255
        mean, std = (images.new_tensor(v).reshape(-1, 1, 1) for v in (self.mean, self.std))
        return (images - mean) / std

    def _turned(self, x: Tensor, turns: Tensor) -> Tensor:
        if self.rotations:
            x = x.clone()
            for quarter in (1, 2, 3):
                where = turns == quarter
                x[where] = torch.rot90(x[where], quarter, (-2, -1))
        return x


def labelled_tensors(data: Any) -> tuple[Tensor, Tensor]:
    """Return images [M, C, H, W] and labels int64 [M] of a set, an `ImageSet` or (image, label) pairs.

    Raises:
        InputError: Something that is no image tensor, or images of several shapes.
    """
    if isinstance(data, ImageSet):
        return data.images, data.labels
    if isinstance(data, FileSet):
        return data.decoded(), data.labels
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], Tensor):
        return data
    images, labels = [], []
    for i in range(len(data)):
        image, label = data[i]
        if not isinstance(image, Tensor):
            array = np.array(image)
            image = torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))
        if images and image.shape != images[0].shape:
            raise InputError(
                f"image {i} has shape {list(image.shape)} and the first {list(images[0].shape)}: "
                "resize them in the data set's transform"
            )
        images.append(image)
        labels.append(int(label))
    return torch.stack(images), torch.tensor(labels)


def _divided(t: Tensor, shots: int) -> tuple[Tensor, Tensor]:
    """Cut [T, N, K + Q, ...] into support [T, N K, ...] and query [T, N Q, ...]."""
    return t[:, :, :shots].flatten(1, 2), t[:, :, shots:].flatten(1, 2)


def _draw(words: np.ndarray, n: np.ndarray, k: int) -> np.ndarray:
    """Return `k` different numbers below `n[r]` for each row in random order, int64 [R, k].

    Args:
        words: 32-bit words [R, 2 k] as uint64: the first half draws, the second shuffles.
        n: int64 [R], each at least `k`.
        k: How many numbers.
    """
    chosen = np.empty((len(words), k), dtype=np.int64)
    for i in range(k):
        last = n - k + i
        at = ((words[:, i] * (last + 1).astype(np.uint64)) >> np.uint64(32)).astype(np.int64)
        taken = (chosen[:, :i] == at[:, None]).any(axis=1)
        chosen[:, i] = np.where(taken, last, at)
    return np.take_along_axis(chosen, np.argsort(words[:, k:], axis=1, kind="stable"), axis=1)

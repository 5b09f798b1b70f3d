"""Is a generator worth using? What classifiers learn from it, how varied it is, and whether they agree.

* `cas`, the classification accuracy score: a small network is trained on generated images alone and
  tested on real ones; beside it stands the same with as many real images.
* `spread`: mean distance between two images of one class, generated over real, in [-1, 1] pixels. A
  collapsed generator, which makes one image a class, has nearly none, whatever else is said of it.
* `agreement`: how often a classifier of real images gives the label that an image was made for. Alone
  it says nothing: a collapsed generator reaches 100%.

References:
    Ravuri and Vinyals, "Classification accuracy score for conditional generative models", NeurIPS 2019.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regraft.data import ImageSet, stratified_split
from regraft.errors import InputError
from regraft.models import MLP
from regraft.streams import Counter, permutation, seeded

from .source import Source, draw_labels

COLLAPSED = 0.5
"""Ratio of within-class spread below which a generator is called collapsed."""

USEFUL = 0.6
"""Share of the real images' accuracy that training on generated ones should reach, chance taken off."""

COPIED = 0.05
"""Share of the test images among the generated ones, pixel for pixel, from which nothing was measured."""

_PAIRS = 100
_EPOCHS = 12


@dataclass(frozen=True, kw_only=True)
class GeneratorQuality:
    """What was measured, in percent and ratios.

    Attributes:
        cas: Accuracy on real images after training on generated ones.
        real: The same after training on as many real images; None without enough of them.
        spread: Within-class distance, generated over real.
        spread_by_class: The same for each class.
        agreement: Share of generated images that a classifier of real images gives their label.
        agreement_by_class: The same for each class.
        classes: Number of classes K.
        samples: Generated images that were learned from.
        tested: Real images that were tested on.
        copied: How many of them are among the generated images, pixel for pixel.
    """

    cas: float
    real: float | None
    spread: float
    spread_by_class: tuple[float, ...]
    agreement: float
    agreement_by_class: tuple[float, ...]
    classes: int
    samples: int
    tested: int
    copied: int = 0

    @property
    def leaked(self) -> bool:
        """Whether it was tested on what it made, or was made from."""
        return self.copied > COPIED * self.tested

    @property
    def collapsed(self) -> bool:
        """Whether images of a class hardly differ."""
        return self.spread < COLLAPSED

    @property
    def useful(self) -> bool:
        """Whether it is varied, and its labels mean what they should."""
        if self.collapsed or self.leaked:
            return False
        chance = 100 / self.classes
        limit = 100.0 if self.real is None else self.real
        return self.cas - chance >= USEFUL * (limit - chance)

    @property
    def verdict(self) -> str:
        """The verdict in words, one sentence."""
        beside = "" if self.real is None else f" (as many real images: {self.real:.1f}%)"
        if self.collapsed:
            return (
                f"Useless: it is collapsed. Images of one class differ {self.spread:.2f} times as much as "
                f"real ones, so {self.agreement:.0f}% agreement says nothing; a network trained on it "
                f"reaches {self.cas:.1f}%{beside}."
            )
        if self.leaked:
            return (
                f"Not to be told from these data: {self.copied} of the {self.tested} real images that it "
                "was tested on are among its own, pixel for pixel. Give images that it was not made from."
            )
        if self.useful:
            return (
                f"Worth using: a network trained on it alone reaches {self.cas:.1f}%{beside}, and its "
                f"images of a class differ {self.spread:.2f} times as much as real ones."
            )
        return (
            f"Doubtful: a network trained on it alone reaches {self.cas:.1f}%{beside}; its labels or its "
            "images are not those of these data."
        )


def measure(
    source: Source,
    real: ImageSet,
    test: ImageSet | None = None,
    *,
    samples: int = 10_000,
    seed: int = 0,
) -> GeneratorQuality:
    """Measure a generator beside real images of the same classes.

    Args:
        source: The generator.
        real: Real images for the classifier, the spread and the comparison.
        test: Real images to test on; without them a third of `real` is.
        samples: Generated images to learn from.
        seed: Seed of everything.

    Raises:
        InputError: Images of another size, another number of classes, fewer than two classes, or fewer than
            six real images of a class.
    """
    _refuse_misfit(source, real)
    if test is None:
        kept, held = stratified_split(real.labels, 1 / 3, seed)
        real, test = real.subset(kept), real.subset(held)
    labels = draw_labels(Counter(seed, "inspect"), 0, samples, source.classes)
    made = torch.cat(
        [
            (
                source.sample(len(y), labels=y, generator=Counter(seed, "inspect", i * 500)).cpu()
                * 255
            )
            .round()
            .to(torch.uint8)
            for i, y in enumerate(labels.split(500))
        ]
    )
    generated = ImageSet(made, labels, source.classes)
    enough = len(real) >= samples / 10
    learner = train_classifier(generated, seed=seed)
    some = real.subset(permutation(seed, "inspect/real", 0, len(real))[:samples])
    judge = train_classifier(some, seed=seed)
    agrees = predict(judge, made) == labels
    ratio = within_class(generated, seed) / within_class(real, seed)
    return GeneratorQuality(
        cas=_accuracy(learner, test),
        real=_accuracy(judge, test) if enough else None,
        spread=float(within_class(generated, seed).mean() / within_class(real, seed).mean()),
        spread_by_class=tuple(ratio.tolist()),
        agreement=100 * agrees.double().mean().item(),
        agreement_by_class=tuple(
            100 * agrees[labels == c].double().mean().item() for c in range(source.classes)
        ),
        classes=source.classes,
        samples=samples,
        tested=len(test),
        copied=len(_bytes(test.images) & _bytes(made)),
    )


def _bytes(images: Tensor) -> set[bytes]:
    return {image.tobytes() for image in images.contiguous().numpy()}


def within_class(images: ImageSet, seed: int) -> Tensor:
    """Return the mean distance between two images of each class, float64 [K], pixels in [-1, 1].

    Of classes with more than 100 images, 100 are taken; a class with one has distance NaN.
    """
    means = []
    for c in range(images.num_classes):
        rows = (images.labels == c).nonzero().flatten()
        rows = rows[permutation(seed, f"spread/{c}", 0, len(rows))[:_PAIRS]]
        x = images.images[rows].flatten(1).double() / 127.5
        means.append(F.pdist(x).mean() if len(x) > 1 else x.new_tensor(math.nan))
    return torch.stack(means)


def train_classifier(images: ImageSet, *, seed: int) -> nn.Module:
    """Return a small MLP trained on images: two layers of 256, Adam, 12 epochs (at least 400 steps)."""
    size = images.images[0].numel()
    with seeded(seed):
        net = MLP(size, (256, 256), images.num_classes, norm="batch")
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    batch = min(128, len(images))
    epochs = max(_EPOCHS, -(-400 * batch // len(images)))
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (1 - epoch / epochs)
        order = permutation(seed, "inspect/order", epoch, len(images))
        for rows in order.split(batch):
            if len(rows) < 2:
                continue
            loss = F.cross_entropy(net(_pixels(images.images[rows])), images.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval()


@torch.no_grad()
def predict(net: nn.Module, images: Tensor) -> Tensor:
    """Return the classes of images, uint8 [n, C, H, W] -> int64 [n]."""
    return torch.cat([net(_pixels(part)).argmax(1) for part in images.split(1000)])


def _accuracy(net: nn.Module, test: ImageSet) -> float:
    return 100 * (predict(net, test.images) == test.labels).double().mean().item()


def _pixels(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


def _refuse_misfit(source: Source, real: ImageSet) -> None:
    shape = tuple(real.images.shape[1:])
    if shape != source.image_shape:
        raise InputError(
            f"the generator makes images of {_size(source.image_shape)} and the data are {_size(shape)}: "
            "bring the data to that size with --image-size and --channels"
        )
    if real.num_classes != source.classes:
        raise InputError(
            f"the generator has {source.classes} classes and the data have {real.num_classes}: give the "
            "images of the classes that the generator was trained on"
        )
    counts = real.labels.bincount(minlength=real.num_classes)
    if source.classes < 2 or int(counts.min()) < 6:
        raise InputError(
            f"the data have {int(counts.min())} image(s) of class {int(counts.argmin())}: measuring a "
            "generator takes two classes and six real images of each at least"
        )


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))

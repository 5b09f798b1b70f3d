"""Tasks: what there is of the source, and the target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from regraft.config import DataConfig, RuntimeConfig, SetConfig
from regraft.jobs.generate.foreign import ForeignClassifier, ForeignGenerator


@dataclass(frozen=True, kw_only=True)
class PseudoTask:
    """A task: what there is of the source, and the target.

    Attributes:
        name: Name of the task.
        source: The source's images, which the generator and the classifier were trained on.
        tested: Images that the source classifier is measured on.
        target: All labelled images of the target.
        test: What results are measured on.
        sizes: Numbers of labels.
        generator: Somebody's generator of the source's classes, in the place of one that is trained.
        classifier: Somebody's classifier of them, in the place of one that is trained.
    """

    name: str
    source: SetConfig
    tested: SetConfig
    target: SetConfig
    test: SetConfig
    sizes: Sequence[int]
    generator: ForeignGenerator | None = None
    classifier: ForeignClassifier | None = None


def letters(sizes: Sequence[int], *, source: int | None, test: int | None) -> PseudoTask:
    """EMNIST letters to MNIST digits: no label in common."""
    letters = DataConfig(name="emnist", validation=0)
    digits = DataConfig(name="mnist", validation=0)
    return PseudoTask(
        name="letters_to_digits",
        source=SetConfig(data=letters, size=source),
        tested=SetConfig(data=letters, part="test", size=test),
        target=SetConfig(data=digits),
        test=SetConfig(data=digits, part="test", size=test),
        sizes=sizes,
    )


PAIRS = tuple((2 * i, 2 * i + 1) for i in range(5))
"""Ten digits as five pairs."""
KINDS = ((0, 2, 4, 6), (1,), (3,), (5, 7, 9), (8,))
"""Fashion-MNIST as tops, trousers, dresses, shoes and bags."""


def coarse(
    name: str,
    known: str,
    groups: tuple[tuple[int, ...], ...],
    sizes: Sequence[int],
    *,
    source: int | None = None,
    test: int | None = None,
) -> PseudoTask:
    """Classes of a known set put together, to the classes themselves on the other half of its images."""
    data = DataConfig(name=known, validation=0)
    return PseudoTask(
        name=f"coarse_to_fine_{name}",
        source=SetConfig(data=data, part="first_half", groups=groups, size=source),
        tested=SetConfig(data=data, part="test", groups=groups, size=test),
        target=SetConfig(data=data, part="second_half"),
        test=SetConfig(data=data, part="test", size=test),
        sizes=sizes,
    )


def foreign_digits(
    sizes: Sequence[int], *, source: int | None, test: int | None, runtime: RuntimeConfig
) -> PseudoTask:
    """Somebody's generator of MNIST's digits, and the classifier in it, to EMNIST's letters."""
    digits = DataConfig(name="mnist", validation=0)
    letters = DataConfig(name="emnist", validation=0)
    images = SetConfig(data=digits, size=source)
    tested = SetConfig(data=digits, part="test", size=test)
    shared: Any = {
        "setting": "foreign_digits_to_letters",
        "runtime": runtime,
        "weights": "generators/mansidhanania_mnist_cvae.pth",
        "test": tested,
    }
    modules = "regraft.generators.sources.foreign"
    return PseudoTask(
        name="foreign_digits_to_letters",
        source=images,
        tested=tested,
        target=SetConfig(data=letters),
        test=SetConfig(data=letters, part="test", size=test),
        sizes=sizes,
        generator=ForeignGenerator(
            arm="generator", factory=f"{modules}:cvae", images=images, **shared
        ),
        classifier=ForeignClassifier(
            arm="source_classifier", factory=f"{modules}:evidence", **shared
        ),
    )

"""What is meta-learned on episodes, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from .check import AT_LEAST_1, AT_LEAST_2, BELOW_1, NOT_NEGATIVE, POSITIVE, SHARE

FewshotMethod = Literal[
    "meta-ticket",
    "meta-ticket-boil",
    "meta-ticket-anil",
    "maml",
    "anil",
    "boil",
    "meta-sgd",
    "mgaug",
    "reptile",
    "protonet",
    "logistic",
    "prototypes",
    "untrained",
    "random-mask",
    "shuffled-mask",
]
FROZEN = ("logistic", "prototypes")
"""Methods that put a classifier on a frozen encoder."""

UNTRAINED = (*FROZEN, "untrained", "random-mask", "shuffled-mask")
"""Methods that train nothing on episodes: the bar on photographs, and the controls."""


@dataclass(frozen=True, kw_only=True)
class EpisodeConfig:
    """What an episode is."""

    ways: Annotated[int, AT_LEAST_2] = 5
    """Classes of an episode, N."""
    shots: Annotated[int, AT_LEAST_1] = 1
    """Support images of a class, K."""
    queries: Annotated[int | None, AT_LEAST_1] = None
    """Query images of a class in training and test; as many as shots by default."""
    rotations: bool = False
    """Take an image turned by 90, 180 and 270 degrees for another class each, as with Omniglot."""

    @property
    def query_images(self) -> int:
        """Query images of a class."""
        return self.queries or self.shots


@dataclass(frozen=True, kw_only=True)
class FewshotConfig:
    """What is meta-learned: the method and its inner loop."""

    method: FewshotMethod = "meta-ticket"
    """`untrained`, `random-mask` and `shuffled-mask` are controls; `logistic` and `prototypes` are for
    a pretrained network, which they leave as it is."""
    inner_lr: Annotated[float, POSITIVE] = 0.4
    """Step size of the inner loop, alpha."""
    inner_steps: Annotated[int, AT_LEAST_1] = 1
    """Inner steps in training, K."""
    test_steps: Annotated[int, NOT_NEGATIVE] = 3
    """Inner steps in the test and for new classes."""
    first_order: bool = False
    """Take inner gradients for constants: cheaper, less exact."""
    batchnorm: Literal["transductive", "support"] = "transductive"
    """Whose statistics normalise the query images in training: their own, or those of the support."""
    sparsity: Annotated[float, SHARE] = 0.0
    """meta-ticket: share of each layer pruned at first, q; the search goes on from there."""
    weight_init: Literal["kaiming_normal", "kaiming_uniform", "signed_kaiming_constant"] = (
        "kaiming_normal"
    )
    """Law of the random weights that a ticket keeps, and that the other methods start from."""
    rerandomise_every: Annotated[int, AT_LEAST_1] = 1000
    """meta-ticket: outer steps between two re-randomisations of pruned weights."""
    rerandomise: Annotated[float, SHARE] = 0.0
    """meta-ticket: share of the pruned weights that is then drawn anew; 0 for none."""


@dataclass(frozen=True, kw_only=True)
class OuterConfig:
    """The outer loop: how long, and by which optimiser."""

    steps: Annotated[int, NOT_NEGATIVE] = 5000
    """Outer steps."""
    tasks: Annotated[int, AT_LEAST_1] = 4
    """Episodes in an outer step."""
    lr: Annotated[float | None, POSITIVE] = None
    """Outer learning rate; 10 for scores (SGD, momentum 0.9), 1 for reptile (SGD), 0.001 otherwise
    (AdamW)."""
    warmup: Annotated[int, NOT_NEGATIVE] = 100
    """Steps over which the learning rate rises."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """How the learning rate falls."""
    momentum: Annotated[float, BELOW_1] = 0.9
    """Momentum for scores."""

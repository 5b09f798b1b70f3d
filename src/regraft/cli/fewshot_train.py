"""`regraft fewshot train`: meta-learning on the classes of a folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from regraft.config import EpisodeConfig, FewshotConfig, FewshotMethod, OuterConfig
from regraft.config.check import AT_LEAST_1, BELOW_1
from regraft.errors import InputError
from regraft.jobs.progress import Bar

from .options import (
    Data,
    DataOptions,
    ImageOptions,
    LongRuntimeOptions,
    ModelOptions,
    Network,
    Options,
    OutputOptions,
    default_out,
    pick,
)
from .output import tell

if TYPE_CHECKING:
    from regraft.jobs.fewshot.job import FewshotJob


@dataclass(frozen=True, kw_only=True)
class FewshotTrain(Options):
    """Meta-learn on many classes what lets new ones be learned from a few images each.

    A share of the classes is held out, and the accuracy on these is what is reported. Leaves a folder
    with model.ticket (meta-ticket) or model.safetensors for `regraft fewshot adapt`, README.md and
    report.html; the same command goes on after an interruption. On photographs take --method logistic
    with a pretrained network: it is the bar there, and trains nothing.
    """

    data: str = "omniglot"
    """A known data set or a folder of images, one subfolder a class."""
    model: str = "conv_small"
    """A built-in network, timm/NAME, torchvision/NAME or package.module:factory."""
    out: Path | None = None
    """Folder to make or go on with; runs/fewshot-NAME-METHOD by default, after the data."""
    method: FewshotMethod = "meta-ticket"
    """logistic and prototypes put a classifier on a pretrained network; untrained is a control."""
    ways: int = 5
    """Classes of an episode, and of the classifiers that are adapted later."""
    shots: int = 1
    """Support images of a class."""
    queries: int | None = None
    """Query images of a class; as many as shots by default."""
    rotations: bool = False
    """Take images turned by 90, 180 and 270 degrees for classes of their own (100 classes and more)."""
    steps: int = 5000
    """Outer steps."""
    lr: float | None = None
    """Outer learning rate; by default 10 for scores, 1 for reptile, 0.001 otherwise."""
    checkpoint: str | None = None
    """Weights to start from."""
    pretrained: bool = False
    """Start from the weights that timm's or torchvision's hub has."""
    held_out: Annotated[float, BELOW_1] = 0.2
    """Share of the classes held out for the accuracy; 0 for none."""
    test_tasks: Annotated[int, AT_LEAST_1] = 600
    """Episodes that the accuracy is measured on."""
    inner_lr: float = 0.4
    """Step size of the inner loop."""
    inner_steps: int = 1
    """Inner steps in training."""
    test_steps: int = 3
    """Inner steps in the test, and for new classes."""
    first_order: bool = False
    """Take inner gradients for constants: cheaper, less exact."""
    batchnorm: Literal["transductive", "support"] = "support"
    """Whose statistics normalise query images in training: their own (the papers), or the support's,
    which is what an adapted classifier does."""
    sparsity: float = 0.0
    """meta-ticket: share of each layer pruned at first."""
    rerandomise: float = 0.0
    """meta-ticket: share of the pruned weights drawn anew every --rerandomise-every steps."""
    rerandomise_every: int = 1000
    """meta-ticket: outer steps between."""
    tasks: int = 4
    """Episodes in an outer step."""
    warmup: int = 100
    """Steps over which the learning rate rises."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """How the learning rate falls."""
    sets: Data = field(default_factory=DataOptions)
    network: Network = field(default_factory=ModelOptions)
    images: ImageOptions = field(default_factory=ImageOptions)
    runtime: LongRuntimeOptions = field(default_factory=LongRuntimeOptions)
    output: OutputOptions = field(default_factory=OutputOptions)

    def run(self) -> int:
        """Meta-train, measure, write the card, and tell."""
        from regraft.jobs.fewshot.cards import trained_card
        from regraft.jobs.verb import run_carded

        out = self.out or default_out("fewshot", Path(self.data).name, self.method)
        with Bar(enabled=not self.output.json) as bar:
            job = self.job()
            done = run_carded(
                job, out, bar.update, card_of=partial(trained_card, out, job.config())
            )
        tell(done, out, "meta-train", as_json=self.output.json)
        return 0

    def job(self) -> FewshotJob:
        """Return what the options say, as the job."""
        from regraft.jobs.fewshot.job import FewshotJob

        self.check()
        if self.pretrained and self.checkpoint is not None:
            raise InputError("--pretrained and --checkpoint exclude each other: give one")
        if self.images.channels not in (None, 1, 3):
            raise InputError(f"--channels {self.images.channels}: expected 1 or 3")
        values = self.values()
        size = self.images.image_size
        return FewshotJob(
            setting=f"fewshot/{Path(self.data).name}/{self.ways}way-{self.shots}shot",
            arm=self.method,
            data=self.sets.config(self.data, image_size=size, validation=0.0),
            channels=self.images.channels,
            model=self.network.config(self.model),
            episodes=pick(EpisodeConfig, values),
            fewshot=pick(FewshotConfig, values),
            outer=pick(OuterConfig, values),
            held_out=self.held_out,
            test_tasks=self.test_tasks,
            checkpoint="hub" if self.pretrained else self.checkpoint,
            runtime=self.runtime.config(
                refuse=("devices", "precision"),
                because="episodes are computed by one process, in float32",
            ),
        )

"""What an alignment or a merge is told, as plain data without torch; ranges stand beside the fields."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from regraft.config import DataConfig, ModelConfig, OptimConfig, RuntimeConfig, check, check_moments
from regraft.config.check import AT_LEAST_1, FINITE, POINTS, POSITIVE, SHARE_ABOVE_0
from regraft.errors import InputError

Matcher = Literal["weights", "activations", "ste", "none"]
Surrogate = Literal["full", "random", "herding", "condensed"]
Heads = Literal["shared", "separate", "union"]


@dataclass(frozen=True, kw_only=True)
class StraightThroughSettings:
    """How straight-through matching learns, and from which images."""

    surrogate: Surrogate = "full"
    """All training images, or a few of each class: at random, by herding, or condensed ones."""
    per_class: Annotated[int, AT_LEAST_1] = 10
    """Images of each class and data set in a surrogate that is not full."""
    condensed: tuple[Path, ...] = ()
    """The condensed set of each data set, in their order; without them they are made here."""
    steps: Annotated[int | None, AT_LEAST_1.of("--ste-steps")] = 600
    """Steps of the latent network; None for the epochs of `optim`."""
    sweeps: Annotated[int, AT_LEAST_1] = 100
    """Sweeps of the matching at each step, at most; the next goes on from where it ended."""
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(lr=0.3, epochs=1, schedule="cosine")
    )
    """SGD of the latent network; over `steps` the schedule runs once from end to end."""

    def check(self) -> None:
        """Refuse numbers out of their range.

        Raises:
            InputError: The first of them.
        """
        check(self)
        check(self.optim, options={"lr": "--ste-lr"})
        if self.condensed and self.surrogate != "condensed":
            raise InputError("--condensed goes with --match ste --surrogate condensed: add them")


@dataclass(frozen=True, kw_only=True)
class AlignConfig:
    """Checkpoints, network, data and matcher."""

    checkpoints: tuple[Path, ...]
    """Two or more of one architecture; the first stays as it is."""
    model: ModelConfig | None = None
    """The network; None for what the first checkpoint says it is."""
    inputs: str | None = None
    """package.module:function that returns what a network is called with that takes no images."""
    spec: Path | None = None
    """A spec.json of an earlier run, instead of tracing the network."""
    match: Matcher = "weights"
    data: tuple[DataConfig, ...] = ()
    """Data sets: one for all models, or one for each."""
    ste: StraightThroughSettings = field(default_factory=StraightThroughSettings)
    statistics_images: Annotated[int, AT_LEAST_1] = 2000
    """Training images of each data set for activations and statistics; labels are not used."""
    batch_size: Annotated[int, AT_LEAST_1] = 128
    """Images in a batch of these."""
    num_classes: Annotated[int | None, AT_LEAST_1] = None
    """Rows of the classifier; None for those of the checkpoint's."""
    class_names: tuple[str, ...] = ()
    """Names of each model's classes, separated by commas."""
    image_size: Annotated[int | None, AT_LEAST_1] = None
    channels: Annotated[int | None, AT_LEAST_1] = None
    mean: Annotated[tuple[float, ...], FINITE] = ()
    """Mean of each channel; without it what a model says, else the data set's own."""
    std: Annotated[tuple[float, ...], POSITIVE] = ()
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def check(self) -> None:
        """Refuse what contradicts itself or is out of its range, before anything is read.

        Raises:
            InputError: Too few checkpoints, data that are not there for a matcher that needs them, or
                a number out of its range.
        """
        count = len(self.checkpoints)
        if count < 2:
            raise InputError(
                f"{count} checkpoint(s) given: expected two or more of one architecture"
            )
        if self.match in ("activations", "ste") and not self.data:
            raise InputError(
                f"--match {self.match} compares what the models do with images: add --data, or take "
                "--match weights"
            )
        if self.data and len(self.data) not in (1, count):
            raise InputError(
                f"--data is given {len(self.data)} times for {count} models: give it once for all, or "
                "once for each"
            )
        if self.inputs is not None:
            self._check_inputs()
        if self.class_names and len(self.class_names) != count:
            raise InputError(
                f"--class-names is given {len(self.class_names)} times for {count} models: give it "
                "once for each"
            )
        self.ste.check()
        if self.ste.surrogate != "full" and self.match != "ste":
            raise InputError(
                f"--surrogate {self.ste.surrogate} is for --match ste: --match {self.match} has no "
                "use of it"
            )
        check_moments(self.mean, self.std)
        check(self, *self.data, *(() if self.model is None else (self.model,)), self.runtime)

    def _check_inputs(self) -> None:
        if self.model is None or ":" not in self.model.name:
            raise InputError(
                "--inputs goes with --model package.module:factory: name the network so"
            )
        if ":" not in str(self.inputs):
            raise InputError(f"--inputs {self.inputs}: expected package.module:function")
        if self.model.width != 1:
            raise InputError(
                f"--width {self.model.width:g} is for networks of images: use --model-options with "
                "--inputs"
            )
        for name in ("data", "num_classes", "class_names", "image_size", "channels", "mean", "std"):
            if getattr(self, name) not in (None, ()):
                raise InputError(
                    f"--inputs is for a network that takes no images: leave out "
                    f"--{name.replace('_', '-')} or --inputs"
                )


@dataclass(frozen=True, kw_only=True)
class MergeConfig(AlignConfig):
    """An alignment, and how the aligned models become one."""

    combine: str = "average"
    """A name of `regraft.symmetry.merge.methods.MERGE_METHODS`."""
    weights: Annotated[tuple[float, ...], FINITE] = ()
    """Weight of each model; equal without it."""
    base: Path | None = None
    """The model that all were fine-tuned from; each is then aligned to it alone."""
    factor: Annotated[float | None, FINITE] = None
    """Factor on the merged difference from the base."""
    density: Annotated[float | None, SHARE_ABOVE_0] = None
    """Share of each model's differences that is kept."""
    ties_scope: Literal["model", "tensor"] | None = None
    """Whether that is the share of the whole model, or of each tensor."""
    heads: Heads = "shared"
    repair: Literal["auto", "reset", "repair", "none"] = "auto"
    points: Annotated[int, POINTS] = 25
    """Points of the curves between two models; 0 draws none."""
    curve_images: Annotated[int | None, AT_LEAST_1] = 1000
    """Test images of each data set for the curves; None for all."""
    controls: bool = True
    """Measure what the merge is held against as well: no alignment, no repair, the ensemble."""
    stream: bool = False
    """Merge tensor by tensor, without a network in memory."""

    @property
    def options(self) -> dict[str, Any]:
        """Options of the way to combine, by the name that it has for them."""
        names = {"scale": self.factor, "density": self.density, "scope": self.ties_scope}
        return {k: v for k, v in names.items() if v is not None}

    def check(self) -> None:
        """Refuse what contradicts itself or is out of its range, before anything is read.

        Raises:
            InputError: As `AlignConfig.check`, or options that the way to combine has no use of.
        """
        super().check()
        if not self.data and self.repair in ("reset", "repair"):
            raise InputError(f"--repair {self.repair} takes statistics from images: add --data")
        if self.inputs is not None and self.heads != "shared":
            raise InputError(f"--heads {self.heads} needs images: leave --inputs or --heads out")
        if self.match == "ste" and self.heads == "separate":
            raise InputError(
                "--match ste trains through one classifier and --heads separate keeps several: take "
                "--heads union"
            )
        if self.stream and (self.data or self.heads != "shared"):
            what = "--data" if self.data else f"--heads {self.heads}"
            raise InputError(
                f"--stream holds no whole network, which {what} needs: leave one of them out"
            )

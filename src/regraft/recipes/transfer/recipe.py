"""Learning transfer: a training run carried over to another initialisation; scales in `notes.md`.

References:
    Chijiwa 2024, Transferring Learning Trajectories of Neural Networks (arXiv 2305.14122).
    Rinaldi et al. 2025 (arXiv 2505.22697) for matching initial weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from regraft.config import DataConfig, ModelConfig, OptimConfig, RuntimeConfig
from regraft.jobs.base import Job
from regraft.jobs.record import RecordJob
from regraft.jobs.transfer.config import TransferConfig
from regraft.jobs.transfer.job import TransferJob
from regraft.recipes.recipe import Recipe, Scale, assemble

from .claims import THEN, read

_METRICS = (
    ("untrained_best_accuracy", "%"),
    ("untrained_final_accuracy", "%"),
    ("along_accuracy", "%"),
    ("test_accuracy", "%"),
    ("transfer_seconds", "s"),
    ("target_barrier", "nats"),
    ("source_barrier", "nats"),
    ("between_barrier", "nats"),
)


def recipe(scale: str, seeds: int | None = None) -> Recipe:
    """Return the recipe at a scale."""
    builders = {"smoke": _smoke, "cpu": _cpu, "gpu": _gpu, "paper": _paper}
    scales = {name: Scale(build, 3) for name, build in builders.items()}
    scales["cpu"] = Scale(_cpu, 6, first=11)  # settings were decided on pairs below
    title = "Learning transfer between initialisations"
    package = __package__ or ""
    return assemble(package, scales, scale, seeds, title=title, read=read, metrics=_METRICS)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One architecture and training, and the settings of the transfer.

    Attributes:
        setting: What is compared.
        train: The training of both networks.
        transfer: What all arms share.
        states: States of the trainings that are recorded, the initial one not counted.
        base: Of a fine-tuning: the training that both begin with, each with a seed of its own.
        shared: Setting whose networks these are, where it is another.
    """

    setting: str
    data: DataConfig
    model: ModelConfig
    train: OptimConfig
    runtime: RuntimeConfig
    transfer: TransferConfig = field(default_factory=TransferConfig)
    states: int = 1
    base: RecordJob | None = None
    shared: str | None = None

    @property
    def network(self) -> RecordJob:
        """The training of either network."""
        return RecordJob(
            setting=f"networks/{self.shared or self.setting}",
            data=self.data,
            model=self.model,
            optim=self.train,
            runtime=self.runtime,
            states=self.states,
            start=self.base,
        )

    def job(self, arm: str, control: str | None = "naive", **options: Any) -> TransferJob:
        """Return one arm; `options` are those of `TransferConfig`."""
        options = {"batch_size": self.train.batch_size, **options}
        if options.get("match") not in ("gmt", "fgmt"):
            options["plane_points"] = 0  # a plane is measured for what matches gradients
        return TransferJob(
            setting=self.setting,
            arm=arm,
            control=control,
            source=self.network,
            target=self.network,
            transfer=replace(self.transfer, **options),
            runtime=self.runtime,
        )

    def arms(self) -> list[TransferJob]:
        """Return the methods with every control, each trained on."""
        matches = ("naive", "oracle", "initial_weights", "gmt", "fgmt", "scratch")
        jobs = [self._matched(match) for match in matches]
        if self.states > 1:
            jobs.append(self.job("fgmt_recorded", match="fgmt", trajectory="recorded"))
        return jobs

    def then(self, name: str, optim: OptimConfig) -> list[TransferJob]:
        """Return what trains on otherwise, from the same transfers between the same networks."""
        how = replace(self.transfer, then=optim, points=0, plane_points=0)
        setting = f"{self.setting}/{THEN}{name}"
        other = replace(self, setting=setting, shared=self.setting, transfer=how)
        return [other._matched(match) for match in ("naive", "oracle", "gmt", "fgmt", "scratch")]

    def regime(self, name: str, **options: Any) -> list[TransferJob]:
        """Return what shows the effect, or hides it, under another training; `options` are changed."""
        brief = replace(self.transfer, then=None, points=0, plane_points=0)
        other = replace(self, setting=f"{self.setting}/{name}", states=1, transfer=brief, **options)
        return [other._matched(match) for match in ("naive", "oracle", "fgmt")]

    def _matched(self, match: str) -> TransferJob:
        return self.job(match, None if match == "naive" else "naive", match=match)

    def hidden(self, lr: float) -> list[TransferJob]:
        """Return both regimes in which the effect is said to hide."""
        jobs = self.regime(f"lr={lr:g}", train=replace(self.train, lr=lr))
        raw = replace(self.data, normalize="none")
        return [*jobs, *self.regime("unnormalised", data=raw)]


def perceptron(*widths: int, bias: bool = True) -> ModelConfig:
    """Return a perceptron with ReLU that starts as PyTorch makes it, as the paper's does."""
    options: dict[str, Any] = {"widths": list(widths), "init": "torch"}
    return ModelConfig(name="mlp", options=options if bias else {**options, "bias": False})


def _sgd(lr: float, epochs: int, **options: Any) -> OptimConfig:
    plain: dict[str, Any] = {"weight_decay": 0.0, "batch_size": 100, "schedule": "constant"}
    return OptimConfig(lr=lr, epochs=epochs, **{**plain, **options})


def _smoke() -> list[Job]:
    low = _sgd(0.01, 8, batch_size=50)
    mlp = Experiment(
        setting="digits/mlp=128-128",
        data=DataConfig(name="digits"),
        model=perceptron(128, 128),
        train=low,
        runtime=RuntimeConfig(accelerator="cpu", threads=1),
        transfer=TransferConfig(trajectory_steps=4, points=5, then=replace(low, epochs=2)),
        states=4,
    )
    conv = replace(
        mlp,
        setting="digits/conv_small",
        model=ModelConfig(name="conv_small"),
        train=replace(low, epochs=4),
        transfer=replace(mlp.transfer, gradient_batches=4, statistics_images=500),
    )
    return [*mlp.arms(), *conv.arms(), *mlp.hidden(0.1)]


# The card's own reproduction (A8) took as many images; of 60,000 the effect would be as visible and
# the training seven times as long. Of the rest 1,200 are enough to choose a step by.
MNIST = DataConfig(name="mnist", train_size=8000, validation=0.02)


def cpu_mlp() -> Experiment:
    """Return the perceptron of two hidden layers as the scale `cpu` has it."""
    return Experiment(
        setting="mnist/mlp=512-512",
        data=MNIST,
        model=perceptron(512, 512),
        train=_sgd(0.01, 10),
        runtime=RuntimeConfig(accelerator="cpu", threads=1),
        transfer=TransferConfig(trajectory_steps=10, then=_sgd(0.01, 3)),
        states=10,
    )


def _cpu() -> list[Job]:
    mlp = cpu_mlp()
    wide = replace(mlp, setting="mnist/mlp=1024", model=perceptron(1024, bias=False))
    conv = replace(
        mlp,
        setting="fashion_mnist/conv_small=2",
        data=replace(MNIST, name="fashion_mnist"),
        model=ModelConfig(name="conv_small", width=2, options={"head_init": "torch"}),
        transfer=replace(mlp.transfer, gradient_batches=4, statistics_images=1000),
    )
    adamw = conv.then("adamw", _sgd(1e-4, 3, optimizer="adamw"))
    return [*mlp.arms(), *conv.arms(), *adamw, *wide.arms(), *mlp.hidden(0.1)]


def _published(name: str, runtime: RuntimeConfig) -> Experiment:
    """Return the paper's MNIST, with activations."""
    return Experiment(
        setting=f"{name}/mlp=4096",
        data=DataConfig(name=name),
        model=perceptron(4096, bias=False),
        train=_sgd(0.01, 10, batch_size=128),
        runtime=runtime,
        transfer=TransferConfig(
            trajectory_steps=10,
            curve_images=None,
            points=101,
            plane_points=15,
            then=_sgd(0.01, 3, batch_size=128),
        ),
        states=10,
    )


def _gpu() -> list[Job]:
    runtime = RuntimeConfig(accelerator="cuda", threads=4)
    mlp = _published("mnist", runtime)
    train = _sgd(0.02, 30, batch_size=128, weight_decay=1e-4, schedule="cosine")
    resnet = Experiment(
        setting="cifar10_jpeg/resnet20/width=4",
        data=DataConfig(name="cifar10_jpeg", augment="crop-flip"),
        model=ModelConfig(name="resnet20", width=4),
        train=train,
        runtime=runtime,
        transfer=TransferConfig(
            trajectory_steps=30,
            spacing="cosine",
            gradient_batches=4,
            points=25,
            plane_points=15,
            then=replace(train, epochs=5),
        ),
        states=30,
    )
    return [*mlp.arms(), *resnet.arms(), *mlp.hidden(0.1), *resnet.hidden(0.2)]


def _paper() -> list[Job]:
    """Return the published settings (card A4)."""
    runtime = RuntimeConfig(threads=4)
    mlp = _published("mnist", runtime)
    sgd: dict[str, Any] = {"batch_size": 128, "weight_decay": 1e-4, "schedule": "cosine"}
    adam = _sgd(1e-4, 10, batch_size=128, optimizer="adamw")
    conv = Experiment(
        setting="cifar10/conv8",
        data=DataConfig(name="cifar10", augment="resized-crop-flip"),
        model=ModelConfig(name="conv8"),
        train=_sgd(0.05, 60, **sgd),
        runtime=runtime,
        transfer=TransferConfig(
            trajectory_steps=30,
            spacing="cosine",
            gradient_batches=2,
            curve_images=None,
            points=101,
            plane_points=15,
            then=adam,
        ),
        states=60,
    )
    ablations = [
        conv.job("fgmt_uniform", match="fgmt", spacing="uniform"),
        conv.job("fgmt_recorded_60", match="fgmt", trajectory="recorded", trajectory_steps=60),
    ]
    tuned = _tuned(
        conv,
        "cifar100/conv8/from=cifar10",
        replace(conv.data, name="cifar100", only_classes=tuple(range(10))),
        train=_sgd(0.05, 30, **sgd),
        gradient_batches=1,
    )
    resnet = Experiment(
        setting="imagenet/resnet18",
        data=DataConfig(name="imagenet", augment="resized-crop-flip"),
        model=ModelConfig(name="torchvision/resnet18"),
        train=_sgd(0.1, 100, warmup_epochs=5, **sgd),
        runtime=runtime,
        transfer=replace(
            conv.transfer,
            gradient_batches=100,
            statistics_images=2560,
            curve_images=10000,
            then=_sgd(1e-6, 10, batch_size=128, optimizer="adamw"),
        ),
    )
    birds_and_cars = [
        _tuned(
            resnet,
            f"{name}/resnet18/from=imagenet",
            replace(resnet.data, name=name),
            train=_sgd(0.1, 30, **sgd),
            gradient_batches=10,
            statistics_images=256,
            curve_images=None,
            then=adam,
        )
        for name in ("cars", "cub")
    ]
    jobs: list[Job] = [*mlp.arms(), *conv.arms(), *ablations, *tuned.arms()]
    jobs += [job for one in (resnet, *birds_and_cars) for job in one.arms()]
    return jobs


def _tuned(
    base: Experiment, setting: str, data: DataConfig, *, train: OptimConfig, **options: Any
) -> Experiment:
    """Return the fine-tuning of two networks that were trained before, in 15 steps."""
    return Experiment(
        setting=setting,
        data=data,
        model=base.model,
        train=train,
        runtime=base.runtime,
        transfer=replace(base.transfer, trajectory_steps=15, **options),
        base=base.network,
    )

"""`regraft condense`: a data set as a handful of synthetic images a class."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from regraft.jobs.progress import Bar
from regraft.machine import is_first_process

from .json_option import json_object
from .output import tell

if TYPE_CHECKING:
    from regraft.report import ResultCard

# Mirrored, a character is another one or none.
_CHARACTERS = ("digits", "mnist", "kmnist", "emnist", "emnist_digits", "emnist_balanced")


@dataclass(frozen=True, kw_only=True)
class Condense:
    """Condense a data set into a few synthetic images a class on which networks learn.

    Leaves a folder with `condensed.safetensors`, a picture and a page of the images; the same
    command goes on after an interruption.
    """

    data: str = "mnist"
    """A known data set (`regraft data list`) or a folder of images, one subfolder a class."""
    out: Path
    """Folder to make or go on with."""
    per_class: int = 10
    """Synthetic images of each class."""
    method: Literal["dc", "dsa", "dm"] = "dc"
    """Match gradients (dc), gradients under augmentation (dsa), or mean embeddings (dm)."""
    model: str | None = None
    """Networks to match in; by default an mlp of two layers of 128 for dc, conv_small otherwise."""
    width: float = 1.0
    """Width factor of a built-in network."""
    model_options: str = "{}"
    """Further keyword arguments of the model's factory, as a JSON object."""
    restarts: int | None = None
    """Random networks; by default 100, for dm 2000. The papers take 1000 and 20000."""
    outer: int | None = None
    """Matching steps for one network; by default as many as images a class, 50 at most."""
    inner: int | None = None
    """Training epochs between two of them; by default 500 / outer."""
    lr_images: float | None = None
    """Learning rate of the images; by default by method, network and restarts."""
    lr_network: float = 0.01
    """Learning rate of the networks."""
    real_batch: int = 256
    """Real images of each class in a step."""
    init: Literal["noise", "real"] | None = None
    """Start from noise (the default of dc) or from real images (dsa, dm), better in few restarts."""
    transforms: tuple[str, ...] | None = None
    """dsa, dm: color, crop, cutout, flip, rotate, scale; by default all, without flip of digits."""
    max_seconds: float | None = None
    """Stop after this time; the same command then goes on."""
    evaluate: bool = False
    """Train networks on the images, on as many random ones and on all, and compare them."""
    evaluate_model: str | None = None
    """Network to evaluate with; by default the one the images were condensed with."""
    evaluate_seeds: int = 3
    """Seeds of the evaluation."""
    data_root: str | None = None
    """Folder of the known data sets; without it REGRAFT_DATA, then ~/.cache/regraft/data."""
    offline: bool = False
    """Stop at a missing known set instead of fetching it."""
    image_size: int | None = None
    """Side of the images in pixels; a folder without it takes 224."""
    validation: float = 0.0
    """Share of the training images held out; a folder without a test part is evaluated on it."""
    train_size: int | None = None
    """Keep this many training images, stratified."""
    split_seed: int = 777
    """Seed of the split."""
    unreadable: Literal["refuse", "skip"] = "refuse"
    """Stop at an image that cannot be decoded, or warn and go on."""
    seed: int = 1
    """Seed of images, networks and batches."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    threads: int | None = None
    """CPU threads; exact resuming needs them unchanged."""
    checkpoint_seconds: float = 30.0
    """Least time between two checkpoints."""
    json: bool = False
    """Print one JSON object instead of text."""

    def run(self) -> int:
        """Condense, show progress, and tell what came of it."""
        from regraft.config import RuntimeConfig, check
        from regraft.data import load
        from regraft.errors import InputError
        from regraft.generators import CondensedSet, Condenser
        from regraft.jobs.data import fingerprint
        from regraft.jobs.verb import Done, write
        from regraft.train import RunFolder, keep_freed_memory

        keep_freed_memory()
        runtime = RuntimeConfig(
            seed=self.seed,
            accelerator=self.accelerator,
            threads=self.threads,
            checkpoint_seconds=self.checkpoint_seconds,
        )
        config, model, settings = self._data(), self._model(), self._settings()
        check(model, runtime)
        if self.max_seconds is not None and not self.max_seconds >= 0:
            raise InputError(f"--max-seconds {self.max_seconds}: expected seconds from 0 up")
        device = self._device()
        with RunFolder(
            self.out,
            config=self._identity(config, model, settings),
            setting=self._setting(model.name),
            arm=self.method,
            seed=self.seed,
        ) as folder:
            splits = load(config)
            self._refuse_evaluation(splits)
            condenser = Condenser(
                splits.train,
                _Factory(model, splits),
                per_class=self.per_class,
                method=self.method,
                config=settings,
                mean=splits.mean,
                std=splits.std,
                classes=splits.classes,
                seed=self.seed,
                device=device,
            )
            folder.pin("data", fingerprint(splits))
            quiet = self.json or not is_first_process()
            with Bar(enabled=not quiet, noun="network", describe=_loss) as bar:
                condenser.run(
                    checkpoint=self.out / "checkpoint.safetensors",
                    checkpoint_seconds=self.checkpoint_seconds,
                    max_seconds=self.max_seconds,
                    progress=bar.update,
                )
            folder.check_there()
            file = self.out / "condensed.safetensors"
            size = condenser.result().save(file)
            condensed = CondensedSet.load(file)
            self._log(folder, condenser)
            if condenser.done:
                folder.finish(
                    {
                        "metrics": {"matching_loss": condenser.losses[-1]},
                        "seconds": round(condenser.seconds, 3),
                        "trainable_parameters": condensed.images.numel(),
                        "stored_bytes": size,
                    }
                )
            rows = self._evaluate(splits, condensed, runtime) if self.evaluate else []
            folder.check_there()
            card = write(self.out, self._card(condensed, condenser, rows, model))
        tell(Done(card, before=False), self.out, "condense", as_json=self.json)
        return 0

    def _data(self) -> Any:
        from regraft.config import DataConfig

        return DataConfig(
            name=self.data,
            root=self.data_root,
            download=not self.offline,
            train_size=self.train_size,
            validation=self.validation,
            split_seed=self.split_seed,
            image_size=self.image_size,
            unreadable=self.unreadable,
        )

    def _model(self) -> Any:
        from regraft.config import ModelConfig

        options = json_object(self.model_options)
        if self.model is not None:
            return ModelConfig(name=self.model, width=self.width, options=options)
        if self.method != "dc":
            return ModelConfig(name="conv_small", width=self.width, options=options)
        return ModelConfig(name="mlp", width=self.width, options={"widths": [128, 128], **options})

    def _settings(self) -> Any:
        from regraft.generators import CondenseConfig
        from regraft.generators.siamese import TRANSFORMS

        names = {f.name for f in dataclasses.fields(CondenseConfig)}
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name in names}
        if self.transforms is None and self.method != "dc" and self.data in _CHARACTERS:
            given["transforms"] = tuple(kind for kind in TRANSFORMS if kind != "flip")
        return CondenseConfig(**given)

    def _device(self) -> Any:
        import torch

        from regraft.errors import InputError

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        there = torch.cuda.is_available()
        if self.accelerator == "cuda" and not there:
            raise InputError("--accelerator cuda: torch sees no CUDA device; use cpu or auto")
        return torch.device("cuda" if there and self.accelerator != "cpu" else "cpu")

    def _refuse_evaluation(self, splits: Any) -> None:
        """Refuse an evaluation that cannot be, before hours are spent on the images."""
        from regraft.errors import InputError, MissingExtraError

        if not self.evaluate:
            return
        if self.evaluate_seeds < 1:
            raise InputError(f"--evaluate-seeds {self.evaluate_seeds}: expected at least 1")
        if splits.test is None and splits.validation is None:
            raise InputError(
                f"--evaluate: {splits.name} has no test images: hold some of its images out, with "
                "--validation 0.1"
            )
        try:
            import lightning_fabric  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("lightning-fabric", "train", "--evaluate") from error

    def _identity(self, config: Any, model: Any, settings: Any) -> dict[str, Any]:
        """Return everything that determines the images, as JSON."""
        from regraft.config import to_dict

        data = to_dict(config)
        # Where the data lie changes no number.
        data.pop("root")
        data.pop("download")
        return {
            "data": data,
            "model": to_dict(model),
            "method": self.method,
            "per_class": self.per_class,
            "condense": to_dict(settings),
            "runtime": {"seed": self.seed, "threads": self.threads},
        }

    def _setting(self, model: str) -> str:
        """Return what is compared here, so that a report can pair the runs."""
        name = Path(self.data).name or self.data
        return f"{name}/{model.replace('/', '-').replace(':', '-')}/per_class={self.per_class}"

    def _log(self, folder: Any, condenser: Any) -> None:
        """Write the losses of all restarts, which the checkpoint holds, as the run's metrics."""
        folder.truncate_metrics(0)
        for i, loss in enumerate(condenser.losses):
            folder.log({"step": i + 1, "epoch": i, "split": "train", "loss": loss})
        folder.sync_metrics()

    def _evaluate(self, splits: Any, condensed: Any, runtime: Any) -> list[dict[str, Any]]:
        from regraft.config import ModelConfig
        from regraft.jobs.condense.scores import Trial, summary

        model = self._model()
        if self.evaluate_model is not None:
            model = ModelConfig(name=self.evaluate_model)
        trial = Trial(
            setting=self._setting(model.name), model=model, runtime=runtime, splits=splits
        )
        quiet = self.json or not is_first_process()
        with Bar(enabled=not quiet, noun="evaluation") as bar:
            found = trial.run(
                condensed,
                self.out / "evaluation" / model.name.replace("/", "-").replace(":", "-"),
                self.evaluate_seeds,
                bar.update,
            )
        return summary(found)

    def _card(
        self, condensed: Any, condenser: Any, rows: list[dict[str, Any]], model: Any
    ) -> ResultCard:
        from regraft.jobs.condense.card import card_of

        config = condenser.config
        facts = {
            "Data": self.data,
            "Method": self.method,
            "Network": model.name,
            "Start": config.init,
            "Steps": f"{config.outer} of the images, {config.inner} epochs of the network",
            "Learning rate": f"images {config.lr_images:g}, network {config.lr_network:g}",
            "Real batch": f"{config.real_batch} of each class",
            "Transforms": ", ".join(config.transforms) or "none",
            "Seed": str(self.seed),
        }
        trained = (
            f"{self.evaluate_model or model.name} networks, all trained by SGD with momentum 0.9 and "
            "a cosine from 0.05: 500 steps on the condensed and on the random images, 5 epochs on all."
        )
        name = Path(self.data).name or self.data
        return card_of(
            self.out, condenser, condensed, name=name, facts=facts, scores=rows, trained=trained
        )


@dataclass(frozen=True)
class _Factory:
    """Makes the networks of a condensation."""

    model: Any
    splits: Any

    def __call__(self) -> Any:
        from regraft.models import build

        return build(
            self.model,
            num_classes=self.splits.num_classes,
            channels=self.splits.channels,
            image_size=self.splits.image_size,
        )


def _loss(row: dict[str, float]) -> str:
    return f"loss {row['loss']:.3g}" if row else ""

"""Meta-training on the classes of one set, and its test on other classes: one job for verb and recipe."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from regraft.checkpoints.read import read_checkpoint
from regraft.checkpoints.write import write_model
from regraft.config import (
    DataConfig,
    EpisodeConfig,
    FewshotConfig,
    ModelConfig,
    OuterConfig,
    to_dict,
)
from regraft.config.check import AT_LEAST_1, BELOW_1, check
from regraft.config.fewshot import FROZEN, UNTRAINED
from regraft.errors import DivergenceError, InputError, MissingExtraError
from regraft.fewshot import (
    MAML,
    Episodes,
    EpisodeSampler,
    Learner,
    MetaTicket,
    Policy,
    one_shot_runs,
)
from regraft.fewshot.learner import accuracy
from regraft.jobs.base import Job
from regraft.models import build
from regraft.tickets import IteRand, load_ticket, save_ticket, stored_bytes
from regraft.tickets.controls import shuffled_masks
from regraft.train import RunFolder, read_json
from regraft.train.loop import Progress

from .choice import RateChoice
from .images import ClassImages, class_images, domain, parted
from .learners import make_learner, random_masks_at
from .loop import fit_episodes
from .measure import measured, one_episode

Moments = tuple[float, ...] | None
Started = tuple[nn.Module, Moments, Moments]

_TEST_SEED = 9_000_001
_CURVE_SEED = 9_000_002


@dataclass(frozen=True, kw_only=True)
class FewshotJob(Job):
    """Meta-train by one method and measure on classes that were not trained on.

    Beside the run folder's own files it leaves `model.ticket` (a Meta-ticket) or `model.safetensors`.

    Attributes:
        data: The classes to train on.
        model: The network; its classifier gets `episodes.ways` outputs.
        tests: Known sets to test on; the first is the one the method was trained for. Without any,
            `held_out` of the classes of `data`.
        held_out: Share of the classes held out for the test, where there are no `tests`.
        test_tasks: Test episodes, the same for every method.
        domain_tasks: Of each set but the first; as many by default.
        curve_tasks: Episodes of each measurement along training.
        curve_points: Measurements along training.
        checkpoint: Weights to start from: a file, or `hub` for those of timm's or torchvision's hub.
        channels: Bring images to 1 or 3 channels; as they are by default.
        source: The finished Meta-ticket whose masks a control shuffles, or whose sparsity it takes.
        choice: The finished choice of the outer learning rate, which is then that of no `outer`.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    episodes: EpisodeConfig = field(default_factory=EpisodeConfig)
    fewshot: FewshotConfig = field(default_factory=FewshotConfig)
    outer: OuterConfig = field(default_factory=OuterConfig)
    tests: tuple[str, ...] = ()
    held_out: Annotated[float, BELOW_1] = 0.2
    test_tasks: Annotated[int, AT_LEAST_1] = 600
    domain_tasks: Annotated[int | None, AT_LEAST_1] = None
    curve_tasks: Annotated[int, AT_LEAST_1] = 100
    curve_points: Annotated[int, AT_LEAST_1] = 8
    checkpoint: str | None = None
    channels: int | None = None
    source: FewshotJob | None = None
    choice: RateChoice | None = None

    def check(self) -> None:
        """Refuse what cannot be run; see `Job.check`."""
        super().check()
        check(self)
        if self.runtime.precision != "32-true" or self.runtime.devices != 1:
            raise InputError("episodes are computed by one process, in float32: leave out the rest")
        if self.fewshot.method in ("random-mask", "shuffled-mask") and self.source is None:
            raise InputError(
                f"--method {self.fewshot.method} is a control of a finished meta-ticket"
            )
        if self.checkpoint is not None and self.fewshot.method.startswith("meta-ticket"):
            raise InputError(
                f"--method {self.fewshot.method} keeps random weights: leave out --checkpoint and "
                "--pretrained, or take another method"
            )

    def work(self, folder: RunFolder, root: Path, progress: Progress | None) -> dict[str, Any]:
        """Meta-train, measure, and write the learner; see `Job.work`.

        What diverges with a rate that was chosen at other seeds, and a control made of its mask, count as
        guessing: `diverged` is 1 then.

        Raises:
            DivergenceError: It diverged with a rate of `outer`.
        """
        if self.source is not None and _diverged(self.source.folder(root)):
            return self._guess({})
        outer, chosen = self.outer, {}
        if self.choice is not None:
            chosen = {"lr": self.choice.chosen(root)}
            outer = replace(outer, **chosen)
            folder.pin("chosen", chosen)
        try:
            return self._trained(folder, root, progress, outer)
        except DivergenceError:
            if self.choice is None:
                raise
            return self._guess(chosen)

    def _guess(self, chosen: dict[str, float]) -> dict[str, Any]:
        """Return what a run that diverged counts as: the accuracy of guessing on every set."""
        names = ("test", *self.tests[1:])
        ends = ("",) if self.fewshot.method in FROZEN else ("", "_by_support")
        guess = {f"{n}_accuracy{end}": 100 / self.episodes.ways for n in names for end in ends}
        return {"metrics": {**guess, **chosen, "diverged": 1.0}, "seconds": 0.0}

    def _trained(
        self, folder: RunFolder, root: Path, progress: Progress | None, outer: OuterConfig
    ) -> dict[str, Any]:
        began = time.monotonic()
        threads = self.runtime.threads
        if threads is not None:
            torch.set_num_threads(threads)
        cuda = self.runtime.accelerator != "cpu" and torch.cuda.is_available()
        if self.runtime.accelerator == "cuda" and not cuda:
            raise InputError("--accelerator cuda: no GPU is available here; use cpu or auto")
        device = torch.device("cuda" if cuda else "cpu")
        train, tests, notes = self.sets()
        network, mean, std = self.start(train)
        if mean is not None and std is not None:  # images as the weights know them
            train = replace(train, mean=mean, std=std)
            tests = {n: replace(images, mean=mean, std=std) for n, images in tests.items()}
        sampler = self.sampler(train, self.runtime.seed, device)
        learner = self.learner(train, root, network).to(device)
        official = self._official(sampler, notes)
        ends = {n: self.sampler(images, _TEST_SEED, device) for n, images in tests.items()}
        points = {n: self.sampler(images, _CURVE_SEED, device) for n, images in tests.items()}

        def curve() -> dict[str, float]:
            values = {n: measured(learner, s, self.curve_tasks) for n, s in points.items()}
            first = next(iter(values.values()))
            row = {"accuracy": first["accuracy"], "loss": first["loss"]}
            row |= {f"{n}_accuracy": v["accuracy"] for n, v in list(values.items())[1:]}
            if isinstance(learner, MetaTicket):
                row |= {f"sparsity/{n}": s for n, s in learner.sparsity().items()}
            return row

        seconds = 0.0
        if self.fewshot.method not in UNTRAINED and self.outer.steps:
            stepper = None
            if isinstance(learner, MetaTicket) and self.fewshot.rerandomise:
                every, rate = self.fewshot.rerandomise_every, self.fewshot.rerandomise
                stepper = IteRand(learner.network, every=every, rate=rate)
            seconds = fit_episodes(
                learner,
                sampler,
                outer,
                self.runtime,
                folder,
                measure=curve,
                measure_every=max(1, self.outer.steps // self.curve_points),
                stepper=stepper,
                progress=progress,
            )
        else:
            folder.truncate_metrics(0)
            folder.log({"step": 0, "epoch": 0, "split": "validation", **curve()})
        metrics = self._measure(learner, ends)
        if official is not None:
            right = accuracy(learner.logits(official.to(device)), official.query_y.to(device))
            metrics["official_runs_accuracy"] = float(right.mean())
        if isinstance(learner, MetaTicket):
            metrics |= {f"sparsity/{n}": s for n, s in learner.sparsity().items()}
        if self.choice is not None:
            metrics["lr"] = outer.lr or 0.0
        episode: list[list[float]] = []
        if isinstance(learner, MAML):
            first = next(iter(ends.values()))
            episode = one_episode(learner, first, max(self.fewshot.test_steps, 1))
        return {
            "episode": episode,
            "metrics": metrics,
            "seconds": seconds,
            "trainable_parameters": sum(
                p.numel() for p in learner.parameters() if p.requires_grad and seconds
            ),
            "stored_bytes": self._store(learner, train, folder.path),
            "classes": {"train": _names(train), **{n: _names(s) for n, s in tests.items()}},
            "notes": notes,
            "wall_seconds": time.monotonic() - began,
        }

    def sets(self) -> tuple[ClassImages, dict[str, ClassImages], list[str]]:
        """Return the classes to train on, those to test on by name, and what is to be said."""
        whole = class_images(self.data, channels=self.channels)
        size, channels = whole.images.image_size, whole.images.channels
        if self.tests:
            others = {n: domain(n, self.data, size=size, channels=channels) for n in self.tests}
            return whole, others, []
        kinds = whole.images.labels.unique()
        ways = self.episodes.ways
        if self.held_out and len(kinds) >= 2 * ways:
            share = max(self.held_out, ways / len(kinds))
            train, test = parted(whole, share, self.data.split_seed)
            return train, {"held-out classes": test}, []
        note = (
            f"no classes are held out: {len(kinds)} are too few for two sets of {ways}, so the accuracy "
            "is of classes that were trained on"
        )
        frozen = self.fewshot.method in FROZEN
        return whole, {"all classes": whole}, [] if frozen else [note]

    def sampler(self, images: ClassImages, seed: int, device: torch.device) -> EpisodeSampler:
        """Return where episodes of a set come from."""
        return EpisodeSampler.of(
            images.images.to(device),
            ways=self.episodes.ways,
            shots=self.episodes.shots,
            queries=self.episodes.query_images,
            rotations=self.episodes.rotations and images.images.num_classes > 100,
            seed=seed,
            mean=images.mean,
            std=images.std,
            names=images.classes,
        )

    def learner(self, train: ClassImages, root: Path, network: nn.Module | None = None) -> Learner:
        """Return the learner at its start; a control takes the masks of its source below `root`.

        Args:
            train: The images to train on.
            root: Where runs lie.
            network: What `start` returned; it is built by default.
        """
        network = self.start(train)[0] if network is None else network
        method, seed = self.fewshot.method, self.runtime.seed
        if self.source is None or method not in ("random-mask", "shuffled-mask"):
            return make_learner(network, self.fewshot, seed=seed, keep=self.checkpoint is not None)
        ticket = load_ticket(self.source.folder(root))
        maml = replace(self.fewshot, method="maml")
        if method == "random-mask":
            shares = {n: 1 - float(m.float().mean()) for n, m in ticket.masks().items()}
            masks = random_masks_at(shares, network, seed)
            return make_learner(network, maml, seed=seed, masks=masks)
        masked = make_learner(network, self.source.fewshot, seed=seed)
        _put_masks(masked, ticket.masks())
        masks = shuffled_masks(masked.network, seed=seed)
        return make_learner(self.start(train)[0], maml, seed=seed, masks=masks)

    def start(self, train: ClassImages) -> Started:
        """Return the network at the job's seed, with the weights of `checkpoint` where there is one.

        With it come the mean and std that these weights were trained with, None where unknown.
        """
        channels, size = train.images.channels, train.images.image_size
        torch.manual_seed(self.runtime.seed)
        if self.checkpoint is None:
            shape: dict[str, Any] = {"channels": channels, "image_size": size}
            return build(self.model, num_classes=self.episodes.ways, **shape), None, None
        from regraft.jobs.finetune.start import start_from

        hub = self.checkpoint == "hub"
        start = start_from(
            self.model,
            classes=[str(i) for i in range(self.episodes.ways)],
            channels=channels,
            image_size=size,
            checkpoint=None if hub else read_checkpoint(self.checkpoint),
            pretrained=hub,
        )
        return start.model, start.mean, start.std

    def _measure(self, learner: Learner, ends: dict[str, EpisodeSampler]) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for i, (name, sampler) in enumerate(ends.items()):
            key = "test" if i == 0 else name
            policies: tuple[tuple[str, Policy | None], ...] = (
                ("", "transductive"),
                ("_by_support", "support"),
            )
            if self.fewshot.method in FROZEN:
                policies = (("", None),)
            for suffix, policy in policies:
                tasks = (self.domain_tasks if i else None) or self.test_tasks
                values = measured(learner, sampler, tasks, policy=policy)
                metrics[f"{key}_accuracy{suffix}"] = values["accuracy"]
                metrics[f"{key}_ci{suffix}"] = values["ci"]
        return metrics

    def _official(self, sampler: EpisodeSampler, notes: list[str]) -> Episodes | None:
        """Return Omniglot's official one-shot runs as the network takes them; None for other tasks.

        Where they cannot be read, the notes say why: the rest of the test does without.
        """
        ways, shots = self.episodes.ways, self.episodes.shots
        if self.data.name != "omniglot" or (ways, shots) != (20, 1):
            return None
        channels, size = sampler.images.shape[1], sampler.images.shape[-1]
        try:
            runs = one_shot_runs(self.data.root, size=size)
        except (InputError, MissingExtraError) as error:
            notes.append(f"the official one-shot runs were not measured: {error}")
            return None

        def inked(x: Tensor) -> Tensor:
            """Return drawings, paper white, as the set has them: ink white, in its channels."""
            return sampler.prepared((1 - x).expand(-1, -1, channels, -1, -1))

        return replace(runs, support_x=inked(runs.support_x), query_x=inked(runs.query_x))

    def _store(self, learner: Learner, train: ClassImages, path: Path) -> int:
        model = self.model
        if self.checkpoint is not None:
            from regraft.jobs.finetune.start_network import rebuilding

            model = rebuilding(model, learner.network)
        about = {
            "model": to_dict(model),
            "input": {"channels": train.images.channels, "image_size": train.images.image_size},
            "mean": list(train.mean),
            "std": list(train.std),
            "classes": [f"class{i}" for i in range(self.episodes.ways)],
            "data": self.data.name,
            "method": self.fewshot.method,
            "fewshot": to_dict(self.fewshot),
        }
        if isinstance(learner, MetaTicket):
            return save_ticket(path / "model.ticket", learner.cpu().network, about=about)
        state = learner.cpu().network.state_dict()
        rates = getattr(learner, "rates", {})
        if len(rates):
            state |= {f"rates.{n.replace(':', '.')}": r for n, r in rates.items()}
        write_model(path / "model.safetensors", state, about)
        return stored_bytes(learner.network)


@torch.no_grad()
def _put_masks(learner: Learner, masks: dict[str, Tensor]) -> None:
    """Give a freshly made Meta-ticket these masks, through its scores."""
    from regraft.tickets import named_masks

    for name, entry, mask in named_masks(learner.network):
        sigma = float(mask.threshold(entry.original))  # pyrefly: ignore
        entry.original.copy_(torch.where(masks[name], sigma + 1.0, sigma - 1.0))


def _diverged(folder: Path) -> bool:
    return "diverged" in (read_json(folder / "result.json") or {}).get("metrics", {})


def _names(images: ClassImages) -> list[str]:
    labels = images.images.labels.unique().tolist()
    return [images.classes[i] for i in labels[:1000]]

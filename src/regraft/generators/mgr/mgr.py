"""MGR: generated images regularise the feature extractor, and a finder chooses them by validation loss.

    mgr = MGR(source).prepare(model, images, labels)
    for step, (x, y) in enumerate(loader):
        loss = F.cross_entropy(model(x), y) + mgr.loss(model, step)
        loss.backward(); optimizer.step(); optimizer.zero_grad()

References:
    Yamaguchi et al., "Regularizing neural networks with meta-learning generative models", NeurIPS 2023.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from regraft.config import check
from regraft.config.mgr import MGRConfig
from regraft.data.views import strong as strong_views
from regraft.errors import InputError, RegraftError
from regraft.generators.sources import Source

from .batches import Fitted, PseudoBatch, ReplayedViews, push_back
from .finder import Finder, described
from .folds import Folds
from .head import OwnHead, at_least_float32, mean_over_processes
from .losses import LABELS, ImageLosses
from .memory import fitting, ran_out, too_large
from .meta import MetaStep
from .passes import Passes, autocast
from .pool import ChosenImages, best_of_each_class
from .spread import COLLAPSED, spread_ratio


class MGR:
    """A loss on generated images, for anybody's training loop.

    loss = lambda mean_i l(theta; x_i, T(x_i)) with x_i = G(F(z_i), y_i), z_i ~ N(0, 1), y_i uniform. With
    l the distance of the features of x_i and of its strong view T(x_i) it is PCR, which has no gradient to
    the classifier; F is the identity at first. Every `every` steps the finder F takes a step of Adam that
    lowers the validation loss one step of training ahead (`hypergradient.py`), or, for sources without
    gradients, images are chosen from a pool by the derivative of their losses along the validation
    gradient, or by the entropy of the network's predictions on them.

    Args:
        source: What generates.
        config: Loss and choice; MGR by default.
        views: The strong views T; `regraft.data.views.strong()` by default.
        seed: Seed of every draw.

    Raises:
        InputError: A number out of its range, or a source that cannot do what the config wants of it.
    """

    def __init__(
        self,
        source: Source,
        config: MGRConfig | None = None,
        *,
        views: ReplayedViews | None = None,
        seed: int = 0,
    ) -> None:
        self.source, self.config = source, config or MGRConfig()
        check(self.config)
        self.views: ReplayedViews = views or strong_views()
        self.seed = seed
        self.logged: list[dict[str, float]] = []
        self.notes: list[str] = []
        if self.config.select == "finder" and not source.latent_gradients:
            raise InputError(
                "this source passes no gradients to its latents, which a finder needs: choose from a pool "
                "with select='gradient' or 'entropy' (--select), or take uniform latents (--method pcr)"
            )
        self.finder = Finder(
            source.latent_shape,
            source.classes,
            kind=self.config.finder,
            width=self.config.finder_width,
            seed=seed,
        )
        self.head: OwnHead | None = None
        self.batch = self.config.batch or 0
        self._draws = self._steps = 0
        self._updated = -1
        self._chosen: ChosenImages | None = None
        self._meta: MetaStep | None = None
        self._folds: Folds | None = None
        self.passes: Passes | None = None

    def prepare(
        self,
        model: nn.Module,
        images: Any = None,
        labels: Tensor | None = None,
        *,
        validation: tuple[Any, Tensor] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        batch: int = 32,
        classifier: str | None = None,
        classes: Sequence[str] | None = None,
    ) -> Self:
        """Learn what the network takes, and part the real images into folds; return `self`.

        Args:
            model: The network.
            images: The labelled training images: uint8 or floats in [0, 1], [n, C, H, W], or a `FileSet`.
                Needed where images are chosen by validation, and to warn of a collapsed generator.
            labels: Their classes, int64 [n].
            validation: Images and labels held out, instead of folds of the training images.
            mean: What pixels in [0, 1] are normalised by before the network; (0,) by default.
            std: Likewise; (1,) by default.
            batch: Real images a step, for the number of generated ones and of validation images.
            classifier: Name of the classifier where it is not found by itself.
            classes: Names of the classes, for messages.

        Raises:
            InputError: No classifier, a validation split without some class, other classes than the
                source's where the loss takes its labels, or a loss that needs images there are none of.
        """
        config = self.config
        self.batch = config.batch or batch
        shape = self.source.image_shape if images is None else _shape(images)
        self.fitted = Fitted(
            shape[0], (shape[1], shape[2]), mean or (0.0,) * shape[0], std or (1.0,) * shape[0]
        )
        if shape != self.source.image_shape:
            sizes = ["x".join(map(str, s)) for s in (self.source.image_shape, shape)]
            self._warn(f"generated images of {sizes[0]} are brought to the real ones' {sizes[1]}")
        like = next(iter(model.parameters()))
        example = torch.zeros(2, *shape, device=like.device, dtype=like.dtype)
        self.passes = Passes(model, classifier=classifier, norm=config.norm, example=example)
        weight = getattr(self.passes.classifier, "weight", None)
        outputs = len(weight) if isinstance(weight, Tensor) else self.source.classes
        if config.loss in LABELS and outputs != self.source.classes:
            raise InputError(
                f"the source has {self.source.classes} classes and the network {outputs}: the loss "
                f"{config.loss!r} takes the source's labels for the network's; take 'pcr' or 'head'"
            )
        self.device = like.device
        if config.loss == "head":
            width = weight.shape[1] if isinstance(weight, Tensor) else 0
            self.head = OwnHead(width, self.source.classes, self.seed).to(like)
        self.losses = ImageLosses(
            self.passes,
            config.loss,
            distance=config.distance,
            gradient=config.gradient,
            head=self.head,
        )
        self.finder.to(self.source.device)
        if images is not None and labels is not None:
            self._warn_of_collapse(images, labels)
        if config.select in ("finder", "gradient"):
            if images is None or labels is None:
                raise InputError(
                    f"select={config.select!r} needs the training images and labels, of which folds "
                    "validate: give them to prepare"
                )
            self._folds = Folds(
                images,
                labels,
                classes=outputs,
                folds=config.folds,
                held_out=validation,
                seed=self.seed,
                names=classes,
            )
            self._meta = MetaStep(self.passes, self.losses, self._folds, config, self.fitted)
        return self

    def loss(self, model: nn.Module, step: int | None = None) -> Tensor:
        """Return lambda times the mean loss of a fresh batch of generated images, a scalar.

        Call it once for each step, after the network's own forward pass. When it is due it first updates
        the finder or chooses from the pool; no gradient of that reaches the weights.

        Args:
            model: The network that was prepared, in the mode of training.
            step: Optimiser steps taken so far; counted by the calls without it.

        Raises:
            InputError: Not prepared, or views or a source that pass no gradient on.
            RegraftError: Memory ran out; the message says which batch and chunk would fit.
        """
        if self.passes is None:
            raise InputError("MGR is not prepared: call prepare(model, images, labels) first")
        if self.head is not None:
            self.head.settle(self.config.unroll_lr)
        self._steps = step = self._steps if step is None else step
        try:
            value = self._loss(step, self.batch, self.config.chunk)
            if self.head is not None:
                self.head.learn(value)
            return value
        except Exception as error:
            if not ran_out(error):
                raise
            raise self.too_large(self.batch) from None
        finally:
            self._steps = step + 1

    def too_large(self, most: int | None = None) -> RegraftError:
        """Return what to raise where memory ran out: the largest batch up to `most`, or half, fits."""
        step, chunk, most = self._steps, self.config.chunk or self.batch, most or self.batch // 2
        fits = fitting(lambda b, c: self._loss(step, b, c).backward(), most, chunk)
        return too_large(self.batch, chunk, fits)

    def _loss(self, step: int, batch: int, chunk: int | None) -> Tensor:
        config = self.config
        due = config.select != "uniform" and step >= config.warmup and step % config.every == 0
        self.passes.narrow = self._narrow()  # pyrefly: ignore
        with autocast(self.device, None):
            if due and step != self._updated:  # once, of a step on several batches
                self._update(step, batch, chunk)
                self._updated = step
            with torch.no_grad():
                made = self._batch(batch)
            value = self.losses(None, *self._fed(made), update=True).mean()
            if self._meta is not None:
                self._meta.follow(made)
        return config.weight * value

    def _narrow(self) -> torch.dtype | None:
        kind = self.device.type
        around = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        return torch.bfloat16 if self.config.bf16 else around

    def _sampled(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Return images as the network is shaped, float32 at least, made in the narrow type."""
        with autocast(self.source.device, self.passes.narrow):  # pyrefly: ignore
            images = self.source.sample(len(latents), labels=labels, latents=latents)
        return self.fitted.fit(at_least_float32(images.to(self.device)))

    def _update(self, step: int, batch: int, chunk: int | None) -> None:
        draw = self.generator("meta")
        fold = step // self.config.every
        if self.config.select == "finder":
            with torch.no_grad():
                made = self._made(min(batch, self.config.meta_batch or batch), draw)
            self._learn(step, made, fold, draw, chunk)
        else:
            self._choose(step, batch, fold, draw)

    def _learn(
        self, step: int, made: PseudoBatch, fold: int, draw: torch.Generator, chunk: int | None
    ) -> None:
        meta = self._meta
        if meta is None:
            raise InputError("MGR is not prepared: call prepare(model, images, labels) first")
        slopes, row = meta.slopes(made, fold, draw)

        def make(rows: slice) -> Tensor:
            z = self.finder(made.latents[rows], made.labels[rows])
            return self._sampled(z, made.labels[rows]).to(made.clean.dtype)

        if chunk is not None and not self.source.deterministic:
            chunk = None  # images of a batch depend on each other: one at a time they are others
        parameters = list(self.finder.parameters())
        slopes = push_back(made, slopes, self.views, make, parameters, chunk=chunk)
        mean_over_processes(slopes)
        for parameter, slope in zip(parameters, slopes, strict=True):
            parameter.grad = slope
        meta.optimizer(self.finder).step()
        for parameter in parameters:
            parameter.grad = None
        with torch.no_grad():
            row |= described(made.latents, self.finder(made.latents, made.labels))
        row["hypergradient"] = float(torch.nn.utils.get_total_norm(slopes))
        self._log(step, row)

    def _choose(self, step: int, batch: int, fold: int, draw: torch.Generator) -> None:
        config, passes = self.config, self.passes
        if passes is None:
            raise InputError("MGR is not prepared: call prepare(model, images, labels) first")
        size = config.pool * batch
        seeds = [int(torch.randint(2**62, (), generator=draw)) for _ in range(config.draws)]
        records = [self.views.draw(size, torch.Generator().manual_seed(seed)) for seed in seeds]
        with torch.no_grad():
            made = self._made(size, draw, record=records[0])
        row: dict[str, float] = {}
        if config.select == "entropy":
            scores = torch.cat(
                [passes.logit_entropy(self.fitted.normalise(c)) for c in made.clean.split(256)]
            )
        else:
            if self._meta is None:
                raise InputError("MGR is not prepared: call prepare(model, images, labels) first")
            views = [made.strong]
            with torch.no_grad():
                views += [self.views.apply(made.clean, r) for r in records[1:]]
            scores, row = self._meta.scores(made, views, fold, draw)
        kept = best_of_each_class(scores, made.labels.to(scores.device), config.pool_share)
        pixels = (made.clean[kept] * 255).round().to(torch.uint8)
        record_seed = seeds[0] if config.pairs else None
        self._chosen = ChosenImages(pixels, made.labels[kept.cpu()], kept.cpu(), size, record_seed)
        self._log(step, row | {"kept": float(len(kept)), "score": float(scores[kept].mean())})

    def _batch(self, n: int) -> PseudoBatch:
        draw = self.generator("batch")
        if self._chosen is None:
            return self._made(n, draw)
        return self._chosen.batch(n, draw, self.views)

    def _made(self, n: int, draw: torch.Generator, record: Any = None) -> PseudoBatch:
        """Return a fresh batch through the finder, without a graph."""
        labels = torch.randint(self.source.classes, (n,), generator=draw)
        labels = labels.to(self.source.device)
        latents = self.source.latents(n, draw)
        moved = self.finder(latents, labels) if self.config.select == "finder" else latents
        clean = self._sampled(moved.detach(), labels)
        record = self.views.draw(n, draw) if record is None else record
        return PseudoBatch(latents, labels, record, clean, self.views.apply(clean, record))

    def _fed(self, made: PseudoBatch) -> tuple[Tensor, Tensor, Tensor]:
        labels = made.labels.to(self.device)
        return self.fitted.normalise(made.clean), self.fitted.normalise(made.strong), labels

    def _warn_of_collapse(self, images: Any, labels: Tensor) -> None:
        ratio = spread_ratio(self.source, images, labels, self.fitted, seed=self.seed)
        if ratio is not None and ratio < COLLAPSED:
            self._warn(
                f"generated images of one class differ {ratio:.2f} times as much as real ones: the "
                "generator has collapsed, and choosing latents will hardly matter"
            )

    def _warn(self, text: str) -> None:
        self.notes.append(text)
        warnings.warn(text, UserWarning, stacklevel=4)

    def _log(self, step: int, row: Mapping[str, float]) -> None:
        self.logged.append({"step": float(step), **row})

    def generator(self, what: str) -> torch.Generator:
        """Return a generator that depends on seed, process and the number of draws so far."""
        rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        if what == "meta":  # the finder is the same in all processes
            rank = 0 if self.config.select == "finder" else rank
        self._draws += 1
        text = f"mgr/{what}/{self.seed}/{rank}/{self._draws}"
        key = hashlib.blake2b(text.encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(key, "little") >> 1)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that is needed to go on: tensors, numbers, lists and dicts."""
        if self.head is not None:
            self.head.settle(self.config.unroll_lr)
        return {
            "draws": self._draws,
            "steps": self._steps,
            "updated": self._updated,
            "finder": dict(self.finder.state_dict()),
            "head": None if self.head is None else dict(self.head.state_dict()),
            "chosen": None if self._chosen is None else self._chosen.state_dict(),
            "meta": None if self._meta is None else self._meta.state_dict(),
            "logged": [dict(row) for row in self.logged],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, after `prepare` on the same kind of network.

        Raises:
            InputError: The state is of another source, network or config.
        """
        try:
            self._draws, self._steps = int(state["draws"]), int(state["steps"])
            self._updated = int(state["updated"])
            self.finder.load_state_dict(state["finder"])
            if self.head is not None:
                self.head.load_state_dict(state["head"])
            chosen = state["chosen"]
            self._chosen = None if chosen is None else ChosenImages.of(chosen, self.device)
            if self._meta is not None:
                self._meta.load_state_dict(state["meta"], self.finder)
            self.logged = [dict(row) for row in state["logged"]]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            first = " ".join(str(error).split())[:200]
            raise InputError(
                f"the state does not fit this MGR ({first}): prepare it with the same source, network "
                "and config before loading it"
            ) from error


def _shape(images: Any) -> tuple[int, int, int]:
    one = images[0]
    if one.dim() != 3:
        raise InputError(
            f"images of shape {tuple(one.shape)} each: expected [C, H, W], as uint8 or floats in [0, 1]"
        )
    return (one.shape[0], one.shape[1], one.shape[2])

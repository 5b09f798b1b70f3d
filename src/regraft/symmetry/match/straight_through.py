"""Straight-through matching: a permutation learnt from data, through weight matching.

A latent network θ̂ starts at θ_A. For every minibatch π <- WM(θ̂, θ_B), warm-started; the loss is
taken at the midpoint ½ θ_A + ½ (π(θ_B) + θ̂ - sg(θ̂)), so that its value is that of the midpoint of
A and permuted B and its gradient, ½ ∇L, goes to θ̂, which takes a step of SGD. θ̂ itself is thrown
away; what is kept is the best permutation it led to.

Which is best is decided on whole passes over `score`, not by single minibatches: the candidates
of each interval are its last permutation and the one with the lowest minibatch loss. Normalisations
use batch statistics throughout and no running statistics are touched; take them anew once, for the
merged network.

References:
    Ainsworth et al. 2023 (arXiv 2209.04836), section 3.3; Yamada et al. 2023 (arXiv 2306.05641),
    section 4, for the union of data sets, coresets and condensed data.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from regraft.errors import DivergenceError, InputError
from regraft.models.modes import evaluating
from regraft.symmetry.spec.permutation import Permutation
from regraft.symmetry.spec.spec import PermutationSpec

from .batches import LabelledBatches, as_source
from .match import start
from .solver.pairs import Pairs, refuse_not_finite
from .solver.solve import Descent

Loss = Callable[[Tensor, Tensor], Tensor]
Progress = Callable[[int, int, dict[str, float]], None]


@dataclass(kw_only=True)
class StraightThroughConfig:
    """How the latent network is trained.

    Attributes:
        steps: Minibatches in all.
        lr: Learning rate of SGD on the latent network.
        momentum: Its momentum.
        weight_decay: Its weight decay.
        match_every: Minibatches from one matching to the next.
        score_every: Minibatches from one comparison of candidates to the next; an epoch by default.
        max_sweeps: Sweeps of each matching.
        tolerance: See `match`.
        seed: Seed of the order of visits.
        workers: Threads of each matching; the permutation does not depend on it.
    """

    steps: int
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 1e-4
    match_every: int = 1
    score_every: int | None = None
    max_sweeps: int = 100
    tolerance: float = 1e-7
    seed: int = 0
    workers: int = 1

    def check(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            InputError: A value is out of its range.
        """
        for name, low in (("steps", 1), ("match_every", 1), ("max_sweeps", 1), ("workers", 1)):
            if getattr(self, name) < low:
                raise InputError(f"{name}={getattr(self, name)}: expected at least {low}")
        if self.score_every is not None and self.score_every < 1:
            raise InputError(f"score_every={self.score_every}: expected at least 1")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise InputError(f"lr={self.lr}: expected a positive number")


@dataclass(eq=False)
class _State:
    """Everything that changes; all of it is in `state_dict`."""

    step: int = 0
    now: dict[str, Tensor] = field(default_factory=dict)
    lowest: float = math.inf
    lowest_permutation: dict[str, Tensor] = field(default_factory=dict)
    best: dict[str, Tensor] = field(default_factory=dict)
    best_score: float = math.inf
    best_step: int = 0


class StraightThrough:
    """Find a permutation by training a latent network on data; go on with `run`, stop any time.

    Args:
        spec: Groups of the architecture.
        model: The architecture; its own weights are neither used nor changed.
        a: State dict of the network that stays.
        b: State dict of the network that is permuted.
        batches: Labelled minibatches: the union of the data sets, a coreset or a condensed set; a
            `BatchSource`, or any iterable of (images, labels) such as a list or a `DataLoader`.
        config: Steps, learning rate, and so on.
        loss: (outputs [b, K], labels [b]) -> scalar mean; cross-entropy by default.
        score: Batches on which candidates are compared; by default `batches`. Better are
            images that were held out, or more than a minibatch of them.
        schedule: Step -> factor on the learning rate.
        init: Permutation to start from; by default the identity, so that the first is the weight
            matching of A and B.

    Raises:
        InputError: States of another architecture or not finite, no batches, or a wrong value.

    Example:
        >>> run = StraightThrough(spec, model, a, b, batches, StraightThroughConfig(steps=1000))
        >>> permutation = run.run()
    """

    def __init__(
        self,
        spec: PermutationSpec,
        model: nn.Module,
        a: Mapping[str, Tensor],
        b: Mapping[str, Tensor],
        batches: LabelledBatches,
        config: StraightThroughConfig,
        *,
        loss: Loss = F.cross_entropy,
        score: LabelledBatches | None = None,
        schedule: Callable[[int], float] | None = None,
        init: Permutation | None = None,
    ) -> None:
        config.check()
        self.batches = as_source(batches)
        self.score = self.batches if score is None else as_source(score, "score")
        if not len(self.batches):
            raise InputError("batches: there are none; give at least one labelled batch")
        for state, what in ((a, "a"), (b, "b")):
            spec.check_state(state, what)
            refuse_not_finite(state, what)
        self.spec, self.model, self.config = spec, model, config
        self.loss = loss
        self.schedule = schedule or (lambda step: 1.0)
        self.trace: list[dict[str, float]] = []
        like = next((p for p in model.parameters()), torch.empty(0))
        self.device, self._dtype = like.device, like.dtype
        self._trained = [
            k
            for k, p in model.named_parameters()
            if p.is_floating_point() and k in spec.shapes and k not in spec.aliases
        ]
        self.a, self.b = (self._on_device(s) for s in (a, b))
        self.latent = {k: self.a[k].detach().clone() for k in self._trained}
        self.optimizer = torch.optim.SGD(
            list(self.latent.values()),
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        # The steps change the latent network in place, so that these pairs are always of now.
        self._pairs = Pairs(spec)
        self._pairs.add(self.latent, {k: self.b[k] for k in self.latent})
        self.at = _State(now=start(spec, init))
        self.at.best = dict(self.at.now)
        self._scored: list[tuple[dict[str, Tensor], float]] = []

    def run(self, *, until: int | None = None, progress: Progress | None = None) -> Permutation:
        """Take the steps that are left (or up to `until`) and return the best permutation.

        Args:
            until: Step to stop before; going on later gives what not stopping would have given.
            progress: Called as `progress(step, steps, {"loss": ...})`, at comparisons with
                "score" and "best" as well.

        Raises:
            DivergenceError: A loss is not finite; the message names the step.
        """
        config, at = self.config, self.at
        last = config.steps if until is None else min(until, config.steps)
        every = config.score_every or len(self.batches)
        with batch_statistics(self.model):
            for x, y in self._batches_from(at.step):
                if at.step >= last:
                    break
                row = {"loss": self._step(x, y)}
                if at.step % every == 0 or at.step == config.steps:
                    row |= self._compare()
                self.trace.append({"step": at.step, **row})
                if progress is not None:
                    progress(at.step, config.steps, row)
        return dict(at.best)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that is needed to go on: tensors, numbers and texts."""
        return {
            "position": dict(vars(self.at)),
            "latent": {k: v.clone() for k, v in self.latent.items()},
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.at = _State(**state["position"])
        for name, value in self.latent.items():
            value.data.copy_(state["latent"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self._scored = [(self.at.best, self.at.best_score)] if self.at.best_step else []

    def _step(self, x: Tensor, y: Tensor) -> float:
        at, config = self.at, self.config
        if at.step % config.match_every == 0 or not at.step:
            at.now = self._match()
        moved = {k: self.spec.apply_to(k, self.b[k], at.now) for k in self.latent}
        middle = {k: ((self.a[k] + moved[k]) / 2).requires_grad_() for k in self.latent}
        loss = self.loss(self._call(middle, x), y.to(self.device))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DivergenceError(
                f"the loss of straight-through matching became {value} at step {at.step}: the "
                "midpoint of the two networks overflows; check both checkpoints on this data"
            )
        for name, gradient in zip(
            middle, torch.autograd.grad(loss, list(middle.values()), allow_unused=True), strict=True
        ):
            self.latent[name].grad = None if gradient is None else gradient / 2
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * self.schedule(at.step)
        self.optimizer.step()
        at.step += 1
        if value < at.lowest:
            at.lowest, at.lowest_permutation = value, dict(at.now)
        return value

    def _match(self) -> dict[str, Tensor]:
        config = self.config
        descent = Descent(
            self._pairs,
            dict(self.at.now),
            seed=config.seed + self.at.step,
            tolerance=config.tolerance,
            workers=config.workers,
        )
        try:
            descent.run(config.max_sweeps, measure=False)
        except InputError as error:
            raise DivergenceError(
                f"the latent network of straight-through matching is no longer finite at step "
                f"{self.at.step}: lower the learning rate (now {config.lr:g})"
            ) from error
        return dict(descent.now)

    def _compare(self) -> dict[str, float]:
        """Score the interval's candidates and keep the best; return what was found."""
        at = self.at
        scores = []
        for candidate in (at.now, at.lowest_permutation):
            if not candidate:
                continue
            score = self._score(candidate)
            scores.append(score)
            if score < at.best_score:
                at.best, at.best_score, at.best_step = dict(candidate), score, at.step
        at.lowest, at.lowest_permutation = math.inf, {}
        return {"score": min(scores), "best": at.best_score}

    @torch.no_grad()
    def _score(self, permutation: dict[str, Tensor]) -> float:
        """Return the mean loss of the midpoint over `score`."""
        for known, value in self._scored:
            if all(torch.equal(known[k], p) for k, p in permutation.items()):
                return value
        middle = {
            k: (self.a[k] + self.spec.apply_to(k, self.b[k], permutation)) / 2 for k in self.latent
        }
        total = count = 0.0
        for x, y, _ in self.score.batches(0):
            total += len(y) * float(self.loss(self._call(middle, x), y.to(self.device)))
            count += len(y)
        value = total / max(count, 1.0)
        value = value if math.isfinite(value) else math.inf
        self._scored = [*self._scored[-7:], (dict(permutation), value)]
        return value

    def _call(self, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        # Buffers are copies: batch statistics must not leave a trace in the model's own.
        buffers = {k: v.clone() for k, v in self.a.items() if k not in parameters}
        x = x.to(self.device)
        x = x.to(self._dtype) if x.is_floating_point() else x
        return functional_call(self.model, {**parameters, **buffers}, x)

    def _on_device(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            k: v.detach().to(self.device, self._dtype if v.is_floating_point() else v.dtype)
            for k, v in state.items()
            if k not in self.spec.aliases
        }

    def _batches_from(self, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        n = len(self.batches)
        epoch, first = divmod(step, n)
        while True:
            empty = True
            for x, y, _ in self.batches.batches(epoch, start=first):
                empty = False
                yield x, y
            if empty:
                raise InputError(
                    f"batches: epoch {epoch} has none; give at least one labelled batch"
                )
            epoch, first = epoch + 1, 0


def straight_through(
    spec: PermutationSpec,
    model: nn.Module,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    batches: LabelledBatches,
    config: StraightThroughConfig,
    **options: Any,
) -> Permutation:
    """Return the permutation that straight-through matching finds; see `StraightThrough`."""
    return StraightThrough(spec, model, a, b, batches, config, **options).run()


@contextlib.contextmanager
def batch_statistics(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode for a while, so that nothing is random, but with each batch's statistics."""
    with evaluating(model):
        for module in model.modules():
            if isinstance(getattr(module, "running_mean", None), Tensor):
                module.train()
        yield

"""Logistic regression on frozen features, its strength chosen on held-out images.

References:
    Kumar et al., "Fine-tuning can distort pretrained features and underperform out-of-distribution",
    ICLR 2022, appendix (the linear probe that LP-FT starts from).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from regraft.errors import InputError
from regraft.models.classifier import call

from .parallel import gather_rows
from .samples import Samples, at_least_two, preserved
from .tap import Tap

GRID: tuple[float, ...] = tuple(float(10**e) for e in torch.linspace(-4, 2, 13).tolist())


def collect(tap: Tap, samples: Samples | None, *, mode: str) -> tuple[Tensor, Tensor]:
    """Return features [n, d] and labels [n] of all training images that have a class, of all processes.

    Raises:
        InputError: No images.
    """
    if samples is None:
        raise InputError("loader is missing: a linear probe is fitted to the training images")
    features, labels = [], []
    with preserved(tap.model, mode):
        for inputs, y in at_least_two(samples):
            call(tap.model, inputs)
            f, y = tap.take().features[y >= 0], y[y >= 0]
            features.append(f.to(torch.promote_types(f.dtype, torch.float32)))
            labels.append(y)
    return gather_rows(torch.cat(features)), gather_rows(torch.cat(labels))


def fit_probe(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    strengths: Sequence[float] = GRID,
    holdout: float = 0.2,
    seed: int = 0,
    iterations: int = 300,
) -> tuple[Tensor, Tensor, float]:
    """Return weight [K, d], bias [K] and the strength C of the best linear probe.

    Minimises sum_i CE_i + |W|^2 / (2 C) by L-BFGS, biases free, over features divided by their
    standard deviation over all images and dimensions (which the weights undo again, so that one
    grid fits networks of any feature scale). C has the highest accuracy (then the lowest loss, then
    the smallest C) on a share of each class that is held out; where every class is too small for
    that it is 1. The probe is then fitted to all images.

    Args:
        features: [n, d].
        labels: [n] in [0, K).
        num_classes: K.
        strengths: The values of C to choose from.
        holdout: Share of each class that chooses C.
        seed: Seed of that choice of images.
        iterations: Most iterations of L-BFGS.

    Raises:
        InputError: No strengths, one that is not positive, or a share outside [0, 1).
    """
    grid = sorted(strengths)
    if not grid or not grid[0] > 0.0:
        raise InputError(f"strengths={tuple(strengths)}: expected positive numbers")
    if not 0.0 <= holdout < 1.0:
        raise InputError(f"holdout={holdout}: expected a share of each class, in [0, 1)")
    scale = features.std().clamp(min=1e-12)
    centre = features.mean(0)
    x = ((features - centre) / scale).detach()
    best = (
        grid[0]
        if len(grid) == 1
        else _choose(x, labels, num_classes, grid, holdout, seed, iterations)
    )
    weight = _fit(x, labels, num_classes, best, iterations)
    w = weight[:, :-1] / scale
    return w, weight[:, -1] - w @ centre, best


def _choose(
    x: Tensor, y: Tensor, k: int, grid: Sequence[float], holdout: float, seed: int, iterations: int
) -> float:
    held = _held_out(y, k, holdout, seed)
    if not held.any():
        return 1.0
    best, rank, start = 1.0, (-1.0, 0.0), None
    for strength in grid:
        start = _fit(x[~held], y[~held], k, strength, iterations, start)
        logits = _logits(x[held], start)
        accuracy = (logits.argmax(1) == y[held]).double().mean().item()
        score = (accuracy, -F.cross_entropy(logits, y[held]).item())
        if score > rank:
            best, rank = strength, score
    return best


def _held_out(y: Tensor, k: int, holdout: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    held = torch.zeros(len(y), dtype=torch.bool)
    for c in range(k):
        rows = torch.nonzero(y.cpu() == c).flatten()
        n = min(round(holdout * len(rows)), len(rows) - 1)
        if n > 0:
            held[rows[torch.randperm(len(rows), generator=generator)[:n]]] = True
    return held.to(y.device)


def _logits(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x, weight[:, :-1], weight[:, -1])


@torch.enable_grad()
def _fit(
    x: Tensor, y: Tensor, k: int, strength: float, iterations: int, start: Tensor | None = None
) -> Tensor:
    """Return weight and bias as one array [K, d + 1]."""
    first = x.new_zeros(k, x.shape[1] + 1) if start is None else start.clone()
    weight = first.requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [weight], max_iter=iterations, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        decay = weight[:, :-1].square().sum() / (2 * strength * len(x))
        loss = F.cross_entropy(_logits(x, weight), y) + decay
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach()

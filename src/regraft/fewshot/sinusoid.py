"""Regression of sinusoids from a few points: the quick check of every gradient-based learner.

References:
    Finn et al., "Model-agnostic meta-learning", ICML 2017, section 5.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from regraft import streams

from .episodes import Episodes


@dataclass(frozen=True)
class Sinusoids:
    """Tasks y = A sin(x - p) with A in [0.1, 5], p in [0, pi], x in [-5, 5], all uniform.

    Attributes:
        shots: Points in the support set.
        queries: Points in the query set.
        seed: Seed of the tasks: a task is a function of (seed, number).
    """

    shots: int = 5
    queries: int = 5
    seed: int = 1

    def batch(self, first: int, n: int) -> Episodes:
        """Return the tasks `first` to `first + n - 1`: x and y float32 [n, points, 1]."""
        points = self.shots + self.queries
        drawn = torch.stack(
            [streams.uniform(self.seed, "sinusoid", first + i, 2 + points) for i in range(n)]
        )
        share = (drawn[:, :2, None] + 1) / 2
        amplitude, phase = 0.1 + 4.9 * share[:, :1], math.pi * share[:, 1:]
        x = 5 * drawn[:, 2:, None]
        y = amplitude * torch.sin(x - phase)
        k = self.shots
        return Episodes(x[:, :k], y[:, :k], x[:, k:], y[:, k:])

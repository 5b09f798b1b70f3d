"""A learner on test episodes: accuracy with its interval over tasks, under both BatchNorm policies."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from regraft.fewshot import EpisodeSampler, Learner, Policy, accuracy

_AT_ONCE = 2000
"""Images in a batch of test episodes."""


def measured(
    learner: Learner, sampler: EpisodeSampler, tasks: int, *, policy: Policy | None = None
) -> dict[str, float]:
    """Return `accuracy` (a mean over tasks, %), its 95% half-width `ci`, and `loss`.

    Episodes are the sampler's first `tasks`: equal samplers give every learner the same ones.
    """
    images = sampler.ways * (sampler.shots + sampler.queries)
    right: list[torch.Tensor] = []
    loss = 0.0
    for episodes in sampler.batches(max(1, _AT_ONCE // images), tasks):
        outputs = learner.logits(episodes, batchnorm=policy)
        right.append(accuracy(outputs, episodes.query_y))
        entropy = F.cross_entropy(outputs.flatten(0, 1), episodes.query_y.flatten(0, 1))
        loss += float(entropy) * len(episodes) / tasks
    each = torch.cat(right).double()
    spread = float(each.std()) if tasks > 1 else math.nan
    return {"accuracy": float(each.mean()), "ci": 1.96 * spread / math.sqrt(tasks), "loss": loss}

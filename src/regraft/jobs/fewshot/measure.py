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


def one_episode(learner: Learner, sampler: EpisodeSampler, steps: int) -> list[list[float]]:
    """Return how the queries of one episode are adapted to: for each its right class's probability.

    Args:
        learner: One with inner steps.
        sampler: Its first episode is taken.
        steps: Inner steps; a row has the probabilities after 0, 1, ..., `steps` of them, in percent.
    """
    episode = sampler.batch(0, 1)
    right = episode.query_y[0][:, None]
    after = [
        learner.logits(episode, steps=k, batchnorm="support")[0].softmax(-1).gather(1, right)
        for k in range(steps + 1)
    ]
    return (100 * torch.cat(after, 1)).tolist()

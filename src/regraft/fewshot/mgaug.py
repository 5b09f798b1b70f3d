"""Meta-gradient augmentation: MAML that also learns from pruned copies of its network.

Every outer step draws sub-networks that lack a random share of each weight. Each adapts to the same
tasks and is judged by the same queries; the loss is the mean over the whole network and them:

    L = (L(phi) + sum_u L(m_u * phi)) / (U + 1),    m_u ~ Bernoulli(1 - p) for each weight.

Of the published method this is pruning of single parameters. What we could read of it names neither
share nor number, nor whether gradients are summed or averaged: `pruned`, `subnetworks` and the mean
are ours.

References:
    Wang et al., "Improving generalization in meta-learning via meta-gradient augmentation", IJCAI 2025.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from regraft import streams
from regraft.errors import InputError
from regraft.tickets.edge_popup import choose

from .episodes import Episodes
from .maml import MAML, check_inner


class MGAug(MAML):
    """MAML whose meta-gradient is averaged with those of randomly pruned sub-networks.

    What `adapt`, `logits` and `clone` use is the whole network, and so does a loss in evaluation mode
    or without gradients. Masks are a function of the seed and of how many were drawn before, which the
    state dict holds: an interrupted training goes on with the same masks, and the processes of DDP,
    which compute equally many losses, have the same.

    Args:
        network: An ordinary network, whose parameters are the initial values that are meta-learned.
        seed: Seed of the masks.
        pruned: Share of each weight that a sub-network lacks, p; biases, normalisation and classifier
            are kept.
        subnetworks: Sub-networks of each outer step, U.
        how: Everything else is that of `MAML`.

    Raises:
        InputError: As `MAML`; a share outside [0, 1), no sub-network, or no weight to prune.

    Example:
        >>> learner = MGAug(network, seed=1, lr=0.4, steps=1, test_steps=3)
        >>> learner(sampler.batch(4 * step, 4)).backward()
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        seed: int,
        pruned: float = 0.1,
        subnetworks: int = 1,
        **how: Any,
    ) -> None:
        if not 0.0 <= pruned < 1.0:
            raise InputError(f"pruned={pruned}: expected a share of each weight in [0, 1)")
        if subnetworks < 1:
            raise InputError(f"subnetworks={subnetworks}: expected at least 1")
        super().__init__(network, **how)
        chosen = choose(network, trainable=(f"{self.head}.*",))
        self._prunable = {name: tuple(p.shape) for _, _, name, p in chosen}
        if not self._prunable:
            raise InputError(
                "network has no weight to prune: no Linear, Conv1d/2d/3d but the classifier"
            )
        self.seed, self.pruned, self.subnetworks = seed, pruned, subnetworks
        self._drawn: dict[str, Tensor] = {}
        self._draws = 0
        self._losses: list[tuple[Tensor, Tensor]] = []

    def get_extra_state(self) -> Tensor:
        """Return how many sub-networks were drawn."""
        return torch.tensor(self._draws)

    def set_extra_state(self, state: Tensor) -> None:
        """Go on after as many sub-networks."""
        self._draws = int(state)

    def masks(self) -> dict[str, Tensor]:
        """Return the masks by parameter name: those of `MAML`, times a sub-network's within `loss`."""
        own = super().masks()
        drawn = {n: own[n] * m if n in own else m for n, m in self._drawn.items()}
        return {**own, **drawn}

    def loss(self, episodes: Episodes) -> Tensor:
        """Return the mean query loss of the whole network and its sub-networks.

        Raises:
            DivergenceError: A support loss is not finite; the step is named.
        """
        losses, self._losses = [super().loss(episodes)], [self._last]
        pruned = self.subnetworks if self.training and torch.is_grad_enabled() else 0
        for _ in range(pruned):
            self._drawn = self._draw()
            try:
                losses.append(super().loss(episodes))
            finally:
                self._drawn = {}
            self._losses.append(self._last)
        return torch.stack(losses).mean()

    def check(self) -> None:
        """Refuse the last loss if an inner loop exploded; see `MAML.check`."""
        for last in self._losses:
            check_inner(*last)

    def _draw(self) -> dict[str, Tensor]:
        event, self._draws = self._draws, self._draws + 1
        keep = 1.0 - self.pruned
        masks = {}
        for name, shape in self._prunable.items():
            weight = self.network.get_parameter(name)
            kept = streams.bernoulli(self.seed, f"{name}#mgaug", event, weight.numel(), keep)
            masks[name] = kept.reshape(shape).to(weight)
        return masks

"""Prototypical networks: the class whose mean embedding is nearest.

    p_k = mean of f(x) over the support images of class k,   logits_k = -||f(x) - p_k||^2

References:
    Snell et al., "Prototypical networks for few-shot learning", NeurIPS 2017.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from .batchnorm import Policy, set_rows, with_statistics
from .episodes import Episodes
from .learner import Learner, in_ways, objective, replaced


class ProtoNet(Learner):
    """An embedding trained so that nearest prototypes classify; the network's classifier is not used.

    Args:
        network: An ordinary network.
        how: `head` and `batchnorm` of `Learner`.
    """

    def __init__(self, network: nn.Module, **how: Any) -> None:
        super().__init__(network, **how)
        for parameter in network.get_submodule(self.head).parameters():
            parameter.requires_grad_(False)

    def _set_plain(self) -> None:
        super()._set_plain()
        self._plain = (replaced(self._plain[0], self.head, nn.Identity()),)

    def loss(self, episodes: Episodes) -> Tensor:
        """Return the mean cross-entropy of the queries against the prototypes."""
        outputs = self._outputs(episodes, self.batchnorm)
        return objective(outputs.flatten(0, 1), episodes.query_y.flatten(0, 1))

    @torch.no_grad()
    def logits(
        self, episodes: Episodes, *, steps: int | None = None, batchnorm: Policy | None = None
    ) -> Tensor:
        """Return -||f(x) - p_k||^2 [T, Q, ways]; there are no inner steps."""
        return self._outputs(episodes, batchnorm or self.batchnorm)

    @torch.no_grad()
    def adapt(self, x: Tensor, y: Tensor, *, steps: int | None = None) -> nn.Module:
        """Return the network with the prototypes for its classifier; see `Learner.adapt`."""
        ways = in_ways(y)
        embedded = self._embedded(x[None], None)[0]
        head = nearest_prototype(prototypes(embedded[None], y[None], ways)[0])
        return with_statistics(replaced(self.network, self.head, head), x)

    def _outputs(self, episodes: Episodes, policy: Policy) -> Tensor:
        support = episodes.support_x
        n = support.shape[1]
        if policy == "transductive":
            z, q = self._embedded(support, None), self._embedded(episodes.query_x, None)
        else:
            both = self._embedded(torch.cat([support, episodes.query_x], 1), n)
            z, q = both[:, :n], both[:, n:]
        centres = prototypes(z, episodes.support_y, episodes.ways)
        return -torch.cdist(q, centres).square()

    def _embedded(self, x: Tensor, rows: int | None) -> Tensor:
        """Return embeddings [T, r, d] of images [T, r, ...], each task normalised by itself."""
        plain = self._plain[0]
        set_rows(plain, rows)
        names = {n for n, _ in plain.named_parameters()}
        values = {n: p for n, p in self.network.named_parameters() if n in names}
        values |= self.buffers_of()
        return torch.func.vmap(lambda images: functional_call(plain, values, (images,)))(x)


def prototypes(z: Tensor, y: Tensor, ways: int) -> Tensor:
    """Return the mean embedding of each class, [T, ways, d].

    Args:
        z: Embeddings [T, S, d].
        y: int64 [T, S].
        ways: Number of classes.
    """
    member = F.one_hot(y, ways).to(z)
    return member.transpose(1, 2) @ z / member.sum(1).clamp(min=1)[:, :, None]


def nearest_prototype(centres: Tensor) -> nn.Linear:
    """Return a linear classifier that prefers the nearest prototype: 2 p z - ||p||^2.

    Its logits are those of -||z - p||^2 up to ||z||^2, which no class sees.

    Args:
        centres: Prototypes [ways, d].
    """
    return linear_head(2 * centres, -centres.square().sum(1))


def linear_head(weight: Tensor, bias: Tensor) -> nn.Linear:
    """Return a Linear with this weight [ways, d] and bias [ways]."""
    head = nn.Linear(weight.shape[1], weight.shape[0]).to(weight)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    return head

"""Reptile: move the initial values towards where plain training on a task ends.

References:
    Nichol et al., "On first-order meta-learning algorithms", 2018, algorithm 1 (batched).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .episodes import Episodes
from .learner import objective
from .maml import MAML, check_inner


class Reptile(MAML):
    """theta <- theta - eta mean_t(theta - phi_K(t)), with K plain steps on support and query together.

    `loss` has the value of the query loss and the gradient theta - phi_K, so that any optimiser takes
    the step: SGD with rate eta is Reptile as written. Arguments as `MAML`; second order plays no part.
    """

    def loss(self, episodes: Episodes) -> Tensor:
        """Return the query loss with Reptile's gradient.

        Raises:
            DivergenceError: The inner loop left the finite numbers; the step is named.
        """
        values, masks, rates = self.values(), self.masks(), self.step_sizes()
        fixed = self._detached(values)
        x = torch.cat([episodes.support_x, episodes.query_x], 1)
        y = torch.cat([episodes.support_y, episodes.query_y], 1)

        def one(x: Tensor, y: Tensor) -> tuple[dict[str, Tensor], Tensor]:
            moved, inner = self._inner(fixed, masks, x, y, self.steps, rates)
            return moved, inner

        self._alone = False
        with torch.no_grad():
            ends, inner = torch.func.vmap(one, chunk_size=self.chunk)(x, y)
        check_inner(inner.t())
        pull = sum((values[n] * (fixed[n] - ends[n].mean(0))).sum() for n in rates)
        with torch.no_grad():
            outputs, _ = self._run(episodes, self.steps, self.batchnorm)
            value = objective(outputs.flatten(0, 1), episodes.query_y.flatten(0, 1))
        return pull + (value - pull).detach()

"""The loss of AdaRand's class means, and its gradient in closed form.

With unit vectors m_k = mu_k / |mu_k| and rho_k = r_k / |r_k| of K classes:

* `repel` (the paper): L = 1/K sum_k (1 - m_k.rho_k) - 1/(K(K-1)) sum_{k != l} (1 - m_k.m_l),
* `orthogonal`: L = 1/K sum_k (1 - m_k.rho_k)^2 + 1/(K(K-1)) sum_{k != l} (m_k.m_l)^2.

Both need O(K d) memory besides a Gram matrix of the smaller of K and d:
sum_{k,l} m_k.m_l = |sum_k m_k|^2, and sum_{k,l} (m_k.m_l)^2 is the squared norm of M^T M as of M M^T.

References:
    Yamaguchi et al., "Adaptive random feature regularization on fine-tuning deep neural networks",
    CVPR 2024, equations 6 to 8.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from regraft._shapes import Float

PriorLoss = Literal["repel", "orthogonal"]


def prior_gradient(
    means: Float[Tensor, "K d"],
    running: Float[Tensor, "K d"],
    kind: PriorLoss = "repel",
    *,
    intra: float = 1.0,
    inter: float = 1.0,
    negatives: Tensor | None = None,
) -> Float[Tensor, "K d"]:
    """Return dL/dmu, [K, d].

    Cosines do not depend on lengths, so that each row is orthogonal to its mean.

    Args:
        means: mu.
        running: r.
        kind: The loss.
        intra: Weight of the first sum, that draws mu to the running means.
        inter: Weight of the second, that drives means of different classes apart.
        negatives: Classes [N] that stand for all others in the second sum of `orthogonal`, drawn
            without replacement; the estimate is unbiased.
    """
    k = len(means)
    norms = torch.linalg.vector_norm(means, dim=1, keepdim=True).clamp_(min=_TINY)
    m = means / norms
    rho = running / torch.linalg.vector_norm(running, dim=1, keepdim=True).clamp_(min=_TINY)
    if kind == "repel":
        grad = rho.mul_(-intra / k)
        if inter:
            grad += m.sum(0) * (2.0 * inter / (k * (k - 1)))
    else:
        cosine = (m * rho).sum(1, keepdim=True)
        grad = rho.mul_((cosine - 1.0) * (2.0 * intra / k))
        if inter:
            grad = grad.add_(_others(m, negatives), alpha=4.0 * inter / (k * (k - 1)))
    # The derivative of m by mu: what lies along m goes, self-similarities with it.
    return grad.sub_(m * (grad * m).sum(1, keepdim=True)).div_(norms)


def _others(m: Tensor, negatives: Tensor | None) -> Tensor:
    """Return sum_l (m_k.m_l) m_l over all l, [K, d]."""
    if negatives is not None:
        some = m[negatives]
        return (m @ some.T) @ some * (len(m) / len(negatives))
    return (m @ m.T) @ m if len(m) <= m.shape[1] else m @ (m.T @ m)


_TINY = 1e-12

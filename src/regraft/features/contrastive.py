"""Supervised contrastive loss on penultimate features.

References:
    Khosla et al., "Supervised contrastive learning", NeurIPS 2020, equation 2.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regraft.errors import InputError

from .method import Context, Method, Mode, positive, wide
from .parallel import synced_call
from .samples import Samples


class SupCon(Method):
    """loss = weight * mean over i of -1/|P(i)| sum_{p in P(i)} log p_ip.

    p_ij = exp(z_i.z_j / tau) / sum_{a != i} exp(z_i.z_a / tau), with unit vectors z of a trained
    projection of the features (d - d - `size`), and P(i) the other images of i's class in the
    batch; images without any are left out of the mean.

    Args:
        weight: Weight of the loss beside the base loss.
        temperature: tau.
        size: Dimensions of the projection, or 0 to compare the features themselves.
        seed: Seed of the projection's initial weights.

    Raises:
        InputError: An argument out of its range.
    """

    takes_soft_targets = False
    takes_ignored = False
    projection: nn.Module

    def __init__(
        self, weight: float = 0.1, *, temperature: float = 0.07, size: int = 128, seed: int = 0
    ) -> None:
        super().__init__(seed=seed)
        positive(weight=weight)
        if not temperature > 0 or size < 0:
            raise InputError(
                f"temperature={temperature}, size={size}: expected a temperature above 0 and at "
                "least 0 dimensions"
            )
        self.weight, self.temperature, self.size = weight, temperature, size

    def _prepare(self, samples: Samples | None, steps: int | None, mode: Mode) -> None:
        self.projection = projection(self, self.size)

    def loss(self, features: Tensor, targets: Tensor, context: Context | None = None) -> Tensor:
        """Return weight times the contrastive loss of the batch."""
        self._tapped()
        z = F.normalize(synced_call(self.projection, features.to(wide(features))), dim=1)
        same = targets[:, None] == targets[None]
        return self.weight * contrastive_loss(z, same, self.temperature)


def contrastive_loss(z: Tensor, same: Tensor, temperature: float, *, focal: bool = False) -> Tensor:
    """Return the mean over anchors with positives of -1/|P(i)| sum_{p in P(i)} log p_ip.

    Args:
        z: Unit vectors [n, d].
        same: Which pairs are positives, bool [n, n]; the diagonal is not looked at.
        temperature: tau.
        focal: Weigh each positive by 1 - p_ip, so that hard ones count more.
    """
    n = len(z)
    itself = torch.eye(n, dtype=torch.bool, device=z.device)
    logits = (z @ z.T / temperature).masked_fill(itself, -torch.inf)
    log_p = F.log_softmax(logits, 1)
    positives = same & ~itself
    terms = torch.where(positives, log_p, 0.0)
    if focal:
        terms = terms * (1.0 - terms.exp())
    counts = positives.sum(1)
    each = -terms.sum(1) / counts.clamp(min=1)
    return each.sum() / (counts > 0).sum().clamp(min=1)


def projection(method: Method, size: int) -> nn.Module:
    """Return a trained projection d - d - `size` of a method's features, or the identity for 0.

    Weights are He-normal from the method's own generator, biases zero.
    """
    tap = method.tap
    like = next(tap.model.parameters()) if tap is not None else torch.empty(0)
    dtype = torch.promote_types(like.dtype, torch.float32)
    if not size:
        return nn.Identity()
    d = method.num_features
    generator = method.generator(shared=True)
    layers = []
    for fan_in, fan_out in ((d, d), (d, size)):
        layer = nn.Linear(fan_in, fan_out, device="meta").to_empty(device="cpu")
        with torch.no_grad():
            layer.weight.normal_(0, math.sqrt(2 / fan_in), generator=generator)
            layer.bias.zero_()
        layers.append(layer)
    return nn.Sequential(layers[0], nn.ReLU(), layers[1]).to(like.device, dtype)

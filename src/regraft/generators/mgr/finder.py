"""Finders: small learned maps from latents to latents, the identity at first.

References:
    Yamaguchi et al., "Regularizing neural networks with meta-learning generative models", NeurIPS 2023.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regraft.config.mgr import FinderKind


class Finder(nn.Module):
    """F(z, y) = z + MLP(z), or with the class joined to z, or z (1 + s_y) + b_y for each class.

    Its last layer (or s and b) is zero at first, so that F is the identity.

    Args:
        shape: Shape of one latent.
        classes: Number of classes.
        kind: `shared`, `conditional` or `per_class`.
        width: Hidden units of the MLP.
        seed: Seed of its weights.
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        *,
        kind: FinderKind = "shared",
        width: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.kind, self.classes = kind, classes
        size = math.prod(shape)
        if kind == "per_class":
            self.scale = nn.Parameter(torch.zeros(classes, size))
            self.shift = nn.Parameter(torch.zeros(classes, size))
            return
        inputs = size + (classes if kind == "conditional" else 0)
        self.net = nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, size))
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            first: nn.Linear = self.net[0]  # pyrefly: ignore
            bound = math.sqrt(3 / inputs)
            first.weight.copy_((torch.rand(first.weight.shape, generator=draw) * 2 - 1) * bound)
            first.bias.zero_()
            for tensor in self.net[2].parameters():
                tensor.zero_()

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Return latents [n, *shape] for latents of that shape and their classes [n]."""
        flat = latents.flatten(1)
        if self.kind == "per_class":
            flat = flat * (1 + self.scale[labels]) + self.shift[labels]
        else:
            known = flat
            if self.kind == "conditional":
                known = torch.cat((flat, F.one_hot(labels, self.classes).to(flat.dtype)), 1)
            flat = flat + self.net(known)
        return flat.view_as(latents)


def described(before: Tensor, after: Tensor) -> dict[str, float]:
    """Return what tells whether a finder drifts or collapses.

    `latent_norm`: mean norm of what it returns; `latent_move`: mean distance it moves; `latent_diversity`:
    mean distance between two of a batch, over that of the latents it was called with.
    """
    a, b = before.detach().flatten(1).double(), after.detach().flatten(1).double()
    apart = torch.pdist(a).mean() if len(a) > 1 else torch.tensor(1.0)
    spread = torch.pdist(b).mean() if len(b) > 1 else torch.tensor(1.0)
    return {
        "latent_norm": b.norm(dim=1).mean().item(),
        "latent_move": (b - a).norm(dim=1).mean().item(),
        "latent_diversity": (spread / apart.clamp(min=1e-12)).item(),
    }

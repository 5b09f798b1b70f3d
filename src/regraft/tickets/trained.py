"""Trained networks of few bits, the rivals of a ticket: ternary, binary, and pruned by magnitude.

Latent weights W are trained through a straight-through gradient, dL/dW = dL/dW'. At every pass

    M = 1[|W| among the k largest of its layer],   W' = alpha sign(W) * M   or   W' = W * M

with k = n - round(s (n - 1)) and alpha the mean of |W| over the kept positions: a ternary network, a
binary one at s = 0, or one that is pruned by magnitude while it is trained.

References:
    Rastegari et al., "XNOR-Net", ECCV 2016, section 3.1; Li et al., "Ternary weight networks", 2016;
    Zhu and Gupta, "To prune, or not to prune", 2017.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.utils import parametrize

from regraft.errors import InputError

from .edge_popup import choose
from .mask import FixedMask
from .select import pruned_count, topk_mask


class MagnitudeMask(FixedMask):
    """Parametrisation W -> W' by the magnitude of trained latent weights; see the module.

    Args:
        sparsity: Share of the layer's weights that is zero, s in [0, 1].
        ternary: Keep signs and one scale alone, instead of the weights.
    """

    def __init__(self, sparsity: float, *, ternary: bool) -> None:
        nn.Module.__init__(self)
        pruned_count(1, sparsity)
        self.sparsity = sparsity
        self.ternary = ternary

    def forward(self, weight: Tensor) -> Tensor:
        """Return W', shaped like `weight`, with the gradient of W."""
        latent = weight.detach()
        kept = self.mask(latent)
        if self.ternary:
            scale = (latent.abs() * kept).sum() / kept.sum()
            hard = latent.sign() * kept * scale
        else:
            hard = latent * kept
        return hard + (weight - latent)  # the bracket is zero, and carries the gradient

    def mask(self, weight: Tensor) -> Tensor:
        """Return M, bool, shaped like the weight."""
        return topk_mask(weight, self.sparsity, magnitude=True)

    def extra_repr(self) -> str:
        """Show what is kept."""
        return f"sparsity={self.sparsity:g}, ternary={self.ternary}"


def by_magnitude(
    model: nn.Module, sparsity: float, *, ternary: bool, trainable: Sequence[str] = ()
) -> nn.Module:
    """Make the weights that tickets mask latent ones, in place, and return the model.

    Args:
        model: A plain model.
        sparsity: Share of each layer that is zero.
        ternary: As in `MagnitudeMask`.
        trainable: Patterns of parameter names to leave as they are.

    Raises:
        InputError: No maskable weight, or a sparsity outside [0, 1].
    """
    chosen = choose(model, trainable=trainable)
    if not chosen:
        raise InputError("model has no maskable weight (Linear, Conv1d/2d/3d): nothing to prune")
    masks: dict[int, MagnitudeMask] = {}
    for owner, attribute, _, parameter in chosen:
        mask = masks.setdefault(id(parameter), MagnitudeMask(sparsity, ternary=ternary))
        parametrize.register_parametrization(owner, attribute, mask, unsafe=False)
    return model

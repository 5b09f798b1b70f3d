"""L2-SP: decay weights towards where they started instead of towards zero.

References:
    Li et al., "Explicit inductive bias for transfer learning with convolutional networks",
    ICML 2018, equation 2.
"""

from __future__ import annotations

from torch import Tensor, nn

from .method import Context, Method, Mode, positive, wide
from .samples import Samples


class L2SP(Method):
    """loss = weight/2 |w - w0|^2 over the backbone + head_weight/2 |w_head|^2 over the classifier.

    The optimiser's weight decay should be 0. The start w0 takes as much memory as the backbone, and
    is part of the state, so that training goes on exactly after an interruption.

    Args:
        weight: alpha, of the distance to the start.
        head_weight: beta, of the new classifier's norm.

    Raises:
        InputError: A negative weight.
    """

    needs_pretrained = True
    decays_itself = True

    def __init__(self, weight: float = 0.01, *, head_weight: float = 0.01, seed: int = 0) -> None:
        super().__init__(seed=seed)
        positive(weight=weight, head_weight=head_weight)
        self.weight, self.head_weight = weight, head_weight

    def _prepare(self, samples: Samples | None, steps: int | None, mode: Mode) -> None:
        for i, (_, parameter) in enumerate(self._backbone()):
            self.register_buffer(f"start_{i}", parameter.detach().clone())

    def _backbone(self) -> list[tuple[str, nn.Parameter]]:
        """Return the trained parameters outside of the classifier, in the order of the starts."""
        tap = self._tapped()
        head = {id(p) for p in tap.classifier.parameters()}
        return [(n, p) for n, p in tap.model.named_parameters() if id(p) not in head]

    def loss(self, features: Tensor, targets: Tensor, context: Context | None = None) -> Tensor:
        """Return the penalty of the network's present weights; features are not looked at."""
        total = features.new_zeros((), dtype=wide(features))
        if self.weight:
            for i, (_, p) in enumerate(self._backbone()):
                if p.requires_grad:
                    start = getattr(self, f"start_{i}")
                    total = total + 0.5 * self.weight * (p - start).to(total.dtype).square().sum()
        return total + head_decay(self._tapped().classifier, self.head_weight, total)


def head_decay(classifier: nn.Module, weight: float, like: Tensor) -> Tensor:
    """Return weight/2 |w|^2 over a classifier's trained parameters, in the type of `like`."""
    total = like.new_zeros(())
    if weight:
        for p in classifier.parameters():
            if p.requires_grad:
                total = total + 0.5 * weight * p.to(like.dtype).square().sum()
    return total

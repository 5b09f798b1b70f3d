"""The bar on photographs: a frozen pretrained encoder, and a linear classifier on its features.

References:
    Chen et al., "A closer look at few-shot classification", ICLR 2019 (Baseline).
    Tian et al., "Rethinking few-shot image classification: a good embedding is all you need?",
    ECCV 2020 (logistic regression on a frozen encoder).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from regraft.errors import InputError

from .batchnorm import Policy
from .episodes import Episodes
from .learner import Learner, head_name, in_ways, replaced
from .protonet import linear_head, nearest_prototype, prototypes

_BATCH = 256


class FrozenEncoder(Learner):
    """A classifier on the features of a frozen network in evaluation mode: nothing is meta-trained.

    Args:
        network: A pretrained network; its classifier is replaced.
        classifier: `prototypes` (nearest class mean), or `logistic` (multinomial logistic regression).
        decay: Weight of ||W||^2 / 2 in the logistic regression, on features of unit mean length.
        head: Name of the classifier; see `Learner`.

    Raises:
        InputError: An unknown classifier, or a decay that is not above 0.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        classifier: Literal["prototypes", "logistic"] = "logistic",
        decay: float = 1e-3,
        head: str | None = None,
    ) -> None:
        nn.Module.__init__(self)
        if classifier not in ("prototypes", "logistic"):
            raise InputError(f"classifier={classifier!r}: expected prototypes or logistic")
        if not 0 < decay < float("inf"):
            raise InputError(f"decay={decay}: expected a finite number above 0")
        self.network = network.requires_grad_(False).eval()
        self.head = head_name(network) if head is None else head
        self.classifier, self.decay = classifier, decay
        # In a tuple: it is no child, and computes with the tensors that the network has by then.
        self._encoder = (replaced(network, self.head, nn.Identity()).eval(),)

    def loss(self, episodes: Episodes) -> Tensor:
        """Return the query loss; it has no gradient, since nothing is trained."""
        outputs = self.logits(episodes)
        return F.cross_entropy(outputs.flatten(0, 1), episodes.query_y.flatten(0, 1))

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """Return what the classifier is fed, [b, d], for images [b, ...]."""
        encoder = self._encoder[0]
        own, state = _tensors(self.network), _tensors(encoder)
        values = {n: own[n] for n in state}
        parts = (functional_call(encoder, values, (part,)) for part in x.split(_BATCH))
        return torch.cat([part.flatten(1) for part in parts])

    def logits(
        self, episodes: Episodes, *, steps: int | None = None, batchnorm: Policy | None = None
    ) -> Tensor:
        """Return the outputs [T, Q, ways]; steps and BatchNorm policy play no part."""
        outputs = []
        for i in range(len(episodes)):
            head = self.head_for(self.features(episodes.support_x[i]), episodes.support_y[i])
            with torch.no_grad():
                outputs.append(head(self.features(episodes.query_x[i])))
        return torch.stack(outputs)

    def adapt(self, x: Tensor, y: Tensor, *, steps: int | None = None) -> nn.Module:
        """Return the network with a classifier for the classes of the support set."""
        return replaced(self.network, self.head, self.head_for(self.features(x), y)).eval()

    def head_for(self, z: Tensor, y: Tensor) -> nn.Linear:
        """Return the classifier for features [S, d] and labels int64 [S]."""
        ways = in_ways(y)
        if self.classifier == "prototypes":
            return nearest_prototype(prototypes(z[None], y[None], ways)[0])
        return linear_head(*logistic_regression(z, y, ways, self.decay))


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by every name they have."""
    named = (network.named_parameters, network.named_buffers)
    return {n: t for of in named for n, t in of(remove_duplicate=False)}


def logistic_regression(
    z: Tensor, y: Tensor, ways: int, decay: float, *, steps: int = 200
) -> tuple[Tensor, Tensor]:
    """Return weight [ways, d] and bias [ways] of multinomial logistic regression.

    Minimised by L-BFGS in float64 from zero: the mean cross-entropy on (z - mean) / length, where length
    is the mean norm of a centred feature, plus decay ||W||^2 / 2.

    Args:
        z: Features [S, d].
        y: int64 [S].
        ways: Number of classes.
        decay: Weight of the penalty.
        steps: Iterations at most.
    """
    mean = z.double().mean(0)
    centred = z.double() - mean
    length = centred.norm(dim=1).mean().clamp(min=1e-12)
    centred = centred / length
    weight = centred.new_zeros(ways, z.shape[1], requires_grad=True)
    bias = centred.new_zeros(ways, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        with torch.enable_grad():
            loss = F.cross_entropy(centred @ weight.t() + bias, y)
            loss = loss + decay / 2 * weight.square().sum()
            loss.backward()
        return loss

    solver.step(closure)  # pyrefly: ignore
    with torch.no_grad():
        scaled = weight / length
        return scaled.to(z), (bias - scaled @ mean).to(z)

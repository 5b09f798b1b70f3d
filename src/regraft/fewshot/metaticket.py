"""Meta-ticket: keep random weights and meta-learn which connections exist.

The weights phi of a network are random and stay so in the outer loop; scores s are meta-learned, with
the mask m = 1[s >= sigma] and the straight-through gradient dm/ds := 1 also through the inner loop

    phi <- phi - alpha m * dL_support/d(m * phi),

so that for one step w' = m phi - alpha m^2 G. The threshold sigma of a layer is an order statistic of
its first scores and never changes: with the paper's q = 0 the network starts dense, and its sparsity is
what the search makes it. Biases, normalisation and classifier start every task at their first values.

References:
    Chijiwa et al., "Meta-ticket: finding optimal subnetworks for few-shot learning within randomly
    initialized neural networks", NeurIPS 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrize

from regraft.errors import InputError
from regraft.tickets import Mask, WeightSource, bake, named_masks
from regraft.tickets.edge_popup import choose
from regraft.tickets.select import kth_value, pruned_count

from .learner import head_name
from .maml import MAML


class FirstScores(Mask):
    """A mask whose threshold is an order statistic of its first scores, for ever.

    The first scores are a function of the seed, so a checkpoint or ticket needs no threshold.
    """

    def threshold(self, scores: Tensor) -> Tensor | float:
        """Return sigma, a 0-dim tensor: the value of rank round(q (n - 1)) of the first scores."""
        if not hasattr(self, "_sigma"):
            rank = min(pruned_count(self.source.numel, self.sparsity), self.source.numel - 1)
            self._sigma = float(kth_value(self.score_source.rebuild().reshape(-1), rank))
        return self._sigma

    def set_extra_state(self, state: Tensor) -> None:
        """Take over seed, law and sparsity of a checkpoint, and with the seed the first scores."""
        super().set_extra_state(state)
        self.score_source = replace(self.score_source, seed=self.source.seed)
        self.__dict__.pop("_sigma", None)


class MetaTicket(MAML):
    """Meta-learned masks of a random network; what is given to the optimiser are scores.

    Args:
        network: An ordinary network; masked in place.
        seed: Seed of the random weights and of the first scores.
        sparsity: Share of each layer that is pruned at first, q.
        weight_init: Law of the random weights; `kaiming_constant` is the weight-free ablation, all
            weights sqrt(2 / fan_in).
        score_init: Law of the first scores.
        params: Patterns of the weights to mask; by default those of all layers but the classifier.
        mask_head: Mask the classifier as well (the paper's `pruneout`).
        meta_learned: Patterns of unmasked parameters that are meta-learned as in MAML (sinusoids).
        how: Everything else is that of `MAML`: `adapts="body"` is the BOIL variant, whose classifier
            stays random for ever, and `adapts="head"` the ANIL variant.

    Raises:
        InputError: As `MAML`; no weight to mask.

    Example:
        >>> learner = MetaTicket(MLP(784, (256, 128, 64, 64), 5, norm="batch"), seed=1, lr=0.4)
        >>> optimizer = torch.optim.SGD(learner.scores(), lr=10, momentum=0.9)
        >>> iterand = IteRand(learner.network, every=1000, rate=1.0)
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        seed: int,
        sparsity: float = 0.0,
        weight_init: str = "kaiming_normal",
        score_init: str = "kaiming_uniform",
        params: Sequence[str] | None = None,
        mask_head: bool = False,
        meta_learned: Sequence[str] = (),
        **how: Any,
    ) -> None:
        if how.get("masks"):
            raise InputError("masks: a Meta-ticket learns its own; give masks to MAML")
        head = how.pop("head", None) or head_name(network)
        spared = () if mask_head or params is not None else (f"{head}.*",)
        _mask(network, seed, sparsity, weight_init, score_init, params, spared, meta_learned)
        super().__init__(network, head=head, **how)

    def _ordinary(self) -> nn.Module:
        return bake(self.network)

    def scores(self) -> list[nn.Parameter]:
        """Return what is meta-learned: the scores, and parameters named in `meta_learned`."""
        return [p for p in self.parameters() if p.requires_grad]

    def values(self) -> dict[str, Tensor]:
        """Return phi by parameter name: random where masked, the first values elsewhere."""
        masked = {name: mask.weight for name, _, mask in self._masked}
        return {n: masked[n] if n in masked else self.network.get_parameter(n) for n in self._names}

    def masks(self) -> dict[str, Tensor]:
        """Return the masks by parameter name, with the straight-through gradient to the scores."""
        return {
            name: _StraightThrough.apply(scores := entry.original, mask.threshold(scores))
            for name, entry, mask in self._masked
        }

    def _set_plain(self) -> None:
        super()._set_plain()
        masked = ((n, entry, m) for n, entry, m in named_masks(self.network) if isinstance(m, Mask))
        self._masked = tuple(masked)  # looked for once: that takes as long as a layer's products

    def sparsity(self) -> dict[str, float]:
        """Return the share of each masked weight that is pruned now."""
        return {
            name: 1 - float(mask.kept(entry.original).float().mean())
            for name, entry, mask in self._masked
        }


class _StraightThrough(torch.autograd.Function):
    """m = 1[s >= sigma], and dL/ds := dL/dm."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, threshold: Tensor | float) -> Tensor:
        return (scores >= threshold).to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def _mask(
    network: nn.Module,
    seed: int,
    sparsity: float,
    weight_init: str,
    score_init: str,
    params: Sequence[str] | None,
    spared: Sequence[str],
    meta_learned: Sequence[str],
) -> None:
    """Mask a network in place, freeze the rest, and set biases and normalisation to 0 and 1."""
    chosen = choose(network, params, spared)
    if not chosen:
        raise InputError(
            "network has no maskable weight (no Linear, Conv1d/2d/3d but the classifier): name the "
            "weights with params=..., or take mask_head=True"
        )
    if len({id(p) for _, _, _, p in chosen}) < len(chosen):
        raise InputError("network ties weights to each other, which Meta-ticket cannot mask")
    learned = {
        name
        for name, _ in network.named_parameters()
        if any(fnmatchcase(name, p) for p in meta_learned)
    }
    layers = [owner for owner, _, _, _ in chosen]
    for prefix, module in network.named_modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            name = f"{prefix}.{attribute}" if prefix else attribute
            parameter.requires_grad_(name in learned)
            if name in learned:
                continue
            with torch.no_grad():
                if isinstance(module, _NormBase):
                    parameter.fill_(1.0 if attribute == "weight" else 0.0)
                elif module in layers and attribute == "bias":
                    parameter.zero_()
    for owner, attribute, name, parameter in chosen:
        shape = tuple(parameter.shape)
        mask = FirstScores(
            WeightSource(weight_init, seed, name, shape),
            WeightSource(score_init, seed, f"{name}#score", shape),
            sparsity=sparsity,
        )
        parametrize.register_parametrization(owner, attribute, mask, unsafe=True)
        entry: Any = owner.parametrizations[attribute]  # pyrefly: ignore
        entry.original.requires_grad_(True)

"""The contract of every few-shot learner, and what they share.

learner.adapt(x, y) -> an ordinary network for the classes of the support set, in evaluation mode
learner.loss(episodes) -> mean loss of the query sets, differentiable: what an optimiser steps on
learner.logits(episodes) -> outputs for the query sets, without a graph
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from regraft.errors import InputError
from regraft.models.classifier import find_classifier

from .batchnorm import Policy, check_policy, episodic, set_rows
from .episodes import Episodes


class Learner(nn.Module):
    """Base of the few-shot learners; `forward` is `loss`, so that DDP sees one forward pass.

    Args:
        network: An ordinary network: images [b, ...] -> logits [b, ways]. It is trained in place.
        head: Name of its classifier; by default what `get_classifier()` returns, or the last Linear.
        batchnorm: Whose statistics normalise the query set; see `regraft.fewshot.batchnorm`.

    Raises:
        InputError: No classifier, an unknown policy, or a layer with no meaning inside an episode.
    """

    def __init__(
        self, network: nn.Module, *, head: str | None = None, batchnorm: Policy = "transductive"
    ) -> None:
        super().__init__()
        check_policy(batchnorm)
        self.network = network
        self.head = head_name(network) if head is None else head
        self.batchnorm: Policy = batchnorm
        self._set_plain()

    def _set_plain(self) -> None:
        self._alone = False  # whether tasks run one after the other, without `vmap`
        # In a tuple: what is no child is in no state dict and moves to no device.
        self._plain = (episodic(self._ordinary()),)
        self._names = [n for n, _ in self._plain[0].named_parameters()]

    def _ordinary(self) -> nn.Module:
        """Return the network whose form `adapt` gives back."""
        return self.network

    def loss(self, episodes: Episodes) -> Tensor:
        """Return the loss of the query sets, a mean over tasks and queries, with its graph.

        Raises:
            DivergenceError: The inner loop left the finite numbers; the step is named.
        """
        raise NotImplementedError

    def forward(self, episodes: Episodes) -> Tensor:
        """Return `loss(episodes)`."""
        return self.loss(episodes)

    def logits(
        self, episodes: Episodes, *, steps: int | None = None, batchnorm: Policy | None = None
    ) -> Tensor:
        """Return the outputs [T, Q, ways] for the query sets, without a graph.

        Args:
            episodes: The tasks.
            steps: Inner steps; by default those of the test.
            batchnorm: Another policy than the learner's own.
        """
        raise NotImplementedError

    def adapt(self, x: Tensor, y: Tensor, *, steps: int | None = None) -> nn.Module:
        """Return an ordinary network, adapted to one support set, in evaluation mode.

        Its BatchNorm layers hold the statistics of the support set, so it computes what the policy
        `support` does, image by image, whatever the policy of training was.

        Args:
            x: Support images [S, ...].
            y: int64 [S] in 0..ways-1.
            steps: Inner steps; by default those of the test.
        """
        raise NotImplementedError

    def call(self, values: Mapping[str, Tensor], x: Tensor, *, rows: int | None = None) -> Tensor:
        """Return the outputs of the network with these parameters.

        Args:
            values: Every parameter and buffer that the network reads, by name.
            x: Images [b, ...].
            rows: Rows that give BatchNorm its statistics; all by default.
        """
        plain = self._plain[0]
        set_rows(plain, rows, fused=self._alone)
        return functional_call(plain, dict(values), (x,))

    def buffers_of(self) -> dict[str, Tensor]:
        """Return the network's buffers that its episodic copy reads."""
        names = {name for name, _ in self._plain[0].named_buffers()}
        return {n: b for n, b in self.network.named_buffers() if n in names}


def objective(output: Tensor, y: Tensor) -> Tensor:
    """Return cross-entropy for class numbers, the mean squared error for real targets."""
    if y.is_floating_point():
        return F.mse_loss(output, y)
    return F.cross_entropy(output, y)


def head_name(network: nn.Module) -> str:
    """Return the name of a network's classifier, as `regraft.models.classifier` finds it.

    Raises:
        InputError: There is none, or more than one.
    """
    return find_classifier(network)[0]


def replaced(network: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Return a copy of a network with another module under a name."""
    copied = copy.deepcopy(network)
    prefix, _, last = name.rpartition(".")
    setattr(copied.get_submodule(prefix), last, module)
    if hasattr(copied, "num_classes") and isinstance(module, nn.Linear):
        copied.num_classes = module.out_features  # pyrefly: ignore
    return copied


def accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """Return the percentage of right answers of each task, [T], for logits [T, Q, ways]."""
    return 100 * (logits.argmax(-1) == y).float().mean(-1)


def in_ways(y: Tensor) -> int:
    """Return the number of classes of labels 0..n-1.

    Raises:
        InputError: A class between them has no example.
    """
    n = int(y.max()) + 1
    missing = set(range(n)) - set(y.unique().tolist())
    if missing:
        raise InputError(
            f"the support set has no image of class {min(missing)}: give some of each of 0 to {n - 1}"
        )
    return n


def as_network(network: nn.Module, values: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of an ordinary network with these parameters."""
    copied = copy.deepcopy(network)
    with torch.no_grad():
        for name, value in values.items():
            copied.get_parameter(name).copy_(value)
    return copied

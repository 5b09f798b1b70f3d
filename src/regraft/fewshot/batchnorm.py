"""What BatchNorm does inside an episode, said out loud: whose statistics normalise the query set.

`transductive` is what MAML's and Meta-ticket's code does: support and query are each normalised by their
own statistics, so that a prediction depends on the other queries. `support` normalises the query by the
statistics of the support set under the adapted weights: a prediction then depends on its image alone, and
the adapted network is an ordinary one in evaluation mode.

References:
    Bronskill et al., "TaskNorm: rethinking batch normalization for meta-learning", ICML 2020, section 3.
"""

from __future__ import annotations

import copy
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from regraft.errors import InputError

from .expansion import ExpandedConv, worth_expanding

Policy = Literal["transductive", "support"]


class EpisodeNorm(nn.Module):
    """BatchNorm without running statistics: y = gamma (x - mean) / sqrt(var + eps) + beta.

    Mean and biased variance are those of the first `rows` of the batch, or of all of it. What timm's
    BatchNormAct2d does after it, `drop` and `act`, is done here too.

    Attributes:
        rows: How many rows, from the first on, give the statistics; None for all.
        fused: Take torch's own batch_norm, which is faster, and right outside `vmap`.
    """

    rows: int | None = None
    fused: bool = False

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__()
        self.eps = norm.eps
        self.weight = norm.weight
        self.bias = norm.bias
        self.after = () if _is_torchs(norm) else _AFTER
        for name in self.after:
            self.add_module(name, getattr(norm, name))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [b, C, ...] over all but its channels."""
        y = self.normalised(x)
        for name in self.after:
            y = self.get_submodule(name)(y)
        return y

    def normalised(self, x: Tensor) -> Tensor:
        """Return gamma (x - mean) / sqrt(var + eps) + beta."""
        if self.fused and self.rows is None:
            weight, bias = self.weight, self.bias
            return F.batch_norm(x, None, None, weight, bias, training=True, eps=self.eps)
        # Written out: inside `vmap`, torch's own batch_norm has a wrong second derivative.
        axes = [0, *range(2, x.ndim)]
        by = (1, -1) + (1,) * (x.ndim - 2)
        # So is `var_mean` slow over other axes than the last: a product and two means are faster.
        centred = x - x[: self.rows].mean(axes, keepdim=True)
        variance = centred[: self.rows].square().mean(axes, keepdim=True)
        y = centred * torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            y = y * self.weight.view(by) + self.bias.view(by)
        return y


def episodic(network: nn.Module) -> nn.Module:
    """Return a copy of a network for `functional_call` inside episodes, without any running state.

    Parameters keep their names and are not copied by value: the caller hands them over at each call.

    Raises:
        InputError: A layer that has no meaning in tasks that run side by side: dropout, or running
            statistics of anything but BatchNorm; a BatchNorm that computes something of its own.
    """
    for name, module in network.named_modules():
        if share := _dropped(module):
            raise InputError(
                f"layer {name!r} is dropout with p={share:g}: tasks run side by side through one "
                "network, and one mask would be shared by tasks and change between the inner steps; "
                "set p=0 (timm: drop_rate=0, drop_path_rate=0)"
            )
        other = isinstance(module, _NormBase) and not isinstance(module, _BatchNorm)
        if (other and module.track_running_stats) or isinstance(module, nn.SyncBatchNorm):
            raise InputError(
                f"layer {name!r} ({type(module).__name__}) keeps running statistics: tasks run side by "
                "side would all write to them; build it with track_running_stats=False, or use BatchNorm, "
                "whose statistics are taken in each episode as `batchnorm` says"
            )
        if isinstance(module, _BatchNorm) and not _is_known(module):
            raise InputError(
                f"layer {name!r} ({type(module).__name__}) is a BatchNorm with a forward pass or hooks of "
                "its own, which an episode would leave out: put a torch.nn BatchNorm and a layer after "
                "it instead"
            )
    copied = copy.deepcopy(network)
    # By identity: what a network calls twice stays one layer, and is called twice.
    norms = {id(m): EpisodeNorm(m) for m in copied.modules() if isinstance(m, _BatchNorm)}
    if id(copied) in norms:
        return norms[id(copied)].train()
    for module in list(copied.modules()):
        if id(module) in norms:
            continue
        for name, child in module._modules.items():
            if id(child) in norms:
                setattr(module, name, norms[id(child)])
            elif child is not None and worth_expanding(child):
                child.__class__ = ExpandedConv
    return copied.train()


_AFTER = ("drop", "act")


def _is_known(norm: _BatchNorm) -> bool:
    """Whether a layer computes what `EpisodeNorm` does, and nothing is hung on it."""
    changed = "forward" in vars(norm) or type(norm).__call__ is not nn.Module.__call__
    hooked = any(getattr(norm, name) for name in HOOKS) or hasattr(norm, "parametrizations")
    return not (changed or hooked) and (_is_torchs(norm) or _is_timms(norm))


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Where a module keeps what runs beside its forward and backward pass."""


def _is_torchs(norm: _BatchNorm) -> bool:
    """Whether a layer computes what torch's BatchNorm does."""
    return type(norm).forward is _BatchNorm.forward


def _is_timms(norm: _BatchNorm) -> bool:
    """Whether a layer is timm's BatchNorm with a dropout and an activation after it."""
    owner = next(c for c in type(norm).__mro__ if "forward" in vars(c))
    return owner.__module__.startswith("timm.") and set(norm._modules) == set(_AFTER)


def _dropped(module: nn.Module) -> float:
    """Return the share that a layer drops at random while training."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase):
        return module.dropout
    if isinstance(module, nn.RReLU):
        return module.upper - module.lower
    if type(module).__name__ in ("DropPath", "DropBlock2d"):  # timm
        return float(getattr(module, "drop_prob", 0.0) or 0.0)
    # torchvision
    return float(module.p) if type(module).__name__ == "StochasticDepth" else 0.0  # pyrefly: ignore


def set_rows(network: nn.Module, rows: int | None, *, fused: bool = False) -> None:
    """Let all `EpisodeNorm` take their statistics from the first `rows` rows, or from all.

    Args:
        network: What `episodic` returned.
        rows: How many rows.
        fused: No `vmap` is around.
    """
    for module in network.modules():
        if isinstance(module, EpisodeNorm):
            module.rows, module.fused = rows, fused


@torch.no_grad()
def with_statistics(network: nn.Module, support: Tensor) -> nn.Module:
    """Give a network's BatchNorm layers the statistics of a support set, in place; return it.

    In evaluation mode it then computes what the policy `support` does.

    Args:
        network: An ordinary network.
        support: Support images [S, ...].
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm)]

    def put(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        axes = [0, *range(2, x.ndim)]
        variance, mean = torch.var_mean(x, dim=axes, correction=0)
        norm.track_running_stats = True  # pyrefly: ignore
        norm.running_mean, norm.running_var = mean, variance  # pyrefly: ignore
        if getattr(norm, "num_batches_tracked", None) is None:
            norm.num_batches_tracked = torch.tensor(1)  # pyrefly: ignore

    # The hook runs before the layer: in evaluation mode it normalises by what it was just given.
    handles = [norm.register_forward_pre_hook(put) for norm in norms]
    try:
        network.eval()(support)
    finally:
        for handle in handles:
            handle.remove()
    return network


def check_policy(policy: str) -> None:
    """Refuse an unknown policy.

    Raises:
        InputError: It is none of `Policy`.
    """
    if policy not in get_args(Policy):
        raise InputError(f"batchnorm={policy!r}: expected one of {', '.join(get_args(Policy))}")

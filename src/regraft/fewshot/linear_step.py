"""The exact inner step of stacks of Linear, BatchNorm and ReLU, for all tasks of a batch at once.

The backward pass of the support set is written out as tensor operations, so that the meta-gradient needs
a graph of first order only. The gradient of a linear layer is G = d^T a of rank <= support size, with the
layer's inputs a and the gradients d at its outputs; the adapted weights W - R * G (R the step sizes) are
never formed for the tasks: for R a number

    x (W - R d^T a)^T = x W^T - R (x a^T) d,

and for R a matrix, the step sizes of Meta-SGD or R = alpha m^2 of a masked weight m * phi,

    x (W - R * (d^T a))^T = x W^T - sum_j ((x * a_j) R^T) * d_j,

one product with the shared R where the support is small, and otherwise one buffer of the weight's size
that the tasks use in turn. Several steps add up: a and d of all of them are stacked.

References:
    Finn et al., ICML 2017 (MAML); Chijiwa et al., NeurIPS 2022 (Meta-ticket).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regraft.models import MLP

from .batchnorm import HOOKS, EpisodeNorm
from .norm_step import Norm, NormBack

SHARED_PAIRS = 50
"""Up to so many pairs of a row and a support row, one shared product is faster than a buffer (measured)."""

Rate = Tensor | float


@dataclass(frozen=True)
class LinearLayer:
    """One layer of a stack: the names of its modules, and what follows the product.

    Attributes:
        linear: Name of the Linear.
        norm: Name of the BatchNorm after it, or None.
        eps: Its epsilon.
        relu: Whether a ReLU comes last.
    """

    linear: str
    norm: str | None = None
    eps: float = 0.0
    relu: bool = False


def read_stack(plain: nn.Module) -> tuple[LinearLayer, ...] | None:
    """Return the layers of an episodic network that is a stack of these; None for any other.

    Args:
        plain: What `episodic` made of an `nn.Sequential` (nested ones too) or `regraft.models.MLP`.
    """
    leaves = _leaves(plain, "")
    if leaves is None or any(getattr(m, h) for m in plain.modules() for h in HOOKS):
        return None
    own = [id(p) for _, leaf in leaves for p in leaf.parameters(recurse=False)]
    if len(own) != len(set(own)):  # a layer or a weight that is used twice has two inputs
        return None
    layers: list[LinearLayer] = []
    flat = False
    for name, module in leaves:
        last = layers[-1] if layers else None
        if isinstance(module, nn.Flatten) and last is None and module.start_dim == 1:
            flat = True
        elif type(module) is nn.Linear:
            if last is not None and module.in_features < 1:
                return None
            layers.append(LinearLayer(name))
        elif isinstance(module, EpisodeNorm) and last and not last.norm and not last.relu:
            if module.weight is None or module.after:
                return None
            layers[-1] = LinearLayer(last.linear, name, module.eps)
        elif isinstance(module, nn.ReLU) and last and not last.relu:
            layers[-1] = LinearLayer(last.linear, last.norm, last.eps, True)
        elif not isinstance(module, nn.Identity):
            return None
    plain_end = bool(layers) and layers[-1].norm is None and not layers[-1].relu
    return tuple(layers) if plain_end and (flat or layers) else None


def _leaves(module: nn.Module, prefix: str) -> list[tuple[str, nn.Module]] | None:
    """Return the layers of nested Sequentials in the order in which they are called."""
    if type(module) is MLP:
        children = [("features", module.features), ("head", module.head)]
    elif type(module) is nn.Sequential:
        children = [(n, m) for n, m in module._modules.items() if m is not None]
    else:
        return [(prefix, module)] if prefix else None
    leaves: list[tuple[str, nn.Module]] = []
    for name, child in children:
        below = _leaves(child, f"{prefix}.{name}" if prefix else name)
        leaves += below or []
    return leaves


class _Kept(NamedTuple):
    """What the backward pass of a layer needs: its input, BatchNorm's insides, its output."""

    inputs: Tensor
    normal: Tensor | None
    scale: Tensor | None
    outputs: Tensor


class _Stack:
    """A stack with the corrections of the steps taken so far, one set for each task."""

    def __init__(
        self,
        layers: tuple[LinearLayer, ...],
        values: Mapping[str, Tensor],
        rates: Mapping[str, Rate],
    ) -> None:
        self.layers = layers
        self.values = dict(values)
        self.rates = rates
        self.steps: dict[str, tuple[Tensor, Tensor]] = {}

    def linear(
        self, x: Tensor, name: str, product: Tensor | None = None, *, biased: bool = True
    ) -> Tensor:
        weight = self.values[f"{name}.weight"]
        bias = self.values.get(f"{name}.bias") if biased else None
        if product is not None:
            z = product if bias is None else product + bias
        elif bias is None or bias.ndim == 1:
            z = F.linear(x, weight, bias)
        else:
            z = torch.add(F.linear(x, weight), bias)  # one bias for each task by now
        if name in self.steps:
            inputs, deltas = self.steps[name]
            z = less_corrected(z, x, inputs, deltas, self.rates[f"{name}.weight"])
        return z

    def back(self, delta: Tensor, name: str) -> Tensor:
        """Return the gradient at a linear layer's input, for that at its output."""
        out = delta @ self.values[f"{name}.weight"]
        if name in self.steps:
            inputs, deltas = self.steps[name]
            rate = self.rates[f"{name}.weight"]
            turned = rate.t() if isinstance(rate, Tensor) and rate.ndim else rate
            out = less_corrected(out, delta, deltas, inputs, turned)
        return out

    def forward(
        self, x: Tensor, product: Tensor, rows: int | None = None
    ) -> tuple[Tensor, list[_Kept]]:
        """Return the outputs [T, r, ways], and for each layer what its backward pass needs.

        Args:
            x: Inputs [T, r, in].
            product: Theirs with the first weight before any step, [T, r, out].
            rows: Rows that give BatchNorm its statistics; all by default.
        """
        kept: list[_Kept] = []
        for i, layer in enumerate(self.layers):
            inputs, normal, scale = x, None, None
            first = None if i else product
            if layer.norm is None:
                x = self.linear(x, layer.linear, first)
                x = torch.relu(x) if layer.relu else x
            else:
                z = self.linear(x, layer.linear, first, biased=False)
                gamma, beta = (self.values[f"{layer.norm}.{k}"] for k in ("weight", "bias"))
                shift = self.values.get(f"{layer.linear}.bias")
                x, normal, scale = Norm.apply(z, gamma, beta, shift, layer.eps, layer.relu, rows)
            kept.append(_Kept(inputs, normal, scale, x))
        return x, kept

    def step(self, kept: list[_Kept], delta: Tensor, *, first_order: bool) -> None:
        """Take one step on the support set, for the loss's gradient `delta` at the outputs."""
        moving = [any(self._moves(n) for n in self._names(layer)) for layer in self.layers]
        lowest = moving.index(True) if any(moving) else len(moving)
        values: dict[str, Tensor] = {}
        steps: dict[str, tuple[Tensor, Tensor]] = {}

        def move(name: str, grad: Tensor, times: int = 1) -> None:
            if self._moves(name):
                grad, rate = grad.detach() if first_order else grad, self.rates[name]
                if isinstance(rate, Tensor):
                    values[name] = torch.addcmul(self.values[name], rate, grad, value=-times)
                else:
                    values[name] = torch.add(self.values[name], grad, alpha=-times * rate)

        for i in range(len(self.layers) - 1, lowest - 1, -1):
            layer, (inputs, normal, scale, outputs) = self.layers[i], kept[i]
            bias = f"{layer.linear}.bias"
            if normal is not None:
                gamma, sign = f"{layer.norm}.weight", outputs if layer.relu else None
                delta, mean, along = NormBack.apply(delta, sign, normal, scale, self.values[gamma])
                move(gamma, along, normal.shape[1])
                move(f"{layer.norm}.bias", mean, normal.shape[1])
            elif layer.relu:
                delta = torch.ops.aten.threshold_backward(delta, outputs, 0)
            # Below BatchNorm, which takes any shift away, a bias has no gradient. A step size of its own
            # stays in the graph: DDP waits for the gradient of every parameter.
            if normal is None and bias in self.values:
                move(bias, delta.sum(1, keepdim=True))
            elif bias in self.values and isinstance(self.rates.get(bias), Tensor):
                move(bias, torch.zeros_like(self.values[bias]))
            if self._moves(f"{layer.linear}.weight"):
                pair = (inputs.detach(), delta.detach()) if first_order else (inputs, delta)
                if layer.linear in self.steps:
                    before = self.steps[layer.linear]
                    pair = (torch.cat([before[0], pair[0]], 1), torch.cat([before[1], pair[1]], 1))
                steps[layer.linear] = pair
            if i > lowest:
                delta = self.back(delta, layer.linear)
        self.values |= values
        self.steps |= steps

    def _moves(self, name: str) -> bool:
        rate = self.rates.get(name, 0.0)
        return isinstance(rate, Tensor) or rate != 0

    def _names(self, layer: LinearLayer) -> list[str]:
        owners = [layer.linear, *([layer.norm] if layer.norm else [])]
        return [f"{o}.{kind}" for o in owners for kind in ("weight", "bias")]


def adapted_logits(
    layers: tuple[LinearLayer, ...],
    values: Mapping[str, Tensor],
    rates: Mapping[str, Rate],
    support: tuple[Tensor, Tensor],
    query_x: Tensor,
    *,
    steps: int,
    first_order: bool = False,
    own_statistics: bool = True,
) -> tuple[Tensor, Tensor]:
    """Adapt to T support sets and return the outputs for their query sets.

    Args:
        layers: The stack.
        values: Its parameters before the first step, of a masked weight m * phi.
        rates: Step sizes by parameter: a number, or a matrix shaped like the weight (m^2 times the step
            size for a masked one); what is missing or 0 does not move.
        support: x [T, S, ...] and y, int64 [T, S] or float [T, S, d].
        query_x: [T, Q, ...].
        steps: Inner steps K.
        first_order: Take the inner gradients for constants.
        own_statistics: Normalise the query set by its own statistics, not by the support set's.

    Returns:
        The outputs [T, Q, ways] and the support losses before each step, [K, T].
    """
    y, query = support[1], query_x.flatten(2)
    both = torch.cat([support[0].flatten(2), query], 1)
    n = y.shape[1]
    x = both[:, :n]
    stack = _Stack(layers, values, rates)
    # The first layer has most of the weights: one product serves all steps and the query.
    product = F.linear(both, values[f"{layers[0].linear}.weight"])
    losses = []
    for _ in range(steps):
        outputs, kept = stack.forward(x, product[:, :n])
        loss, delta = _loss_and_gradient(outputs, y)
        losses.append(loss.detach())
        stack.step(kept, delta, first_order=first_order)
    if own_statistics or all(layer.norm is None for layer in layers):
        outputs, _ = stack.forward(query, product[:, n:])
    else:
        outputs, _ = stack.forward(both, product, n)
        outputs = outputs[:, n:]
    inner = torch.stack(losses) if losses else outputs.new_zeros(0, len(x))
    return outputs, inner


def _loss_and_gradient(outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss of each task, [T], and its gradient at the outputs, [T, S, ways]."""
    if y.is_floating_point():
        difference = outputs - y
        return difference.square().mean((1, 2)), 2 * difference / difference[0].numel()
    right = torch.zeros_like(outputs, requires_grad=False).scatter_(-1, y[..., None], 1.0)
    with torch.no_grad():
        loss = -(F.log_softmax(outputs, -1) * right).sum((1, 2)) / y.shape[1]
    return loss, (outputs.softmax(-1) - right) / y.shape[1]


def less_corrected(z: Tensor, x: Tensor, inputs: Tensor, deltas: Tensor, rate: Rate) -> Tensor:
    """Return z - x (R * (d^T a))^T for each task, [T, r, out].

    Args:
        z: What it is taken from, [T, r, out].
        x: Rows to multiply, [T, r, in].
        inputs: a, [T, S, in].
        deltas: d, [T, S, out].
        rate: R, a number or [out, in].
    """
    if not isinstance(rate, Tensor):
        return torch.baddbmm(z, torch.bmm(x, inputs.transpose(1, 2)), deltas, alpha=-rate)
    if rate.ndim == 0:
        return z - rate * torch.bmm(torch.bmm(x, inputs.transpose(1, 2)), deltas)
    if x.shape[1] * inputs.shape[1] > SHARED_PAIRS:
        return z - _InTurn.apply(x, inputs, deltas, rate)
    shared = F.linear(x[:, :, None] * inputs[:, None], rate)  # [T, r, S, out]
    return z - (shared * deltas[:, None]).sum(2)


class _InTurn(torch.autograd.Function):
    """x (R * (d^T a))^T with one buffer of the weight's size, task after task."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inputs: Tensor, deltas: Tensor, rate: Tensor) -> Tensor:
        ctx.save_for_backward(x, inputs, deltas, rate)
        out = x.new_empty(*x.shape[:2], rate.shape[0])
        buffer = torch.empty_like(rate)
        for t in range(len(x)):
            torch.mm(deltas[t].t(), inputs[t], out=buffer)
            torch.mm(x[t], buffer.mul_(rate).t(), out=out[t])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, inputs, deltas, rate = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        to_x, to_inputs, to_deltas = (
            torch.empty_like(t) if w else None
            for t, w in zip((x, inputs, deltas), wanted[:3], strict=True)
        )
        to_rate = torch.zeros_like(rate) if wanted[3] else None
        inner, outer = torch.empty_like(rate), torch.empty_like(rate)
        for t in range(len(x)):
            if to_x is not None or to_rate is not None:
                torch.mm(deltas[t].t(), inputs[t], out=inner)
            torch.mm(grad[t].t(), x[t], out=outer)
            if to_rate is not None:
                to_rate.addcmul_(inner, outer)
            if to_x is not None:
                torch.mm(grad[t], inner.mul_(rate), out=to_x[t])
            if to_inputs is not None or to_deltas is not None:
                outer.mul_(rate)
            if to_inputs is not None:
                torch.mm(deltas[t], outer, out=to_inputs[t])
            if to_deltas is not None:
                torch.mm(inputs[t], outer.t(), out=to_deltas[t])
        return to_x, to_inputs, to_deltas, to_rate

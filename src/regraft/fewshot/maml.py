"""MAML and its relatives: a few gradient steps on the support set, differentiated through.

One class holds them, since they differ in which parameters the inner loop moves and how far:

    MAML       all of them by one step size (first or second order, several steps)
    Meta-SGD   all, each by a step size of its own that is meta-learned
    ANIL       the classifier alone
    BOIL       everything but the classifier

References:
    Finn et al., "Model-agnostic meta-learning for fast adaptation of deep networks", ICML 2017.
    Li et al., "Meta-SGD: learning to learn quickly for few-shot learning", 2017.
    Raghu et al., "Rapid learning or feature reuse? Towards understanding the effectiveness of MAML",
    ICLR 2020 (ANIL).
    Oh et al., "BOIL: towards representation change for few-shot learning", ICLR 2021.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache, partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from regraft.errors import DivergenceError, InputError

from .batchnorm import Policy, with_statistics
from .episodes import Episodes
from .learner import Learner, as_network, in_ways, objective
from .linear_step import Rate, adapted_logits, read_stack
from .recompute import recomputed
from .weights import check_mask, effective, weights_and_rates

Adapts = Literal["all", "head", "body"]
Path = Literal["auto", "exact", "vmap", "loop"]


class MAML(Learner):
    """Gradient steps phi <- phi - alpha m * dL_support/d(m * phi) on the parameters of a network.

    Args:
        network: An ordinary network, whose parameters are the initial values that are meta-learned.
        lr: Step size of the inner loop, alpha.
        steps: Inner steps in training, K.
        test_steps: Inner steps afterwards; by default K.
        first_order: Take the inner gradients for constants (FOMAML).
        adapts: What the inner loop moves: `all` (MAML), `head` (ANIL) or `body` (BOIL).
        learn_rates: Meta-learn a step size for every single parameter (Meta-SGD).
        masks: Masks by parameter name: only kept weights are used and moved.
        head: Name of the classifier; see `Learner`.
        batchnorm: Whose statistics normalise the query set; see `regraft.fewshot.batchnorm`.
        path: How the tasks of a batch are computed. `exact` (`regraft.fewshot.linear_step`) is for
            stacks of Linear, BatchNorm and ReLU and is taken for them by `auto`; `vmap` runs tasks side
            by side, `loop` one after the other. All give the same gradients; these have derivatives of
            their own with `vmap` (and `loop` without BatchNorm), without `recompute`.
        chunk: Tasks at a time with `vmap`: less memory.
        recompute: Keep no graph of the inner loop: tasks are computed `chunk` at a time (one by default),
            and those without an exact step an inner step at a time, once more in the backward pass.
        compiled: Compile the exact step for training: minutes for the first call, then faster for
            small networks, whose time is in the number of operations. Episodes must keep their shape.

    Raises:
        InputError: A number out of its range, an unknown name, or a path that the network has not.

    Example:
        >>> learner = MAML(network, lr=0.4, steps=1, test_steps=3)
        >>> optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-3)
        >>> learner(sampler.batch(4 * step, 4)).backward()
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        lr: float = 0.4,
        steps: int = 1,
        test_steps: int | None = None,
        first_order: bool = False,
        adapts: Adapts = "all",
        learn_rates: bool = False,
        masks: Mapping[str, Tensor] | None = None,
        head: str | None = None,
        batchnorm: Policy = "transductive",
        path: Path = "auto",
        chunk: int | None = None,
        recompute: bool = False,
        compiled: bool = False,
    ) -> None:
        super().__init__(network, head=head, batchnorm=batchnorm)
        if not 0 < lr < float("inf"):
            raise InputError(f"lr={lr}: expected the inner step size, a finite number above 0")
        if steps < 1 or (test_steps is not None and test_steps < 0):
            raise InputError(f"steps={steps}, test_steps={test_steps}: expected at least 1 and 0")
        for name, value, kinds in (("adapts", adapts, Adapts), ("path", path, Path)):
            if value not in get_args(kinds):
                raise InputError(f"{name}={value!r}: expected one of {', '.join(get_args(kinds))}")
        self.lr, self.steps = lr, steps
        self.test_steps = steps if test_steps is None else test_steps
        self.first_order, self.adapts = first_order, adapts
        self.path, self.chunk, self.compiled, self.recompute = path, chunk, compiled, recompute
        self._layers = read_stack(self._plain[0])
        if (path == "exact" or compiled) and self._layers is None:
            option = "compiled=True" if compiled else "path='exact'"
            raise InputError(
                f"{option} is for stacks of Linear, BatchNorm and ReLU (an nn.Sequential or "
                "regraft.models.MLP), which this network is not: take auto, vmap or loop"
            )
        for name, mask in (masks or {}).items():
            check_mask(network, name, mask)
            self.register_buffer(f"mask:{name.replace('.', ':')}", mask)
        self.rates = nn.ParameterDict()
        if learn_rates:
            for name, value in self.values().items():
                rate = torch.full_like(value, lr if self.moves(name) else 0.0)
                self.rates[name.replace(".", ":")] = nn.Parameter(
                    rate, requires_grad=self.moves(name)
                )

    def moves(self, name: str) -> bool:
        """Whether the inner loop moves a parameter."""
        inside = name == self.head or name.startswith(f"{self.head}.")
        return {"all": True, "head": inside, "body": not inside}[self.adapts]

    def values(self) -> dict[str, Tensor]:
        """Return the initial values of the inner loop by parameter name, phi."""
        return dict(self.network.named_parameters())

    def masks(self) -> dict[str, Tensor]:
        """Return the masks by parameter name, floating-point, differentiable where they are learned."""
        kept = {n: b for n, b in self._buffers.items() if n.startswith("mask:") and b is not None}
        values = dict(self.network.named_parameters()) if kept else {}
        return {
            n: kept[key].to(v)
            for n, v in values.items()
            if (key := f"mask:{n.replace('.', ':')}") in kept
        }

    def step_sizes(self) -> dict[str, Rate]:
        """Return the step size of each parameter that moves."""
        names = [n for n in self._names if self.moves(n)]
        if not self.rates:
            return dict.fromkeys(names, self.lr)
        return {n: self.rates[n.replace(".", ":")] for n in names}

    def loss(self, episodes: Episodes) -> Tensor:
        """Return the mean query loss after the inner loop; its gradient is the meta-gradient.

        Raises:
            DivergenceError: A support loss is not finite; the step is named.
        """
        outputs, inner = self._run(episodes, self.steps, self.batchnorm)
        loss = objective(outputs.flatten(0, 1), episodes.query_y.flatten(0, 1))
        if not loss.is_cuda:  # a GPU would have to be waited for: see `check_inner`
            check_inner(inner, loss)
        self._last = (inner, loss.detach())
        return loss

    def logits(
        self, episodes: Episodes, *, steps: int | None = None, batchnorm: Policy | None = None
    ) -> Tensor:
        """Return the outputs [T, Q, ways] for the query sets, without a graph; see `Learner`."""
        chosen = self.test_steps if steps is None else steps
        with torch.no_grad():
            outputs, inner = self._run(episodes, chosen, batchnorm or self.batchnorm)
        check_inner(inner, outputs.sum())
        return outputs

    def adapt(self, x: Tensor, y: Tensor, *, steps: int | None = None) -> nn.Module:
        """Return the network adapted to one support set; see `Learner.adapt`.

        Raises:
            DivergenceError: The inner loop left the finite numbers; the step is named.
        """
        if not y.is_floating_point():
            ways, most = in_ways(y), self._outputs(x)
            if ways != most:
                raise InputError(
                    f"the support set has {ways} classes and the learner was trained for episodes of "
                    f"{most}: give images of {most} classes, or train with --ways {ways}"
                )
        chosen = self.test_steps if steps is None else steps
        masks = self.masks()
        with torch.no_grad():
            values, inner = self._inner(
                self._detached(self.values()), masks, x, y, chosen, self.step_sizes()
            )
            check_inner(inner[:, None])
            network = as_network(self._ordinary(), effective(values, masks))
        return with_statistics(network, x)

    @torch.no_grad()
    def _outputs(self, x: Tensor) -> int:
        values = {**self.buffers_of(), **effective(self.values(), self.masks())}
        return self.call(values, x[:2].expand(2, *x.shape[1:])).shape[-1]

    def _run(self, episodes: Episodes, steps: int, policy: Policy) -> tuple[Tensor, Tensor]:
        """Return the query outputs [T, Q, ...] and the support losses before each step, [K, T]."""
        parts = self.values(), self.masks(), self.step_sizes()
        tasks = partial(self._tasks, steps=steps, policy=policy)
        tensors = (episodes.support_x, episodes.support_y, episodes.query_x)
        if not (self.recompute and torch.is_grad_enabled()):
            return tasks(*parts, tensors)
        size = self.chunk or 1
        each = [
            recomputed(tasks, (*parts, tuple(t[i : i + size] for t in tensors)))
            for i in range(0, len(episodes), size)
        ]
        return torch.cat([o for o, _ in each]), torch.cat([inner for _, inner in each], 1)

    def _tasks(
        self,
        values: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
        rates: Mapping[str, Rate],
        tensors: tuple[Tensor, Tensor, Tensor],
        steps: int,
        policy: Policy,
    ) -> tuple[Tensor, Tensor]:
        """Return what `_run` does, of tasks that are computed together: support x and y, query x."""
        if self._layers is not None and self.path in ("auto", "exact"):
            first = self.first_order
            weights, scaled = weights_and_rates(values, masks, rates, first_order=first)
            # Only training has the same shapes and steps all the time.
            compiled = self.compiled and torch.is_grad_enabled()
            return (_compiled() if compiled else adapted_logits)(
                self._layers,
                weights,
                scaled,
                tensors[:2],
                tensors[2],
                steps=steps,
                first_order=first,
                own_statistics=policy == "transductive",
            )

        def one(x: Tensor, y: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
            moved, inner = self._inner(values, masks, x, y, steps, rates)
            final = {**self.buffers_of(), **effective(moved, masks)}
            if policy == "transductive":
                return self.call(final, query), inner
            return self.call(final, torch.cat([x, query]), rows=len(x))[len(x) :], inner

        alone = self.path == "loop" or self.recompute
        self._alone = alone or (self.path == "auto" and len(tensors[0]) == 1)
        if self._alone:
            pairs = [one(*(t[i] for t in tensors)) for i in range(len(tensors[0]))]
            outputs, inner = (torch.stack(parts) for parts in zip(*pairs, strict=True))
        else:
            outputs, inner = torch.func.vmap(one, chunk_size=self.chunk)(*tensors)
        return outputs, inner.t()

    def _inner(
        self,
        values: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
        x: Tensor,
        y: Tensor,
        steps: int,
        rates: Mapping[str, Rate],
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return phi after the inner loop on one support set, and the losses before each step [K]."""
        still = {n: v for n, v in values.items() if n not in rates}
        moving = {n: v for n, v in values.items() if n in rates}
        buffers = self.buffers_of()

        def step(
            x: Tensor,
            y: Tensor,
            moving: Mapping[str, Tensor],
            still: Mapping[str, Tensor],
            masks: Mapping[str, Tensor],
            rates: Mapping[str, Rate],
        ) -> tuple[dict[str, Tensor], Tensor]:
            def support_loss(moving: dict[str, Tensor]) -> Tensor:
                every = effective({**still, **moving}, masks)
                return objective(self.call({**buffers, **every}, x), y)

            grads, loss = torch.func.grad_and_value(support_loss)(dict(moving))
            if self.first_order:
                grads = {n: g.detach() for n, g in grads.items()}
            return {n: v - rates[n] * grads[n] for n, v in moving.items()}, loss.detach()

        again = self.recompute and torch.is_grad_enabled()
        losses = []
        for _ in range(steps):
            state = (x, y, moving, still, masks, rates)
            moving, loss = recomputed(step, state) if again else step(*state)
            losses.append(loss)
        inner = torch.stack(losses) if losses else x.new_zeros(0)
        return {**still, **moving}, inner

    @staticmethod
    def _detached(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {n: v.detach() for n, v in values.items()}

    def check(self) -> None:
        """Refuse the last loss if its inner loop exploded; on a GPU to be called now and then.

        Raises:
            DivergenceError: The step is named.
        """
        check_inner(*self._last)

    def clone(self) -> Clone:
        """Return a copy for one task that is adapted loss by loss, as learn2learn's `clone()`."""
        return Clone(self)


class Clone(nn.Module):
    """Parameters of one task: call it, and `adapt` it to losses; gradients reach the learner.

    Args:
        learner: What was cloned.

    Example:
        >>> clone = learner.clone()
        >>> clone.adapt(loss(clone(support_x), support_y))
        >>> loss(clone(query_x), query_y).backward()
    """

    def __init__(self, learner: MAML) -> None:
        super().__init__()
        # In a tuple, so that the learner's parameters are not the clone's own.
        self._learner = (learner,)
        self._masks, self._rates = learner.masks(), learner.step_sizes()
        # Copies that are no leaves: a step differentiates at them even where they were not trained.
        self._values = {
            n: v * 1 if v.requires_grad else v.detach().clone().requires_grad_()
            for n, v in learner.values().items()
        }

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs with the clone's parameters; BatchNorm takes the batch's statistics."""
        learner = self._learner[0]
        every = effective(self._values, self._masks)
        return learner.call({**learner.buffers_of(), **every}, x)

    def adapt(self, loss: Tensor, *, first_order: bool | None = None) -> None:
        """Take one inner step for a loss that was computed with this clone.

        Raises:
            DivergenceError: The loss is not finite.
        """
        if not bool(loss.isfinite()):
            raise DivergenceError(f"the inner loop exploded: the loss is {float(loss)}; lower lr")
        first = self._learner[0].first_order if first_order is None else first_order
        names = [n for n in self._values if n in self._rates]
        grads = torch.autograd.grad(
            loss, [self._values[n] for n in names], create_graph=not first, allow_unused=True
        )
        for name, grad in zip(names, grads, strict=True):
            if grad is not None:
                self._values[name] = self._values[name] - self._rates[name] * grad

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Yield the clone's own tensors, as learn2learn's clones do."""
        yield from self._values.values()  # pyrefly: ignore


def check_inner(inner: Tensor, after: Tensor | None = None) -> None:
    """Refuse an inner loop that left the finite numbers.

    Args:
        inner: Support losses before each step, [K, T].
        after: Something that is finite where the last step was well, 0-dim.

    Raises:
        DivergenceError: The first step after which a loss is not finite is named.
    """
    if bool(torch.isfinite(inner.sum() if after is None else inner.sum() + after)):
        return
    bad = (~torch.isfinite(inner)).nonzero()
    cure = "lower the inner step size, or take fewer inner steps"
    if len(bad):
        step, task = bad[0].tolist()
        where = f"after inner step {step}" if step else "before the first inner step"
        raise DivergenceError(
            f"the inner loop exploded: the support loss of task {task} is {float(inner[step, task])} "
            f"{where}: {cure}"
        )
    if after is not None and not bool(torch.isfinite(after)):
        raise DivergenceError(
            f"the inner loop exploded: the query loss is not finite after inner step {len(inner)}: {cure}"
        )


@cache
def _compiled() -> Any:
    return torch.compile(adapted_logits, dynamic=False)

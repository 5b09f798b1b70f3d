"""Training runs as paths of weights: recorded on disk, or drawn straight between two checkpoints.

A trajectory is its first state θ⁰ and, for every later step, the displacement θᵗ - θ⁰ of what is
trained and the other tensors (running statistics, counters) as they were. No more than one step is
ever in memory.

A straight one needs two checkpoints: θˢ = θ⁰ + λ_s (θᵀ - θ⁰), with λ_s = s / T (`uniform`), or
λ_s = Σ_{t<s} w_t / Σ_{t<T} w_t and w_t = 1 + cos(πt/T) (`cosine`), which advances as a learning rate
on a cosine would.

References:
    Chijiwa 2024 (arXiv 2305.14122), section 3.1 and its appendix on the linear trajectory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from regraft.checkpoints.state import check_state
from regraft.errors import InputError
from regraft.symmetry.match.solver.pairs import refuse_not_finite
from regraft.symmetry.merge.merge import is_trained

from .recorded import Cut, Recording, open_recorded

State: TypeAlias = Mapping[str, Tensor]
Spacing = Literal["uniform", "cosine"]


class Trajectory:
    """A path of weights; open a recorded one with `open`, draw a straight one with `linear`.

    Attributes:
        steps: The number of each state; the first is that of the initial one.
        initial: State dict θ⁰.
        trained: Names of the tensors that training moves; the others are taken as they are.
        origin: What it is, in a few words.
    """

    steps: tuple[int, ...]
    initial: State
    trained: frozenset[str]
    origin: str

    def displacement(self, i: int) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, θᵗ - θ⁰) of the trained tensors at `steps[i]`, one after the other."""
        raise NotImplementedError

    def others(self, i: int) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, tensor) of what is not trained at `steps[i]`."""
        raise NotImplementedError

    def __len__(self) -> int:
        """Return the number T of states after the initial one."""
        return len(self.steps) - 1

    def __iter__(self) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Yield (step, state dict), each made when it is asked for, the initial one first."""
        for i, step in enumerate(self.steps):
            yield step, self.state(i)

    @property
    def error(self) -> float:
        """Largest ||stored - θᵗ|| / ||θᵗ - θ⁰|| that storing the displacements has cost."""
        return 0.0

    def state(self, i: int) -> dict[str, Tensor]:
        """Return the state dict at `steps[i]`; -1 is the last."""
        if i % len(self.steps) == 0:
            return dict(self.initial.items())
        moved = {k: add(self.initial[k], delta) for k, delta in self.displacement(i)}
        moved |= dict(self.others(i))
        return {k: moved[k] for k in self.initial}

    def thinned(self, count: int) -> Trajectory:
        """Return `count` of the states after the initial one, evenly spread, the last among them.

        Raises:
            InputError: There are not as many.
        """
        if not 1 <= count <= len(self):
            raise InputError(
                f"steps={count}: the trajectory has {len(self)} states after the initial one; expected "
                f"1 to {len(self)}"
            )
        # Rounding up keeps the last and never takes one twice.
        chosen = [0, *(math.ceil((k + 1) * len(self) / count) for k in range(count))]
        return _Chosen(self, chosen)

    def straight(self, count: int, *, spacing: Spacing = "uniform") -> Trajectory:
        """Return the straight trajectory between this one's ends; see `linear`.

        What is not trained here is not trained there, buffers of floating point among it.
        """
        return Trajectory.linear(
            self.initial,
            self.state(-1),
            steps=count,
            spacing=spacing,
            buffers=[name for name in self.initial if name not in self.trained],
        )

    @staticmethod
    def linear(
        initial: State,
        final: State,
        *,
        steps: int = 10,
        spacing: Spacing = "uniform",
        buffers: Sequence[str] = (),
    ) -> Trajectory:
        """Return the straight trajectory between two checkpoints.

        Both are kept and not copied: give copies of the tensors of a network that still changes.

        Args:
            initial: State dict θ⁰, or a `Checkpoint` that reads tensors when they are asked for.
            final: State dict θᵀ.
            steps: T, the number of states after the initial one.
            spacing: How λ_s grows.
            buffers: Names of tensors that are not trained, beside the running statistics and
                integer tensors; a state dict alone does not tell them from parameters, see
                `regraft.symmetry.merge.connectivity.buffer_names`. A transfer leaves them the target's.

        Raises:
            InputError: States of two architectures or not finite, no steps, or an unknown spacing.
        """
        return _Linear(initial, final, fractions(steps, spacing), frozenset(buffers), spacing)

    @staticmethod
    def open(folder: str | Path, *, cut: Cut = "warn", verify: bool = True) -> Trajectory:
        """Open what a `TrajectoryRecorder` wrote.

        Args:
            folder: The folder.
            cut: What to do with a recording that was cut short (it was not finished, or files are
                missing or damaged): use the whole states before the cut and `warn`, `refuse` it, or
                `use` them silently.
            verify: Compare every file's checksum now; it costs one reading.

        Raises:
            InputError: No trajectory, a newer schema, one whose initial state is damaged, or one that
                was cut short and is to be refused or has no state after the initial one.
        """
        return _Recorded(open_recorded(Path(folder), cut=cut, verify=verify))


def fractions(steps: int, spacing: Spacing) -> list[float]:
    """Return λ_0 = 0 to λ_T = 1.

    Raises:
        InputError: No steps, or an unknown spacing.
    """
    if steps < 1:
        raise InputError(f"steps={steps}: expected at least 1 after the initial state")
    if spacing == "uniform":
        weights = [1.0] * steps
    elif spacing == "cosine":
        weights = [1.0 + math.cos(math.pi * t / steps) for t in range(steps)]
    else:
        raise InputError(f"spacing={spacing!r}: expected 'uniform' or 'cosine'")
    total = math.fsum(weights)
    return [math.fsum(weights[:s]) / total for s in range(steps)] + [1.0]


def wide(tensor: Tensor) -> Tensor:
    """Return a tensor in the dtype that differences of it are taken in: float32, or float64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def add(tensor: Tensor, delta: Tensor) -> Tensor:
    """Return tensor + delta, added in the wider dtype, in the tensor's own."""
    return (wide(tensor) + delta.to(tensor.device)).to(tensor.dtype)


class _Linear(Trajectory):
    def __init__(
        self, initial: State, final: State, at: list[float], buffers: frozenset[str], spacing: str
    ) -> None:
        shapes = {k: tuple(v.shape) for k, v in initial.items()}
        check_state(final, shapes, "the final state")
        refuse_not_finite(initial, "the initial state")
        refuse_not_finite(final, "the final state")
        self.steps = tuple(range(len(at)))
        self.initial, self.final, self.at = initial, final, at
        self.trained = frozenset(k for k, v in initial.items() if is_trained(k, v, buffers))
        self.origin = f"a straight line of {len(at) - 1} {spacing} steps"

    def displacement(self, i: int) -> Iterator[tuple[str, Tensor]]:
        for name in self.initial:
            if name in self.trained:
                first, last = wide(self.initial[name]), wide(self.final[name])
                yield name, (last - first.to(last.device)) * self.at[i]

    def others(self, i: int) -> Iterator[tuple[str, Tensor]]:
        share = self.at[i]
        for name in self.initial:
            if name in self.trained:
                continue
            first, last = self.initial[name], self.final[name]
            if not first.is_floating_point() or share == 1.0:
                yield name, last
            else:
                yield name, add(first, (wide(last) - wide(first)) * share)


class _Chosen(Trajectory):
    def __init__(self, whole: Trajectory, chosen: list[int]) -> None:
        self.whole, self.chosen = whole, chosen
        self.steps = tuple(whole.steps[i] for i in chosen)
        self.initial, self.trained = whole.initial, whole.trained
        self.origin = f"{len(chosen) - 1} states of {whole.origin}"

    @property
    def error(self) -> float:
        return self.whole.error

    def displacement(self, i: int) -> Iterator[tuple[str, Tensor]]:
        return self.whole.displacement(self.chosen[i])

    def others(self, i: int) -> Iterator[tuple[str, Tensor]]:
        return self.whole.others(self.chosen[i])


class _Recorded(Trajectory):
    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.steps, self.initial = recording.steps, recording.initial
        self.trained, self.origin = recording.trained, recording.origin

    @property
    def error(self) -> float:
        return self.recording.error

    def displacement(self, i: int) -> Iterator[tuple[str, Tensor]]:
        return self.recording.displacement(i)

    def others(self, i: int) -> Iterator[tuple[str, Tensor]]:
        return self.recording.others(i)

"""Exact linear assignment: which of B's units goes where, for a matrix of gains or a stack of them.

scipy's solver is always there. `lapx` (extra `match`) has one that is two to four times as fast on
the matrices that matching meets (its `lapjvr`; its older solvers are slower than scipy's) and as
exact: its potentials are float64 even where the costs are not. Both release Python's lock.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from regraft.errors import InputError, MissingExtraError

SOLVERS = ("auto", "scipy", "lapx")


def assign(gains: Tensor, *, solver: str = "auto", threads: int = 1) -> Tensor:
    """Return the permutation that maximises Σ_i gains[i, π(i)], int64 [n] (or [m, n]), on the CPU.

    Args:
        gains: Gains [n, n], or a stack [m, n, n]; gains[i, j] is what B's unit j at slot i brings.
        solver: "scipy", "lapx", or "auto" for the faster one that is installed.
        threads: Threads for a stack.

    Raises:
        InputError: A gain is not finite, or the matrices are not square.
        MissingExtraError: lapx was asked for and is not installed.
    """
    if gains.ndim not in (2, 3) or gains.shape[-1] != gains.shape[-2]:
        raise InputError(
            f"gains: got shape {tuple(gains.shape)}, expected [n, n] or a stack [m, n, n]"
        )
    if not gains.is_floating_point() or gains.dtype not in (torch.float32, torch.float64):
        gains = gains.float()
    # One cheap pass; only a sum that is not finite, which may be mere overflow, is looked into.
    finite = math.isfinite(gains.sum().item()) or bool(torch.isfinite(gains).all())
    if not finite:
        raise InputError(
            "gains: an entry is not a finite number; look for NaN or infinity in the tensors that "
            "are matched"
        )
    stack = gains.detach().reshape(-1, *gains.shape[-2:])
    if stack.shape[-1] <= 1:
        return torch.zeros(gains.shape[:-1], dtype=torch.int64)
    costs = stack.neg().cpu().contiguous().numpy()
    assignment = _solver(solver)(costs, threads)
    return torch.from_numpy(assignment).reshape(gains.shape[:-1])


def assigned(gains: Tensor, permutation: Tensor) -> Tensor:
    """Return Σ_i gains[i, π(i)] in float64, a scalar (or [m]); arguments as those of `assign`."""
    index = permutation.to(gains.device)[..., None]
    return gains.gather(-1, index).squeeze(-1).sum(-1, dtype=torch.float64)


@functools.cache
def _solver(name: str) -> Callable[[np.ndarray, int], np.ndarray]:
    if name not in SOLVERS:
        raise InputError(f"solver={name!r}: expected one of {', '.join(SOLVERS)}")
    if name == "scipy":
        return _scipy
    try:
        from lap import lapjvr, lapjvr_batch
    except ImportError as error:
        if name == "lapx":
            raise MissingExtraError("lapx", "match", "solver='lapx'") from error
        return _scipy

    def solve(costs: np.ndarray, threads: int) -> np.ndarray:
        if len(costs) == 1:
            return np.asarray(lapjvr(costs[0], return_cost=False)[1], dtype=np.int64)[None]
        columns = lapjvr_batch(costs, return_cost=False, n_threads=threads)[1]
        return np.stack(columns).astype(np.int64, copy=False)

    return solve


def _scipy(costs: np.ndarray, threads: int) -> np.ndarray:
    from scipy.optimize import linear_sum_assignment

    return np.stack([linear_sum_assignment(c)[1] for c in costs]).astype(np.int64, copy=False)

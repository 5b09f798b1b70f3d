"""Sparse matrices inside modules and outside checkpoints, and without torch's warnings."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Matrix(nn.Module):
    """A matrix as buffers outside checkpoints; torch can neither copy nor send sparse ones whole.

    Args:
        matrix: Strided or sparse CSR.
    """

    rows: Tensor
    columns: Tensor
    values: Tensor

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.shape = tuple(matrix.shape)
        self.sparse = matrix.layout == torch.sparse_csr
        if self.sparse:
            parts = {
                "rows": matrix.crow_indices(),
                "columns": matrix.col_indices(),
                "values": matrix.values(),
            }
        else:
            parts = {"values": matrix}
        for name, part in parts.items():
            self.register_buffer(name, part, persistent=False)

    def forward(self) -> Tensor:
        """Return the matrix."""
        if not self.sparse:
            return self.values
        return sparse(self.rows, self.columns, self.values, self.shape)


def sparse(rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return a sparse CSR matrix from the parts of one that was whole, unchecked.

    Args:
        rows: Where each row starts among the columns, int64 [n + 1].
        columns: Column of each value, int64 [k].
        values: The values [k].
        shape: Rows and columns.
    """
    # Checking again what has been checked would cost every step.
    return torch.sparse_csr_tensor(rows, columns, values, shape, check_invariants=False)


@contextlib.contextmanager
def quiet_sparse() -> Iterator[None]:
    """Keep torch from telling, once in every process, that its sparse matrices may still change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

"""PyTorch Geometric, imported only where a graph is really at hand."""

from __future__ import annotations

import sys
from typing import Any

from ._extras import optional


def geometric(module: str, purpose: str) -> Any:
    """Return the module `torch_geometric.MODULE`.

    Args:
        module: Name below `torch_geometric`, e.g. `nn`.
        purpose: What needs it, the start of the error's sentence.

    Raises:
        MissingExtraError: PyTorch Geometric is not installed.
        BrokenExtraError: It cannot be imported.
    """
    name = f"torch_geometric.{module}"
    if sys.modules.get(name) is not None:
        return sys.modules[name]
    return optional(name, "torch-geometric", "graph", purpose)

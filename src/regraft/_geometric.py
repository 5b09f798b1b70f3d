"""PyTorch Geometric, imported only where a graph is really at hand."""

from __future__ import annotations

import importlib
import sys
import warnings
from typing import Any

from .errors import MissingExtraError


def geometric(module: str, purpose: str) -> Any:
    """Return the module `torch_geometric.MODULE`.

    Args:
        module: Name below `torch_geometric`, e.g. `nn`.
        purpose: What needs it, the start of the error's sentence.

    Raises:
        MissingExtraError: PyTorch Geometric is not installed.
    """
    name = f"torch_geometric.{module}"
    if sys.modules.get(name) is not None:
        return sys.modules[name]
    try:
        with warnings.catch_warnings():
            # On import it uses parts of torch that newer versions of torch want to see no more.
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError("torch-geometric", "graph", purpose) from error

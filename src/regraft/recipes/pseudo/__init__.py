"""PP and P-SSL: transfer from a generator and a classifier, without source data, labels or architecture."""

from .recipe import recipe

__all__ = ["recipe"]

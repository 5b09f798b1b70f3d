"""Inherit more, train less: good networks out of what already exists.

The public surface is listed in `__init__.pyi`; each part is imported when it is first used.
"""

import lazy_loader as _lazy

from ._version import __version__ as __version__

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)

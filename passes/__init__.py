"""The passes, one file each in a folder by stage; imported as `irx.passes`.

The package can be called: `irx.passes()` lists the passes whether or not one of them was imported before, which makes
`irx.passes` the package.
"""

from __future__ import annotations

import sys
from functools import cache
from types import ModuleType

from irx.pipeline.index import PassIndex


@cache
def passes() -> PassIndex:
    """All passes by the name pipelines use: iterate for the names, `load(name)` for the class."""
    return PassIndex.scan(__name__)


class _Callable(ModuleType):
    def __call__(self) -> PassIndex:
        return passes()


sys.modules[__name__].__class__ = _Callable

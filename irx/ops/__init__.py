"""Which operations exist: one file per family, every op declared in one place. Importing this package declares all."""

from irx.ops import (
    activation,
    attention,
    cache,
    call,
    conv,
    elementwise,
    eviction,
    fusion,
    indexing,
    linear,
    moe,
    norm,
    position,
    precision,
    reduce,
    sampling,
    shape,
    tailed,
    tokens,
)

FAMILIES = (
    elementwise,
    activation,
    reduce,
    shape,
    indexing,
    linear,
    precision,
    conv,
    norm,
    position,
    attention,
    cache,
    tailed,
    eviction,
    tokens,
    moe,
    sampling,
    call,
    fusion,
)

__all__ = ["FAMILIES"]

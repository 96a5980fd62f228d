"""Packed weights that were made from a model's floats, put aside in a file: made once, and the model is let go.

A packed weight of a model file is read again from there whenever somebody wants it. One that is derived from floats
would have to be packed again each time, from parameters that may have changed by then, and would keep the model alive.
Its bytes are wanted when kernels are bound and when the executable is saved; they need not be in memory in between.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import IO

import numpy as np

from irx.ir.graph import Weight
from irx.ir.opdef import Array
from irx.ir.types import is_packed
from irx.ir.weights import Weights


def settled(weights: Weights, used: Sequence[Weight]) -> Weights:
    """The weights with the bytes of those in `used` that are packed from floats in a temporary file without a name.

    Where no such file can be written they are kept in memory.
    """
    made = [weight for weight in used if is_packed(weight.dtype) and _from_floats(weights, weight)]
    if not made:
        return weights
    result, file, start = weights.copy(), _temporary(), 0
    for weight in made:
        array = np.ascontiguousarray(weights.array(weight))
        result.bind(weight.name, _put_aside(array, file, start))
        start += array.nbytes
    return result


def _temporary() -> IO[bytes] | None:
    try:
        return tempfile.TemporaryFile()  # open for as long as somebody may read it
    except OSError:
        return None


def _from_floats(weights: Weights, weight: Weight) -> bool:
    """True where something that is not packed is needed to make the weight."""
    pending = [weight]
    while pending:
        item = pending.pop()
        derivation = weights.entry(item).derivation
        if not is_packed(item.dtype):
            return True
        pending += [w for w in derivation.inputs if isinstance(w, Weight)] if derivation is not None else []
    return False


def _put_aside(array: Array, file: IO[bytes] | None, start: int) -> Callable[[], Array]:
    if file is None:
        return lambda: array
    view, done = array.reshape(-1).data, 0
    try:
        while done < array.nbytes:
            done += os.pwrite(file.fileno(), view[done:], start + done)
    except OSError:
        return lambda: array
    return partial(_read, file, start, array.shape)


def _read(file: IO[bytes], start: int, shape: tuple[int, ...]) -> Array:
    raw = np.empty(shape, np.uint8)
    view, done = raw.reshape(-1).data, 0
    while done < raw.size:  # positioned reads: threads and forked processes share the file
        done += os.preadv(file.fileno(), [view[done:]], start + done)
    return raw

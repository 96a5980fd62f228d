"""Random weights for programs whose text only declares them: made when somebody asks, the same for the same seed."""

from __future__ import annotations

import math
import zlib
from functools import partial

import numpy as np

from irx.ir.dims import evaluate
from irx.ir.opdef import Array
from irx.ir.packing import random_blocks
from irx.ir.program import Program
from irx.ir.types import TensorType, is_float, is_packed, numpy_dtype
from irx.ir.weights import Weights

_DRAWN = 4_194_301  # prime, so that the rows of a larger array are not alike


def bind_declared(program: Program, seed: int = 0) -> None:
    """Give every weight of a program that was read from text an array: those under `constants` of its metadata the
    numbers that stand there (tables of frequencies, which random numbers would make meaningless), the others random
    ones."""
    for name, numbers in program.meta.get("constants", {}).items():
        program.weights.bind(name, partial(_given, program.weights[name].tensor, numbers))
    bind_random_weights(program.weights, seed)


def bind_random_weights(weights: Weights, seed: int = 0) -> list[str]:
    """Give every stored weight without an array a random one; returns the names of these.

    Matrices are normal, packed ones of random codes, with a variance of 1 / their last extent, so that activations keep
    their size through many layers; vectors are standard normal, integers 0 or 1. An array depends on the seed and the
    weight's name alone. Of a large one only the first millions of numbers are drawn, and then repeated.
    """
    bare = [e.weight for e in weights if e.load is None and e.derivation is None]
    for weight in bare:
        weights.bind(weight.name, partial(_random, weight.name, weight.tensor, seed))
    return [weight.name for weight in bare]


def _random(name: str, type: TensorType, seed: int) -> Array:
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    shape = tuple(evaluate(dim, {}) for dim in type.shape)  # weights know no named size
    if is_packed(type.dtype):
        return random_blocks(generator, shape, type.dtype)
    if not is_float(type.dtype):
        return generator.integers(0, 2, shape).astype(numpy_dtype(type.dtype))
    drawn = generator.standard_normal(min(math.prod(shape), _DRAWN), dtype=np.float32)
    scale = np.float32(shape[-1] ** -0.5 if len(shape) > 1 else 1.0)
    return np.resize((drawn * scale).astype(numpy_dtype(type.dtype)), shape)


def _given(type: TensorType, numbers: list[float]) -> Array:
    shape = tuple(evaluate(dim, {}) for dim in type.shape)
    return np.asarray(numbers, numpy_dtype(type.dtype)).reshape(shape)

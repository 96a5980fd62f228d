"""What tests need to run passes on a program: passes by name, a context with the oracle, random weights."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from irx.ir.dims import evaluate
from irx.ir.opdef import Array
from irx.ir.packing import random_blocks
from irx.ir.program import Program
from irx.ir.types import TensorType, is_float, is_packed, numpy_dtype
from irx.pipeline.base import Context, Pass
from irx.pipeline.index import PassIndex
from irx.pipeline.oracle import Oracle
from irx.pipeline.pipeline import Pipeline
from irx.target import find_device


def find_passes(text: str) -> tuple[Pass, ...]:
    """The passes that a pipeline's text says."""
    return Pipeline.parse(text, PassIndex.scan("irx.passes"), presets={}).passes


def context(program: Program) -> Context:
    """A context whose oracle reads the program's weights."""
    return Context(find_device("cpu-generic"), Oracle(program.weights))


def random_weights(program: Program, sizes: Mapping[str, int]) -> None:
    """Give every stored weight without an array a random one."""
    generator = np.random.default_rng(1)
    for entry in program.weights:
        if entry.load is None and entry.derivation is None:
            array = _random(entry.weight.tensor, sizes, generator)
            program.weights.bind(entry.weight.name, partial(np.asarray, array))


def _random(type: TensorType, sizes: Mapping[str, int], generator: np.random.Generator) -> Array:
    shape = tuple(evaluate(dim, sizes) for dim in type.shape)
    if is_packed(type.dtype):
        return random_blocks(generator, shape, type.dtype)
    array = generator.standard_normal(shape) if is_float(type.dtype) else generator.integers(0, 2, shape)
    return np.asarray(array.astype(numpy_dtype(type.dtype)))

"""What tests need to run a pass on a text: passes by name, a context with the oracle, random weights."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import irx.passes
from irx.analysis.reference import evaluate
from irx.ir.blocks import FORMATS
from irx.ir.dims import evaluate as evaluate_dim
from irx.ir.graph import Graph
from irx.ir.opdef import Array
from irx.ir.program import Program
from irx.ir.types import TensorType, is_float, is_packed, numpy_dtype
from irx.pipeline.base import Context, Pass
from irx.target.device import find_device


def find_pass(text: str) -> Pass:
    """The pass that `name` or `name{option=value, ...}` says; values are Python's, with lower-case booleans."""
    name, options = re.fullmatch(r"([a-z0-9-]+)(?:\{(.*)\})?", text).groups()  # type: ignore[union-attr]
    module = f"{name.replace('-', '_')}.py"
    (path,) = (p for folder in irx.passes.__path__ for p in Path(folder).glob(f"*/{module}"))
    found = importlib.import_module(f"irx.passes.{path.parent.name}.{path.stem}")
    (kind,) = (c for c in vars(found).values() if isinstance(c, type) and getattr(c, "name", None) == name)
    pairs = (pair.split("=") for pair in (options or "").split(",") if pair)
    return kind(**{key.strip().replace("-", "_"): _value(value) for key, value in pairs})


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    return words[text] if text in words else ast.literal_eval(text)


def context(program: Program) -> Context:
    """A context whose oracle reads the program's weights."""

    def oracle(graph: Graph, inputs: Mapping[str, Any], sizes: Mapping[str, int]) -> list[Array]:
        return evaluate(graph, inputs, sizes, program.weights)

    return Context(find_device("cpu-generic"), oracle)


def random_weights(program: Program, sizes: Mapping[str, int]) -> None:
    """Give every stored weight without an array a random one."""
    generator = np.random.default_rng(1)
    for entry in program.weights:
        if entry.load is not None or entry.derivation is not None:
            continue
        array = _random(entry.weight.tensor, sizes, generator)
        program.weights.bind(entry.weight.name, partial(np.asarray, array))


def _random(type: TensorType, sizes: Mapping[str, int], generator: np.random.Generator) -> Array:
    shape = tuple(evaluate_dim(dim, sizes) for dim in type.shape)
    if is_packed(type.dtype):  # no byte above 59: every float16 scale in them is finite and below 1
        return generator.integers(0, 60, FORMATS[type.dtype].packed_shape(shape)).astype(np.uint8)
    array = generator.standard_normal(shape) if is_float(type.dtype) else generator.integers(0, 2, shape)
    return np.asarray(array.astype(numpy_dtype(type.dtype)))

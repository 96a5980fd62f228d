"""Functions of lanes against float64, over their whole range and at the values where functions break."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from irx.backends.regions.lowered import Call as KernelCall
from irx.backends.regions.lowered import Lowered, single
from irx.backends.tvm import vector_math
from irx.backends.tvm.kernel import Kernel, Pointer, Size
from irx.backends.tvm.native import load
from irx.backends.tvm.single import aligned_copy
from irx.backends.tvm.writer import Writer
from irx.target.host import host_cpu
from tests.backends.tvm.lowered_run import objects

Function = Callable[[Any], Any]
_erf = np.vectorize(math.erf)
_erfc = np.vectorize(math.erfc)


def _sigmoid(x: Any) -> Any:
    return np.exp(-np.logaddexp(0, -x))


REFERENCES: dict[str, Function] = {
    "exp": np.exp,
    "exp2": np.exp2,
    "log": np.log,
    "log1p_of_exp": lambda x: np.logaddexp(0, x),
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "silu": lambda x: x * _sigmoid(x),
    "erf": _erf,
    "gelu": lambda x: 0.5 * x * _erfc(-x / math.sqrt(2)),
    "gelu_tanh": lambda x: x * _sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)),
    "sin": np.sin,
    "cos": np.cos,
    "rsqrt": lambda x: 1 / np.sqrt(x),
}
LARGEST = {"sin": 1e8, "cos": 1e8}  # beyond, the reduced angle is not exact
ABSOLUTE = {"sin": 1e-7, "cos": 1e-7, "gelu": 2e-8, "gelu_tanh": 2e-8}  # errors that zeros and tails may have
SPECIAL = [0.0, -0.0, math.inf, math.nan, 1e-45, 1.2e-38, 88.72, 88.73, -87.3, -100.0, 1e-8, -1e-8, 1.0, -1.0]


def _inputs() -> Any:
    generator = np.random.default_rng(0)
    parts = [
        np.linspace(-12, 12, 4001),
        generator.standard_normal(2000) * 1e-3,
        np.exp(generator.uniform(-80, 80, 3000)),
        generator.uniform(-86, 86, 3000),
        generator.uniform(-1e6, 1e6, 3000),
    ]
    x = np.concatenate([SPECIAL, *parts]).astype(np.float32)
    return x[: len(x) // 16 * 16]


@pytest.fixture(scope="module")
def computed() -> tuple[Any, dict[str, Any]]:
    """The inputs and, by function, the results of one kernel that has all of them."""
    w = Writer()
    with w.block("for i in T.serial((n * tid) // nt, (n * (tid + 1)) // nt):"):
        x = w.load("x", "i * 16", "f32")
        for name in REFERENCES:
            w.store(name, "i * 16", "f32", getattr(vector_math, name)(w, x))
        w.store("power", "i * 16", "f32", vector_math.power(w, x, w.load("y", "i * 16", "f32")))
    names = ["x", "y", *REFERENCES, "power"]
    kernel = Kernel("functions", (Size("n"), *(Pointer(name, "float32") for name in names)), w.text())
    x = _inputs()
    exponents = np.round(np.random.default_rng(1).uniform(-3, 3, len(x)) * 2) / 2
    arrays = {name: aligned_copy(np.zeros_like(x)) for name in names}
    arrays["x"][:], arrays["y"][:] = x, exponents
    _run(kernel, len(x) // 16, arrays)
    return x, arrays


def _run(kernel: Kernel, count: int, arrays: dict[str, Any]) -> None:
    from irx.backends.tvm.native import Argument, Entry, Table

    lowered: Lowered = single(KernelCall(kernel, {}))
    address = load(objects(lowered, host_cpu()))[kernel.symbol]
    pointers = [Argument(arrays[p.name].ctypes.data, True) for p in kernel.parameters[1:]]
    Table([Entry(address, [Argument(count), *pointers])]).run(2)


@pytest.mark.parametrize("name", REFERENCES)
def test_a_function_is_exact_to_a_few_units(computed: tuple[Any, dict[str, Any]], name: str) -> None:
    x, results = computed
    with np.errstate(all="ignore"):
        wanted = np.asarray(REFERENCES[name](x.astype(np.float64)))
    known = np.abs(x) < LARGEST.get(name, math.inf)
    known |= ~np.isfinite(x)
    _check(results[name][known], wanted[known], ABSOLUTE.get(name, 1e-12))


def test_a_power_is_exact_to_a_few_units(computed: tuple[Any, dict[str, Any]]) -> None:
    x, results = computed
    with np.errstate(all="ignore"):
        wanted = np.power(x.astype(np.float64), results["y"].astype(np.float64))
    _check(results["power"], wanted, absolute=1e-37)


def _check(found: Any, wanted: Any, absolute: float) -> None:
    """Relative error 4e-7 where results are normal; the same infinities and nans; signs of zeros are free."""
    with np.errstate(all="ignore"):
        rounded = wanted.astype(np.float32)
    assert np.array_equal(np.isnan(found), np.isnan(rounded))
    infinite = np.isinf(rounded)
    assert np.array_equal(found[infinite], rounded[infinite])
    rest = ~infinite & ~np.isnan(rounded)
    error = np.abs(found[rest].astype(np.float64) - wanted[rest])
    assert np.all(error <= 4e-7 * np.abs(wanted[rest]) + absolute)

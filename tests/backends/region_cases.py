"""What generated kernels are tried on, whoever generates them: every op and dtype, and regions of many ops."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import irx.ops  # noqa: F401  declares the ops
from irx.analysis.inputs import random_inputs
from irx.backends.regions.lowered import Choices, Lowered, Rule
from irx.ir.dims import symbol
from irx.ir.graph import Builder, Graph, Value
from irx.ir.opdef import as_float64, lookup
from irx.ir.types import TensorType
from irx.ops.cache import KVArrays
from tests.ops.cases import Case, all_cases

Run = Callable[[Lowered, Graph, Mapping[str, Any]], dict[str, Any]]

NOT_GENERATED = {
    *("attention", "attention_lse", "attention_stats", "merge_attention", "rope", "linear", "matmul", "moe", "sample"),
    *("conv1d", "conv2d", "scatter", "scatter_tokens", "merge_tokens", "topk_tokens", "match_tokens", "pool_scores"),
    *("coded_attention", "quantize", "round_activations", "round_tokens"),
    *("kv_append", "kv_attention", "kv_evict", "kv_gather", "kv_keep", "torch.call", "fusion"),
}
TOGETHER = 12  # cases in one body: fewer kernels to compile


def table_cases() -> list[tuple[Case, str]]:
    return [(c, d) for c in all_cases() if c.op not in NOT_GENERATED for d in c.dtypes if not _has_state(c, d)]


def _has_state(case: Case, dtype: str) -> bool:
    return any(isinstance(array, KVArrays) for array in case.arrays(dtype))


class Batch:
    """Several cases as one body."""

    def __init__(self, cases: list[tuple[Case, str]], rule: Rule, choices: Choices) -> None:
        self.graph = Graph("")
        self.inputs: dict[str, Any] = {}
        self.cases: list[tuple[Case, str, list[Any], tuple[Value, ...]]] = []
        for case, dtype in cases:
            self._add(case, dtype)
        outputs = [value for *_, values in self.cases for value in values]
        self.graph.set_outputs({f"y{i}": value for i, value in enumerate(outputs)})
        self.outputs = outputs
        lowered = rule(self.graph, choices)
        assert lowered is not None
        self.lowered: Lowered = lowered

    def _add(self, case: Case, dtype: str) -> None:
        arrays = case.arrays(dtype)
        operands: list[Any] = []
        for array, type in zip(arrays, case.types(arrays), strict=True):
            if isinstance(array, np.ndarray) and type is not None:
                operands.append(self.graph.add_input(f"x{len(self.inputs)}", type))
                self.inputs[operands[-1].name] = array
            else:
                operands.append(array)
        self.cases.append((case, dtype, arrays, self.graph.add(case.op, operands, case.attrs).outputs))

    def check(self, run: Run) -> None:
        found = run(self.lowered, self.graph, self.inputs)
        by_value = {value: found[f"y{i}"] for i, value in enumerate(self.outputs)}
        for case, dtype, arrays, values in self.cases:
            op = lookup(case.op)
            form = {"format": case.operands[0].format} if case.op == "dequantize" else {}
            exact = [as_float64(a) if isinstance(a, np.ndarray) else a for a in arrays]
            with np.errstate(all="ignore"):
                wanted = op.reference(*exact, **case.attrs, **form)
            for value, expected in zip(values, wanted if isinstance(wanted, tuple) else (wanted,), strict=True):
                narrow = value.dtype if value.dtype in ("bf16", "f16") else dtype
                tolerance = op.tolerance.of(narrow) or op.tolerance.f32
                close(by_value[value], expected, tolerance, f"{case}-{dtype}")


def close(found: Any, wanted: Any, tolerance: float, what: str) -> None:
    """The tests' measure: max|difference| over max|wanted|; what is not finite must be equal."""
    found, wanted = np.asarray(found).astype(np.float64), np.asarray(wanted).astype(np.float64)
    assert found.shape == wanted.shape, what
    finite = np.isfinite(wanted)
    assert np.array_equal(found[~finite], wanted[~finite], equal_nan=True), what
    error = np.abs(found[finite] - wanted[finite]).max(initial=0)
    assert error <= tolerance * np.abs(wanted[finite]).max(initial=0), f"{what}: {error}"


def batches_of(rule: Rule, choices: Choices) -> list[Batch]:
    """All cases of the table, in as few bodies as is fit."""
    cases = table_cases()
    return [Batch(cases[i : i + TOGETHER], rule, choices) for i in range(0, len(cases), TOGETHER)]


# --- regions of many ops --------------------------------------------------------------------------------------------

B, S = symbol("B"), symbol("S")
Make = Callable[[Builder, Graph, int], dict[str, Value]]


def input_of(graph: Graph, *shape: Any, dtype: str = "f32") -> Value:
    return graph.add_input(f"x{len(graph.inputs)}", TensorType(tuple(shape), dtype))


def add_norm(b: Builder, g: Graph, columns: int) -> dict[str, Value]:
    x, r, w = input_of(g, B, S, columns), input_of(g, B, S, columns), input_of(g, columns)
    total = b("add", x, r)
    return {"s": total, "y": b("rms_norm", total, w, eps=1e-5)}


def half_norm(b: Builder, g: Graph, columns: int) -> dict[str, Value]:
    x, w = input_of(g, B, S, columns, dtype="bf16"), input_of(g, columns, dtype="bf16")
    return {"y": b("layer_norm", x, w, w, eps=1e-5)}


def gated(b: Builder, g: Graph, columns: int) -> dict[str, Value]:
    x = input_of(g, B, S, 2 * columns)
    first = b("slice", x, axis=-1, start=0, stop=columns)
    return {"y": b("swiglu", first, b("slice", x, axis=-1, start=columns))}


def masked_softmax(b: Builder, g: Graph, columns: int) -> dict[str, Value]:
    x, mask = input_of(g, B, S, columns), input_of(g, B, 1, columns, dtype="bool")
    return {"y": b("softmax", b("where", mask, b("mul", x, 0.5), -1e9), axis=-1)}


def pooled(b: Builder, g: Graph, columns: int) -> dict[str, Value]:
    x, mask = input_of(g, B, S, columns), input_of(g, B, S, dtype="i64")
    wide = b("cast", b("reshape", mask, shape=(B, S, 1)), dtype="f32")
    total = b("sum", b("mul", x, wide), axes=(1,))
    mean = b("div", total, b("clamp", b("sum", wide, axes=(1,)), low=1e-9))
    norm = b("sqrt", b("sum", b("mul", mean, mean), axes=(-1,), keepdims=True))
    return {"y": b("div", mean, b("clamp", norm, low=1e-12))}


def heads(b: Builder, g: Graph, columns: int) -> dict[str, Value]:
    x = input_of(g, B, S, 3 * columns)
    split = b("permute", b("reshape", x, shape=(B, S, 3, columns)), order=(0, 2, 1, 3))
    back = b("reshape", b("permute", b("mul", split, 2.0), order=(0, 2, 1, 3)), shape=(B, S, 3 * columns))
    return {"heads": split, "back": b("add", back, x)}


def rotated(b: Builder, g: Graph, columns: int) -> dict[str, Value]:
    x, angle = input_of(g, B, S, 2 * columns), input_of(g, S, 2 * columns)
    first, second = (b("slice", x, axis=-1, start=i * columns, stop=(i + 1) * columns) for i in (0, 1))
    turned = b("concat", b("neg", second), first, axis=-1)
    return {"y": b("add", b("mul", x, b("cos", angle)), b("mul", turned, b("sin", angle)))}


def embedded(b: Builder, g: Graph, columns: int) -> dict[str, Value]:
    ids, table, kinds = input_of(g, B, S, dtype="i64"), input_of(g, 13, columns), input_of(g, 2, columns)
    positions = b("arange", start=0, stop=S)
    x = b("add", b("embedding", ids, table), b("embedding", positions, input_of(g, 64, columns)))
    first = b("take", kinds, b("full", shape=(), value=1, dtype="i64"), axis=0)
    return {"y": b("layer_norm", b("add", x, first), eps=1e-6)}


def middle(b: Builder, g: Graph, columns: int) -> dict[str, Value]:
    x = input_of(g, B, S, columns)
    return {"y": b("softmax", x, axis=1), "i": b("argmax", x, axis=-1), "c": b("cumsum", x, axis=1)}


def across(b: Builder, g: Graph, columns: int) -> dict[str, Value]:
    x = input_of(g, B, columns, S)
    return {"y": b("sum", x, axes=(1,)), "z": b("amax", x, axes=(1,))}


MAKES: tuple[Make, ...] = (add_norm, half_norm, gated, masked_softmax, pooled, heads, rotated, embedded, middle, across)
SIZES = ((1, 1), (2, 5), (3, 1))
COLUMNS = (1, 64, 131)


def built(make: Make, columns: int, rule: Rule, choices: Choices) -> tuple[Graph, Lowered]:
    """A region and its kernels."""
    graph = Graph("")
    graph.set_outputs(make(Builder(graph), graph, columns))
    lowered = rule(graph, choices)
    assert lowered is not None
    return graph, lowered


def random_of(graph: Graph, sizes: dict[str, int]) -> dict[str, Any]:
    return random_inputs(graph, sizes, seed=3)

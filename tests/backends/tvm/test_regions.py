"""Generated kernels against the oracle: every op and dtype, sizes odd, prime and 1, and regions of many ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import irx.ops  # noqa: F401  declares the ops
from irx.analysis.reference import evaluate
from irx.backends.regions.lowered import Lowered, Refusal
from irx.backends.tvm.rules.regions import rule
from irx.ir.dims import symbol
from irx.ir.graph import Builder, Graph, Value
from irx.ir.opdef import as_float64, lookup, registry
from irx.ir.types import TensorType
from irx.ir.weights import Weights
from irx.ops.cache import KVArrays
from tests.backends.tvm.lowered_run import choices, prepare, run_lowered
from tests.ops.cases import Case, all_cases

NOT_GENERATED = {
    *("attention", "attention_lse", "attention_stats", "merge_attention", "rope", "linear", "matmul", "moe", "sample"),
    *("conv1d", "conv2d", "scatter", "scatter_tokens", "merge_tokens", "topk_tokens", "match_tokens", "pool_scores"),
    *("quantize", "round_activations", "round_tokens"),
    *("kv_append", "kv_attention", "kv_evict", "kv_gather", "torch.call", "fusion"),
}
TOGETHER = 12  # cases in one body: fewer kernels to compile


def _cases() -> list[tuple[Case, str]]:
    return [(c, d) for c in all_cases() if c.op not in NOT_GENERATED for d in c.dtypes if not _has_state(c, d)]


def _has_state(case: Case, dtype: str) -> bool:
    return any(isinstance(array, KVArrays) for array in case.arrays(dtype))


class Batch:
    """Several cases as one body."""

    def __init__(self, cases: list[tuple[Case, str]]) -> None:
        self.graph = Graph("")
        self.inputs: dict[str, Any] = {}
        self.cases: list[tuple[Case, str, list[Any], tuple[Value, ...]]] = []
        for case, dtype in cases:
            self._add(case, dtype)
        outputs = [value for *_, values in self.cases for value in values]
        self.graph.set_outputs({f"y{i}": value for i, value in enumerate(outputs)})
        self.outputs = outputs
        lowered = rule(self.graph, choices())
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

    def check(self) -> None:
        found = run_lowered(self.lowered, self.graph, self.inputs)
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


@pytest.fixture(scope="module")
def batches() -> list[Batch]:
    cases = _cases()
    made = [Batch(cases[i : i + TOGETHER]) for i in range(0, len(cases), TOGETHER)]
    prepare([batch.lowered for batch in made])
    return made


def test_every_case_of_the_table_is_computed(batches: list[Batch]) -> None:
    for batch in batches:
        batch.check()


def test_the_table_covers_the_ops_that_kernels_are_generated_for() -> None:
    assert {case.op for case, _ in _cases()} == registry().keys() - NOT_GENERATED


# --- regions of many ops --------------------------------------------------------------------------------------------

B, S = symbol("B"), symbol("S")
Make = Callable[[Builder, Graph, int], dict[str, Value]]


def _input(graph: Graph, *shape: Any, dtype: str = "f32") -> Value:
    return graph.add_input(f"x{len(graph.inputs)}", TensorType(tuple(shape), dtype))


def add_norm(b: Builder, g: Graph, columns: int) -> dict[str, Value]:
    x, r, w = _input(g, B, S, columns), _input(g, B, S, columns), _input(g, columns)
    total = b("add", x, r)
    return {"s": total, "y": b("rms_norm", total, w, eps=1e-5)}


def half_norm(b: Builder, g: Graph, columns: int) -> dict[str, Value]:
    x, w = _input(g, B, S, columns, dtype="bf16"), _input(g, columns, dtype="bf16")
    return {"y": b("layer_norm", x, w, w, eps=1e-5)}


def gated(b: Builder, g: Graph, columns: int) -> dict[str, Value]:
    x = _input(g, B, S, 2 * columns)
    first = b("slice", x, axis=-1, start=0, stop=columns)
    return {"y": b("swiglu", first, b("slice", x, axis=-1, start=columns))}


def masked_softmax(b: Builder, g: Graph, columns: int) -> dict[str, Value]:
    x, mask = _input(g, B, S, columns), _input(g, B, 1, columns, dtype="bool")
    return {"y": b("softmax", b("where", mask, b("mul", x, 0.5), -1e9), axis=-1)}


def pooled(b: Builder, g: Graph, columns: int) -> dict[str, Value]:
    x, mask = _input(g, B, S, columns), _input(g, B, S, dtype="i64")
    wide = b("cast", b("reshape", mask, shape=(B, S, 1)), dtype="f32")
    total = b("sum", b("mul", x, wide), axes=(1,))
    mean = b("div", total, b("clamp", b("sum", wide, axes=(1,)), low=1e-9))
    norm = b("sqrt", b("sum", b("mul", mean, mean), axes=(-1,), keepdims=True))
    return {"y": b("div", mean, b("clamp", norm, low=1e-12))}


def heads(b: Builder, g: Graph, columns: int) -> dict[str, Value]:
    x = _input(g, B, S, 3 * columns)
    split = b("permute", b("reshape", x, shape=(B, S, 3, columns)), order=(0, 2, 1, 3))
    back = b("reshape", b("permute", b("mul", split, 2.0), order=(0, 2, 1, 3)), shape=(B, S, 3 * columns))
    return {"heads": split, "back": b("add", back, x)}


def rotated(b: Builder, g: Graph, columns: int) -> dict[str, Value]:
    x, angle = _input(g, B, S, 2 * columns), _input(g, S, 2 * columns)
    first, second = (b("slice", x, axis=-1, start=i * columns, stop=(i + 1) * columns) for i in (0, 1))
    turned = b("concat", b("neg", second), first, axis=-1)
    return {"y": b("add", b("mul", x, b("cos", angle)), b("mul", turned, b("sin", angle)))}


def embedded(b: Builder, g: Graph, columns: int) -> dict[str, Value]:
    ids, table, kinds = _input(g, B, S, dtype="i64"), _input(g, 13, columns), _input(g, 2, columns)
    positions = b("arange", start=0, stop=S)
    x = b("add", b("embedding", ids, table), b("embedding", positions, _input(g, 64, columns)))
    first = b("take", kinds, b("full", shape=(), value=1, dtype="i64"), axis=0)
    return {"y": b("layer_norm", b("add", x, first), eps=1e-6)}


def middle(b: Builder, g: Graph, columns: int) -> dict[str, Value]:
    x = _input(g, B, S, columns)
    return {"y": b("softmax", x, axis=1), "i": b("argmax", x, axis=-1), "c": b("cumsum", x, axis=1)}


MAKES: tuple[Make, ...] = (add_norm, half_norm, gated, masked_softmax, pooled, heads, rotated, embedded, middle)
SIZES = ((1, 1), (2, 5), (3, 1))
COLUMNS = (1, 64, 131)


def _built(make: Make, columns: int) -> tuple[Graph, Lowered]:
    graph = Graph("")
    graph.set_outputs(make(Builder(graph), graph, columns))
    lowered = rule(graph, choices())
    assert lowered is not None
    return graph, lowered


@pytest.fixture(scope="module")
def regions() -> dict[tuple[str, int], tuple[Graph, Lowered]]:
    made = {(make.__name__, columns): _built(make, columns) for make in MAKES for columns in COLUMNS}
    prepare([lowered for _, lowered in made.values()])
    return made


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("make", MAKES, ids=lambda make: make.__name__)
def test_a_region_computes_what_the_oracle_says(regions: Any, make: Make, columns: int) -> None:
    graph, lowered = regions[make.__name__, columns]
    for batch, length in SIZES:
        inputs = _random(graph, {"B": batch, "S": length})
        found = run_lowered(lowered, graph, inputs)
        wanted = evaluate(graph, inputs, {}, Weights())
        for name, value, expected in zip(graph.output_names, graph.outputs, wanted, strict=True):
            close(found[name], expected, 1e-2 if value.dtype == "bf16" else 1e-5, f"{make.__name__}.{name}")


def _random(graph: Graph, sizes: dict[str, int]) -> dict[str, Any]:
    from irx.analysis.inputs import random_inputs

    return random_inputs(graph, sizes, seed=3)


@pytest.mark.parametrize("threads", [1, 2])
def test_ids_outside_of_the_table_read_its_ends(threads: int) -> None:
    graph = Graph("")
    ids, table = _input(graph, 4, dtype="i64"), _input(graph, 5, 3)
    graph.set_outputs({"y": Builder(graph)("embedding", ids, table)})
    lowered = rule(graph, choices())
    assert lowered is not None
    rows = np.arange(15, dtype=np.float32).reshape(5, 3)
    found = run_lowered(lowered, graph, {"x0": np.array([-1, 99, -99, 2]), "x1": rows}, threads=threads)
    assert np.array_equal(found["y"], rows[[4, 4, 0, 2]])


def test_what_no_kernel_is_generated_for_is_refused_by_name() -> None:
    graph = Graph("")
    x = _input(graph, 3, 4)
    graph.set_outputs({"y": Builder(graph)("matmul", x, _input(graph, 4, 2))})
    with pytest.raises(Refusal, match="matmul"):
        rule(graph, choices())

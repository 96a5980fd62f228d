"""Caches of codes: bounds on what they lose, the limit, and that a prompt may be divided as one likes."""

from __future__ import annotations

import numpy as np
import pytest

import irx
from irx.analysis.reference import evaluate
from irx.errors import BadOption
from irx.ir.codes import CODES
from irx.ir.opdef import Array
from irx.ir.printer import print_program
from irx.ir.program import Program
from irx.ir.types import KVType
from irx.ops.cache import KVArrays
from irx.ops.precision import RoundTokens, token_codes
from irx.pipeline.base import Report
from tests.cases.running import context, find_passes

TEXT = """program @p {
  size B in [1, 16]
  size S in [1, 64]
  graph @forward(%q: f32[B, 4, S, 8], %k: f32[B, 2, S, 8], %v: f32[B, 2, S, 6]) -> (y: f32[B, 4, S, 6]) {
    %y = irx.attention(%q, %k, %v) {scale=0.5, causal=true}
    return %y
  }
  graph @prefill(%q: f32[B, 4, S, 8], %k: f32[B, 2, S, 8], %v: f32[B, 2, S, 6], %pos: i64[B, S], %kv0: KV)
      -> (y: f32[B, 4, S, 6], kv0: KV) {
    %kv = irx.kv_append(%kv0, %k, %v, %pos)
    %y = irx.kv_attention(%q, %kv, %pos) {scale=0.5}
    return %y, %kv
  }
}"""


def _program() -> Program:
    return irx.parse(TEXT.replace("KV", "kv<heads=2, k_dim=8, v_dim=6, dense, f32>"))


def _quantized(bits: int) -> tuple[Program, Report]:
    program = _program()
    (quantize,) = find_passes(f"kv-quantize{{bits={bits}}}")
    return program, quantize.run(program, context(program))


@pytest.mark.parametrize("scale", [1e-6, 0.01, 1.0, 700.0])
@pytest.mark.parametrize("offset", [0.0, 40.0, -40.0])
@pytest.mark.parametrize("bits", [4, 8])
def test_no_element_is_off_by_more_than_half_a_step(bits: int, offset: float, scale: float) -> None:
    """Also where the row is far from zero, and its lowest value no float16."""
    rows = ((np.random.default_rng(0).standard_normal((500, 32)) + offset) * scale).astype(np.float32)
    codes, step, low = token_codes(rows, bits)
    found = codes.astype(np.float64) * step + low
    assert codes.min() == 0
    assert codes.max() <= 2**bits - 1
    assert (np.abs(found - rows) <= step.astype(np.float64) / 2 * (1 + 1e-4)).all()
    width = np.ptp(rows, axis=1, keepdims=True)
    coarse = np.abs(rows).max(axis=1, keepdims=True) * 2**-10 + 2.0**-23  # of float16
    assert (step <= (width + coarse) / (2**bits - 1) * (1 + 2**-9) + 2.0**-23).all()


@pytest.mark.parametrize("code", CODES)
def test_numbers_on_a_grid_stay_as_they_are(code: str) -> None:
    top = 2 ** CODES[code] - 1
    numbers = np.random.default_rng(1).integers(0, top + 1, (50, 16))
    numbers[:, :2] = [0, top]
    rows = numbers * 0.125 - 3.0
    assert np.array_equal(RoundTokens.reference(rows, code=code), rows)
    assert np.array_equal(RoundTokens.reference(rows * 0 + 0.75, code=code), rows * 0 + 0.75)


def test_sixteen_bits_change_nothing_and_say_so() -> None:
    program, report = _quantized(16)
    assert print_program(program) == print_program(_program())
    assert "as they are" in report.note
    assert not report.sites


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("chunks", [[9], [1] * 9, [4, 1, 4], [8, 1]])
def test_a_prompt_may_be_divided_as_one_likes(bits: int, chunks: list[int]) -> None:
    """`forward`, and prefill of any chunks, are one function on the oracle: bit for bit."""
    program, report = _quantized(bits)
    assert [site.what for site in report.sites] == [f"keys and values as token{bits}"]
    arrays = _arrays()
    (whole,) = evaluate(program.graphs["forward"], arrays, {}, program.weights)
    (exact,) = evaluate(_program().graphs["forward"], arrays, {}, program.weights)
    off = np.abs(whole - exact).max()
    assert (0.01 if bits == 4 else 1e-4) < off < (0.6 if bits == 4 else 0.03)
    assert np.array_equal(_in_chunks(program, arrays, chunks), whole)


def _arrays() -> dict[str, Array]:
    generator = np.random.default_rng(3)
    shapes = {"q": (2, 4, 9, 8), "k": (2, 2, 9, 8), "v": (2, 2, 9, 6)}
    return {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def _in_chunks(program: Program, arrays: dict[str, Array], chunks: list[int]) -> Array:
    prefill = program.graphs["prefill"]
    (kv,) = (value.type for value in prefill.inputs if isinstance(value.type, KVType))
    state, outs, start = KVArrays.empty(kv, 2), [], 0
    for count in chunks:
        part = {name: array[:, :, start : start + count] for name, array in arrays.items()}
        pos = np.tile(np.arange(start, start + count), (2, 1))
        out, state = evaluate(prefill, {**part, "pos": pos, "kv0": state}, {}, program.weights)
        outs.append(out)
        start += count
    return np.concatenate(outs, axis=2)


@pytest.mark.parametrize("chunks", [[9], [1] * 9, [4, 1, 4], [8, 1]])
def test_codes_with_a_tail_are_one_function_in_all_graphs(chunks: list[int]) -> None:
    """Bit for bit on the oracle: keys below the last multiple of 3, and values but the newest 3, are codes."""
    program, arrays = _program(), _arrays()
    (quantize,) = find_passes("kv-quantize{scheme=kivi, bits=2, group=3, tail=3}")
    report = quantize.run(program, context(program))
    assert [site.what for site in report.sites] == ["keys and values as kivi2-3-3"]
    (whole,) = evaluate(program.graphs["forward"], arrays, {}, program.weights)
    (exact,) = evaluate(_program().graphs["forward"], arrays, {}, program.weights)
    assert np.array_equal(whole[:, :, :3], exact[:, :, :3])
    assert all(np.abs(whole - exact)[:, :, row].max() > 1e-3 for row in range(3, 9))
    assert np.array_equal(_in_chunks(program, arrays, chunks), whole)


def test_a_tail_of_all_tokens_changes_nothing() -> None:
    program, arrays = _program(), _arrays()
    (quantize,) = find_passes("kv-quantize{scheme=kivi, bits=2, group=2, tail=10}")
    quantize.run(program, context(program))
    (whole,) = evaluate(program.graphs["forward"], arrays, {}, program.weights)
    (exact,) = evaluate(_program().graphs["forward"], arrays, {}, program.weights)
    assert np.array_equal(whole, exact)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("scheme=kivi, bits=8", "must be in"),
        ("scheme=token, bits=2", "must be in"),
        ("scheme=kivi, bits=2, group=48, tail=128", "no whole groups of 48"),
    ],
)
def test_options_that_make_no_code(options: str, message: str) -> None:
    with pytest.raises(BadOption, match=message):
        find_passes(f"kv-quantize{{{options}}}")

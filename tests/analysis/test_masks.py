"""Masks, told apart by evaluating them; windows wider than anything that is evaluated as a whole."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

import irx.ops  # noqa: F401
from irx.analysis.masks import MaskProbe, Visible
from irx.analysis.reference import evaluate
from irx.analysis.values import Prober
from irx.ir.dims import symbol
from irx.ir.parser import parse

HEAD = """
    %j = irx.arange() {stop=S} : i64[S]
    %i = irx.reshape(%j) {shape=[S, 1]} : i64[S, 1]
    %d = irx.sub(%i, %j) : i64[S, S]
    %c = irx.ge(%d, 0) : bool[S, S]
"""
WINDOW = HEAD + "    %w = irx.lt(%d, {w})\n    %m = irx.and(%c, %w)\n"
ADDITIVE = HEAD + "    %m = irx.where(%c, {seen}, -3.4028234663852886e+38)\n"


def classify(body: str, longest: int = 2048, high: int = 100000) -> Visible | str:
    dtype = "f32" if "where" in body else "bool"
    graph = f"graph @g() -> (m: {dtype}[S, S]) {{\n{body}    return %m\n  }}"
    text = f"program @p {{\n  size S in [1, {high}]\n  {graph}\n}}"
    program = parse(text)
    prober = Prober(program.weights, partial(evaluate, weights=program.weights))
    (mask,) = program.graphs["g"].outputs
    return MaskProbe(prober, program.sizes, longest).classify(mask, symbol("S"), symbol("S"))


def test_causal_and_full() -> None:
    assert classify(HEAD + "    %m = irx.ge(%d, 0)\n") == Visible(causal=True)
    assert classify(HEAD + "    %m = irx.or(%c, true)\n") == Visible()


@pytest.mark.parametrize("width", [3, 8, 100, 511, 512, 4096, 32768])
def test_windows_of_any_width(width: int) -> None:
    assert classify(WINDOW.replace("{w}", str(width))) == Visible(causal=True, window=width)


def test_a_window_that_no_number_names_is_seen_at_the_longest_size() -> None:
    text = (
        HEAD
        + """
    %n = irx.mul(64, %i)
    %q = irx.mul(%d, 2)
    %k = irx.mul(%i, 0)
    %z = irx.add(%k, 25)
    %zz = irx.mul(%z, %z)
    %w = irx.lt(%d, %zz)
    %m = irx.and(%c, %w)
"""
    )
    assert classify(text) == Visible(causal=True, window=625)


def test_a_window_that_leaves_the_future_alone() -> None:
    assert classify(HEAD + "    %m = irx.lt(%d, 30)\n") == Visible(window=30)


def test_a_window_wider_than_any_sequence_hides_nothing() -> None:
    assert classify(WINDOW.replace("{w}", "500"), high=400) == Visible(causal=True)


def test_additive_masks() -> None:
    assert classify(ADDITIVE.replace("{seen}", "0.0")) == Visible(causal=True)
    assert classify(ADDITIVE.replace("{seen}", "0.5")) == Visible(causal=True, zero=False)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (HEAD + "    %m = irx.lt(%d, 0)\n", "neither full nor causal"),
        (HEAD + "    %w = irx.gt(%d, -3)\n    %v = irx.lt(%d, 3)\n    %m = irx.and(%w, %v)\n", "neither full nor"),
        (HEAD + "    %l = irx.mul(%i, S)\n    %b = irx.lt(%j, %l)\n    %m = irx.and(%c, %b)\n", "neither full nor"),
    ],
    ids=["future", "band", "first hidden"],
)
def test_other_masks_have_no_name(body: str, reason: str) -> None:
    found = classify(body)
    assert isinstance(found, str)
    assert reason in found


def test_a_mask_that_changes_with_the_length_has_no_name() -> None:
    body = (
        HEAD
        + """
    %h = irx.mul(%i, 0)
    %s = irx.add(%h, S)
    %l = irx.lt(%s, 50)
    %m = irx.or(%c, %l)
"""
    )
    found = classify(body)
    assert isinstance(found, str)
    assert "changes with the length" in found


def test_a_table_that_ends_early_ends_the_sequences_too() -> None:
    text = """
    program @p {
      weight $seen : bool[300, 300]
      graph @g() -> (m: bool[S, S]) {
        %i = irx.arange() {stop=S} : i64[S]
        %a = irx.take($seen, %i) {axis=0} : bool[S, 300]
        %m = irx.take(%a, %i) {axis=1} : bool[S, S]
        return %m
      }
    }"""
    program = parse(text)
    places = np.arange(300)
    seen = (places <= places[:, None]) & (places > places[:, None] - 290)
    program.weights.bind("seen", lambda: seen)
    prober = Prober(program.weights, partial(evaluate, weights=program.weights))
    (mask,) = program.graphs["g"].outputs
    found = MaskProbe(prober, program.sizes, 2048).classify(mask, symbol("S"), symbol("S"))
    assert found == Visible(causal=True, window=290)

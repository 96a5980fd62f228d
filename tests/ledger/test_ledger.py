"""The ledger: JSON round trip, tables, and dashes for what was not measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from irx.errors import DamagedFile
from irx.ledger import DASH, KEPT, REFUSED, Ledger, Miss, Row, Summary, merged

MISSES = (Miss("forward", "layers.0", "mean: over axes (1,)"),) * 3
LEDGER = Ledger(
    [
        Row(0, "raise-norm", "normalize", "rounding", KEPT, "rms_norm", ("forward",), 61, ("a",), MISSES, 2e-16),
        Row(1, "kv-quantize", "cache", "lossy", KEPT, metric="kl", spent=0.01, left=0.02, latency=-1e-5, noise=1e-6),
        Row(2, "fuse-norm", "fuse", "rounding", REFUSED, seconds=0.5, bytes=-1024, reason="wrong | bad"),
    ],
    ["GGUF weights run with A16"],
    Summary(
        backend="torch",
        device="cpu-generic",
        pipeline="raise-norm",
        dtype="f32",
        operations={"linear": 3},
        calls={"aten.histc": 2},
        fallbacks={"%x": "no kernel"},
        error=1e-12,
    ),
)


def test_json_round_trip() -> None:
    assert Ledger.from_json(LEDGER.to_json()) == LEDGER
    assert Ledger.from_json(Ledger().to_json()) == Ledger()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": [1], "notes": [], "summary": {}}', '{"rows": 3}'])
def test_damaged_json_is_our_error(text: str) -> None:
    with pytest.raises(DamagedFile, match="no ledger"):
        Ledger.from_json(text)


@pytest.mark.parametrize("table", [str, Ledger.to_markdown])
def test_tables_tell_everything(table: Callable[[Ledger], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "180")
    text = table(LEDGER)
    for part in ("raise-norm", "rms_norm in forward", "2e-16", "0.01 kl", "-10.0 us ± 1.0", "-1,024", "0.50"):
        assert part in text
    for part in ("torch on cpu-generic, f32", "linear 3", "aten.histc 2", "%x: no kernel", "1e-12", "A16"):
        assert part in text
    assert "near miss of raise-norm: mean: over axes (1,) (3 times) at @forward: layers.0" in text


def test_unmeasured_is_a_dash_and_never_zero() -> None:
    row = Ledger([Row(0, "cse", "normalize", "exact", KEPT, matches=1)])
    cells = row.to_markdown().splitlines()[2].split(" | ")
    assert cells[5:9] == [DASH, DASH, DASH, DASH]


def test_markdown_is_a_table() -> None:
    header, rule, *rows = LEDGER.to_markdown().splitlines()[:5]
    assert header.count("|") == rule.count("|")
    assert all(row.replace("\\|", "").count("|") == header.count("|") for row in rows)


def test_refused_rows_are_found() -> None:
    assert [row.name for row in LEDGER.refused()] == ["fuse-norm"]


def test_rows_that_say_the_same_of_several_graphs_are_one() -> None:
    def row(what: str, graph: str, matches: int, place: str, **facts: Any) -> Row:
        return Row(0, "choose-kernels", "lower", "rounding", KEPT, what, (graph,), matches, (place,), **facts)

    shared = [row("linear", "decode", 2, "a"), row("linear", "decode_top", 3, "b")]
    other = [row("topk", "decode_top", 1, "a"), row("linear", "prefill", 2, "a", error=0.5)]
    both = Row(0, "choose-kernels", "lower", "rounding", KEPT, "linear", ("decode", "decode_top"), 5, ("a", "b"))
    assert merged([shared[0], other[0], shared[1], other[1]]) == [both, *other]

"""Rows about lossy passes: every one of them runs on a small model, and what they conclude from given figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from irx.bench import bench, predicted, quality, race
from irx.bench.guard import each, guarded
from irx.bench.lab import Lab
from irx.bench.paired import paired
from irx.bench.result import Result, single
from irx.bench.rows import kv, lossy, orderings, tokens
from irx.bench.rows.kv import Layout
from irx.ledger import Point
from irx.ledger import Row as LedgerRow
from irx.pipeline.latency import Latency
from tests.cli.models import WORDS, save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "tiny", positions=1024, layers=6)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few tokens, and no times taken."""
    monkeypatch.setattr(race, "samples", lambda candidates, **_: {name: [1.0, 1.0] for name in candidates})
    monkeypatch.setattr(race, "RING", 1 << 16)
    monkeypatch.setattr(quality, "CONTINUED", 4)
    for module in (quality, tokens, lossy, orderings):
        monkeypatch.setattr(module, "text", lambda: " ".join(WORDS * 100))


def results(folder: Path, name: str) -> dict[str, Result]:
    found = bench.run([name], model=str(folder), target="torch", threads=1, quick=True)
    assert not [result.note for result in found if result.verdict == "wrong"]
    return {result.what: result for result in found}


def test_layouts_of_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layouts = {"4-bit token": Layout("kv-quantize{bits=4}", 0.31, 1.0), "gone": Layout("no-such-pass")}
    monkeypatch.setattr(kv, "LAYOUTS", layouts)
    monkeypatch.setattr(kv, "FAMILIES", (kv.Layouts(kv.SMALL, 512), kv.Allocated(), kv.SharedPrefix()))
    monkeypatch.setattr(kv, "QUICK_PREFIX", 32)
    monkeypatch.setattr(kv, "recalled", lambda fast, length, needles: 0.5)
    found = results(folder, "kv")
    assert found["language model, 512 tokens, 4-bit token: decode"].figure is not None
    size = found["language model, 512 tokens, 4-bit token: bytes"].figure
    assert size is not None and 0 < size.median < 1.5
    assert found["language model, 512 tokens, 4-bit token: KL"].figure is not None
    assert (
        found["language model, 512 tokens, 4-bit token: needles recalled"].note == "the full cache itself recalls 50 %"
    )
    assert found["language model, 512 tokens, gone: bytes"].verdict == "absent"
    allocated = found["language model, 8192 tokens, 4-bit token: bytes allocated"].figure
    assert allocated is not None and 0 < allocated.median < 1.5
    shared = found["language model, 8 rows: a shared prefix of 32 tokens"]
    assert shared.figure is not None and shared.error is not None and shared.error < 0.05


def test_every_layout_is_a_pipeline() -> None:
    from irx.passes import passes
    from irx.pipeline.pipeline import Pipeline

    known = [one.passes for one in kv.LAYOUTS.values() if one.passes.split("{")[0] in passes()]
    assert len(known) >= 6
    for text in known:
        assert Pipeline.parse(f"default | {text}", passes()).passes


def test_pruned_prompts_and_shared_layers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "QUICK_PROMPT", 32)
    found = results(folder, "tokens")
    assert found["prefill of 32, pruned to 20 %"].figure is not None
    assert found["share-attention in pairs: cache read for a token, predicted 0.833"].verdict == "holds"
    parameters = next(result for what, result in found.items() if "parameters" in what)
    assert parameters.verdict == "holds"
    repair = found["repair after share-attention: part of the KL gone"]
    assert repair.figure is not None and "more than a third by" in repair.note and "in 3 pairs" in repair.note


def test_orderings_of_depth(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orderings, "BLOCKS", 2)
    monkeypatch.setattr(orderings, "_weights", lambda lab: iter(()))
    monkeypatch.setattr(orderings, "PROMPT", 64)
    monkeypatch.setattr(orderings, "_missed", lambda lab, scorer: [0.0, 1.0] if scorer == "snapkv" else [1.0, 1.0])
    few = {
        "one": orderings.Sensitivity("skip-layers{policy=list, layers=[2]}", 1.0, quick=True),
        "gone": orderings.Sensitivity("no-such-pass", 1.0, quick=True),
        "long": orderings.Sensitivity("skip-layers{policy=list, layers=[3]}", 1.0),
    }
    monkeypatch.setattr(orderings, "SENSITIVITIES", few)
    found = results(folder, "orderings")
    one = found.pop("SmolLM2, one: ratio of perplexities")
    assert one.figure is not None and one.verdict in ("holds", "differs") and "top-1" in one.note
    assert found.pop("SmolLM2, gone: ratio of perplexities").note.startswith("UnknownPass")
    assert {result.verdict for result in found.values()} <= {"holds", "reversed", "undecided"}
    assert "in 3 pairs" in found["2 blocks left out: a search beats similarity"].note
    assert found["a fifth of the cache, needles at 64 tokens: snapkv beats norm"].verdict == "undecided"


def test_an_error_costs_no_other_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing() -> Any:
        yield single(Result("kv", "first", "", None, "b"), 0.5)
        raise MemoryError("no room")

    monkeypatch.delenv("IRX_DEBUG", raising=False)
    first, second = each(Result("kv", "family", "", None, "b"), failing)
    assert first.figure is not None and second.figure is None
    assert (second.verdict, second.note) == ("wrong", "it fails with MemoryError: no room")
    assert guarded(second, lambda: first) is first


def test_a_prediction_that_is_off_is_flagged(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {"default": (Latency(1.0, 0.01), 0.8), "default | right": (Latency(0.5, 0.01), 0.4)}
    steps["default | wrong"] = (Latency(0.9, 0.01), 0.4)
    monkeypatch.setattr(predicted, "_step", lambda lab, pipeline: steps[pipeline])
    monkeypatch.setattr(predicted, "PASSES", {"a": "right", "b": "wrong"})
    right, wrong = predicted.Predicted().measure(Lab(Path("unused")))
    assert right.figure is not None and (right.verdict, right.figure.median) == ("holds", pytest.approx(1.0))
    assert wrong.figure is not None and (wrong.verdict, wrong.figure.median) == ("flagged", pytest.approx(5.0))


def test_intervals_of_paired_differences() -> None:
    assert paired([1.0, 1.1, 0.9, 1.0]).verdict == "holds"
    assert paired([-1.0, -1.1, -0.9, -1.0]).verdict == "reversed"
    assert paired([1.0, -1.1, 0.9, -1.0]).verdict == "undecided"
    assert paired([5.0]).verdict == "undecided", "one pair says nothing"
    two = paired([0.0, 2.0])
    assert (two.mean, two.high) == (1.0, pytest.approx(1 + 12.71))
    assert str(paired([1.0, 1.0])) == "+1 (+1 to +1) in 2 pairs"


def test_figures_of_which_little_is_wanted() -> None:
    few, many = (single(Result("kv", "a", "", wanted, "b"), 0.3) for wanted in (0.31, 0.21))
    assert (few.verdict, many.verdict) == ("holds", "above")
    assert few.cells()["measured"] == "0.300 of the bytes"
    assert single(Result("kv", "a", "", 0.8, "%"), 0.7).verdict == "below"


def test_the_long_families_run_only_where_they_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def families(name: str) -> list[Any]:
        asked.append(name)
        return []

    monkeypatch.setattr(bench, "families", families)
    bench.run([], model="unused")
    assert asked and not set(asked) & set(bench.LONG)


def test_what_a_search_tells_the_bench() -> None:
    notes = [
        "search: 9 candidates, 2 of them unusable; nothing new was left to try",
        "search: a first answer after 25 s, the best after 310 s",
    ]
    found = {"": 9.0, "cast-weights": 7.0, "quantize-weights{bits=8}": 4.0, "kv-quantize{bits=8}": 9.5}
    points = [Point(text, seconds, 0.5) for text, seconds in found.items()]
    points.append(Point("quantize-weights{bits=4}", 3.0, 1.1))
    points.append(Point("skip-layers{keep=2} | repair-output | cast-weights", 2.0, 0.1))
    points.append(Point("skip-layers{keep=2} | repair-output", 8.0, 0.1))
    assert lossy.texts_alone(points, "weights") == ["quantize-weights{bits=8}", "cast-weights"]
    assert lossy.texts_alone(points, "depth") == ["skip-layers{keep=2} | repair-output"]
    assert lossy.texts_alone(points, "cache") == []
    said = LedgerRow(0, "skip", "depth", "lossy", "dropped", reason="over budget: kl 0.06 of 0.05")
    kept, unpaid = replace(said, decision="kept"), replace(said, latency=1e-6)
    assert lossy.outside([kept, said, unpaid]) == "skip: over budget: kl 0.06 of 0.05"
    assert lossy.outside([kept, unpaid]) == ""
    assert lossy.times(notes) == (25, 310) and lossy.times(notes[:1]) == ()
    rows = list(lossy.Searched("kl", 0.05)._times([*notes, "search: 3 candidates were known from an earlier search"]))
    assert [row.verdict for row in rows] == ["holds", "holds"]
    assert all("known from an earlier search" in row.note for row in rows)
    slow = list(lossy.Searched("kl", 0.05)._times(["search: a first answer after 200 s, the best after 210 s"]))
    assert [row.verdict for row in slow] == ["above", "holds"]

"""`irx.compile` with data and a budget, on a small language model and a small encoder of random weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import irx
import irx.api as api
from irx.analysis.data import split
from irx.cache import CacheKey
from irx.errors import BadData, BudgetError, CalibrationNeeded, TokenizerNeeded
from irx.ir.program import Program
from irx.ledger import DROPPED, KEPT, Row
from irx.pipeline.base import Context, Effect, Pass, Report, Site, Stage
from irx.pipeline.index import PassIndex
from irx.pipeline.presets import PRESETS

LOSSY = "default | quantize-weights{bits=4, skip=none} | cast-activations"
IDS = [torch.from_numpy(np.random.default_rng(0).integers(0, 96, 512))]
LINEAR = """size B in [1, 4]
size S in [1, 64]
weight $w : f32[32, 32]
graph @forward(%x: f32[B, S, 32]) -> (y: f32[B, S, 32]) {
  %y = irx.linear(%x, $w)
  return %y
}"""


@pytest.fixture(scope="module")
def model() -> Any:
    transformers = pytest.importorskip("transformers", reason="the hf extra is not installed")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.2,
    )
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def encoder() -> Any:
    transformers = pytest.importorskip("transformers", reason="the hf extra is not installed")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    return transformers.BertModel(config).eval()


def rows(compiled: irx.Executable) -> dict[str, Row]:
    """The first row of every lossy pass."""
    return {row.name: row for row in reversed(compiled.ledger().rows) if row.effect == "lossy"}


def divergence(model: Any, compiled: Any, windows: torch.Tensor) -> float:
    """Mean KL(original || compiled) over all positions but the last of each window."""
    p, q = (one(windows).logits[:, :-1].log_softmax(-1) for one in (model, compiled))
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_what_the_ledger_says_is_what_the_executable_does(model: Any) -> None:
    compiled = irx.compile(model, target="torch", pipeline=LOSSY, data=IDS, budget=irx.Budget(kl=0.5))
    weights, activations = rows(compiled)["quantize-weights"], rows(compiled)["cast-activations"]
    assert weights.decision == activations.decision == KEPT
    with torch.no_grad():
        found = divergence(model, compiled, IDS[0].reshape(2, 256)[:1])
    assert activations.spent == pytest.approx(found, rel=1e-2)
    assert 1e-4 < found < 0.5
    assert activations.spent + (activations.left or 0) == pytest.approx(0.5)
    assert compiled.ledger().summary.quality["kl"] == activations.spent
    assert "256 held-out tokens; 256 others" in str(compiled.ledger())


def test_a_pass_over_the_budget_is_dropped(model: Any) -> None:
    compiled = irx.compile(model, target="torch", pipeline=LOSSY, data=IDS, budget=irx.Budget(kl=1e-3))
    found = rows(compiled)
    assert found["quantize-weights"].decision == DROPPED
    assert found["quantize-weights"].reason.startswith("over budget: kl ")
    assert found["cast-activations"].decision == KEPT
    assert "quantize" not in compiled.program
    with torch.no_grad():
        assert divergence(model, compiled, IDS[0].reshape(2, 256)[:1]) < 1e-3


def test_a_budget_of_zero_gives_the_exact_program(model: Any) -> None:
    exact = irx.compile(model, target="torch")
    compiled = irx.compile(model, target="torch", pipeline=LOSSY, data=IDS, budget=irx.Budget(kl=0))
    assert {row.decision for row in rows(compiled).values()} == {DROPPED}
    assert compiled.program == exact.program
    assert torch.equal(compiled(IDS[0][None, :8]).logits, exact(IDS[0][None, :8]).logits)


def test_figures_without_a_budget(model: Any) -> None:
    row = rows(irx.compile(model, target="torch", pipeline="none | cast-activations", data=IDS))["cast-activations"]
    assert set(row.quality) == {"kl", "top1", "ppl_ratio"}
    assert row.metric == "kl"
    assert row.spent == row.quality["kl"] > 0
    assert row.left is None


def test_a_measure_of_the_users_own(model: Any) -> None:
    @torch.no_grad()
    def worst_token(run: Any) -> float:
        new, old = run(input_ids=IDS[0][None, :16])["logits"], model(IDS[0][None, :16]).logits
        return float((new - old).abs().max())

    pipeline = "none | quantize-weights{bits=4, skip=none}"
    budget = irx.Budget(metric=worst_token, max=1e-4)
    row = rows(irx.compile(model, target="torch", pipeline=pipeline, data=IDS, budget=budget))["quantize-weights"]
    assert row.decision == DROPPED
    assert row.reason.startswith("over budget: worst_token ")
    assert row.quality["kl"] > 0, "the other figures are entered too"
    budget = irx.Budget(metric=worst_token, max=1e4)
    kept = rows(irx.compile(model, target="torch", pipeline=pipeline, data=IDS, budget=budget))["quantize-weights"]
    assert kept.decision == KEPT
    assert kept.spent == row.spent


def test_encoders_are_judged_by_cosine(encoder: Any) -> None:
    ids = torch.arange(2 * 6 * 8).reshape(6, 2, 8) % 96
    mask = torch.ones(2, 8, dtype=torch.int64)
    mask[1, 5:] = 0
    data = [{"input_ids": row, "attention_mask": mask} for row in ids]
    pipeline = "default | quantize-weights{bits=4, skip=none}"
    for least, decision in ((0.9, KEPT), (0.99999, DROPPED)):
        compiled = irx.compile(encoder, target="torch", pipeline=pipeline, data=data, budget=irx.Budget(cosine=least))
        row = rows(compiled)["quantize-weights"]
        assert row.decision == decision
        assert row.metric == "1 - cosine"
        assert 0.9 < row.quality["cosine"] < 0.99999
    with pytest.raises(BudgetError, match="kl cannot be measured"):
        irx.compile(encoder, target="torch", data=data, budget=irx.Budget(kl=0.1))


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"budget": 0.1, "data": IDS}, BudgetError, "no Budget"),
        ({"budget": irx.Budget(kl=0.1)}, BudgetError, "data="),
        ({"budget": irx.Budget(cosine=0.9), "data": IDS}, BudgetError, "cosine cannot be measured"),
        ({"data": ["some text"]}, TokenizerNeeded, "tokenizer="),
        ({"data": [torch.full((600,), 96)]}, BadData, "the id 96"),
        ({"data": [torch.zeros(4, dtype=torch.int64)]}, BadData, "too few"),
    ],
)
def test_what_cannot_be_used(model: Any, arguments: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        irx.compile(model, target="torch", **arguments)


class Watch(Pass):
    """Looks at the program's output on the user's data."""

    name = "watch"
    stage = Stage.DEPTH
    effect = Effect.LOSSY
    seen: list[np.ndarray[Any, Any]] = []  # noqa: RUF012

    def run(self, program: Program, ctx: Context) -> Report:
        graph = program.graphs["forward"]
        for (output,) in ctx.calibrated("watch").values(program, [graph.outputs[0]]):
            self.seen.append(output)
        return Report([Site("forward", next(graph.nodes).loc, "watched")])


class Flatten(Pass):
    """Makes the distributions of decoding flatter, and only those."""

    name = "flatten"
    stage = Stage.CACHE
    effect = Effect.LOSSY

    def run(self, program: Program, ctx: Context) -> Report:
        graph = program.graphs["decode"]
        node = graph.add("mul", [graph.outputs[0], 0.5])
        graph.outputs[0] = node.output
        return Report([Site("decode", node.loc, "flatter")])


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Besides the passes of this file only those that every program needs are known."""
    needed = [irx.passes().load(name) for name in irx.passes() if name in PRESETS["none"]]
    monkeypatch.setattr("irx.api.optimizing.passes", lambda: PassIndex.of(*needed, Watch, Flatten))
    Watch.seen.clear()


def test_what_only_decoding_shows_is_measured_in_decoding(model: Any, toys: None) -> None:
    """The first half of a window is the prompt, the other is fed token by token."""
    ids = IDS[0][None, :256]
    compiled = irx.compile(model, target="torch", pipeline="none | flatten", data=IDS)
    row = rows(compiled)["flatten"]
    session = compiled.session()
    steps = [session.append(piece) for piece in (ids[:, :128], *ids[:, 128:255].split(1, dim=1))]
    with torch.no_grad():
        p, q = model(ids).logits[:, 127:255].log_softmax(-1), torch.cat(steps, dim=1).log_softmax(-1)
        assert divergence(model, compiled, ids) < 1e-6, "forward does not show it"
    assert row.spent == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-2)
    assert row.spent > 0.01
    budget = irx.Budget(kl=row.spent / 2)
    dropped = irx.compile(model, target="torch", pipeline="none | flatten", data=IDS, budget=budget)
    assert rows(dropped)["flatten"].decision == DROPPED


def test_passes_see_the_calibration_part(model: Any, toys: None) -> None:
    irx.compile(model, target="torch", pipeline="none | watch", data=IDS)
    (seen,) = Watch.seen
    with torch.no_grad():
        expected = model(IDS[0][None, 256:]).logits
    assert torch.allclose(torch.from_numpy(seen), expected, atol=1e-4)
    compiled = irx.compile(model, target="torch", pipeline="none | watch")
    assert [str(CalibrationNeeded("watch"))] == [row.reason for row in compiled.ledger().refused()]


def linear_program() -> tuple[Program, np.ndarray[Any, Any]]:
    """A matrix, in a program that states nothing about its input."""
    program = irx.parse(LINEAR)
    array = np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32)
    program.weights.bind("w", lambda: array)
    return program, array


def inputs(count: int) -> list[dict[str, Any]]:
    return [{"x": np.random.default_rng(i).standard_normal((1, 5, 32))} for i in range(count)]


def test_a_text_program_without_roles() -> None:
    program, array = linear_program()
    data = inputs(4)
    compiled = irx.compile(program, target="torch", pipeline="none | quantize-weights{bits=4}", data=data)
    row = rows(compiled)["quantize-weights"]
    # Batches 0 and 2 are held out; each gives one vector, the mean over its tokens.
    held = [torch.from_numpy(data[i]["x"].astype(np.float32)) for i in (0, 2)]
    old = np.stack([(x.numpy() @ array.T).mean((0, 1)) for x in held])
    new = np.stack([compiled(x).numpy().mean((0, 1)) for x in held])
    cosine = ((old * new).sum(-1) / np.linalg.norm(old, axis=-1) / np.linalg.norm(new, axis=-1)).mean()
    assert row.quality["cosine"] == pytest.approx(cosine, abs=1e-6)
    assert row.quality["cosine"] < 0.9999


def test_what_is_remembered_depends_on_data_and_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[str] = []

    def remembered(key: CacheKey, captured: Program, run: Any) -> Any:
        keys.append(key.digest)
        return run()

    monkeypatch.setattr("irx.api.optimizing.remembered", remembered)
    (program, _), goal = linear_program(), api.aim("torch")

    def key(data: list[dict[str, Any]] | None, budget: irx.Budget | None) -> str | None:
        known = split(data, program) if data is not None else None
        count = len(keys)
        api.optimize(program, goal, "none", digest="model", data=known, budget=budget)
        return keys[-1] if len(keys) > count else None

    first = key(inputs(4), irx.Budget(cosine=0.9))
    assert first == key(inputs(4), irx.Budget(cosine=0.9))
    others = [key(inputs(5), irx.Budget(cosine=0.9)), key(inputs(4), irx.Budget(cosine=0.8)), key(inputs(4), None)]
    assert len({first, *others, key(None, None)}) == 5
    own = irx.Budget(metric=lambda model: 0.0, max=1)
    assert key(inputs(4), own) is None, "what the user's function says may change at any time"

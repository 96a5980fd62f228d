"""Every pair of lossy passes: both at once give a correct program, or one is refused and says why.

The pairs are generated from the passes that there are, so a new one is met with all others as soon as it exists;
OPTIONS says how it is spelled where its defaults do nothing on small models. A correct program is one that the verifier
accepts, that the torch backend computes as the oracle does, and whose cache gives what `forward` gives: token by token
always, and with a prompt at once where no pass treats prompts apart.
"""

from __future__ import annotations

from functools import cache, partial
from itertools import combinations, zip_longest
from typing import Any

import numpy as np
import pytest
import torch

import irx
from irx.analysis.calibration import Calibration
from irx.analysis.reference import evaluate
from irx.errors import IRXError, PassConflict, PassRefused, PipelineOrder
from irx.ir.opdef import Array
from irx.ir.program import Program
from irx.ir.types import KVType
from irx.ir.verify import verify
from irx.ledger import KEPT, NO_MATCH, Ledger
from irx.ops.cache import KVArrays
from irx.passes import passes
from irx.pipeline.base import Effect
from irx.pipeline.pipeline import Pipeline
from tests.cases.running import context
from tests.passes.small_models import WORDS, decoder, encoder
from tests.passes.weights.calibrating import by_oracle

OPTIONS: dict[str, tuple[str, ...]] = {
    "cast-activations": ("", "to=a8"),
    "kv-evict": (
        "keep=0.5, sinks=1, window=2",
        "scorer=window, capacity=6, sinks=1, window=2",
    ),
    "kv-ring": ("window=4, sinks=1", "window=5, sinks=0"),
    "kv-quantize": ("bits=8", "bits=4", "scheme=kivi, bits=2, group=8, tail=8"),
    "lowrank-weights": ("rank=8",),
    "merge-tokens": ("per_layer=2", "per_layer=1, alpha=0.0"),
    "prune-tokens": ("keep=0.4, window=3", "scorer=last-query, keep=0.4"),
    "quantize-weights": ("skip=none", "bits=4, symmetric=false"),
    "repair-output": ("", "units=all"),
    "share-attention": ("leader=previous, ends=0", "threshold=-1.0, ends=0", "what=qk, leader=previous, ends=0"),
    "skip-layers": ("keep=2", "policy=list, layers=[0.attn, 1.mlp]", "policy=uniform, keep=2, phases=decode"),
    "slice-ffn": ("keep=0.5, multiple=32",),
}
PROMPTS_APART = ("prune-tokens", "phases=decode", "kv-evict")
"""What treats tokens of one call unlike tokens that come one by one; `forward` stands for the latter."""
ROUGH = {"cast-activations": 2.0**-6}
"""Passes whose results depend on roundings of float32: largest differences, here four steps of bfloat16."""
PROMPT, STEPS, ROWS = 10, 2, 2

LOSSY = [name for name in passes() if passes().load(name).effect is Effect.LOSSY]
PAIRS = [f"{a} {b}" for a, b in combinations(LOSSY, 2)]


@pytest.mark.parametrize("pair", PAIRS)
def test_pairs_are_correct_or_refused_with_a_reason(pair: str) -> None:
    first, second = sorted(pair.split(), key=lambda name: passes().load(name).stage)
    for a, b in zip_longest(_spelled(first), _spelled(second)):
        text = f"{a or _spelled(first)[-1]} | {b or _spelled(second)[-1]}"
        for model in ("decoder", "encoder"):
            made = _composed(text, model)
            if made is not None:
                _check(made, text)


@pytest.mark.parametrize("name", LOSSY)
def test_alone_every_lossy_pass_finds_work_and_is_correct(name: str) -> None:
    for text in _spelled(name):
        whole = f"slice-ffn{{keep=0.5, multiple=32}} | {text}" if name == "repair-output" else text
        made = [_composed(text, model) for model in ("decoder", "encoder")]
        if name == "repair-output":
            assert made == [None, None], "there is nothing to repair"
            continue
        assert any(made), f"{whole} does nothing on either model: give it options"
        for program in filter(None, made):
            _check(program, text)


def test_stages_out_of_order_are_refused() -> None:
    classes = [passes().load(name) for name in LOSSY]
    pairs = [(a, b) for a in classes for b in classes if a.stage > b.stage]
    assert pairs
    for a, b in pairs:
        with pytest.raises(PipelineOrder, match=f"'{b.name}' of stage {b.stage.name}"):
            Pipeline((a(), b()))


def _spelled(name: str) -> list[str]:
    return [f"{name}{{{options}}}" if options else name for options in OPTIONS.get(name, ("",))]


@cache
def _models() -> dict[str, Program]:
    return {"decoder": decoder(3), "encoder": encoder(3)}


def _composed(text: str, model: str) -> Program | None:
    """The model after these passes; None where fewer than all of them change it, for a reason that is told."""
    program = _models()[model]
    ctx = context(program)
    ctx.calibration = Calibration([_given(program, seed) for seed in (1, 2)], by_oracle)
    try:
        made, ledger = Pipeline.parse(text, passes(), presets={}).run(program, ctx, strict=True)
    except PassConflict:
        return None
    except PassRefused as error:
        if not isinstance(error.__cause__, IRXError):
            raise  # the pass broke, which is no reason
        return None
    return made if _all_kept(ledger) else None


def _all_kept(ledger: Ledger) -> bool:
    for row in ledger.rows:
        assert row.decision in (KEPT, NO_MATCH)
        assert row.decision == KEPT or row.near_misses or not row.reason.startswith("nothing like it"), row.name
    return all(row.decision == KEPT for row in ledger.rows)


def _given(program: Program, seed: int) -> dict[str, Array]:
    generator = np.random.default_rng(seed)
    mask = np.arange(PROMPT + STEPS) < np.array([[PROMPT + STEPS], [PROMPT]])
    ids = np.stack([generator.permutation(WORDS)[: PROMPT + STEPS] for _ in range(ROWS)])  # no two score the same
    given = {"ids": ids, "mask": mask}
    return {value.name: given[value.name] for value in program.graphs["forward"].inputs}


def _check(program: Program, text: str) -> None:
    verify(program)
    exactness = max((ROUGH[name] for name in ROUGH if name in text), default=1e-4)
    agree = partial(_close, tolerance=exactness)
    given = _given(program, seed=3)
    (whole,) = evaluate(program.graphs["forward"], given, {}, program.weights)
    made = irx.compile(program, target="torch:cpu", pipeline="")
    tensors = {name: torch.from_numpy(array) for name, array in given.items()}
    agree(made(**tensors), whole, text)
    if "decode" not in program.graphs:
        return
    ids = given["ids"]
    agree(_in_session(made, tensors["ids"], [1] * ids.shape[1]), whole, f"{text}, token by token")
    steps = _stepwise(program, ids, [PROMPT, *[1] * STEPS])
    agree(_in_session(made, tensors["ids"], [PROMPT, *[1] * STEPS]), steps, f"{text}, behind a prompt")
    if not any(word in text for word in PROMPTS_APART):
        _close(steps, whole[:, PROMPT - 1 :], f"{text}, prompt and forward", 1e-6)


def _close(found: Any, expected: Array, what: str, tolerance: float) -> None:
    """Nine of ten tokens agree: where codes are chosen, roundings of float32 may choose another for a few."""
    assert tuple(found.shape) == expected.shape
    error = np.abs(np.asarray(found, np.float64) - expected).max(-1) / np.abs(expected).max()
    share = float((error < tolerance).mean())
    assert share >= 0.9, f"{what}: only {share:.0%} of the tokens agree, errors up to {error.max():.2g}"


def _in_session(made: Any, ids: torch.Tensor, chunks: list[int]) -> torch.Tensor:
    """The logits of the last token of every chunk."""
    session = made.session(len(ids))
    return torch.cat([session.append(part) for part in ids.split(chunks, dim=1)], dim=1)


def _stepwise(program: Program, ids: Array, chunks: list[int]) -> Array:
    """The same, computed by the oracle."""
    prefill, found, start = program.graphs["prefill"], [], 0
    states = {v.name: KVArrays.empty(v.type, len(ids)) for v in prefill.inputs if isinstance(v.type, KVType)}
    for size in chunks:
        graph = program.graphs["decode" if size == 1 else "prefill"]
        pos = np.broadcast_to(np.arange(start, start + size), (len(ids), size))
        rows = np.full((len(ids), 1), size - 1)
        inputs = {**states, "ids": ids[:, start : start + size], "pos": pos, "rows": rows}
        given = {value.name: inputs[value.name] for value in graph.inputs}
        made = dict(zip(graph.output_names, evaluate(graph, given, {}, program.weights), strict=True))
        states |= {name: made[name] for name in states if name in made}
        found.append(made["logits"])
        start += size
    return np.concatenate(found, axis=1)

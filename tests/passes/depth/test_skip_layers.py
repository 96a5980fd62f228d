"""skip-layers: limits, invariants, what the policies choose, and that all graphs compute one function afterwards."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import irx
from irx.analysis.blocks import corresponding
from irx.errors import BadOption, CalibrationNeeded
from irx.ir.equal import difference
from irx.ir.program import Program
from irx.ir.types import KVType
from irx.ir.verify import verify
from irx.passes.depth.policies.uniform import uniform
from irx.pipeline.base import Report
from tests.passes.attention.layers import applied, calibration, layered, tokens

LAYERS = 5


@pytest.fixture(scope="module")
def program() -> Program:
    return layered(LAYERS, {3: 4})


def skipped(program: Program, options: str, data: Any = None) -> tuple[Program, Report]:
    after, report = applied(program, f"skip-layers{{{options}}}", data)
    verify(after)
    return after, report


def states(program: Program) -> dict[str, list[str]]:
    return {name: [v.name for v in g.inputs if isinstance(v.type, KVType)] for name, g in program.graphs.items()}


def executable(program: Program) -> irx.Executable:
    return irx.compile(program, target="torch", pipeline="none")


def relative(made: torch.Tensor, expected: torch.Tensor) -> float:
    return float((made - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("policy", ["similarity", "uniform", "tail"])
@pytest.mark.parametrize("keep", [LAYERS, LAYERS + 1, 1.0])
def test_keeping_all_changes_nothing_and_says_so(program: Program, policy: str, keep: float) -> None:
    after, report = skipped(program, f"policy={policy}, keep={keep}")
    assert difference(after, program) is None
    assert report.sites == [] and "nothing is left out" in report.note


@pytest.mark.parametrize(
    ("options", "gone", "lost"),
    [
        ("policy=list, layers=2", {2}, {2}),
        ("policy=list, layers=[0, 4]", {0, 4}, {0, 4}),
        ("policy=list, layers=[1.attn, 2.mlp]", set(), {1}),
        ("policy=uniform, keep=3", {1, 3}, {1, 3}),
        ("policy=uniform, keep=0.6", {1, 3}, {1, 3}),
        ("policy=tail, keep=3", {3, 4}, {3, 4}),
        ("policy=tail, keep=4, unit=attn", set(), {4}),
        ("policy=tail, keep=1, unit=mlp", set(), set()),
    ],
)
def test_what_goes_is_gone_from_all_graphs(program: Program, options: str, gone: set[int], lost: set[int]) -> None:
    after, report = skipped(program, options)
    kept = [f"kv{index}" for index in range(LAYERS) if index not in lost]
    assert states(after) == {"forward": [], "prefill": kept, "decode": kept}
    for name in ("prefill", "decode"):
        assert after.graphs[name].output_names == ["logits", *kept]
    assert [entry["state"] for entry in after.meta["cache"]] == kept
    weights = {weight.name for weight in after.used_weights()}
    assert {entry.weight.name for entry in after.weights} == weights
    for index in range(LAYERS):
        assert (f"q{index}" in weights) == (index not in lost)
        assert index not in gone or f"u{index}" not in weights
    assert {site.graph for site in report.sites} == {"forward", "prefill", "decode"}


@pytest.mark.parametrize("options", ["policy=uniform, keep=3", "policy=list, layers=[0.attn, 1, 3.mlp]"])
def test_prefill_and_decode_compute_what_forward_does(program: Program, options: str) -> None:
    after, _ = skipped(program, options)
    fast, ids = executable(after), torch.from_numpy(tokens(2, 14))
    expected = fast(ids)
    session = fast.session(2)
    made = [session.append(part, logits_to_keep=0) for part in ids.split([6, 3, *[1] * 5], dim=1)]
    assert relative(torch.cat(made, 1), expected) < 1e-5
    assert relative(executable(program)(ids), expected) > 1e-2, "a pass that changes nothing"


def test_bytes_of_the_cache_follow_the_attention_units_that_stay(program: Program) -> None:
    used = {}
    for keep in (1, 2, LAYERS):
        after, _ = skipped(program, f"policy=tail, keep={keep}, unit=attn")
        session = executable(after).session(2)
        session.append(torch.from_numpy(tokens(2, 20)))
        used[keep] = session.memory()
    assert used[2] == 2 * used[1] and used[LAYERS] == LAYERS * used[1]


def test_no_attention_left_needs_no_cache(program: Program) -> None:
    after, _ = skipped(program, "policy=list, layers=[0, 1, 2, 3, 4], unit=attn")
    fast, ids = executable(after), torch.from_numpy(tokens(1, 8))
    assert states(after)["decode"] == []
    session = fast.session(1)
    made = torch.cat(
        [session.append(ids[:, :5], logits_to_keep=0), *(session.append(i) for i in ids[:, 5:].split(1, 1))], 1
    )
    assert relative(made, fast(ids)) < 1e-5


# --- decode alone ---------------------------------------------------------------------------------------------------


def test_decode_alone_leaves_prompts_as_they_were(program: Program) -> None:
    after, report = skipped(program, "policy=list, layers=[1, 3], phases=decode")
    assert states(after) == {"forward": [], "prefill": ["kv0", "kv2", "kv4"], "decode": ["kv0", "kv2", "kv4"]}
    assert "prompts run through all" in report.note
    fast, before, ids = executable(after), executable(program), torch.from_numpy(tokens(3, 9))
    mask = torch.ones_like(ids)
    mask[1, :4], mask[2, 6:] = 0, 0
    for given in (None, mask):
        made = fast.session(3).append(ids, given)
        assert relative(made, before.session(3).append(ids, given)) < 1e-5
    session = fast.session(3)
    steps = torch.cat([session.append(step) for step in ids.split(1, dim=1)], 1)
    assert relative(steps, fast(ids)) < 1e-5, "forward is decode from the first token on"


def test_decode_alone_keeps_other_layers_keys_of_the_full_prompt(program: Program) -> None:
    """Behind a prompt, a step differs from the whole model's only by what the step itself leaves out."""
    none, _ = skipped(program, "policy=list, layers=1, phases=decode")
    both, _ = skipped(program, "policy=list, layers=1")
    ids = torch.from_numpy(tokens(2, 9))
    made = []
    for one in (none, both):
        session = executable(one).session(2)
        session.append(ids[:, :8])
        made.append(session.append(ids[:, 8:]))
    assert relative(made[0], made[1]) > 1e-3


# --- policies -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 5, 12, 30])
def test_uniform_keeps_both_ends_and_as_many_as_asked(count: int) -> None:
    for keep in range(2, count + 1):
        gone = uniform(count, keep)
        assert len(gone) == count - keep and not {0, count - 1} & set(gone)
    assert uniform(30, 15)[:4] == [1, 3, 5, 7]


def quiet(program: Program, scales: dict[int, float]) -> Program:
    """The program with layers that add little to the stream: their last matrices are scaled."""
    copy = program.clone()
    wanted = {f"{name}{index}": scale for index, scale in scales.items() for name in ("o", "d")}
    for entry in copy.weights:
        if entry.weight.name in wanted:
            array = np.asarray(copy.weights.array(entry.weight)) * np.float32(wanted[entry.weight.name])
            copy.weights.bind(entry.weight.name, partial(np.asarray, array))
    return copy


@pytest.mark.parametrize("rescore", [False, True])
def test_similarity_leaves_out_what_changes_the_stream_least(program: Program, rescore: bool) -> None:
    planted = quiet(program, {1: 0.01, 3: 0.1, 4: 0.001})
    options = f"keep=3, rescore={str(rescore).lower()}"
    after, report = skipped(planted, options, calibration())
    expected, _ = skipped(planted, "policy=list, layers=[1, 3]")
    assert difference(after, expected) is None, "the last layer, quietest of all, is protected"
    assert "importances" in report.note and "1, 3 of 5 blocks left out" in report.note


def test_importance_is_one_minus_the_mean_cosine_of_the_streams(program: Program) -> None:
    from irx.passes.depth.policies.similarity import importances

    data = calibration(2)
    (row, *_) = corresponding(program)[0]
    total, count = 0.0, 0
    for x, y in data.values(program, [row["forward"].start, row["forward"].end]):
        total += float(((x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1))).sum())
        count += x.shape[0] * x.shape[1]
    found = importances(program, data, frozenset({"attention", "mlp"}), ())
    assert found[0] == pytest.approx(1 - total / count, rel=1e-6) and len(found) == LAYERS


def test_one_look_at_the_data_ranks_blocks_and_both_parts(program: Program) -> None:
    from irx.passes.depth.policies.similarity import UNITS, importances, least_important

    data = calibration(2)
    ranked = least_important(program, data)
    for name, kinds in UNITS.items():
        found = importances(program, data, kinds, ())
        assert ranked[name] == sorted(range(1, LAYERS - 1), key=lambda block: found[block])


def test_similarity_without_data_is_an_error(program: Program) -> None:
    with pytest.raises(CalibrationNeeded, match="skip-layers with policy=similarity"):
        skipped(program, "keep=3")


def test_similarity_never_takes_the_ends(program: Program) -> None:
    with pytest.raises(BadOption, match="4 of 5 blocks should go, and 3 can"):
        skipped(program, "keep=1", calibration(1))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("policy=list", "needs layers"),
        ("policy=list, layers=2.head", "is no block"),
        ("layers=2", "layers is for policy=list"),
        ("policy=tail, keep=0", "at least one block"),
        ("policy=tail, keep=1.5", "write a share"),
        ("policy=uniform, keep=2, rescore=true", "rescore is for"),
    ],
)
def test_options_that_make_no_sense(program: Program, options: str, said: str) -> None:
    with pytest.raises(BadOption, match=said):
        skipped(program, options)


def test_a_block_that_is_not_there(program: Program) -> None:
    with pytest.raises(BadOption, match="no block 5"):
        skipped(program, "policy=list, layers=5")


# --- other models ---------------------------------------------------------------------------------------------------


def family(name: str) -> Any:
    pytest.importorskip("transformers", reason="the hf extra is not installed")
    from tests.end_to_end.families import FAMILIES

    return FAMILIES[name]


def test_an_encoder_with_norms_behind_its_sums_loses_a_whole_layer() -> None:
    bert = family("bert")
    model, inputs = bert.model(), bert.inputs(2, 9)
    fast = irx.compile(model, bert.inputs(2, 16), target="torch", pipeline="none | skip-layers{policy=list, layers=0}")
    del model.encoder.layer[0]
    assert relative(fast(**inputs).last_hidden_state, model(**inputs).last_hidden_state) < 1e-5


def test_a_decoder_behind_an_encoder_loses_what_the_encoder_made_for_it() -> None:
    t5 = family("t5")
    text = "none | skip-layers{policy=list, layers=[0, 3]}"
    fast = irx.compile(t5.model(), t5.inputs(2, 16), target="torch", pipeline=text)
    after = irx.parse(fast.program)
    assert states(after)["decode"] == ["kv0"]
    assert len(after.graphs["encode"].outputs) == len(after.meta["encoder_outputs"]) == 2
    ids = t5.inputs(2, 7)["input_ids"]
    assert fast.generate(ids, max_new_tokens=4).shape == (2, 5)

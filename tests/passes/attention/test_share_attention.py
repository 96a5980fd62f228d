"""share-attention: followers lose projections and cache, graphs stay one function, who cannot follow says why."""

from __future__ import annotations

import numpy as np
import pytest

from irx.errors import BadOption, CalibrationNeeded
from irx.ir.graph import Node
from irx.ir.program import Program
from irx.ir.types import KVType
from irx.ir.verify import verify
from irx.passes.attention.similarity import similarities
from tests.cases.running import find_passes
from tests.passes.attention.layers import applied, calibration, layered, tokens
from tests.passes.normalize.tiny import run, stepwise

PAIRS = "share-attention{leader=previous, ends=1}"  # of 6 layers 2 follows 1 and 4 follows 3


def states(program: Program, graph: str) -> list[str]:
    return [value.name for value in program.graphs[graph].inputs if isinstance(value.type, KVType)]


def attending(program: Program, graph: str) -> list[Node]:
    return [node for node in program.graphs[graph].nodes if node.op.name in ("attention", "kv_attention")]


def elements(program: Program) -> int:
    return sum(int(str(weight.tensor.elements)) for weight in program.used_weights())


def test_projections_and_states_of_followers_are_gone_as_predicted() -> None:
    program = layered(6)
    shared, report = applied(program, PAIRS)
    verify(shared)
    assert [site.loc.module for site in report.sites if site.graph == "decode"] == [
        "layers.2.attention",
        "layers.4.attention",
    ]
    assert elements(program) - elements(shared) == 2 * (8 * 16 + 8 * 16)
    for graph in ("prefill", "decode"):
        assert states(shared, graph) == ["kv0", "kv1", "kv3", "kv5"]
        assert shared.graphs[graph].output_names == ["logits", "kv0", "kv1", "kv3", "kv5"]
        readers = [node.operand("kv") for node in attending(shared, graph)]
        assert readers[2] is readers[1] and readers[4] is readers[3] and len(set(readers)) == 4


def test_the_cache_of_a_follower_is_known_to_be_its_leaders() -> None:
    program = layered(6)
    shared, _ = applied(program, PAIRS)
    assert [entry["state"] for entry in shared.meta["cache"]] == ["kv0", "kv1", "kv1", "kv3", "kv3", "kv5"]
    assert [entry["state"] for entry in program.meta["cache"]] == [f"kv{i}" for i in range(6)]


@pytest.mark.parametrize("chunks", [[9], [4, 1, 1, 3]], ids=str)
def test_cached_graphs_compute_what_forward_does(chunks: list[int]) -> None:
    shared, _ = applied(layered(6), PAIRS)
    ids = tokens(2, 9)
    expected = run(shared, "forward", {"ids": ids})["logits"]
    np.testing.assert_allclose(stepwise(shared, ids, chunks), expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    before = run(layered(6), "forward", {"ids": ids})["logits"]
    assert np.abs(before - expected).max() > 0.01 * np.abs(before).max()


def test_a_group_has_one_leader() -> None:
    shared, _ = applied(layered(6), "share-attention{leader=previous, ends=1, group=3}")
    assert states(shared, "decode") == ["kv0", "kv1", "kv4", "kv5"]
    keys = [node.operand("k") for node in attending(shared, "forward")]
    assert keys[1] is keys[2] is keys[3] and keys[4] is not keys[1]


def test_applied_twice_the_graphs_stay_one_function() -> None:
    once, _ = applied(layered(6), PAIRS)
    twice, report = applied(once, "share-attention{leader=previous, ends=1, layers=3}")
    verify(twice)
    assert len(report.sites) == 3
    ids = tokens(1, 6)
    expected = run(twice, "forward", {"ids": ids})["logits"]
    np.testing.assert_allclose(stepwise(twice, ids, [5, 1]), expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_only_chosen_layers_follow() -> None:
    shared, _ = applied(layered(6), "share-attention{leader=previous, layers=3}")
    assert states(shared, "prefill") == ["kv0", "kv1", "kv2", "kv4", "kv5"]


@pytest.mark.parametrize("options", ["ends=3", "group=1", "ends=1, layers=1"])
def test_without_groups_nothing_changes_and_it_says_so(options: str) -> None:
    program = layered(6)
    shared, report = applied(program, f"share-attention{{leader=previous, {options}}}")
    assert not report.sites and report.note.startswith("no groups")
    assert elements(shared) == elements(program) and len(states(shared, "decode")) == 6


def test_another_window_cannot_follow() -> None:
    shared, report = applied(layered(4, {2: 5}), "share-attention{leader=previous, ends=1}")
    assert not report.sites and len(states(shared, "decode")) == 4
    assert [miss.reason for miss in report.near_misses] == [
        "cannot follow layers.1.attention: it has window=5, not None"
    ]


def test_equal_layers_are_equally_attentive_and_give_equal_results() -> None:
    """Layers whose streams are equal and that share projections: what a follower takes over is what it had."""
    program = layered(3)
    for name in ("q", "k", "v"):
        program.weights.bind(f"{name}2", lambda name=name: program.weights.array(program.weights[f"{name}1"]))
    for name in ("o1", "d1"):  # layer 1 adds nothing to the stream
        shape = [int(str(dim)) for dim in program.weights[name].shape]
        program.weights.bind(name, lambda shape=shape: np.zeros(shape, np.float32))
    shared, report = applied(program, "share-attention{ends=0, threshold=0.999999}", calibration())
    assert [site.loc.module for site in report.sites if site.graph == "forward"] == ["layers.2.attention"]
    ids = tokens(2, 7)
    np.testing.assert_array_equal(
        run(shared, "forward", {"ids": ids})["logits"], run(program, "forward", {"ids": ids})["logits"]
    )


def test_similarity_is_that_of_explicit_probabilities() -> None:
    program = layered(3, {0: 4, 1: 4})
    data = calibration(batches=2)
    found = similarities(program, data, range(3), 2)
    assert set(found) == {(0, 1)}  # the third sees more keys
    nodes = attending(program, "forward")[:2]
    wanted = [value for node in nodes for value in (node.operand("q"), node.operand("k")) if value is not None]
    cosines = []
    for q0, k0, q1, k1 in data.values(program, wanted):
        left, right = probabilities(q0, k0, 4), probabilities(q1, k1, 4)
        dot = (left * right).sum(-1) / np.sqrt((left**2).sum(-1) * (right**2).sum(-1))
        cosines.append(dot.mean())
    assert found[0, 1] == pytest.approx(np.mean(cosines), abs=1e-6)


def probabilities(q: np.ndarray, k: np.ndarray, window: int) -> np.ndarray:
    k = np.repeat(k, q.shape[1] // k.shape[1], axis=1)
    distance = np.arange(q.shape[2])[:, None] - np.arange(k.shape[2])
    logits = np.where((distance >= 0) & (distance < window), 0.5 * q @ k.swapaxes(2, 3), -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(weights / weights.sum(-1, keepdims=True))


def test_unlike_layers_do_not_follow() -> None:
    program = layered(4)
    (cosine,) = similarities(program, calibration(), range(1, 3), 1).values()
    _, report = applied(program, f"share-attention{{ends=1, threshold={cosine + 0.01}}}", calibration())
    assert not report.sites and report.near_misses[0].reason.startswith("attends unlike layers.1.attention: cosine")
    _, report = applied(program, f"share-attention{{ends=1, threshold={cosine - 0.01}}}", calibration())
    assert len(report.sites) == 3 and f"cosine {cosine:.3f}" in report.sites[0].what


def test_auto_needs_data() -> None:
    with pytest.raises(CalibrationNeeded):
        applied(layered(6), "share-attention")


def test_what_no_op_computes_is_refused_by_name() -> None:
    with pytest.raises(BadOption, match="probs"):
        find_passes("share-attention{what=probs}")
    _, report = applied(layered(6), "share-attention{what=qk, leader=previous}")
    assert not report.sites and "cache of values alone" in report.note


def test_queries_and_keys_are_shared_where_there_is_no_cache() -> None:
    program = layered(4)
    del program.graphs["prefill"], program.graphs["decode"]
    shared, report = applied(program, "share-attention{what=qk, leader=previous, ends=1}")
    verify(shared)
    assert len(report.sites) == 1
    assert elements(program) - elements(shared) == 16 * 16 + 8 * 16
    nodes = attending(shared, "forward")
    assert nodes[2].operand("q") is nodes[1].operand("q") and nodes[2].operand("v") is not nodes[1].operand("v")

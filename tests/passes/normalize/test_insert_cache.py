"""insert-cache on hand-written programs: what becomes of positions, masks and biases, and what is refused."""

from __future__ import annotations

import re

import numpy as np
import pytest

from irx.ir.graph import Builder, Node, Operand, Value
from irx.ir.opdef import Array, Attr
from irx.ir.parser import parse
from irx.ir.printer import print_program
from irx.ir.program import Program
from irx.ir.types import KVType
from irx.ops.cache import KVArrays
from irx.passes.normalize.caching import check
from irx.passes.normalize.insert_cache import InsertCache
from irx.passes.normalize.slice_rows import SliceRows
from irx.rewrite.report import Fuel
from tests.cases.running import context
from tests.passes.normalize.tiny import CAUSAL, cached, run, stepwise, tiny

BATCH, LENGTH = 2, 13


def ids(batch: int = BATCH, length: int = LENGTH) -> Array:
    return np.random.default_rng(1).integers(0, 32, (batch, length))


def nodes(program: Program, graph: str, op: str) -> list[Node]:
    return [node for node in program.graphs[graph].nodes if node.op.name == op]


def assert_equal_to_forward(program: Program, chunks: list[int], **given: Array) -> None:
    tokens = ids()
    expected = run(program, "forward", {"ids": tokens, **given})["logits"]
    np.testing.assert_allclose(stepwise(program, tokens, chunks), expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_graphs_states_and_metadata() -> None:
    program = tiny()
    report = cached(program)
    assert [site.error for site in report.sites] == [0.0]
    kind = KVType(2, 2, 4, 4, "f32")
    assert [(v.name, str(v.type)) for v in program.graphs["prefill"].inputs] == [
        ("ids", "i64[B, S]"),
        ("pos", "i64[B, S]"),
        ("kv0", str(kind)),
    ]
    assert [str(v.type) for v in program.graphs["decode"].inputs] == ["i64[B, 1]", "i64[B, 1]", str(kind)]
    assert program.graphs["decode"].output_names == ["logits", "kv0"]
    assert [site["state"] for site in program.meta["cache"]] == ["kv0"]
    assert (program.meta["ids"], program.meta["logits"], program.meta["max_length"]) == ("ids", "logits", 64)
    assert print_program(parse(print_program(program))) == print_program(program)


@pytest.mark.parametrize("chunks", [[13], [5, 4, 1, 1, 2], [1] * 13], ids=str)
def test_any_division_into_chunks_gives_what_forward_gives(chunks: list[int]) -> None:
    program = tiny()
    cached(program)
    assert_equal_to_forward(program, chunks)


def test_rows_of_a_batch_have_positions_of_their_own() -> None:
    program = tiny()
    cached(program)
    tokens = ids(1, 6)
    expected = run(program, "forward", {"ids": tokens})["logits"][0]
    padded = np.array([[0, 0, *tokens[0, :4]], [*tokens[0, :5], 0], tokens[0]])
    pos = np.array([[-1, -1, 0, 1, 2, 3], [0, 1, 2, 3, 4, -1], [0, 1, 2, 3, 4, 5]])
    kind = program.graphs["prefill"].inputs[-1].type
    assert isinstance(kind, KVType)
    found = run(program, "prefill", {"ids": padded, "pos": pos, "kv0": KVArrays.empty(kind, 3)})
    for row in range(3):
        for column, place in enumerate(pos[row]):
            if place >= 0:
                np.testing.assert_allclose(found["logits"][row, column], expected[place], atol=1e-9)
    after = np.array([[4], [5], [5]])
    step = run(program, "decode", {"ids": tokens[0, after], "pos": after, "kv0": found["kv0"]})
    for row, place in enumerate((4, 5, 5)):
        np.testing.assert_allclose(step["logits"][row, 0], expected[place], atol=1e-9)


# --- positions ------------------------------------------------------------------------------------------------------

FLOATS_FROM_ONE = """
    %ones = irx.full() {shape=[B, S], value=1.0, dtype="f32"} : f32[B, S]
    %count = irx.cumsum(%ones) {axis=1} : f32[B, S]
    %column = irx.reshape(%count) {shape=[B, S, 1]} : f32[B, S, 1]
    %small = irx.mul(%column, 0.125) : f32[B, S, 1]
    %x = irx.add(%tokens, %small) : f32[B, S, 16]
"""
WAVES = """
    %i = irx.arange() {stop=S, dtype="f32"} : f32[S]
    %c = irx.reshape(%i) {shape=[1, S, 1]} : f32[1, S, 1]
    %w = irx.sin(%c) : f32[1, S, 1]
    %x = irx.mul(%tokens, %w) : f32[B, S, 16]
"""
CUT = """
    %t = irx.slice($places) {axis=0, start=2, stop=S + 2}
    %e = irx.reshape(%t) {shape=[S, 16]} : f32[S, 16]
    %x = irx.add(%tokens, %e) : f32[B, S, 16]
"""
GIVEN = """
    %e = irx.embedding(%position_ids, $places) : f32[B, S, 16]
    %x = irx.add(%tokens, %e) : f32[B, S, 16]
"""
MASKED = """
    %count = irx.cumsum(%attention_mask) {axis=1} : i64[B, S]
    %real = irx.mul(%count, %attention_mask) : i64[B, S]
    %shifted = irx.add(%real, 1) : i64[B, S]
    %e = irx.embedding(%shifted, $places) : f32[B, S, 16]
    %x = irx.add(%tokens, %e) : f32[B, S, 16]
"""
SAME = """
    %zero = irx.full() {shape=[B, S, 16], value=0.5, dtype="f32"} : f32[B, S, 16]
    %x = irx.mul(%tokens, %zero) : f32[B, S, 16]
"""
LATER = [5, 1, 1, 4, 1, 1]


def test_looked_up_positions_read_the_models_own_table() -> None:
    program = tiny()
    cached(program)
    assert [n.inputs[1].name for n in nodes(program, "prefill", "embedding") if n.inputs[1]] == ["embed", "places"]
    assert len(program.weights) == 5


@pytest.mark.parametrize("positions", [FLOATS_FROM_ONE, WAVES, CUT, SAME], ids=["floats", "waves", "cut", "same"])
def test_positions_in_other_spellings(positions: str) -> None:
    program = tiny(positions=positions)
    assert cached(program).near_misses == []
    assert_equal_to_forward(program, LATER)
    for name in ("prefill", "decode"):
        assert not nodes(program, name, "arange")
        assert not nodes(program, name, "cumsum")


def test_positions_that_are_an_input_follow_pos() -> None:
    program = tiny(positions=GIVEN, inputs="%position_ids: i64[B, S]")
    assert cached(program).near_misses == []
    assert_equal_to_forward(program, LATER, position_ids=np.broadcast_to(np.arange(LENGTH), (BATCH, LENGTH)))


def test_an_attention_mask_goes_away_with_the_positions_made_from_it() -> None:
    program = tiny(positions=MASKED, inputs="%attention_mask: i64[B, S]")
    assert cached(program).near_misses == []
    assert [v.name for v in program.graphs["prefill"].inputs] == ["ids", "pos", "kv0"]
    assert_equal_to_forward(program, LATER, attention_mask=np.ones((BATCH, LENGTH), np.int64))


def test_a_table_that_ends_early_bounds_the_length() -> None:
    program = tiny(positions=MASKED, inputs="%attention_mask: i64[B, S]")
    cached(program)
    assert program.meta["max_length"] == 62


OWN_COUNT = """
    %real = irx.ne(%ids, 1) : bool[B, S]
    %ones = irx.cast(%real) {dtype="i32"} : i32[B, S]
    %sums = irx.cumsum(%ones) {axis=1} : i64[B, S]
    %masked = irx.mul(%sums, %ones) : i64[B, S]
    %shifted = irx.add(%masked, 1) : i64[B, S]
    %e = irx.embedding(%shifted, $places) : f32[B, S, 16]
    %x = irx.add(%tokens, %e) : f32[B, S, 16]
"""


def test_a_models_own_count_of_tokens_follows_pos() -> None:
    program = tiny(positions=OWN_COUNT)
    report = cached(program)
    assert report.near_misses == []
    assert "the id 1" in report.note
    tokens = np.maximum(ids(), 2)
    expected = run(program, "forward", {"ids": tokens})["logits"]
    np.testing.assert_allclose(stepwise(program, tokens, LATER), expected, atol=1e-6)


def test_a_comparison_of_tokens_that_does_more_is_no_count() -> None:
    more = (
        OWN_COUNT
        + """
    %odd = irx.cast(%real) {dtype="f32"} : f32[B, S]
    %column = irx.reshape(%odd) {shape=[B, S, 1]} : f32[B, S, 1]
    %z = irx.sub(%x, %column) : f32[B, S, 16]
"""
    )
    program = tiny(positions=more.replace("%x", "%y").replace("%z", "%x"))
    assert "cumsum is not known to keep tokens apart" in cached(program).near_misses[0].reason


def test_equal_tables_are_one() -> None:
    lines = WAVES.replace("%tokens", "%once").splitlines()
    again = "\n".join(re.sub(r"%(i|c|w)\b", r"%other_\1", line) for line in lines)
    program = tiny(positions=WAVES.replace("%x", "%once") + again)
    assert cached(program).near_misses == []
    assert sum(entry.weight.name.startswith("positions.") for entry in program.weights) == 1
    assert_equal_to_forward(program, LATER)


def test_numbers_of_flattened_tokens_are_no_positions() -> None:
    behind = """
    %rows = irx.reshape(%sum) {shape=[B*S, 16]} : f32[B*S, 16]
    %number = irx.arange() {stop=B*S} : i64[B*S]
    %same = irx.take(%rows, %number) {axis=0} : f32[B*S, 16]
    %h = irx.reshape(%same) {shape=[B, S, 16]} : f32[B, S, 16]
"""
    program = tiny(behind=behind)
    assert cached(program).near_misses == []
    assert_equal_to_forward(program, LATER)


# --- masks and biases -----------------------------------------------------------------------------------------------

DISTANCE = """
    %j = irx.arange() {stop=S} : i64[S]
    %jc = irx.reshape(%j) {shape=[S, 1]} : i64[S, 1]
    %d = irx.sub(%jc, %j) : i64[S, S]
"""
BUCKETS = (
    DISTANCE
    + """
    %dc = irx.clamp(%d) {low=0, high=9} : i64[S, S]
    %b0 = irx.embedding(%dc, $bias) : f32[S, S, 4]
    %b1 = irx.permute(%b0) {order=[2, 0, 1]} : f32[4, S, S]
    %b = irx.reshape(%b1) {shape=[1, 4, S, S]} : f32[1, 4, S, S]
    %attended = irx.attention(%q, %k, %v, none, %b) {scale=0.5, causal=true} : f32[B, 4, S, 4]
"""
)
BUCKETS_AND_WINDOW = BUCKETS.replace(
    "%attended = irx.attention(%q, %k, %v, none, %b)",
    """%near = irx.lt(%d, 40) : bool[S, S]
    %w = irx.where(%near, 0.0, -inf) : f32[S, S]
    %bw = irx.add(%b, %w) : f32[1, 4, S, S]
    %attended = irx.attention(%q, %k, %v, none, %bw)""",
)
SLOPE = """
    %j = irx.arange() {stop=S, dtype="f32"} : f32[S]
    %b = irx.mul(%j, 0.25) : f32[S]
    %attended = irx.attention(%q, %k, %v, none, %b) {scale=0.5, causal=true} : f32[B, 4, S, 4]
"""
WINDOW = (
    DISTANCE
    + """
    %near = irx.lt(%d, 4) : bool[S, S]
    %past = irx.ge(%d, 0) : bool[S, S]
    %m = irx.and(%near, %past) : bool[S, S]
    %attended = irx.attention(%q, %k, %v, %m) {scale=0.5} : f32[B, 4, S, 4]
"""
)


def test_a_learned_bias_of_distances_becomes_a_table() -> None:
    program = tiny(attention=BUCKETS)
    assert cached(program).near_misses == []
    (table,) = (entry.weight for entry in program.weights if entry.weight.name.endswith("distances"))
    assert table.shape == (4, 10)
    assert_equal_to_forward(program, LATER)


def test_a_window_that_a_bias_hides_becomes_an_attribute() -> None:
    program = tiny(attention=BUCKETS_AND_WINDOW)
    assert cached(program).near_misses == []
    assert [node.attr("window") for node in nodes(program, "decode", "kv_attention")] == [40]
    assert_equal_to_forward(program, LATER)


def test_a_slope_over_keys_becomes_a_table_of_distances() -> None:
    program = tiny(attention=SLOPE)
    assert cached(program).near_misses == []
    assert_equal_to_forward(program, LATER)


def test_a_mask_that_classify_masks_did_not_see_is_classified_here() -> None:
    program = tiny(attention=WINDOW)
    assert cached(program).near_misses == []
    assert [node.attr("window") for node in nodes(program, "decode", "kv_attention")] == [4]
    assert_equal_to_forward(program, LATER)


def test_sites_that_attend_to_the_same_keys_share_a_state() -> None:
    twice = (
        CAUSAL.replace("%attended", "%first")
        + """
    %second = irx.attention(%first, %k, %v) {scale=0.25, causal=true, window=3} : f32[B, 4, S, 4]
    %attended = irx.add(%first, %second) : f32[B, 4, S, 4]"""
    )
    program = tiny(attention=twice)
    assert len(cached(program).sites) == 2
    assert [site["state"] for site in program.meta["cache"]] == ["kv0", "kv0"]
    assert len(nodes(program, "decode", "kv_append")) == 1
    assert_equal_to_forward(program, LATER)


# --- what is refused ------------------------------------------------------------------------------------------------

MIXES = {
    "mean over tokens": "    %m = irx.mean(%sum) {axes=[1], keepdims=true}\n    %h = irx.add(%sum, %m)",
    "running sum": "    %h = irx.cumsum(%sum) {axis=1}",
    "shifted": """
    %late = irx.slice(%sum) {axis=1, stop=S - 1}
    %padded = irx.pad(%late) {before=[0, 1, 0], after=[0, 0, 0]}
    %h = irx.reshape(%padded) {shape=[B, S, 16]}""",
    "divided by the length": "    %h = irx.div(%sum, S)",
}


@pytest.mark.parametrize("behind", MIXES.values(), ids=MIXES)
def test_tokens_that_mix_outside_attention_are_refused(behind: str) -> None:
    program = tiny(behind=behind)
    report = cached(program)
    assert len(report.near_misses) == 1
    assert set(program.graphs) == {"forward"}
    assert "cache" not in program.meta


REFUSED = {
    "one site not causal": (
        {
            "attention": CAUSAL.replace("%attended", "%first")
            + """
    %attended = irx.attention(%first, %k, %v) {scale=0.5} : f32[B, 4, S, 4]"""
        },
        "is not causal",
    ),
    "prefix": (
        {
            "attention": DISTANCE
            + """
    %past = irx.ge(%d, 0) : bool[S, S]
    %prefix = irx.lt(%j, 4) : bool[S]
    %m = irx.or(%past, %prefix) : bool[S, S]
    %attended = irx.attention(%q, %k, %v, %m) {scale=0.5} : f32[B, 4, S, 4]"""
        },
        "not causal",
    ),
    "mask from the tokens": (
        {
            "attention": """
    %m0 = irx.gt(%ids, 3) : bool[B, S]
    %m = irx.reshape(%m0) {shape=[B, 1, 1, S]} : bool[B, 1, 1, S]
    %attended = irx.attention(%q, %k, %v, %m) {scale=0.5, causal=true} : f32[B, 4, S, 4]"""
        },
        "the mask is neither",
    ),
    "bias of places": (
        {
            "attention": """
    %j = irx.arange() {stop=S, dtype="f32"} : f32[S]
    %jc = irx.reshape(%j) {shape=[S, 1]} : f32[S, 1]
    %b = irx.mul(%j, %jc) : f32[S, S]
    %attended = irx.attention(%q, %k, %v, none, %b) {scale=0.5, causal=true} : f32[B, 4, S, 4]"""
        },
        "depends on more than the distance",
    ),
    "bias that hides every other key": (
        {
            "attention": DISTANCE
            + """
    %odd = irx.remainder(%d, 2) : i64[S, S]
    %skipped = irx.eq(%odd, 1) : bool[S, S]
    %b = irx.where(%skipped, -inf, 0.0) : f32[S, S]
    %attended = irx.attention(%q, %k, %v, none, %b) {scale=0.5, causal=true} : f32[B, 4, S, 4]"""
        },
        "the bias hides keys",
    ),
    "positions from the end": (
        {
            "positions": """
    %i = irx.arange() {stop=S} : i64[S]
    %back = irx.sub(S, %i) : i64[S]
    %e = irx.embedding(%back, $places) : f32[S, 16]
    %x = irx.add(%tokens, %e) : f32[B, S, 16]"""
        },
        "depends on the length of the sequence",
    ),
    "repeated positions of flattened tokens": (
        {
            "positions": """
    %i = irx.arange() {stop=S} : i64[S]
    %r = irx.reshape(%i) {shape=[1, S]} : i64[1, S]
    %all = irx.expand(%r) {shape=[B, S]} : i64[B, S]
    %flat_places = irx.reshape(%all) {shape=[B*S]} : i64[B*S]
    %e = irx.embedding(%flat_places, $places) : f32[B*S, 16]
    %rows = irx.reshape(%tokens) {shape=[B*S, 16]} : f32[B*S, 16]
    %added = irx.add(%rows, %e) : f32[B*S, 16]
    %x = irx.reshape(%added) {shape=[B, S, 16]} : f32[B, S, 16]"""
        },
        "repeats positions over flattened tokens",
    ),
    "an input per token": (
        {
            "inputs": "%types: i64[B, S]",
            "positions": """
    %e = irx.embedding(%types, $places) : f32[B, S, 16]
    %x = irx.add(%tokens, %e) : f32[B, S, 16]""",
        },
        "what it is for is not known",
    ),
}


@pytest.mark.parametrize(("changes", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_cached_form_keeps_only_forward(changes: dict[str, str], reason: str) -> None:
    program = tiny(**changes)
    before = print_program(program)
    report = cached(program)
    assert [reason in miss.reason for miss in report.near_misses] == [True], report.near_misses
    assert print_program(program) == before


@pytest.mark.parametrize("name", ["B", "S"])
def test_fixed_sizes_are_refused(name: str) -> None:
    text = re.sub(rf"size {name} in .*\n", "", print_program(tiny()))
    report = cached(parse(re.sub(rf"\b{name}\b", "7", text)))
    assert "is 7 and cannot vary" in report.near_misses[0].reason


def test_weights_without_arrays_are_only_needed_where_positions_depend_on_them() -> None:
    program = parse(print_program(tiny()))
    assert cached(program).near_misses == []
    program = parse(print_program(tiny(attention=BUCKETS)))
    assert "has no array" in cached(program).near_misses[0].reason


def test_a_wrong_conversion_fails_its_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(builder: Builder, op: str, *inputs: Operand, **attrs: Attr) -> Value:
        return original(builder, op, *inputs, **{**attrs, "window": 2} if op == "kv_attention" else attrs)

    original = Builder.__call__
    monkeypatch.setattr(Builder, "__call__", wrong)
    program = tiny()
    report = cached(program)
    assert "the check failed" in report.near_misses[0].reason
    assert set(program.graphs) == {"forward"}


@pytest.mark.parametrize("attention", [CAUSAL, BUCKETS, SLOPE, WINDOW], ids=["causal", "buckets", "slope", "window"])
def test_large_programs_are_checked_site_by_site(attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_MOST_FLOPS", 0)
    program = tiny(attention=attention)
    (site,) = cached(program).sites
    assert site.error is not None
    assert site.error < 1e-9
    assert_equal_to_forward(program, LATER)


def test_large_programs_must_be_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_MOST_FLOPS", 0)
    program = tiny(behind=MIXES["running sum"])
    assert "too large" in cached(program).near_misses[0].reason


def test_without_fuel_nothing_happens() -> None:
    program = tiny()
    ctx = context(program)
    ctx.fuel = Fuel(0)
    assert InsertCache().run(program, ctx).sites == []
    assert set(program.graphs) == {"forward"}


# --- slice-rows -----------------------------------------------------------------------------------------------------


def test_only_the_wanted_rows_get_logits() -> None:
    program = tiny()
    cached(program)
    whole = program.clone()
    assert len(SliceRows().run(program, context(program)).sites) == 1
    assert str(program.graphs["prefill"].outputs[0].type) == "f32[B, R, 32]"
    (norm,) = nodes(program, "prefill", "rms_norm")
    assert str(norm.output.type) == "f32[B, R, 16]"
    tokens, rows = ids(), np.array([[3, 12], [0, 0]])
    expected = run(whole, "forward", {"ids": tokens})["logits"]
    kind = program.graphs["prefill"].inputs[-1].type
    assert isinstance(kind, KVType)
    pos = np.broadcast_to(np.arange(LENGTH), (BATCH, LENGTH))
    given = {"ids": tokens, "pos": pos, "rows": rows, "kv0": KVArrays.empty(kind, BATCH)}
    found = run(program, "prefill", given)["logits"]
    np.testing.assert_array_equal(found, np.take_along_axis(expected, rows[..., None], axis=1))

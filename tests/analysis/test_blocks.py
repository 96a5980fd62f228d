"""Blocks are found from structure: in text, and in every family of models, in the same order in all graphs."""

from __future__ import annotations

import pytest

import irx.ops  # noqa: F401
from irx.analysis.blocks import Stack, corresponding, find_blocks
from irx.ir.parser import parse
from tests.passes.attention.layers import layered

_TEXT = "weight $w : f32[8, 8]\ngraph @forward(%x: f32[B, S, 8]) -> (y: f32[B, S, 8]) {\n"
_ATTENTION = """
  %qI = irx.reshape(%nI) {shape=[B, 1, S, 8]}
  %aI = irx.attention(%qI, %qI, %qI) {scale=0.5}
  %rI = irx.reshape(%aI) {shape=[B, S, 8]}
  %oI = irx.linear(%rI, $w)
"""


def attention(index: int) -> str:
    return _ATTENTION.replace("I", str(index))


def stack(body: str) -> Stack:
    return find_blocks(parse(_TEXT + body + "\n  return %y\n}").graphs["forward"])


def test_units_of_a_decoder_in_all_graphs() -> None:
    program = layered(3)
    rows, reason = corresponding(program)
    assert reason == "" and len(rows) == 3
    for index, row in enumerate(rows):
        assert set(row) == {"forward", "prefill", "decode"}
        for name, block in row.items():
            attends, mlp = block.units
            assert (attends.kind, mlp.kind) == ("attention", "mlp")
            assert attends.end is mlp.start and not attends.normed
            assert attends.attention is not None and mlp.attention is None
            assert [state.name for state in block.states] == ([] if name == "forward" else [f"kv{index}"])
            assert all(state in program.graphs[name].inputs for state in block.states)
            assert [node.op.name for node in mlp.nodes] == ["rms_norm", "linear", "silu", "linear"]
    assert rows[0]["decode"].end is rows[1]["decode"].start


def test_norms_behind_the_sums() -> None:
    post = f"""
      %n0 = irx.layer_norm(%x) {{eps=1e-5}}{attention(0)}
      %s0 = irx.add(%n0, %o0)
      %n1 = irx.layer_norm(%s0) {{eps=1e-5}}
      %u = irx.linear(%n1, $w)
      %s1 = irx.add(%u, %n1)
      %y = irx.layer_norm(%s1) {{eps=1e-5}}"""
    (block,) = stack(post).blocks
    assert [unit.normed for unit in block.units] == [True, True]
    assert (block.start.name, block.end.name) == ("n0", "y")


def test_a_final_norm_is_no_part_of_the_last_block() -> None:
    (block,) = stack(f"""
      %n0 = irx.layer_norm(%x) {{eps=1e-5}}{attention(0)}
      %s0 = irx.add(%x, %o0)
      %y = irx.layer_norm(%s0) {{eps=1e-5}}""").blocks
    assert (block.start.name, block.end.name) == ("x", "s0")


@pytest.mark.parametrize(
    "sums", ["%t = irx.add(%x, %o0)\n%y = irx.add(%t, %u)", "%t = irx.add(%u, %o0)\n%y = irx.add(%t, %x)"]
)
def test_attention_and_mlp_of_one_input(sums: str) -> None:
    (block,) = stack(f"%n0 = irx.layer_norm(%x) {{eps=1e-5}}{attention(0)}\n%u = irx.linear(%n0, $w)\n{sums}").blocks
    attends, mlp = block.units
    assert (attends.kind, mlp.kind) == ("attention", "mlp")
    assert attends.start is mlp.start and attends.end is mlp.end and attends.end.name == "y"
    assert [v.name for v in attends.terms] == ["o0"] and [v.name for v in mlp.terms] == ["u"]


def test_a_sum_inside_a_branch_closes_no_unit() -> None:
    found = stack("""
      %a = irx.linear(%x, $w)
      %b = irx.linear(%a, $w)
      %c = irx.add(%a, %b)
      %d = irx.neg(%c)
      %y = irx.add(%x, %d)""")
    assert [[term.name for term in unit.terms] for unit in found.units] == [["d"]]


def test_a_sum_of_parts_of_one_mlp_is_one_unit() -> None:
    (unit,) = stack("""
      %a = irx.linear(%x, $w)
      %b = irx.linear(%a, $w)
      %c = irx.add(%x, %b)
      %y = irx.add(%c, %a)""").units
    assert sorted(term.name for term in unit.terms) == ["a", "b"]


def test_a_long_skip_closes_no_unit_and_says_why() -> None:
    found = stack(f"%n0 = irx.neg(%x){attention(0)}\n%z = irx.add(%n0, %o0)\n%n1 = irx.neg(%z)\n%y = irx.add(%x, %n1)")
    assert [(block.start.name, block.end.name) for block in found.blocks] == [("n0", "z")]
    assert [reason for _, reason in found.reasons] == ["the sum jumps over whole attention units"]


def test_what_is_no_residual_sum() -> None:
    assert stack("%a = irx.linear(%x, $w)\n%b = irx.linear(%x, $w)\n%y = irx.add(%a, %b)").blocks == ()
    assert stack("%a = irx.mul(%x, %x)\n%y = irx.add(%x, %a)").blocks == ()
    found = stack("%a = irx.linear(%x, $w)\n%b = irx.linear(%a, $w)\n%y = irx.add(%x, 1.0)")
    assert found.blocks == () and found.reasons == ()


def test_graphs_that_disagree_correspond_in_nothing() -> None:
    program = layered(2)
    program.graphs["decode"] = layered(3).graphs["decode"]
    rows, reason = corresponding(program)
    assert rows == [] and "2 (prefill), 3 (decode)" in reason


@pytest.mark.parametrize(
    ("name", "count", "kinds", "normed"),
    [
        ("llama", 2, ("attention", "mlp"), False),
        ("gptneox", 2, ("attention", "mlp"), False),
        ("deepseek_v3", 2, ("attention", "mlp"), False),
        ("bert", 2, ("attention", "mlp"), True),
        ("vit", 2, ("attention", "mlp"), False),
        ("t5", 4, ("attention", "attention", "mlp"), False),
    ],
)
def test_families(name: str, count: int, kinds: tuple[str, ...], normed: bool) -> None:
    pytest.importorskip("transformers", reason="the hf extra is not installed")
    import irx
    from tests.end_to_end.families import FAMILIES

    family = FAMILIES[name]
    text = irx.compile(family.model(), family.inputs(2, 16), target="torch", pipeline="none").program
    rows, reason = corresponding(parse(text))
    assert reason == "" and len(rows) == count
    assert tuple(unit.kind for unit in rows[-1]["forward"].units) == kinds
    assert all(unit.normed == normed for row in rows for block in row.values() for unit in block.units)

"""Rules on programs: provenance, fuel, checks, near misses, and that nothing else changes."""

from __future__ import annotations

import pytest

from irx.errors import TypeRuleError
from irx.ir.equal import difference
from irx.ir.graph import Builder, Value
from irx.ir.parser import parse
from irx.ir.program import Program
from irx.ir.verify import verify
from irx.pipeline.oracle import Oracle
from irx.rewrite.match import Match
from irx.rewrite.patterns import any_value, op
from irx.rewrite.report import Fuel, Report
from irx.rewrite.rewriter import Refused, Rewriter, Rule
from irx.rewrite.simplify import simplify

SILU = op("mul", op("sigmoid", any_value("x"), key=True), any_value("x"))
TEXT = """
graph @forward(%x: f32[B, 8], %z: f32[B, 8]) -> (a: f32[B, 8], b: f32[B, 8]) {
  %s = irx.sigmoid(%x)  // layer.act @ net.py:1
  %a = irx.mul(%x, %s)  // layer.act @ net.py:2 | cse
  %t = irx.sigmoid(%a)
  %b = irx.mul(%a, %t)
  return %a, %b
}
"""


def build(match: Match, b: Builder) -> Value:
    return b("silu", match["x"])


def wrong(match: Match, b: Builder) -> Value:
    return b("mul", b("sigmoid", match["x"]), 2.0)


def run(program: Program, *rules: Rule, check: bool = True, fuel: Fuel | None = None) -> Report:
    rewriter = Rewriter("raise-test", rules, evaluate=Oracle(program.weights) if check else None, fuel=fuel)
    report = rewriter.run(program)
    verify(program)
    return report


def ops(program: Program) -> list[str]:
    return [node.op.name for node in program.graphs["forward"].nodes]


def test_all_places_are_rewritten_and_leftovers_removed() -> None:
    program = parse(TEXT)
    report = run(program, Rule("silu", SILU, build))
    assert ops(program) == ["silu", "silu"]
    assert [site.what for site in report.sites] == ["silu", "silu"]
    assert all(site.error is not None and site.error < 1e-12 for site in report.sites)
    assert report.near_misses == []


def test_new_nodes_say_where_they_come_from() -> None:
    program = parse(TEXT)
    report = run(program, Rule("silu", SILU, build))
    node = next(program.graphs["forward"].nodes)
    assert (node.loc.module, node.loc.line, node.loc.passes) == ("layer.act", "net.py:2", ("cse", "raise-test"))
    assert {site.loc.line for site in report.sites} == {"net.py:2", ""}


def test_what_something_else_reads_stays() -> None:
    program = parse(TEXT.replace("return %a, %b", "return %s, %b"))
    run(program, Rule("silu", SILU, build))
    assert ops(program) == ["sigmoid", "silu", "silu"]
    exclusive = parse(TEXT.replace("return %a, %b", "return %s, %b"))
    report = run(exclusive, Rule("silu", SILU, build, exclusive=True))
    assert ops(exclusive) == ["sigmoid", "mul", "silu"]
    assert [miss.reason for miss in report.near_misses] == ["silu: %s is used elsewhere as well"]


def test_a_wrong_rule_changes_nothing() -> None:
    program = parse(TEXT)
    report = run(program, Rule("silu", SILU, wrong))
    assert difference(program, parse(TEXT)) is None
    assert report.sites == []
    assert [miss.reason.split(" error")[0] for miss in report.near_misses] == ["silu: check failed:"] * 2
    assert run(program, Rule("silu", SILU, wrong), check=False).sites


def test_a_refused_match_leaves_no_nodes() -> None:
    def refuse(match: Match, b: Builder) -> Value:
        b("silu", match["x"])
        raise Refused("not today")

    program = parse(TEXT)
    report = run(program, Rule("silu", SILU, refuse))
    assert difference(program, parse(TEXT)) is None
    assert [miss.reason for miss in report.near_misses] == ["silu: not today"] * 2


def test_an_ill_typed_replacement_is_a_near_miss() -> None:
    def matmul(match: Match, b: Builder) -> Value:
        return b("matmul", match["x"], match["x"])

    program = parse(TEXT)
    report = run(program, Rule("silu", SILU, matmul))
    assert difference(program, parse(TEXT)) is None
    assert all(miss.reason.startswith("silu: irx.matmul:") for miss in report.near_misses)


def test_replacements_have_the_type_of_what_they_replace() -> None:
    def narrow(match: Match, b: Builder) -> Value:
        return b("cast", b("silu", match["x"]), dtype="bf16")

    with pytest.raises(TypeRuleError, match="cannot replace"):
        run(parse(TEXT), Rule("silu", SILU, narrow))


def test_fuel_limits_the_number_of_rewrites() -> None:
    for limit in range(3):
        program, fuel = parse(TEXT), Fuel(limit)
        report = run(program, Rule("silu", SILU, build), fuel=fuel)
        assert len(report.sites) == fuel.spent == limit
        assert ops(program).count("silu") == limit
        assert ops(program).count("sigmoid") == 2 - limit


def test_rules_feed_each_other_and_larger_matches_come_first() -> None:
    def swiglu(match: Match, b: Builder) -> Value:
        return b("swiglu", match["gate"], match["up"])

    gated = Rule("swiglu", op("mul", op("silu", any_value("gate")), any_value("up")), swiglu, exclusive=True)
    text = TEXT.replace("%t = irx.sigmoid(%a)\n  %b = irx.mul(%a, %t)", "%b = irx.mul(%z, %a)")
    program = parse(text.replace("return %a, %b", "return %b, %b"))
    report = run(program, Rule("silu", SILU, build), gated)
    assert ops(program) == ["swiglu"]
    assert [site.what for site in report.sites] == ["silu", "swiglu"]


def test_one_near_miss_for_each_place() -> None:
    other = op("mul", op("sigmoid", op("tanh", any_value("y")), key=True), any_value("x"))
    program = parse(TEXT.replace("irx.mul(%x, %s)", "irx.mul(%z, %s)"))
    report = run(program, Rule("silu", SILU, build), Rule("other", other, build))
    assert [miss.reason for miss in report.near_misses] == ["silu: %z (an input) is another x than before"]


def test_sites_of_one_structure_are_evaluated_once() -> None:
    program = parse(TEXT)
    oracle = Oracle(program.weights)
    calls = []

    def counting(*arguments: object) -> list[object]:
        calls.append(arguments)
        return oracle(*arguments)  # type: ignore[arg-type]

    Rewriter("raise-test", [Rule("silu", SILU, build)], evaluate=counting).run(program)  # type: ignore[arg-type]
    assert len(calls) == 2, "one evaluation before and one after, for two places"


def test_simplify_takes_back_what_it_does_not_use() -> None:
    program = parse(TEXT)
    graph = program.graphs["forward"]

    def other_type(node: object, b: Builder) -> Value:
        return b("cast", graph.inputs[0], dtype="bf16")

    assert simplify(graph, {"mul": other_type}, by="test", fuel=Fuel()).sites == []

    def same_type(node: object, b: Builder) -> Value:
        return b("neg", graph.inputs[0])

    assert simplify(graph, {"mul": same_type}, by="test", fuel=Fuel(0)).sites == []
    assert difference(program, parse(TEXT)) is None
    assert len(simplify(graph, {"mul": same_type}, by="test", fuel=Fuel(1)).sites) == 1

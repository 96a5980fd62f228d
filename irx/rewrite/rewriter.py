"""Applies rules to programs: finds their patterns, checks and replaces what they match, and reports it.

    def build(match: Match, b: Builder) -> Value:
        if match["gate"].shape != match["up"].shape:
            raise Refused("gate and up differ in shape")
        return b("swiglu", match["gate"], match["up"])

    gated = Rule("swiglu", op("mul", op("silu", any_value("gate")), any_value("up")), build, exclusive=True)
    report = Rewriter("raise-activation", [gated], evaluate=ctx.evaluate, fuel=ctx.fuel).run(program)

A graph is visited from its last node to its first, so that the largest match comes first, and again until nothing
matches. At each node the rules are tried in order. The new nodes stand before the matched root, carry its location with
the pass added to it, and must give values of the same types as those they replace: a rule says its casts and reshapes
itself. What nobody reads afterwards is removed. A site whose two spellings differ on random inputs is put back and
reported as a near miss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from irx.errors import TypeRuleError
from irx.ir.dims import Range
from irx.ir.graph import Builder, Graph, Node, Value
from irx.ir.program import Program
from irx.rewrite.check import LIMIT, Check, Evaluate
from irx.rewrite.cleanup import erase_unused
from irx.rewrite.match import Match, Trace
from irx.rewrite.patterns import Pattern
from irx.rewrite.recorder import Recorder
from irx.rewrite.report import Fuel, NearMiss, Report, Site


class Refused(Exception):
    """Raised by a rule for a match that it does not rewrite after all, with the reason."""


_MOST_WAYS = 16  # in which a pattern may fit one node before the rule gives up there


@dataclass(frozen=True)
class Rule:
    """What to look for and what to put in its place. `what` names it in reports.

    `build` adds nodes with the builder and returns the value that replaces the root's, or raises Refused. With
    `exclusive`, nothing outside the match may read what it covers (but the root, and what is marked as shared), so that
    nothing is computed twice afterwards.
    """

    what: str
    pattern: Pattern
    build: Callable[[Match, Builder], Value]
    exclusive: bool = False


class Rewriter:
    """Applies rules until none matches. `by` is the pass's name; without `evaluate` sites are not checked."""

    def __init__(
        self, by: str, rules: Sequence[Rule], *, evaluate: Evaluate | None = None, fuel: Fuel | None = None
    ) -> None:
        self.by = by
        self.rules = rules
        self.evaluate = evaluate
        self.fuel = fuel or Fuel()

    def run(self, program: Program) -> Report:
        """Rewrite every graph of the program in place."""
        report = Report()
        for graph in program.graphs.values():
            report.add(self.rewrite(graph, program.sizes))
        return report

    def rewrite(self, graph: Graph, sizes: Mapping[str, Range]) -> Report:
        """Rewrite one graph in place."""
        check = Check(self.evaluate, sizes) if self.evaluate else None
        sweep = _Sweep(self, graph, check)
        while sweep.once():
            pass
        return Report(sweep.sites, sweep.near_misses)


class _Sweep:
    """The state of rewriting one graph."""

    def __init__(self, rewriter: Rewriter, graph: Graph, check: Check | None) -> None:
        self.by, self.rules, self.fuel = rewriter.by, rewriter.rules, rewriter.fuel
        self.graph = graph
        self.check = check
        self.sites: list[Site] = []
        self.near_misses: list[NearMiss] = []  # of the last visit, in which nothing was rewritten any more

    def once(self) -> bool:
        """Visit every node once. True if something was rewritten and another visit may find more."""
        self.near_misses.clear()
        before, gone = len(self.sites), set[Node]()
        for node in list(self.graph.reversed_nodes):
            if node in gone or len(node.outputs) != 1:
                continue
            gone.update(self._visit(node))
        return len(self.sites) > before

    def _visit(self, node: Node) -> list[Node]:
        """Try the rules at one node: what was erased, nothing where none applied."""
        attempts: list[tuple[int, str]] = []
        for rule in self.rules:
            if rule.pattern.roots is not None and node.op.name not in rule.pattern.roots:
                continue
            trace = Trace()
            erased = self._apply(rule, node, trace)
            if erased:
                return erased
            attempts.append((trace.depth, f"{rule.what}: {trace.reason}"))
        depth, reason = max(attempts, key=lambda attempt: attempt[0], default=(0, ""))
        if depth:
            self.near_misses.append(NearMiss(self.graph.name, node.loc, reason))
        return []

    def _apply(self, rule: Rule, node: Node, trace: Trace) -> list[Node]:
        matches = rule.pattern.match(node.output, Match(self.graph, trace))
        for match in islice(matches, _MOST_WAYS):
            outside = match.outside_user() if rule.exclusive else None
            if outside is not None:
                trace.refuse(f"%{outside.outputs[0].name} is used elsewhere as well")
                continue
            erased = self._rewrite(rule, match, node)
            if erased:
                return erased
        return []

    def _rewrite(self, rule: Rule, match: Match, root: Node) -> list[Node]:
        builder = Recorder(self.graph, root, self.by)
        try:
            result = rule.build(match, builder)
            error = self._check(match, root, result)
        except (Refused, TypeRuleError) as refusal:
            match.trace.refuse(str(refusal))
            builder.undo()
            return []
        if not self.fuel.take():
            builder.undo()
            return []
        self.graph.replace(root.output, result)
        self.sites.append(Site(self.graph.name, root.loc, rule.what, error))
        return erase_unused(self.graph, [root, *builder.made])

    def _check(self, match: Match, root: Node, result: Value) -> float | None:
        """The site's error; Refused where it is too large."""
        if self.check is None:
            return None
        error = self.check.error(root.outputs, [result], match.leaves)
        if error is not None and error > LIMIT:
            raise Refused(f"check failed: error {error:.1e} is above {LIMIT:.0e}")
        return error

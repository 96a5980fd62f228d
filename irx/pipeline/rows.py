"""From the reports of passes to rows of the ledger."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

from irx.ir.graph import Graph, Loc
from irx.ir.program import Program
from irx.ir.regions import flat_nodes
from irx.ledger import DROPPED, KEPT, NO_MATCH, REFUSED, Miss, Row
from irx.pipeline.base import NearMiss, Pass, Report, Site
from irx.pipeline.instruments.base import Verdict

_PLACES = 8  # module paths that a row keeps of its sites


def kept_rows(step: int, one: Pass, report: Report) -> list[Row]:
    """A row for every kind of site, the near misses with the first; one row that says why, where nothing matched."""
    groups: dict[str, list[Site]] = {}
    for site in report.sites:
        groups.setdefault(site.what, []).append(site)
    misses = _misses(report.near_misses)
    if not groups:
        why = "almost matched, see the near misses" if misses else "nothing like it in the program"
        return [replace(_row(step, one, NO_MATCH), near_misses=misses, reason=report.note or why)]
    rows = [_group(step, one, what, sites) for what, sites in groups.items()]
    return [replace(rows[0], near_misses=misses, reason=report.note), *rows[1:]]


def refused_row(step: int, one: Pass, reason: str, report: Report | None = None) -> Row:
    """The row of a pass whose result was thrown away."""
    row = replace(_row(step, one, REFUSED), reason=reason)
    if report is None:
        return row
    return replace(row, near_misses=_misses(report.near_misses), error=_finite(report.error))


def taken_back_row(step: int, one: Pass, verdict: Verdict) -> Row:
    """The row of a pass that was taken back when all had run."""
    row = refused_row(step, one, verdict.reason)
    return replace(row, decision=DROPPED) if verdict.dropped else row


def operations(program: Program) -> dict[str, int]:
    """How many nodes of each op a step of the model runs, those left to torch not counted."""
    main = next((name for name in ("decode", "forward", *program.graphs) if name in program.graphs), None)
    nodes = flat_nodes(program.graphs[main]) if main is not None else ()
    return dict(Counter(node.op.name for node in nodes if node.op.name != "torch.call"))


def calls(program: Program) -> dict[str, int]:
    """How many nodes call torch, by target: in the graph that has most of them."""
    found: Counter[str] = Counter()
    for graph in program.graphs.values():
        found |= _calls(graph)
    return dict(found)


def _calls(graph: Graph) -> Counter[str]:
    return Counter(str(node.attr("target")) for node in flat_nodes(graph) if node.op.name == "torch.call")


def _row(step: int, one: Pass, decision: str) -> Row:
    return Row(step, one.name, one.stage.name.lower(), one.effect.value, decision)


def _group(step: int, one: Pass, what: str, sites: list[Site]) -> Row:
    errors = [site.error for site in sites if site.error is not None]
    return replace(
        _row(step, one, KEPT),
        what=what,
        graphs=tuple(dict.fromkeys(site.graph for site in sites)),
        matches=len(sites),
        places=tuple(dict.fromkeys(_place(site.loc) for site in sites))[:_PLACES],
        error=max(errors, default=None),
    )


def _misses(near_misses: list[NearMiss]) -> tuple[Miss, ...]:
    return tuple(Miss(miss.graph, _place(miss.loc), miss.reason) for miss in near_misses)


def _place(loc: Loc) -> str:
    return loc.module or loc.line or "unknown place"


def _finite(error: float | None) -> float | None:
    """JSON has no infinity; the row's reason says that it was one."""
    return error if error is not None and math.isfinite(error) else None

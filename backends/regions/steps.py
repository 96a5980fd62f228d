"""What each node of a graph becomes: kernels, a call of torch, a view, or a constant made once from weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from irx.backends.regions.buffers import VIEWS
from irx.backends.regions.lowered import Choices, Lowered, PackedPart, Refusal, Rule
from irx.backends.regions.sites import Bodies, Site
from irx.ir.graph import Graph, Value, Weight
from irx.ir.sizes import dims_of, used_sizes


@dataclass(frozen=True, eq=False)
class Step:
    """One site with its kernels; without kernels torch runs it, for the `reason`."""

    site: Site
    lowered: Lowered | None
    reason: str = ""


@dataclass
class Steps:
    """The steps of a graph in order. `constants` are the sites whose results depend on weights only."""

    graph: Graph
    steps: list[Step] = field(default_factory=list)
    views: list[Site] = field(default_factory=list)
    constants: dict[Value, Site] = field(default_factory=dict)
    order: list[Site] = field(default_factory=list)


class Lowering:
    """Applies rules in order, once for each body. `refused` are kernels not to use, by symbol, with the reasons."""

    def __init__(self, rules: Sequence[Rule], choices: Choices, refused: Mapping[str, str] | None = None) -> None:
        self._rules = rules
        self._choices = choices
        self._refused = refused or {}
        self._bodies = Bodies()
        self._known: dict[Graph, Lowered | str] = {}

    def steps(self, graph: Graph) -> Steps:
        """All steps of a graph."""
        made = Steps(graph)
        for site in self._bodies.sites(graph):
            if all(isinstance(v, Weight) or v in made.constants for v in site.operands) and not _sized(site):
                made.constants |= dict.fromkeys(site.results, site)
                continue
            made.order.append(site)
            if site.node.op.name in VIEWS:
                made.views.append(site)
            else:
                made.steps.append(self._step(site))
        return made

    def _step(self, site: Site) -> Step:
        found = self._known.get(site.body)
        if found is None:
            found = self._known[site.body] = self._lower(site.body)
        if isinstance(found, Lowered):
            reason = _mismatch(site, found)
            if reason is None:
                return Step(site, found)
            found = reason
        return Step(site, None, found)

    def _lower(self, body: Graph) -> Lowered | str:
        """The kernels of a body, or why there are none."""
        reasons = []
        for rule in self._rules:
            try:
                lowered = rule(body, self._choices)
            except Refusal as refusal:
                reasons.append(str(refusal))
                continue
            if lowered is None:
                continue
            failed = next((k for k in lowered.kernels if k.symbol in self._refused), None)
            if failed is None:
                return lowered
            reasons.append(f"the kernel {failed.name} is refused: {self._refused[failed.symbol]}")
        return "; ".join(reasons) or f"no rule makes kernels of {_ops(body)}"


def _mismatch(site: Site, lowered: Lowered) -> str | None:
    """Why kernels of the body do not serve this site: they pack an operand that is no weight here."""
    for case in lowered.cases:
        for call in case.calls:
            for binding in call.bindings.values():
                if not isinstance(binding, PackedPart):
                    continue
                for value in binding.weights:
                    if not isinstance(site.actual(value), Weight):
                        return "an operand that has to be a weight is computed"
    return None


def _sized(site: Site) -> bool:
    """True for what depends on sizes or on nothing: it cannot be made before a call."""
    sizes = used_sizes(site.body) or any(dims_of(v.type) and not _static(v) for v in site.results)
    return not site.operands or bool(sizes)


def _static(value: Value) -> bool:
    return all(isinstance(dim, int) for dim in dims_of(value.type))


def _ops(body: Graph) -> str:
    names: Sequence[str] = [node.op.name for node in body.nodes]
    return ", ".join(dict.fromkeys(names))

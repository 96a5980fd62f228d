"""Regions one after the other that become one kernel where launches cost more than the work.

    attention | out + residual | norm + gate, up, act | down + residual | norm + QKV | attention
    attention | ----- one kernel of two products -----| ------ another one ------- | attention

A region joins the one before where that one computes its x, both are products of the same few rows, and each is so
short that its start counts. For more rows their kernels stay as they are, one after the other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from irx.analysis.launches import launch_seconds
from irx.backends.regions.buffers import VIEWS
from irx.backends.regions.linear_region import LinearRegion, parse
from irx.backends.regions.lowered import Call, Case, Choices, Lowered
from irx.backends.regions.sites import Site
from irx.backends.regions.steps import Lowering, Step, Steps
from irx.backends.triton.templates import matvec
from irx.backends.triton.templates.chain import DEFAULTS, Phase, chain_call, own_temporary, widened
from irx.backends.triton.templates.linear_shape import problem_of
from irx.ir.graph import Graph, Value
from irx.tuning import Choice

SHORT = 4.0
"""Starts of a kernel that a product may take to be chained."""
MOST_ROWS = 2
"""Rows of x; more take registers that leave too little room for all programs at once."""


@dataclass(frozen=True, eq=False)
class ChainSite(Site):
    """Regions that run as one: the body's values of all of them stand for values of the graph."""

    parts: tuple[Site, ...] = ()

    @property
    def name(self) -> str:
        """What they do."""
        return " then ".join(part.name for part in self.parts)

    def actual(self, value: Value) -> Value:
        """The graph's value that an input or output of one of the bodies stands for."""
        for part in self.parts:
            if any(value is own for own in (*part.body.inputs, *part.body.outputs)):
                return part.actual(value)
        raise KeyError(value.name)


class ChainedLowering:
    """The steps of graphs, with chains. `refused` are kernels not to use."""

    def __init__(self, lowering: Lowering, choices: Choices, refused: Collection[str]) -> None:
        self._lowering, self._choices, self._refused = lowering, choices, frozenset(refused)
        self._regions: dict[Graph, LinearRegion | None] = {}
        self._known: dict[tuple[Graph, ...], Lowered | None] = {}

    def steps(self, graph: Graph) -> Steps:
        """All steps of a graph."""
        made = self._lowering.steps(graph)
        if self._choices.device.gpu is not None:
            made.steps = self._chained(made.steps)
        return made

    def _chained(self, steps: Sequence[Step]) -> list[Step]:
        done: list[Step] = []
        run: list[Step] = []
        for step in [*steps, None]:
            if step is not None and run and self._joins(run, step):
                run.append(step)
                continue
            done += self._joined(run)
            run = [] if step is None else [step]
        return done

    def _joins(self, run: Sequence[Step], step: Step) -> bool:
        """True where the step's x is what the last one computes, and both are short products of the same rows."""
        before, own = self._region(run[-1]), self._region(step)
        if before is None or own is None or before.rows != own.rows:
            return False
        if any(step.site.body is other.site.body for other in run):
            return False
        return _source(step.site.actual(own.x)) in run[-1].site.results

    def _region(self, step: Step) -> LinearRegion | None:
        """The region of a step with a kernel for few rows that does not take long."""
        body = step.site.body
        if body not in self._regions:
            self._regions[body] = None
            if step.lowered is not None and step.lowered.cases[0].calls[0].kernel.name == "matvec":
                region = parse(body, chooses=True)
                assert region is not None
                self._regions[body] = region if region.best is None and self._is_short(region) else None
        return self._regions[body]

    def _is_short(self, region: LinearRegion) -> bool:
        device = self._choices.device
        moved = sum(layout.bytes for layout in problem_of(region, device).layouts)
        return moved / device.bandwidth <= SHORT * launch_seconds(device)

    def _joined(self, run: Sequence[Step]) -> list[Step]:
        """The steps of a run, as few as they may be: each time the longest chain that it begins with."""
        made: list[Step] = []
        rest = list(run)
        while rest:
            most = min(len(rest), int(self._knobs(rest[0])["phases"])) if len(rest) > 1 else 1
            chains = ((count, self._lowered(rest[:count])) for count in range(most, 1, -1))
            count, lowered = next((found for found in chains if found[1] is not None), (1, rest[0].lowered))
            made.append(rest[0] if count == 1 else Step(_site(rest[:count]), lowered))
            rest = rest[count:]
        return made

    def _knobs(self, step: Step) -> Mapping[str, Choice]:
        region = self._region(step)
        assert region is not None
        return self._choices.schedule("chain", problem_of(region, self._choices.device).bucket, DEFAULTS)

    def _lowered(self, steps: Sequence[Step]) -> Lowered | None:
        """The kernels of a chain; None where there is none, or where it is refused."""
        key = tuple(step.site.body for step in steps)
        if key not in self._known:
            self._known[key] = self._lower(steps)
        return self._known[key]

    def _lower(self, steps: Sequence[Step]) -> Lowered | None:
        lowered = [step.lowered for step in steps if step.lowered is not None]
        first = lowered[0].cases
        if any([(c.size, c.most) for c in one.cases] != [(c.size, c.most) for c in first] for one in lowered):
            return None
        calls = [[one.cases[number].calls for one in lowered] for number in range(len(first))]
        cases = [
            Case(self._calls(steps, some, case.most), case.size, case.most)
            for some, case in zip(calls, first, strict=True)
        ]
        made = Lowered(tuple(cases), "one kernel for few rows")
        return made if any(kernel.name == "chain" for kernel in made.kernels) else None

    def _calls(self, steps: Sequence[Step], calls: Sequence[tuple[Call, ...]], most: int | None) -> tuple[Call, ...]:
        """One kernel where each region has one for few rows, else all that they have."""
        few = most is None or most <= MOST_ROWS
        if few and all([call.kernel.name for call in some] == ["matvec"] for some in calls):
            warps = int(self._knobs(steps[0])["warps"])
            made = chain_call([self._phase(steps, i, most, warps) for i in range(len(steps))])
            if made.kernel.symbol not in self._refused:
                return (made,)
        return tuple(_apart(call, i) for i, some in enumerate(calls) for call in some)

    def _phase(self, steps: Sequence[Step], i: int, most: int | None, warps: int) -> Phase:
        region = self._region(steps[i])
        assert region is not None
        if most is None:  # rows are a number
            assert isinstance(region.rows, int)
            most = next(few for few in matvec.ROWS if few >= region.rows)
        shape = matvec.shape_of(problem_of(region, self._choices.device), most, self._choices)
        made = {value for step in steps[:i] for value in step.site.results}
        read = (_source(steps[i].site.actual(operand.value)) for operand in region.operands)
        return Phase(widened(shape, warps), made.isdisjoint(read))


def _site(steps: Sequence[Step]) -> ChainSite:
    parts = tuple(step.site for step in steps)
    results = tuple(value for part in parts for value in part.results)
    operands = dict.fromkeys(value for part in parts for value in part.operands if value not in results)
    return ChainSite(parts[0].node, parts[0].body, tuple(operands), results, parts)


def _source(value: Value) -> Value:
    """The value whose buffer another one views."""
    while value.producer is not None and value.producer.op.name in VIEWS:
        source = value.producer.inputs[0]
        assert source is not None
        value = source
    return value


def _apart(call: Call, i: int) -> Call:
    """A call whose temporaries are not those of another region."""
    return replace(call, bindings={name: own_temporary(binding, i) for name, binding in call.bindings.items()})

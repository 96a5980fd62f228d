"""What can be tuned in a graph: the schedules that its kernels ask for, each once, with a region and sizes to try it.

A backend gives its rules (`lowering`, for a way to choose schedules) and how tuning knows a kernel (`task`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from irx.backends.regions.lowered import Case, Lowered
from irx.backends.regions.sites import alone
from irx.backends.regions.steps import Lowering, Step
from irx.ir.excerpt import excerpt
from irx.ir.graph import Graph
from irx.ir.printer import print_program
from irx.ir.program import Program
from irx.ir.sizes import used_sizes
from irx.tuning import Choice, Schedule, Task

MANY = 128  # rows that stand for any number above the last limit

Knobs: TypeAlias = Mapping[str, Choice]
Chooser: TypeAlias = Callable[[str, str, Knobs], Knobs]


@dataclass
class Asked:
    """Records what templates ask schedules for, and gives one of them another choice."""

    asked: dict[tuple[str, str], Knobs]
    other: tuple[str, str] | None = None
    knobs: Knobs | None = None

    def __call__(self, template: str, bucket: str, defaults: Knobs) -> Knobs:
        """The knobs to build a kernel with."""
        self.asked.setdefault((template, bucket), defaults)
        return {**defaults, **(self.knobs or {})} if (template, bucket) == self.other else defaults


@dataclass(frozen=True)
class Tunables:
    """Finds tasks. `task(template, bucket, defaults, **more)` makes one; `args` are added to what its runner gets."""

    lowering: Callable[[Chooser], Lowering]
    task: Callable[..., Task]
    args: Mapping[str, Any]

    def tasks(self, program: Program, graph: Graph) -> list[Task]:
        """Everything that can be tuned in a graph, each kernel once."""
        steps = self.lowering(Asked({})).steps(graph).steps
        uses = Counter(step.site.body for step in steps)
        first = {step.site.body: step for step in reversed(steps) if step.lowered is not None}
        found: dict[str, Task] = {}
        for body, step in first.items():
            for made in self._tasks_of(program, step, uses[body]):
                found.setdefault(str(made.key), made)
        return list(found.values())

    def _tasks_of(self, program: Program, step: Step, uses: int) -> list[Task]:
        """The tasks of one region: one for every schedule that its kernels ask for."""
        asked = Asked({})
        self._lowered(step, asked)
        found = []
        for (template, bucket), defaults in asked.asked.items():
            case = self._case_of(step, (template, bucket), self.task(template, bucket, defaults))
            if case is None:
                continue
            args = {
                "program": print_program(excerpt(program, alone(step.site)[0])),
                "template": template,
                "bucket": bucket,
                "sizes": _sizes(step, case),
                **self.args,
            }
            found.append(self.task(template, bucket, defaults, args=args, where=step.site.place, uses=uses))
        return found

    def _lowered(self, step: Step, chooser: Chooser) -> Lowered | None:
        (made,) = self.lowering(chooser).steps(alone(step.site)[0]).steps
        return made.lowered

    def _case_of(self, step: Step, asked: tuple[str, str], one: Task) -> Case | None:
        """The case whose kernels change with the schedule, whichever knob it takes: a kernel may have no use for
        some."""
        assert step.lowered is not None
        for other in _others(one):
            changed = self._lowered(step, Asked({}, asked, other))
            for old, new in zip(step.lowered.cases, changed.cases if changed is not None else (), strict=False):
                if [call.kernel.symbol for call in old.calls] != [call.kernel.symbol for call in new.calls]:
                    return old
        return None


def _others(one: Task) -> list[Schedule]:
    """Every schedule that differs from the default in one knob."""
    default = one.space.default()
    pairs = ((knob, value) for knob in one.space.knobs for value in knob.values if value != knob.default)
    return [s for s in (default.replace(knob.name, value) for knob, value in pairs) if one.space.allows(s)]


def _sizes(step: Step, case: Case) -> dict[str, int]:
    """Sizes that the case serves: as many rows as it takes."""
    names = list(used_sizes(alone(step.site)[0]))
    sizes = dict.fromkeys(names, 1)
    longest = next((n for n in ("S", "R", "B", *names) if n in sizes), None)
    if longest is not None:
        sizes[longest] = case.most or MANY
    return sizes

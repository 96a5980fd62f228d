"""Families of rows: candidates that take turns, and what is claimed of their times once their results agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

from irx.bench.baselines.absent import Absent
from irx.bench.baselines.reading import reader
from irx.bench.guard import reason
from irx.bench.lab import Lab
from irx.bench.result import Result, verdict
from irx.bench.timing import samples, spread, summary
from irx.errors import IRXError

if TYPE_CHECKING:
    import torch

    from irx.bench.baselines.language import Step

RING = 1 << 28  # bytes of the ring that gives the bandwidth of a floor


@dataclass(frozen=True)
class Ready:
    """A candidate that can run: its step, and the bytes a step cannot avoid to move (0: not known)."""

    step: Step
    bytes: int = 0


@dataclass(frozen=True)
class Candidate:
    """What may take part: `make` builds it. Its result must be within `tolerance` of the reference's largest value.

    A candidate without a tolerance computes something else, and is not compared.
    """

    make: Callable[[Lab], Ready]
    tolerance: float | None


@dataclass(frozen=True)
class Row:
    """A claim: `ours` takes at least `at_least` times less time than the fastest of `against`; None claims nothing."""

    what: str
    ours: str
    against: tuple[str, ...]
    at_least: float | None
    pipeline: str = "default"
    percent: bool = False  # a share of a limit, printed in percent: the limit's best round counts


@dataclass(frozen=True)
class Race:
    """A family of rows over candidates that are measured together; results are compared with that of `reference`."""

    name: str
    title: str
    reference: str
    candidates: Mapping[str, Candidate]
    rows: Sequence[Row]

    def measure(self, lab: Lab) -> Iterator[Result]:
        """The results of all rows, in order."""
        field = _Field(self)
        field.enter(lab)
        field.run(lab)
        for row in self.rows:
            yield field.result(row)


@dataclass
class _Field:
    """The candidates of one race that are here, with their times."""

    race: Race
    ready: dict[str, Ready] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    bandwidth: float = 0.0
    how: str = ""

    def enter(self, lab: Lab) -> None:
        """Make every candidate and check what it computes."""
        expected = None
        names = [self.race.reference, *(name for name in self.race.candidates if name != self.race.reference)]
        for name in names:
            lab.tell(f"  making {name}")
            result = self._first(name, lab)
            if result is not None:
                expected = result if expected is None else expected
                self._check(name, result, expected)

    def _first(self, name: str, lab: Lab) -> torch.Tensor | None:
        """The first result of a candidate; None where it cannot run, which must not cost the others their rows."""
        try:
            ready = self.race.candidates[name].make(lab)
            result = ready.step().float().clone()
        except (Absent, IRXError) as error:
            self.missing[name] = str(error)
            return None
        except Exception as error:
            self.wrong[name] = reason(error)[1]
            return None
        self.ready[name] = ready
        return result

    def _check(self, name: str, result: torch.Tensor, expected: torch.Tensor) -> None:
        tolerance = self.race.candidates[name].tolerance
        if tolerance is None:
            return
        if result.shape != expected.shape:
            self.wrong[name] = f"its result has shape {list(result.shape)}, not {list(expected.shape)}"
            return
        error = self.errors[name] = float((result - expected).abs().max() / expected.abs().max())
        if not error <= tolerance:
            self.wrong[name] = f"it is off by {error:.1e} of the largest value, more than {tolerance:.0e}"

    def run(self, lab: Lab) -> None:
        """Take the times of all candidates that compute what they should."""
        import torch

        steps = {name: ready.step for name, ready in self.ready.items() if name not in self.wrong}
        lab.tell(f"  timing {', '.join(steps)}")
        step, how = reader(RING, lab.threads)
        with torch.no_grad():
            self.seconds = samples({**steps, "read": step}, rounds=lab.rounds, turn=lab.turn)
        self.bandwidth = RING / min(self.seconds.pop("read"))
        self.how = f"{self.bandwidth / 1e9:.1f} GB/s by {how}"

    def result(self, row: Row) -> Result:
        """What was measured for a row."""
        found = Result(self.race.name, row.what, row.pipeline, row.at_least, "%" if row.percent else "x")
        reason = self._reason(row)
        if reason:
            return found.without(*reason)
        rival = min((name for name in row.against if name in self.seconds), key=lambda n: median(self.seconds[n]))
        ours, theirs = self.seconds[row.ours], self.seconds[rival]
        in_turns = spread([their / our for our, their in zip(ours, theirs, strict=True)])
        ratios = spread([min(theirs) / our for our in ours]) if row.percent else in_turns
        notes = [f"{name} absent: {why}" for name, why in self._left_out(row)]
        if row.percent:  # a machine whose limit changes from minute to minute is not told by the best one alone
            share = [f"{100 * value:.0f}" for value in (in_turns.median, in_turns.low, in_turns.high)]
            notes.append(f"of the {rival} of the same round {share[0]} % ({share[1]} to {share[2]})")
        return found.measured(
            ratios,
            verdict(ratios, row.at_least),
            ours=summary(ours),
            theirs=summary(theirs),
            rival=rival,
            floor=self.ready[row.ours].bytes / self.bandwidth or None,
            bandwidth=self.how,
            error=self.errors.get(row.ours),
            note="; ".join(notes),
        )

    def _reason(self, row: Row) -> tuple[str, str] | None:
        """Why a row has no figures: a verdict and a reason."""
        for name in (row.ours, *row.against):
            if name in self.wrong:
                return "wrong", f"{name}: {self.wrong[name]}"
        if row.ours in self.missing:
            return "absent", f"{row.ours}: {self.missing[row.ours]}"
        if not any(name in self.seconds for name in row.against):
            return "absent", "; ".join(f"{name}: {self.missing[name]}" for name in row.against)
        return None

    def _left_out(self, row: Row) -> list[tuple[str, str]]:
        return [(name, self.missing[name]) for name in row.against if name in self.missing]

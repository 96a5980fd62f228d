"""Tuning: try schedules of kernels in a worker process, and keep the fastest that is right.

    report = tune(tasks, device, effort="quick", database=Database())

Every candidate is built, checked and timed by the task's runner in another process. One that fails, hangs or gives a
result that is off is refused and named in the report. The fastest of the rest must then beat the default in turns with
it, in nearly all of them and by more than the noise of both. A row is kept as soon as its kernel is done, so a run that
is killed loses little.

For a device that is not this machine's, tasks with a `model` are ranked by it: the default and the model's picks are
built and checked, nothing is timed, and rows say that they are modelled. What was measured there stays.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from types import TracebackType

from irx import __version__
from irx.errors import BadOption, DeviceNotFound, UnknownOption
from irx.target import Device, host_cpu, host_gpu
from irx.tuning.climb import Climb
from irx.tuning.database import Database
from irx.tuning.process import Worker
from irx.tuning.report import Decision, TaskReport, Trial, TuneReport
from irx.tuning.row import Row
from irx.tuning.space import Schedule
from irx.tuning.task import Fingerprint, Outcome, Task
from irx.tuning.worker import attempt

DUELS = 7  # turns that the default and the winner take
LOST = 1  # of them, at most, by the winner: what the fastest of many was by chance, it is not in turn after turn
CLEAR = 0.05  # the share of the default's time that a model's pick must save: it knows no better


@dataclass(frozen=True)
class Effort:
    """How much a kernel is worth: candidates, seconds for all of them, and the limit of one."""

    trials: int
    seconds: float
    limit: float


EFFORTS: Mapping[str, Effort] = {
    "quick": Effort(trials=12, seconds=20.0, limit=10.0),
    "full": Effort(trials=120, seconds=240.0, limit=20.0),
}


def check_effort(tune: str) -> None:
    """Raises UnknownOption for an effort of tuning that does not exist."""
    if tune not in ("none", *EFFORTS):
        raise UnknownOption(tune, ("none", *EFFORTS), where="tune")


def tune(
    tasks: Sequence[Task],
    device: Device,
    *,
    effort: str | Effort = "quick",
    database: Database | None = None,
    seconds: float | None = None,
    seed: int = 0,
    versions: Mapping[str, str] | None = None,
    progress: Callable[[TaskReport], None] = lambda report: None,
) -> TuneReport:
    """Tune every kernel, the ones used most first, until `seconds` are over, and add what was found to the database.

    `versions` of the code generator go into the rows. `progress` hears of every kernel when it is done. The order of
    candidates depends on `seed` alone. Raises DeviceNotFound for a device that is not this machine's and tasks without
    a model, UnknownOption for an effort that does not exist.
    """
    here = Fingerprint.of(device) in [Fingerprint.of(found) for found in (host_cpu(), host_gpu()) if found]
    if not here:
        tasks = [task for task in tasks if task.model]
    if not here and not tasks:
        raise DeviceNotFound(
            f"schedules for {device.name} can only be measured on one", fix="tune there, then irx tune --export"
        )
    amount = _effort(effort)
    if seconds is not None and seconds <= 0:
        raise BadOption(f"{seconds:g} seconds to tune in", fix="give more than 0")
    deadline = None if seconds is None else time.monotonic() + seconds
    store = database or Database()
    known = {row.key: row for row in store.rows_of(Fingerprint.of(device))}
    about = _About(Fingerprint.of(device), {"irx": __version__, **(versions or {})}, not here)
    report = TuneReport()
    with Worker() if here else Modeller() as worker:
        for task in sorted(_distinct(tasks), key=lambda task: -task.uses):
            if deadline is not None and time.monotonic() >= deadline:
                report.skipped.append(task)
                continue
            before = known.get(task.key)
            limits = _within(amount, deadline)
            done = (_Run if here else _Modelled)(task, worker, limits, seed, before).report()
            report.tasks.append(done)
            if done.best is not None and (here or before is None or before.modelled):
                store.add(about.row(done))
            progress(done)
    return report


def _effort(effort: str | Effort) -> Effort:
    if isinstance(effort, Effort):
        return effort
    if effort not in EFFORTS:
        raise UnknownOption(effort, EFFORTS, where="the effort of tuning")
    return EFFORTS[effort]


def _within(amount: Effort, deadline: float | None) -> Effort:
    if deadline is None:
        return amount
    left = max(deadline - time.monotonic(), 0.0)
    return Effort(amount.trials, min(amount.seconds, left), amount.limit)


def _distinct(tasks: Sequence[Task]) -> list[Task]:
    """Tasks by key, the first of equal ones."""
    return list({task.key: task for task in reversed(tasks)}.values())[::-1]


@dataclass(frozen=True)
class _About:
    """What all rows of a run have in common."""

    device: Fingerprint
    versions: Mapping[str, str]
    modelled: bool

    def row(self, done: TaskReport) -> Row:
        assert done.best is not None
        return Row(
            self.device,
            done.task.key,
            done.best.schedule,
            done.best.seconds,
            done.best.noise,
            done.default.seconds if done.default else None,
            trials=len(done.trials),
            refused=len(done.refused),
            when=time.strftime("%Y-%m-%d"),
            versions=self.versions,
            modelled=self.modelled,
        )


class Modeller:
    """Tries candidates with their tasks' models, in this process: what they build runs in processes of its own."""

    def __enter__(self) -> Modeller:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        pass

    def attempt(self, task: Task, schedule: Schedule, limit: float) -> Outcome:
        """The outcome of one candidate, its time that of the model."""
        return attempt(task.model, task.args, schedule)


@dataclass
class _Run:
    """The search for one kernel."""

    task: Task
    worker: Worker | Modeller
    effort: Effort
    seed: int
    known: Row | None
    trials: list[Trial] = field(default_factory=list)

    def report(self) -> TaskReport:
        """Search, then let the winner take turns with the default."""
        self._search()
        right = [trial for trial in self.trials if not trial.refusal]
        default = next((trial for trial in right if trial.schedule == self.task.default()), None)
        if not right:
            return TaskReport(self.task, self.trials, Decision.NOTHING)
        best = min(right, key=lambda trial: trial.seconds)
        if default is None:
            return TaskReport(self.task, self.trials, Decision.FASTER, best)
        if best is default:
            return TaskReport(self.task, self.trials, Decision.DEFAULT, default, default)
        return self._duel(default, best)

    def _starts(self) -> list[Schedule]:
        """What is tried first: the default, what won before, and the picks."""
        earlier = self.task.space.adopt(self.known.schedule) if self.known else None
        return [self.task.default(), *([earlier] if earlier else []), *self.task.picks]

    def _search(self) -> None:
        """The default comes first whatever the budget; the rest while there is time."""
        starts = self._starts()
        climb, begin = Climb(self.task.space, starts, self.seed), time.monotonic()
        while len(self.trials) < self.effort.trials:
            if self.trials and time.monotonic() - begin >= self.effort.seconds:
                return
            schedule = climb.next()
            if schedule is None:
                return
            trial = self._try(schedule)
            climb.tell(schedule, None if trial.refusal else trial.seconds)

    def _try(self, schedule: Schedule) -> Trial:
        """One candidate, noted."""
        trial = Trial(schedule, self.worker.attempt(self.task, schedule, self.effort.limit))
        self.trials.append(trial)
        return trial

    def _duel(self, default: Trial, best: Trial) -> TaskReport:
        """Time both in turns, in changing order: what drifted during the search must not decide."""
        times: dict[Schedule, list[tuple[float, ...]]] = {default.schedule: [], best.schedule: []}
        order, source = [default.schedule, best.schedule], random.Random(self.seed)
        for _ in range(DUELS):
            source.shuffle(order)
            for schedule in order:
                outcome = self.worker.attempt(self.task, schedule, self.effort.limit)
                if outcome.refusal:
                    return self._unsteady(schedule, outcome, default, best)
                times[schedule].append(outcome.seconds)
        first, second = (Trial(s, Outcome(sum(times[s], ()))) for s in (default.schedule, best.schedule))
        turns = zip(times[default.schedule], times[best.schedule], strict=True)
        lost = sum(median(mine) >= median(its) for its, mine in turns)
        noise = max(first.noise * first.seconds, second.noise * second.seconds)
        won = lost <= LOST and first.seconds - second.seconds > noise
        decision = Decision.FASTER if won else Decision.DEFAULT
        return TaskReport(self.task, self.trials, decision, second if won else first, first)

    def _unsteady(self, schedule: Schedule, outcome: Outcome, default: Trial, best: Trial) -> TaskReport:
        """A schedule that was right and then was not is refused for good; the other one stays."""
        self.trials = [trial for trial in self.trials if trial.schedule != schedule] + [Trial(schedule, outcome)]
        if schedule == default.schedule:
            return TaskReport(self.task, self.trials, Decision.FASTER, best)
        return TaskReport(self.task, self.trials, Decision.DEFAULT, default, default)


class _Modelled(_Run):
    """The choice for one kernel by its model: the first pick that is right and clearly faster than the default.

    Picks come best first, and nothing drifts, so nothing has to be timed in turns.
    """

    def _search(self) -> None:
        begin, first = time.monotonic(), self._try(self.task.default())
        for schedule in dict.fromkeys(self._starts()[1:]):
            if len(self.trials) >= self.effort.trials or time.monotonic() - begin >= self.effort.seconds:
                return
            trial = self._try(schedule)
            if not trial.refusal and (first.refusal or trial.seconds < (1 - CLEAR) * first.seconds):
                return

    def _duel(self, default: Trial, best: Trial) -> TaskReport:
        won = best.seconds < (1 - CLEAR) * default.seconds
        return TaskReport(
            self.task, self.trials, Decision.FASTER if won else Decision.DEFAULT, best if won else default, default
        )

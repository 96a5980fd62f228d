"""What a tuning run found, for people and as JSON: every kernel with its decision, every candidate with its fate."""

from __future__ import annotations

import enum
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from irx.tuning.space import Schedule
from irx.tuning.task import Outcome, Task


class Decision(enum.Enum):
    """What tuning a kernel came to."""

    FASTER = "a schedule that beats the default by more than the noise"
    DEFAULT = "the default: nothing beats it by more than the noise"
    NOTHING = "no candidate worked"


@dataclass(frozen=True)
class Trial:
    """One candidate and its outcome."""

    schedule: Schedule
    outcome: Outcome

    @property
    def refusal(self) -> str:
        """Why it must not win; empty where it may."""
        return self.outcome.refusal

    @property
    def seconds(self) -> float:
        """The median of one call."""
        return statistics.median(self.outcome.seconds)

    @property
    def noise(self) -> float:
        """Half the distance of the quartiles as a share of the median; 0 for a single time."""
        times = self.outcome.seconds
        if len(times) < 2:
            return 0.0
        low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
        return (high - low) / 2 / middle

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        times = {} if self.refusal else {"seconds": self.seconds, "noise": self.noise}
        return {"schedule": self.schedule.to_json(), "refusal": self.refusal, "error": self.outcome.error, **times}


@dataclass(frozen=True)
class TaskReport:
    """One kernel: its trials, the decision, and the winner and the default as they did in turns with each other."""

    task: Task
    trials: Sequence[Trial]
    decision: Decision
    best: Trial | None = None
    default: Trial | None = None

    @property
    def refused(self) -> list[Trial]:
        """Candidates that failed or whose result was off."""
        return [trial for trial in self.trials if trial.refusal]

    @property
    def gain(self) -> float | None:
        """The default's time over the winner's."""
        return self.default.seconds / self.best.seconds if self.best and self.default else None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "kernel": str(self.task.key),
            "where": self.task.where,
            "uses": self.task.uses,
            "decision": self.decision.name.lower(),
            "gain": self.gain,
            "best": self.best.to_json() if self.best else None,
            "default": self.default.to_json() if self.default else None,
            "trials": [trial.to_json() for trial in self.trials],
        }


@dataclass
class TuneReport:
    """A whole run; `skipped` are the kernels for which there was no time."""

    tasks: list[TaskReport] = field(default_factory=list)
    skipped: list[Task] = field(default_factory=list)

    def remarks(self) -> list[str]:
        """One line for every refused candidate, naming kernel, schedule and reason."""
        return [
            f"{report.task.key}: {trial.schedule}: {trial.refusal}" for report in self.tasks for trial in report.refused
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        skipped = [str(task.key) for task in self.skipped]
        return {"kernels": [report.to_json() for report in self.tasks], "skipped": skipped}

"""Schedules: what can be chosen for a kernel, which choices are fast here, and how to find out.

A kernel's template gives a `Task`. `Schedules.find(task)` gives the schedule to build it with, from measurements where
there are any; `tune(tasks, device)` takes the measurements.
"""

from irx.tuning.database import Database, Merged
from irx.tuning.lookup import Origin, Schedules, shipped
from irx.tuning.report import Decision, TaskReport, Trial, TuneReport
from irx.tuning.row import Row, faster, read_document, write_document
from irx.tuning.space import Choice, Knob, Schedule, Space
from irx.tuning.task import Fingerprint, Outcome, Task, TaskKey
from irx.tuning.tuner import EFFORTS, Effort, check_effort, tune

__all__ = [
    "Choice",
    "Database",
    "Decision",
    "EFFORTS",
    "Effort",
    "check_effort",
    "Fingerprint",
    "Knob",
    "Merged",
    "Origin",
    "Outcome",
    "Row",
    "Schedule",
    "Schedules",
    "Space",
    "Task",
    "TaskKey",
    "TaskReport",
    "Trial",
    "TuneReport",
    "faster",
    "read_document",
    "shipped",
    "tune",
    "write_document",
]

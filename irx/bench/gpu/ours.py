"""A program compiled for this machine's GPU, with a bounded search for schedules in the middle."""

from __future__ import annotations

from typing import Any

from irx.ir.program import Program
from irx.target import Device
from irx.tuning import Database, Fingerprint, Task, tune


def made_for(program: Program, device: Device, pipeline: str, search: float) -> Any:
    """What `irx.compile` makes; `search` seconds at most are spent on kernels that were not measured here before."""
    from irx import api
    from irx.frontends.sources import read

    goal = api.aim(device.name)
    source = read(program, activations=api.floats_of(goal), dynamic=True, max_batch=16, max_length=None)
    made, ledger = api.optimize(source.program, goal, pipeline)
    parts = api.divide(made, goal, ledger)
    if search > 0:
        tune(_unknown(api.tasks(made, parts, goal.device), device), goal.device, seconds=search)
    return api.assemble(made, parts, goal, ledger, source)


def _unknown(tasks: list[Task], device: Device) -> list[Task]:
    """Those that nobody has measured on this device."""
    rows = Database().rows_of(Fingerprint.of(device))
    known = {row.key for row in rows if not row.modelled}
    return [task for task in tasks if task.key not in known]

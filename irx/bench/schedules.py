"""Makes the schedules that come with IRX: for every GPU that has a device file, by its model, without a GPU.

    python -m irx.bench.schedules                  # all devices, into irx/tuning/library
    python -m irx.bench.schedules a100-80gb l4 --models smollm2-135m

Kernels of the programs that the bench ships, in bf16 and with weights of 4 bits; of products of four rows and less the
defaults are what the model wants. Only what beats the default clearly is written, and every row says that it was
modelled; `irx tune` on the device replaces it.
"""

from __future__ import annotations

import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from irx.target import devices, find_device
from irx.tuning import Database, Decision, Effort, Task, TaskKey, TaskReport, tune, write_document
from irx.tuning.lookup import LIBRARY

PIPELINES = ("default", "default | quantize-weights{bits=4}")
TRIED = ("gemm", "attention_decode", "attention_flash")
EFFORT = Effort(trials=4, seconds=120.0, limit=60.0)


def main(words: Sequence[str] | None = None) -> None:
    """Write one file for each device."""
    from irx.bench.programs import shapes

    parser = ArgumentParser(prog="python -m irx.bench.schedules", description=(__doc__ or "").split("\n")[0])
    gpus = [name for name, device in sorted(devices().items()) if device.is_gpu]
    parser.add_argument("devices", nargs="*", default=gpus, help="names of device files (default: every GPU)")
    parser.add_argument("--models", nargs="+", default=shapes(), help="programs that the bench ships")
    parser.add_argument("-o", "--output", type=Path, default=LIBRARY, help="folder of the files")
    arguments = parser.parse_args(words)
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name in arguments.devices:
        count = write_rows(name, arguments.models, arguments.output / f"{name}.json")
        print(f"{name}: {count} schedules", flush=True)


def write_rows(device: str, models: Sequence[str], file: Path) -> int:
    """Write the rows of one device that are no defaults, as they are found; how many there are."""
    found: dict[str, Task] = {}
    for model in models:
        for pipeline in PIPELINES:
            found |= {str(task.key): task for task in _tasks(model, device, pipeline) if task.picks}
    won: set[TaskKey] = set()
    with tempfile.TemporaryDirectory() as folder:
        database = Database(Path(folder))

        def heard(done: TaskReport) -> None:
            if done.decision is Decision.FASTER:
                won.add(done.task.key)
            rows = [row for row in database.rows() if row.key in won]
            file.write_text(write_document(rows), encoding="utf-8")
            print(f"  {done.task.key}: {done.decision.name.lower()}", file=sys.stderr, flush=True)

        known = {"triton": version("triton")}
        tasks = list(found.values())
        tune(tasks, find_device(device), effort=EFFORT, database=database, versions=known, progress=heard)
    return len(won)


def _tasks(model: str, device: str, pipeline: str) -> list[Task]:
    """What the model can tell apart in the kernels of all graphs of a program."""
    from irx.api import aim, divide, optimize, tasks
    from irx.bench.programs import shape

    goal = aim(device)
    program, ledger = optimize(shape(model), goal, pipeline)
    found = tasks(program, divide(program, goal, ledger), goal.device)
    return [task for task in found if task.model and task.key.template in TRIED]


if __name__ == "__main__":
    main()

"""Makes the schedules that come with IRX: for every GPU that has a device file, by its model, without a GPU.

    python -m irx.bench.schedules                  # all devices, into irx/tuning/library
    python -m irx.bench.schedules a100-80gb l4 --models smollm2-135m

Kernels of the programs that the bench ships, in bf16 and with weights of 4 bits. Only what beats the default clearly
is written, and every row says that it was modelled; `irx tune` on the device replaces it.
"""

from __future__ import annotations

import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from irx.tuning import Database, Decision, Effort, Row, Task, TaskReport, tune, write_document
from irx.tuning.lookup import LIBRARY

PIPELINES = ("default", "default | quantize-weights{bits=4}")
TRIED = ("gemm", "attention_decode", "attention_flash", "matvec")
EFFORT = Effort(trials=4, seconds=120.0, limit=60.0)


def main(words: Sequence[str] | None = None) -> None:
    """Write one file for each device."""
    from irx.bench.programs import shapes
    from irx.target import devices

    parser = ArgumentParser(prog="python -m irx.bench.schedules", description=(__doc__ or "").split("\n")[0])
    gpus = [name for name, device in sorted(devices().items()) if device.is_gpu]
    parser.add_argument("devices", nargs="*", default=gpus, help="names of device files (default: every GPU)")
    parser.add_argument("--models", nargs="+", default=shapes(), help="programs that the bench ships")
    parser.add_argument("-o", "--output", type=Path, default=LIBRARY, help="folder of the files")
    arguments = parser.parse_args(words)
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name in arguments.devices:
        rows = modelled_rows(name, arguments.models)
        (arguments.output / f"{name}.json").write_text(write_document(rows), encoding="utf-8")
        print(f"{name}: {len(rows)} schedules", flush=True)


def modelled_rows(device: str, models: Sequence[str]) -> list[Row]:
    """The rows of one device that are no defaults."""
    from importlib.metadata import version

    from irx.target import find_device

    found: dict[str, Task] = {}
    for model in models:
        for pipeline in PIPELINES:
            found |= {str(task.key): task for task in _tasks(model, device, pipeline) if task.picks}
    won: set[object] = set()

    def heard(done: TaskReport) -> None:
        if done.decision is Decision.FASTER:
            won.add(done.task.key)
        print(f"  {done.task.key}: {done.decision.name.lower()}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        database = Database(Path(folder))
        versions = {"triton": version("triton")}
        tune(
            list(found.values()),
            find_device(device),
            effort=EFFORT,
            database=database,
            versions=versions,
            progress=heard,
        )
        return [row for row in database.rows() if row.key in won]


def _tasks(model: str, device: str, pipeline: str) -> list[Task]:
    """What the model can tell apart in the kernels of all graphs of a program."""
    from irx.api import aim, divide, optimize
    from irx.bench.programs import shape

    goal = aim(device)
    program, ledger = optimize(shape(model), goal, pipeline)
    parts = divide(program, goal, ledger)
    found = [parts[name].spaces(program, graph, goal.device) for name, graph in program.graphs.items()]
    return [task for tasks in found for task in tasks if task.model and task.key.template in TRIED]


if __name__ == "__main__":
    main()

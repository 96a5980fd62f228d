"""Measure which schedules of a model's kernels are fastest on this machine, and move what was found between machines.

MODEL is a GGUF file, a Hugging Face folder, or a .irx program. Every kernel of it that has choices is tried with
several of them, in a process of its own, checked against its reference and timed. The fastest that is right and beats
the default by more than the noise is kept in the cache folder and used by every later compilation. Interrupting a run
loses only the kernel it was at. FILEs hold schedules as --export writes them; - is standard output.

examples:
  irx tune model.gguf
  irx tune model.gguf --effort full --minutes 20 --target tvm:cpu
  irx tune --export schedules.json
  irx tune --import schedules.json
  irx tune --merge mine.json theirs.json -o both.json
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irx.cli._output import add_json, print_json, print_rows, progress, say, write_text
from irx.errors import BadOption

if TYPE_CHECKING:
    from irx.target import Device
    from irx.tuning import Row, Task, TaskReport, TuneReport

PIPE = "-"
COLUMNS = ("kernel", "uses", "default us", "best us", "gain", "schedule", "tried", "refused", "decision")


def configure(parser: ArgumentParser) -> None:
    """Add this command's arguments."""
    action = parser.add_mutually_exclusive_group()
    action.add_argument("model", nargs="?", help="a GGUF file, a Hugging Face folder, or a .irx program")
    action.add_argument("--export", metavar="FILE", help="write all schedules measured or imported here")
    action.add_argument("--import", dest="imported", nargs="+", metavar="FILE", help="add schedules; the faster stays")
    action.add_argument("--merge", nargs="+", metavar="FILE", help="put several files into one, named by -o")
    parser.add_argument("-o", "--output", metavar="FILE", help="where --merge writes (default: standard output)")
    parser.add_argument("--target", default="host", help="device or backend:device (default: this machine)")
    parser.add_argument("-p", "--pipeline", default="default", help="a preset or pipeline text (default: default)")
    parser.add_argument("--effort", default="quick", help="quick (default) or full")
    parser.add_argument("--minutes", type=float, help="stop after so long; kernels used most come first")
    parser.add_argument("--seed", type=int, default=0, help="of the order of candidates (default 0)")
    add_json(parser)


def run(arguments: Namespace) -> None:
    """Tune, or move schedules."""
    if arguments.export:
        _export(arguments.export)
    elif arguments.imported:
        _import(arguments.imported, arguments.json)
    elif arguments.merge:
        _merge(arguments.merge, arguments.output)
    elif arguments.model:
        _tune(arguments)
    else:
        raise BadOption("nothing to tune was named", fix="name a model, or one of --export, --import and --merge")


# --- tuning a model -------------------------------------------------------------------------------------------------


def _tune(arguments: Namespace) -> None:
    from irx.tuning import Database, tune

    with progress(f"Reading {arguments.model}"):
        found, device = _tasks(arguments)
    if not found:
        say("no kernel of this model has choices to make")
    database = Database()
    seconds = None if arguments.minutes is None else arguments.minutes * 60
    with _bar(len(found)) as heard:
        report = tune(
            found,
            device,
            effort=arguments.effort,
            database=database,
            seconds=seconds,
            seed=arguments.seed,
            progress=heard,
        )
    _print(report, database.folder, arguments.json)


def _tasks(arguments: Namespace) -> tuple[list[Task], Device]:
    """Everything that can be tuned in the kernels of all graphs."""
    from irx.api import aim, divide, floats_of, optimize, tasks
    from irx.frontends.sources import read

    goal = aim(arguments.target)
    program, ledger = optimize(read(arguments.model, activations=floats_of(goal)).program, goal, arguments.pipeline)
    return tasks(program, divide(program, goal, ledger), goal.device), goal.device


@contextmanager
def _bar(total: int) -> Iterator[Callable[[TaskReport], None]]:
    """A progress bar where a person is looking; gives what has to hear of every kernel that is done."""
    if not sys.stderr.isatty():
        yield lambda report: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("Tuning", total=total)
        yield lambda report: bar.update(task, advance=1, description=f"Tuned {report.task.key}")


def _print(report: TuneReport, folder: Path, as_json: bool) -> None:
    if as_json:
        print_json({**report.to_json(), "database": str(folder)})
        return
    print_rows([_row(done) for done in report.tasks], COLUMNS, as_json=False)
    print(f"Kept in {folder}.")
    for line in report.remarks():
        say(f"refused: {line}")
    for task in report.skipped:
        say(f"no time was left for {task.key}")


def _row(done: TaskReport) -> dict[str, Any]:
    return {
        "kernel": done.task.key,
        "uses": done.task.uses,
        "default us": _micro(done.default.seconds) if done.default else None,
        "best us": _micro(done.best.seconds) if done.best else None,
        "gain": f"{done.gain:.2f}x" if done.gain else None,
        "schedule": done.best.schedule if done.best else None,
        "tried": len(done.trials),
        "refused": len(done.refused),
        "decision": done.decision.name.lower(),
    }


def _micro(seconds: float) -> str:
    return f"{seconds * 1e6:.4g}"


# --- moving schedules -----------------------------------------------------------------------------------------------


def _export(target: str) -> None:
    from irx.tuning import Database, write_document

    rows = Database().rows()
    _write(target, write_document(rows))
    say(f"{_count(rows)} written")


def _import(sources: Sequence[str], as_json: bool) -> None:
    from irx.tuning import Database

    database = Database()
    done = database.merge(_read(sources))
    if as_json:
        print_json({"added": done.added, "faster": done.faster, "left": done.left, "database": str(database.folder)})
        return
    print(f"{done.added} new, {done.faster} faster than what was here, {done.left} not faster; in {database.folder}.")


def _merge(sources: Sequence[str], target: str | None) -> None:
    from irx.tuning import faster, write_document

    rows = list(faster(_read(sources)).values())
    _write(target or PIPE, write_document(rows))
    say(f"{_count(rows)} written")


def _read(sources: Sequence[str]) -> list[Row]:
    from irx.tuning import read_document

    return [row for source in sources for row in read_document(Path(source))]


def _write(target: str, text: str) -> None:
    if target == PIPE:
        print(text, end="")
    else:
        write_text(target, text)


def _count(rows: Sequence[Row]) -> str:
    devices = len({row.device for row in rows})
    return f"{len(rows)} schedules of {devices} device{'s' if devices != 1 else ''}"

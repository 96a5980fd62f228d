"""The report of `irx compile --report`: what every kernel takes of the device, without keeping the compiled model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from irx.cli._output import print_json, print_rows, progress

if TYPE_CHECKING:
    from irx.budget import Budget
    from irx.frontends.sources import Source

COLUMNS = ("graph", "kernel", "takes")
TOLD = ("report-resources", "count-launches", "partition")


def print_report(
    model: str,
    target: str,
    pipeline: str,
    *,
    as_json: bool,
    data: Sequence[str] | None = None,
    budget: Budget | None = None,
) -> None:
    """Compile every graph for the target, which need not be here, and print what its kernels take.

    With `data` the ledger comes before: what passes did, and what they cost on the half that is held out.
    """
    from irx.analysis.data import split
    from irx.api import aim, divide, floats_of, optimize

    goal, start = aim(target), time.perf_counter()
    with progress(f"Compiling {model}"):
        source = _source(model, floats_of(goal))
        known = split(data, source.program, source.tokenizer) if data is not None else None
        options: dict[str, Any] = {"digest": source.digest, "budget": budget, "data": known}
        program, ledger = optimize(source.program, goal, pipeline, **options)
        parts = divide(program, goal, ledger)
        built = {name: parts[name].build(program, graph, goal.device) for name, graph in program.graphs.items()}
    seconds = time.perf_counter() - start
    kernels = {name: parts[name].load(files, goal.device) for name, files in built.items()}
    rows = [_row(name, row) for name, kernel in kernels.items() for row in kernel.report() if row.name in TOLD]
    if as_json:
        told = {"ledger": asdict(ledger)} if data is not None else {}
        print_json({"target": str(goal), "seconds": seconds, "rows": rows, **told})
        return
    if data is not None:
        print(f"{ledger}\n")
    print_rows(rows, COLUMNS, as_json=False)
    files = [file for blobs in built.values() for file in blobs if file.endswith((".cubin", ".hsaco"))]
    print(f"{len(set(files))} binaries for {goal.device.name} ({goal.device.architecture}) in {seconds:.0f} s")


def _row(graph: str, row: Any) -> dict[str, Any]:
    if row.name != "report-resources":
        return {"graph": graph, "kernel": "", "takes": row.what}
    kernel, _, takes = row.what.rpartition(": ")
    return {"graph": graph, "kernel": kernel, "takes": takes}


def _source(model: str, floats: str) -> Source:
    """The program of a model; weights of a text, which has none, are random."""
    from irx.bench.programs import shape, shapes
    from irx.frontends.sources import Source, read

    if model.endswith(".irx") or model in shapes():
        return Source(shape(model))
    return read(model, activations=floats)

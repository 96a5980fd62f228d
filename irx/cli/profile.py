"""Show where the time of a step goes: by module and by kernel, beside the floor that memory sets.

MODEL is a GGUF file, a Hugging Face folder or a saved artifact; SmolLM2-135M by default. Of a language model one decode
step after --context tokens is profiled, of any other its forward. Layers are summed up, `*` stands for their numbers.
The floor is what moving the bytes that cannot be avoided takes at the bandwidth measured in this run; `x floor` says
how far above it the time is. Steps are timed by a clock between kernels, the call as a whole without one.

examples:
  irx profile
  irx profile model.gguf --graph prefill --context 512
  irx profile saved.irx --batch 4 --top 40
  irx profile model.gguf -p "default | quantize-weights{bits=8}" --json
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from irx.cli._output import add_json, print_json, print_rows, progress

if TYPE_CHECKING:
    from irx.bench.profile import Line, Report

COLUMNS = ("", "steps", "ms", "share", "MB", "floor ms", "x floor")


def configure(parser: ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("model", nargs="?", help="what to profile; SmolLM2-135M by default")
    parser.add_argument("--graph", choices=("decode", "prefill", "forward"), help="which graph (default: decode)")
    parser.add_argument("--target", default="cpu", help="what to compile for (default cpu)")
    parser.add_argument("-p", "--pipeline", default="default", help="a preset or pipeline text (default: default)")
    parser.add_argument("--context", type=int, default=128, help="tokens before a step, or of a prompt (default 128)")
    parser.add_argument("--batch", type=int, default=1, help="rows (default 1)")
    parser.add_argument("--threads", type=int, help="threads (default: torch's)")
    parser.add_argument("--top", type=int, default=20, help="how many lines of each table (default 20)")
    add_json(parser)


def run(arguments: Namespace) -> None:
    """Profile and print."""
    from irx.bench import profile

    with progress(f"Profiling {arguments.model or 'SmolLM2-135M'}"):
        report = profile.run(
            arguments.model,
            graph=arguments.graph,
            target=arguments.target,
            pipeline=arguments.pipeline,
            context=arguments.context,
            batch=arguments.batch,
            threads=arguments.threads,
        )
    print_json(report.facts()) if arguments.json else _print(report, arguments.top)


def _print(report: Report, top: int) -> None:
    for what, lines in (("module", report.modules), ("region", report.regions)):
        columns = (what, *COLUMNS[1:], *(("kernels",) if what == "region" else ()))
        print_rows([_cells(what, line, report.steps) for line in lines[:top]], columns, as_json=False)
    sizes = ", ".join(f"{name} = {value}" for name, value in report.sizes.items())
    print(f"@{report.graph} at {sizes}")
    print(f"  a call      {report.seconds * 1e3:.3f} ms, {report.seconds / report.floor.seconds:.2f} times the floor")
    print(f"  its steps   {report.steps * 1e3:.3f} ms")
    print(f"  the floor   {report.floor.seconds * 1e3:.3f} ms: {report.floor.lines()[0]}")


def _cells(what: str, line: Line, whole: float) -> dict[str, str]:
    return {
        what: line.name,
        "steps": str(line.count),
        "ms": f"{line.seconds * 1e3:.3f}",
        "share": f"{100 * line.seconds / (whole or 1):.1f} %",
        "MB": f"{line.bytes / 1e6:.2f}",
        "floor ms": f"{line.floor * 1e3:.3f}",
        "x floor": f"{line.seconds / line.floor:.2f}" if line.floor else "",
        "kernels": ", ".join(line.kernels),
    }

"""Measure IRX against what could be used instead: PyTorch, Inductor, llama.cpp, OpenVINO.

Every row is a ratio of times taken in turns in this one process: the median over the rounds, with its quartiles in
brackets. A row holds when the median reaches what is wanted and the lower quartile is at most 5 % below it. The floor
is what moving the bytes that a step cannot avoid to move takes, at the bandwidth of the same run. Results are compared
before anything is timed. llama.cpp and OpenVINO are used when they are installed, and named when not.

FAMILY is decode, prefill, attention, minilm, batch, rate or compile; without any, all of these, which takes long: most
of the time goes to Inductor, which compiles every model. Where they are named, there are also kv (layouts of the cache:
bytes, decode, quality), tokens (pruned prompts, shared attention, repair), lossy (searches under a budget) and
orderings (which method does better than which, with intervals), which take an hour or more each.

With --target cuda (or the name of this machine's GPU) it runs the tests that need a GPU, searches for schedules, and
measures shapes of models with random weights against Inductor on the same GPU; families do not count then. It needs
neither transformers nor gguf nor tvm. Rows are measured in a process of their own, which is ended where it hangs and
started again where it crashes; --output is written after each, and --only divides a run where time is short.

examples:
  irx bench
  irx bench decode rate --rounds 20
  irx bench attention --quick --json
  irx bench --target cuda --output docs/gpu.md
  irx bench --target cuda --only "4 bits" --output docs/four.md
  irx bench kv tokens --quick
  irx bench kv --only "language model, a context of 8192"
  irx bench orderings
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from irx.cli._output import add_json, print_json, print_rows, say, write_text
from irx.target import Device, Target

if TYPE_CHECKING:
    from irx.bench.result import Result

COLUMNS = ("row", "pipeline", "wanted", "measured", "IRX", "against", "floor", "error", "verdict")


def configure(parser: ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("family", nargs="*", help="what to measure (default: everything)")
    parser.add_argument("--model", help="a GGUF file; SmolLM2-135M by default")
    parser.add_argument("--target", default="cpu", help="what IRX compiles for (default cpu)")
    parser.add_argument("--threads", type=int, default=2, help="threads of every candidate (default 2)")
    parser.add_argument("--rounds", type=int, default=10, help="turns of every candidate (default 10)")
    parser.add_argument("--output", help="of --target cuda: a file for the table, with device, versions and day")
    parser.add_argument("--only", default="", metavar="WORDS", help="what has these words in its title")
    parser.add_argument("--quick", action="store_true", help="few and short turns: to see that it works")
    add_json(parser)


def run(arguments: Namespace) -> None:
    """Run the bench."""
    if (device := Target.parse(arguments.target).device).is_gpu:
        _run_gpu(arguments, device)
        return
    from irx.bench import bench

    results = bench.run(
        arguments.family,
        model=arguments.model,
        target=arguments.target,
        threads=arguments.threads,
        rounds=arguments.rounds,
        quick=arguments.quick,
        only=arguments.only,
        tell=say,
    )
    if arguments.json:
        print_json([result.facts() for result in results])
        return
    _print(results)


def _run_gpu(arguments: Namespace, device: Device) -> None:
    from irx.bench.gpu import run as gpu

    options = {"rounds": arguments.rounds, "quick": arguments.quick, "only": arguments.only}
    results: list[Result] = []
    facts = gpu.about(device)
    for result in gpu.run(device, **options, tell=say):
        results.append(result)
        if arguments.output:  # after every row: whatever ends the run, what was measured is there
            write_text(arguments.output, gpu.table(results, facts))
    if arguments.json:
        print_json({"about": facts, "rows": [result.facts() for result in results]})
        return
    print(", ".join(f"{name} {value}" for name, value in facts.items() if value))
    _print(results)


def _print(results: Sequence[Result]) -> None:
    print_rows([result.cells() for result in results], COLUMNS, as_json=False)
    for rate in dict.fromkeys(f"{r.family}: the floor is at {r.bandwidth}" for r in results if r.bandwidth):
        print(rate)
    for note in dict.fromkeys(f"{result.what}: {result.note}" for result in results if result.note):
        print(note)

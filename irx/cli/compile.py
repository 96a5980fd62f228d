"""Compile a model, print its ledger, and save it as an artifact that loads without the compiler.

MODEL is a GGUF file, a Hugging Face folder, or a program in IRX's text form that has no weights: a text carries none.
With --report nothing is kept: it shows what each kernel takes of the target, which need not be this machine. A text's
weights are then random, and MODEL may also be a shape that the bench ships: smollm2-135m, llama-1b.

With --plan the passes are those of another compilation, less the ones that its budget dropped: what was found on one
device is compiled for another. Passes that look at data need them again, and what they cost is measured again.

With --data and --budget, passes that change numbers may run as well, as far as the budget says on the half of the data
that nothing is fitted to. Where the pipeline names none, the fastest ones inside the budget are searched for. What was
measured is kept: a search that was stopped goes on where it was. The ledger shows what each has cost and gained, and
the front of time against loss.

examples:
  irx compile model.gguf -o model.irx
  irx compile model.gguf --data texts.txt --budget kl=0.05 --search 20m --front front.svg -o fast.irx
  irx compile model.gguf --data texts.txt --budget ppl_ratio=1.02,top1=0.9 --search 90s
  irx compile model.gguf -p "default | quantize-weights{bits=4}" --data texts.jsonl --budget kl=0.05
  irx compile path/to/folder -o model.irx --target cpu --max-length 4096
  irx compile model.gguf -p "default | fold-constants" --strict
  irx compile model.gguf --json
  irx compile llama-1b --target a100 --report
  irx compile model.gguf --data texts.txt --budget kl=0.05 --json > plan.json
  irx compile model.gguf --data texts.txt --plan plan.json --target a100 --report
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irx.cli._data import budget, minutes, texts
from irx.cli._kernels import print_report
from irx.cli._output import add_json, progress, say, searching, write_text
from irx.cli._programs import read_plan
from irx.errors import BudgetError, CannotWrite

if TYPE_CHECKING:
    from irx.ledger import Ledger
    from irx.runtime.executable import Executable


def configure(parser: ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("model", help="a GGUF file, a Hugging Face folder, or a .irx program")
    parser.add_argument("-o", "--output", help="folder to save the artifact in; nothing is saved without it")
    parser.add_argument("--target", default="host", help="device or backend:device (default: this machine)")
    pipeline = parser.add_mutually_exclusive_group()
    pipeline.add_argument("-p", "--pipeline", default="default", help="a preset or pipeline text (default: default)")
    pipeline.add_argument("--plan", metavar="FILE", help="passes kept elsewhere: an artifact, or a ledger in JSON")
    parser.add_argument("--max-length", type=int, help="longest sequence; the model's own by default")
    parser.add_argument("--max-batch", type=int, default=16, help="most rows of a batch (default 16)")
    parser.add_argument(
        "--context", type=int, help="tokens behind which a step is timed, to judge passes (default 128)"
    )
    parser.add_argument("--dtype", help="compute in this dtype, f32 or bf16; the model's own by default")
    parser.add_argument(
        "--data", nargs="+", metavar="FILE", help="texts: a .json list, a .jsonl with one a line, or a file that is one"
    )
    parser.add_argument(
        "--budget", nargs="+", metavar="NAME=NUMBER", help="what may be lost: kl, top1, ppl_ratio, cosine; needs --data"
    )
    parser.add_argument(
        "--search", type=minutes, metavar="TIME", help="how long to search: minutes, or 90s, 20m, 1h (default 20m)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the search (default 0)")
    parser.add_argument("--front", metavar="FILE", help="write the front of time against loss as SVG")
    parser.add_argument("--strict", action="store_true", help="a refused pass is an error")
    parser.add_argument("--report", action="store_true", help="only show what every kernel takes of the device")
    add_json(parser, "print the ledger as JSON instead of a table")


def run(arguments: Namespace) -> None:
    """Compile, print, save."""
    if arguments.plan:
        arguments.pipeline = read_plan(arguments.plan)
    if arguments.report:
        _report(arguments)
        return
    if arguments.output:
        _require_place(Path(arguments.output))
    fast = _compiled(arguments)
    ledger = fast.ledger()
    print(ledger.to_json() if arguments.json else ledger)
    if ledger.points:
        _show_front(arguments, ledger)
    elif arguments.front:
        say("there is no front: nothing was searched for")
    if arguments.output:
        fast.save(arguments.output)
        if not arguments.json:
            print(f"\nSaved in {arguments.output}.")


def _report(arguments: Namespace) -> None:
    if arguments.budget and not arguments.data:
        raise BudgetError("a budget is measured on data, and there are none", fix="name texts with --data")
    judged = _judged(arguments)
    print_report(arguments.model, arguments.target, arguments.pipeline, as_json=arguments.json, **judged)


def _judged(arguments: Namespace) -> dict[str, Any]:
    """The budget and the data, of those that are named."""
    found: dict[str, Any] = {}
    if arguments.budget:
        found["budget"] = budget(arguments.budget)
    if arguments.data:
        found["data"] = texts(arguments.data)
    return found


def _show_front(arguments: Namespace, ledger: Ledger) -> None:
    from irx.cli._front import plot, svg

    if not arguments.json:
        print(f"\n{plot(ledger.points)}")
    if arguments.front:
        title = f"{Path(arguments.model).name}, budget {' '.join(arguments.budget)}"
        write_text(arguments.front, svg(ledger.points, title))


def _compiled(arguments: Namespace) -> Executable:
    import irx

    more = _judged(arguments)
    if arguments.search is not None:
        more["search"] = irx.Search(minutes=arguments.search, seed=arguments.seed)
    with progress(f"Compiling {arguments.model}"), searching():
        return irx.compile(
            arguments.model,
            target=arguments.target,
            pipeline=arguments.pipeline,
            dtype=arguments.dtype,
            max_length=arguments.max_length,
            max_batch=arguments.max_batch,
            strict=arguments.strict,
            context=arguments.context,
            **more,
        )


def _require_place(path: Path) -> None:
    """Compiling takes long: what would fail at its end is said before it starts."""
    if path.exists() and not (path / "manifest.json").is_file():
        raise CannotWrite(f"{path} exists and is no artifact of IRX", fix="name another folder")
    if not path.absolute().parent.is_dir():
        raise CannotWrite(f"{path.parent} is no folder", fix="make it, or name another one")

"""Run a pipeline on a program in text form, and print what it makes of it.

No framework is needed and nothing is compiled. FILE is a `.irx` file, a saved artifact, or - for standard input; the
pipeline is a preset, passes between bars, or a preset followed by passes. Every pass is verified. The weights of a text
have no values; with --verify they get random ones, and the whole program is evaluated before and after.

The optimized program goes to standard output, or to the file that -o names: then the ledger is printed instead. The
status is 1 when a pass was refused.

examples:
  irx opt model.irx
  irx opt model.irx -p "remove-noops | cse | raise-norm" -o out.irx
  irx opt model.irx -p "default | fold-constants{generated=false}" --verify --dump steps/
  irx opt model.irx -p none --json
  irx opt model.irx -p cse | irx opt - -p dead-nodes
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from irx.cli._output import add_json, say, write_text
from irx.cli._programs import read_program

if TYPE_CHECKING:
    from irx.ir.program import Program
    from irx.ledger import Ledger
    from irx.pipeline.instruments import Instrument


def configure(parser: ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("file", help="a .irx file, a saved artifact, or - for standard input")
    parser.add_argument("-p", "--pipeline", default="default", help="a preset or pipeline text (default: default)")
    parser.add_argument("-o", "--output", help="write the program to this file and print the ledger")
    parser.add_argument("--target", default="cpu", help="device whose facts passes see (default: this machine's CPU)")
    parser.add_argument("--verify", action="store_true", help="also evaluate the whole program before and after")
    parser.add_argument("--dump", metavar="DIR", help="write the program before and after every pass into this folder")
    add_json(parser, "print the ledger as JSON instead of the program")


def run(arguments: Namespace) -> int:
    """Optimize and print; 1 when a pass was refused."""
    from irx.ir.printer import print_program

    program = read_program(arguments.file)
    result, ledger = _optimize(program, arguments)
    text = print_program(result)
    if arguments.output:
        write_text(arguments.output, text)
    if arguments.json:
        print(ledger.to_json())
    else:
        print(ledger if arguments.output else text.rstrip("\n"))
    _remark(program, result, ledger)
    return int(bool(ledger.refused()))


def _optimize(program: Program, arguments: Namespace) -> tuple[Program, Ledger]:
    from irx.analysis.random_weights import bind_random_weights
    from irx.passes import passes
    from irx.pipeline.base import Context
    from irx.pipeline.oracle import Oracle
    from irx.pipeline.pipeline import Pipeline
    from irx.target import Target

    pipeline = Pipeline.parse(arguments.pipeline, passes(), _instruments(arguments))
    device = Target.parse(arguments.target).device
    if arguments.verify:
        bind_random_weights(program.weights)
    return pipeline.run(program, Context.of(program, device, Oracle()))


def _instruments(arguments: Namespace) -> tuple[Instrument, ...]:
    from irx.pipeline.instruments import Compare, Dump, standard_instruments

    dump = (Dump(arguments.dump),) if arguments.dump else ()
    return (*dump, *standard_instruments(), *((Compare(),) if arguments.verify else ()))


def _remark(before: Program, after: Program, ledger: Ledger) -> None:
    """What the printed program does not say."""
    for row in ledger.refused():
        say(f"pass {row.name!r} was refused: {row.reason}")
    given = {entry.weight.name for entry in before.weights}
    made = [e.weight.name for e in after.weights if e.derivation is None and e.weight.name not in given]
    if made:
        say(f"values that passes computed are not part of the text: {', '.join(f'${name}' for name in made)}")

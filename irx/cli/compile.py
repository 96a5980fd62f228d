"""Compile a model, print its ledger, and save it as an artifact that loads without the compiler.

MODEL is a GGUF file, a Hugging Face folder, or a program in IRX's text form.

examples:
  irx compile model.gguf -o model.irx
  irx compile path/to/folder -o model.irx --target cpu --max-length 4096
  irx compile model.gguf --json
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from irx.cli._output import add_json


def configure(parser: ArgumentParser) -> None:
    """Add this command's arguments."""
    add_compile_options(parser)
    parser.add_argument("-o", "--output", help="folder to save the artifact in; nothing is saved without it")
    add_json(parser)


def add_compile_options(parser: ArgumentParser) -> None:
    """The model and what `irx.compile` takes, for every command that compiles."""
    parser.add_argument("model", help="a GGUF file, a Hugging Face folder, or a .irx program")
    parser.add_argument("--target", default="host", help="device or backend:device (default: this machine)")
    parser.add_argument("-p", "--pipeline", default="default", help="a preset or pipeline text (default: default)")
    parser.add_argument("--max-length", type=int, help="longest sequence; the model's own by default")
    parser.add_argument("--max-batch", type=int, default=16, help="most rows of a batch (default 16)")
    parser.add_argument("--strict", action="store_true", help="a refused pass is an error")


def compiled(arguments: Namespace) -> object:
    """What `add_compile_options` describes, compiled."""
    import irx

    return irx.compile(
        arguments.model,
        target=arguments.target,
        pipeline=arguments.pipeline,
        max_length=arguments.max_length,
        max_batch=arguments.max_batch,
        strict=arguments.strict,
    )


def run(arguments: Namespace) -> None:
    """Compile, print, save."""
    fast = compiled(arguments)
    ledger = fast.ledger()  # type: ignore[attr-defined]
    print(ledger.to_json() if arguments.json else ledger)
    if arguments.output:
        fast.save(arguments.output)  # type: ignore[attr-defined]
        if not arguments.json:
            print(f"\nSaved in {arguments.output}.")

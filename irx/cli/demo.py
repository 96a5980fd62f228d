"""Compile a real pretrained language model for this machine, let it write, and time it against PyTorch.

Without --model it is SmolLM2-135M, from the package that the README's command installs. The last lines are the time of
one decode step next to eager PyTorch's and Inductor's, measured in turns in this process, and the floor under it.

examples:
  irx demo
  irx demo --prompt "def fibonacci(n):" --tokens 100
  irx demo --model path/to/model.gguf --no-inductor
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from irx.cli._output import add_json, print_json


def configure(parser: ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("--model", help="a GGUF file or a Hugging Face folder; SmolLM2-135M by default")
    parser.add_argument("--prompt", help="what the text starts with")
    parser.add_argument("--tokens", type=int, default=48, help="how many tokens to write (default 48)")
    parser.add_argument("--target", default="host", help="what to compile for (default: this machine)")
    parser.add_argument("--no-inductor", action="store_true", help="leave out Inductor, which takes long to compile")
    add_json(parser, "print text, ledger and figures as JSON when all is done")


def run(arguments: Namespace) -> None:
    """Run the demo."""
    from irx.bench import demo

    found = demo.run(
        arguments.model,
        tokens=arguments.tokens,
        prompt=arguments.prompt or demo.PROMPT,
        target=arguments.target,
        inductor=not arguments.no_inductor,
        write=(lambda line: None) if arguments.json else print,
    )
    if arguments.json:
        print_json(found)

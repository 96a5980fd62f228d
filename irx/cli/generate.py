"""Let a language model write: from a GGUF file, a Hugging Face folder, or a saved artifact.

Tokens are printed as they come, and generation stops at the model's own end-of-sequence token. A temperature of 0
takes the most likely token; with any other, the same seed gives the same text. A saved artifact starts at once, a
model is compiled first.

examples:
  irx generate model.gguf "Once upon a time"
  irx generate saved.irx "def main():" --max-new-tokens 200
  irx generate saved.irx "The moon" --temperature 0.8 --top-p 0.95 --seed 7
  irx generate saved.irx - < prompt.txt
  irx generate saved.irx "The moon" --json
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irx.cli._output import add_json, print_json, progress
from irx.errors import TokenizerNeeded

if TYPE_CHECKING:
    from irx.runtime.executable import Executable


def configure(parser: ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("model", help="a GGUF file, a Hugging Face folder, or a saved artifact")
    parser.add_argument("prompt", help="what the text starts with; - reads it from standard input")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="how many tokens at most (default 128)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the most likely token (default)")
    parser.add_argument("--top-k", type=int, help="sample among the k most likely tokens only")
    parser.add_argument("--top-p", type=float, help="sample among the most likely tokens that hold this probability")
    parser.add_argument("--seed", type=int, help="makes sampling repeatable")
    parser.add_argument("--target", default="host", help="device or backend:device, when the model is compiled here")
    add_json(parser, "print prompt, text and token ids as JSON when all is written")


def run(arguments: Namespace) -> None:
    """Write the text to standard output."""
    executable = _executable(arguments)
    tokenizer = executable.tokenizer
    if tokenizer is None:
        raise TokenizerNeeded(f"{arguments.model} has no tokenizer", fix="use a GGUF file or a folder that has one")
    prompt = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    ids = tokenizer.encode(prompt).ids
    # What an encoder reads is not what the text starts with.
    printer = _Printer(tokenizer, [] if "encode" in executable.graphs else ids, quiet=arguments.json)
    executable.generate(
        [ids],
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        seed=arguments.seed,
        eos_token_id="model",
        stream=printer,
    )
    printer.end()
    if arguments.json:
        print_json({"prompt": prompt, "text": tokenizer.decode(printer.ids), "ids": printer.ids})


def _executable(arguments: Namespace) -> Executable:
    import irx

    if (Path(arguments.model) / "manifest.json").is_file():
        return irx.load(arguments.model)
    with progress(f"Compiling {arguments.model}"):
        return irx.compile(arguments.model, target=arguments.target)


class _Printer:
    """Prints the text as tokens arrive; a character split over tokens waits for its last one."""

    def __init__(self, tokenizer: Any, ids: list[int], *, quiet: bool) -> None:
        self.tokenizer = tokenizer
        self.ids = list(ids)
        self.quiet = quiet
        self.printed = 0

    def __call__(self, tokens: Any) -> None:
        """Take the next token of each row; only the first row is printed."""
        self.ids.append(int(tokens[0]))
        self._show(self.tokenizer.decode(self.ids))

    def end(self) -> None:
        """Print what still waits, and end the line."""
        self._show(self.tokenizer.decode(self.ids), whole=True)
        if not self.quiet:
            print()

    def _show(self, text: str, *, whole: bool = False) -> None:
        if self.quiet or (text.endswith("\N{REPLACEMENT CHARACTER}") and not whole):
            return
        print(text[self.printed :], end="", flush=True)
        self.printed = len(text)

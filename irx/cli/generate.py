"""Let a language model write: from a GGUF file, a Hugging Face folder, or a saved artifact.

Tokens are printed as they come, and generation stops at the model's own end-of-sequence token. A temperature of 0
takes the most likely token; with any other, the same seed gives the same text.

examples:
  irx generate model.gguf "Once upon a time"
  irx generate saved.irx "def main():" --max-new-tokens 200
  irx generate saved.irx "The moon" --temperature 0.8 --top-p 0.95 --seed 7
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any


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


def run(arguments: Namespace) -> None:
    """Write the text to standard output."""
    from irx.errors import TokenizerNeeded

    executable = _executable(arguments)
    tokenizer = executable.tokenizer
    if tokenizer is None:
        raise TokenizerNeeded(f"{arguments.model} has no tokenizer", fix="use a GGUF file or a folder that has one")
    import torch

    prompt = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    stream = _Printer(tokenizer, tokenizer.encode(prompt).ids)
    executable.generate(
        torch.tensor([stream.ids]),
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        seed=arguments.seed,
        eos_token_id="model",
        stream=stream,
    )
    print()


def _executable(arguments: Namespace) -> Any:
    import irx

    if (Path(arguments.model) / "manifest.json").is_file():
        return irx.load(arguments.model)
    return irx.compile(arguments.model, target=arguments.target)


class _Printer:
    """Prints the text as tokens arrive; a character split over tokens waits for its last one."""

    def __init__(self, tokenizer: Any, ids: list[int]) -> None:
        self.tokenizer = tokenizer
        self.ids = list(ids)
        self.printed = 0
        self._show()

    def __call__(self, tokens: Any) -> None:
        """Take the next token of each row; only the first row is printed."""
        self.ids.append(int(tokens[0]))
        self._show()

    def _show(self) -> None:
        text = self.tokenizer.decode(self.ids)
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            return
        print(text[self.printed :], end="", flush=True)
        self.printed = len(text)

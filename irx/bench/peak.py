"""Run in a process of its own, `python -m irx.bench.peak TARGET THREADS`: the memory that compiling takes.

The model is random, in bfloat16, of the shape of Llama 3.2 1B. Counted is the most that the process held beyond what it
held before there was a model, the model itself included, as a multiple of the model's weights. Prints one number.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

import torch

import irx

STATUS = Path("/proc/self/statm")
PAGE = os.sysconf("SC_PAGE_SIZE")
INTERVAL = 0.01  # seconds between two looks


class Watch:
    """Looks at the memory that the process holds, again and again, and keeps the `peak`, in bytes."""

    def __init__(self) -> None:
        self.peak = resident()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(INTERVAL):
            self.peak = max(self.peak, resident())


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(STATUS.read_text().split()[1]) * PAGE


def main(target: str, threads: int) -> float:
    """The peak over the bytes of the weights."""
    torch.set_num_threads(threads)
    config = _config()
    before = resident()
    module = _module(config)
    weights: int = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
    with Watch() as watch:
        irx.compile(module, target=target, max_length=2048)
    return (watch.peak - before) / weights


def _config() -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=2048,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        intermediate_size=8192,
        vocab_size=128256,
        tie_word_embeddings=True,
    )


def _module(config: Any) -> Any:
    from transformers import LlamaForCausalLM

    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        module: Any = LlamaForCausalLM(config)
        return module.eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(usual)


if __name__ == "__main__":
    print(main(sys.argv[1], int(sys.argv[2])))

"""Run in a process of its own, `python -m irx.bench.fresh WHAT MODEL TARGET THREADS`: seconds that compiling takes.

WHAT is `compile` (a file, all steps) or `capture` (from an nn.Module to a program, nothing else). Imports and the
making of the module are not counted. Prints one number.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch

import irx
from irx.frontends.sources import read


def main(what: str, model: str, target: str, threads: int) -> float:
    """The seconds."""
    torch.set_num_threads(threads)
    source: Any = _module(model) if what == "capture" else model
    start = time.perf_counter()
    if what == "capture":
        read(source, max_batch=16, max_length=None, dynamic=True)
    else:
        irx.compile(source, target=target)
    return time.perf_counter() - start


def _module(model: str) -> Any:
    from irx.bench.baselines.models import causal_lm

    return causal_lm(Path(model))


if __name__ == "__main__":
    print(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))

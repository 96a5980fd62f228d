"""What a pipeline made of a model file, kept in the cache: the same file is not optimized twice on one machine.

Kept are the optimized program's text, the arrays that passes made, and the ledger. The model's own weights stay where
they are and are bound again. The key holds everything that the result depends on, the compiler's own code included.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np

from irx import __version__
from irx.cache import CacheKey, Store
from irx.ir.dims import evaluate
from irx.ir.opdef import Array
from irx.ir.parser import parse
from irx.ir.printer import print_program
from irx.ir.program import Program
from irx.ir.types import numpy_dtype
from irx.ledger import Ledger

_PROGRAM, _LEDGER, _ARRAY = "program.irx", "ledger.json", "array:"


def remembered(key: CacheKey, captured: Program, run: Callable[[], tuple[Program, Ledger]]) -> tuple[Program, Ledger]:
    """What `run` gives for a captured program, from the cache where it is there."""
    store = Store()
    parts = store.load(key)
    if parts is not None:
        return _read(parts, captured), Ledger.from_json(parts[_LEDGER].decode())
    program, ledger = run()
    store.save(key, _written(program, ledger, captured))
    return program, ledger


def memo_key(
    digest: str, pipeline: str, device: str, options: Iterable[tuple[str, str]], folders: Iterable[Path]
) -> CacheKey:
    """The key of a result. `digest` is that of the model, `folders` hold the code that makes the result."""
    source = hashlib.sha256("\n".join([digest, pipeline, code_digest(folders)]).encode()).hexdigest()
    return CacheKey("pipeline", source, device, tuple(options), (("irx", __version__), ("numpy", np.__version__)))


def code_digest(folders: Iterable[Path]) -> str:
    """A hash that changes when a source file does: of names, sizes and times."""
    found = hashlib.sha256()
    for folder in sorted(folders):
        for path, _, files in sorted(os.walk(folder)):
            for name in sorted(files):
                if name.endswith((".py", ".ll", ".toml", ".json")):
                    status = os.stat(os.path.join(path, name))
                    found.update(f"{path}/{name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return found.hexdigest()


def _written(program: Program, ledger: Ledger, captured: Program) -> dict[str, bytes]:
    arrays = {
        f"{_ARRAY}{entry.weight.name}": np.ascontiguousarray(entry.load()).tobytes()
        for entry in program.weights
        if entry.load is not None and entry.weight.name not in captured.weights
    }
    return {_PROGRAM: print_program(program).encode(), _LEDGER: ledger.to_json().encode(), **arrays}


def _read(parts: dict[str, bytes], captured: Program) -> Program:
    program = parse(parts[_PROGRAM].decode(), "<pipeline cache>")
    for entry in program.weights:
        weight = entry.weight
        if entry.derivation is not None:
            continue
        data = parts.get(f"{_ARRAY}{weight.name}")
        if data is not None:
            shape = tuple(evaluate(dim, {}) for dim in weight.shape)
            program.weights.bind(weight.name, partial(_array, data, numpy_dtype(weight.dtype), shape))
        else:
            program.weights.bind(weight.name, partial(captured.weights.array, captured.weights[weight.name]))
    return program


def _array(data: bytes, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> Array:
    return np.frombuffer(data, dtype).reshape(shape)

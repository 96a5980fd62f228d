"""A GGUF file as a program, kept in the cache: the second capture of a file traces nothing and imports no model code.

What is kept is the program's text and its small constants (rotary tables), under the file's hash. The large weights
stay in the file and are bound to it again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

import irx.ops  # noqa: F401  (declares the operations that a cached program names)
from irx.cache import CacheKey, Store
from irx.errors import IRXError
from irx.frontends.gguf.architectures import stored_weights
from irx.frontends.gguf.program import bind_program
from irx.frontends.gguf.reader import GgufFile
from irx.frontends.gguf.tokenizer import build_tokenizer
from irx.ir.dims import evaluate
from irx.ir.opdef import Array
from irx.ir.parser import parse
from irx.ir.printer import print_program
from irx.ir.program import Program
from irx.ir.types import numpy_dtype

SUFFIX = ".gguf"
_PACKAGES = ("irx", "torch", "transformers")
_PROGRAM = "program.irx"
_CONSTANT = "constant:"


def capture(
    path: str | Path,
    *,
    dtype: str = "f32",
    dynamic: bool = True,
    max_batch: int | None = 16,
    max_length: int | None = None,
) -> Program:
    """The program of a GGUF file's model over the file's own packed weights; activations of `dtype`, f32 or bf16.

    Raises what reading the file raises (ModelNotFound, DamagedFile, UnsupportedFile, UnknownArchitecture) and what
    capture raises.
    """
    file = GgufFile.open(path)
    options = {"dynamic": dynamic, "max_batch": max_batch, "max_length": max_length}
    key = CacheKey(
        kind="capture",
        source=file.sha256,
        options=tuple((name, json.dumps(value)) for name, value in {**options, "dtype": dtype}.items()),
        versions=tuple((name, _version(name)) for name in _PACKAGES),
    )
    parts = Store().fetch(key, lambda: _captured(file, dtype, options))
    return _restored(file, parts)


def _captured(file: GgufFile, dtype: str, options: dict[str, int | bool | None]) -> dict[str, bytes]:
    """Trace the model and write the program down."""
    from irx.frontends import hf
    from irx.frontends.gguf.model import bind_weights, build_model

    module = build_model(file, dtype)
    stored = bind_weights(file, module)
    program = hf.capture(module, **options)  # type: ignore[arg-type]
    bind_program(program, stored)
    program.meta |= _tokens(file)
    constants = {
        f"{_CONSTANT}{entry.weight.name}": np.ascontiguousarray(entry.load()).tobytes()
        for entry in program.weights
        if entry.weight.name not in stored and entry.load is not None
    }
    return {_PROGRAM: print_program(program).encode(), **constants}


def _restored(file: GgufFile, parts: dict[str, bytes]) -> Program:
    program = parse(parts[_PROGRAM].decode(), file="<capture cache>")
    stored = stored_weights(file)
    for entry in program.weights:
        name = entry.weight.name
        constant = parts.get(f"{_CONSTANT}{name}")
        if constant is not None:
            shape = [evaluate(size, {}) for size in entry.weight.shape]
            array = np.frombuffer(constant, numpy_dtype(entry.weight.dtype)).reshape(shape)
            program.weights.bind(name, _keep(array))
        elif name in stored:
            program.weights.bind(name, stored[name].load)
    return program


def _keep(array: Array) -> Callable[[], Array]:
    return lambda: array


def _tokens(file: GgufFile) -> dict[str, object]:
    """Special tokens as the file gives them; they decide over the configuration's defaults."""
    try:
        tokens = build_tokenizer(file)
    except IRXError as error:
        return {"tokenizer": str(error)}
    return {"eos": sorted(tokens.stop_token_ids), "bos": tokens.bos_token_id, "pad": tokens.pad_token_id}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"

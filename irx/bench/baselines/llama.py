"""llama.cpp on the same GGUF file, through the optional package `llama-cpp-python`.

Its low-level interface is used, so that only its own evaluation is timed: no sampling, no Python copies of logits. The
context is sized to the run, and a step is taken back by removing its token from the cache.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import torch

from irx.bench.baselines.absent import Absent
from irx.bench.baselines.language import Step


def llama_decode(path: Path, context: torch.Tensor, threads: int) -> Step:
    """A decode step after `context` (ids [1, T]); every call does the same step again. Raises Absent."""
    engine = _Engine(path, context.shape[1] + 1, threads)
    engine.evaluate(context[0])
    last, length = context[0, -1:].contiguous(), context.shape[1]

    def step() -> torch.Tensor:
        engine.cut(length)
        return engine.evaluate(last)

    return step


def llama_prefill(path: Path, prompt: torch.Tensor, threads: int) -> Step:
    """The logits of the last of the tokens `prompt` [1, T], from an empty cache every time. Raises Absent."""
    engine = _Engine(path, prompt.shape[1], threads)

    def step() -> torch.Tensor:
        engine.cut(0)
        return engine.evaluate(prompt[0])

    return step


def _library() -> Any:
    try:
        import llama_cpp
    except ImportError as error:
        raise Absent("llama-cpp-python is not installed") from error
    return llama_cpp


class _Engine:
    """A loaded model and one context."""

    def __init__(self, path: Path, tokens: int, threads: int) -> None:
        self._llama = lib = _library()
        self._silence = _silenced(lib)
        lib.llama_backend_init()
        self._model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
        if not self._model:
            raise Absent(f"llama.cpp cannot read {path.name}")
        settings = lib.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = tokens
        settings.n_threads = settings.n_threads_batch = threads
        self._context = lib.llama_init_from_model(self._model, settings)
        self._memory = lib.llama_get_memory(self._context)
        self._words = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model))

    def cut(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        self._llama.llama_memory_seq_rm(self._memory, 0, length, -1)

    def evaluate(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits f32 [1, 1, V] of the last of the tokens i64 [T]; valid until the next call."""
        tokens = (ctypes.c_int32 * len(ids))(*ids.tolist())
        status = self._llama.llama_decode(self._context, self._llama.llama_batch_get_one(tokens, len(ids)))
        if status:
            raise Absent(f"llama_decode failed with status {status}")
        values = self._llama.llama_get_logits_ith(self._context, -1)  # waits for the evaluation
        return torch.from_numpy(np.ctypeslib.as_array(values, shape=(1, 1, self._words)))


def _silenced(lib: Any) -> Any:
    """Drop the library's log; what is returned has to live as long as the library logs."""

    ignore = lib.llama_log_callback(lambda level, text, data: None)
    lib.llama_log_set(ignore, ctypes.c_void_p(0))
    return ignore

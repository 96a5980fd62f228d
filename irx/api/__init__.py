"""`irx.compile`: the whole path from a model to an executable, its seven steps on one page."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from irx.analysis.data import split
from irx.api.assembling import assemble as assemble
from irx.api.assembling import build as build
from irx.api.assembling import divide as divide
from irx.api.assembling import load_kernel
from irx.api.assembling import schedule as schedule
from irx.api.assembling import tasks as tasks
from irx.api.measuring import runner as runner
from irx.api.measuring import transform as transform
from irx.api.optimizing import names_lossy
from irx.api.optimizing import optimize as optimize
from irx.api.searching import search_passes as search_passes
from irx.api.targets import aim as aim
from irx.api.targets import floats_of as floats_of
from irx.budget import Budget, check_budget
from irx.frontends.sources import read
from irx.pipeline.latency import timed_context
from irx.pipeline.search import Search, check_search
from irx.runtime import artifact
from irx.runtime.compiled import restore
from irx.runtime.executable import Executable
from irx.tuning import check_effort


def compile(
    model: Any,
    example: Any = None,
    *,
    target: str = "host",
    pipeline: str = "default",
    budget: Budget | None = None,
    data: Any = None,
    tokenizer: Any = None,
    tune: str = "none",
    dtype: str | None = None,
    dynamic: bool = True,
    max_batch: int = 16,
    max_length: int | None = None,
    strict: bool = False,
    search: Search | None = None,
    context: int | None = None,
) -> Executable:
    """Compile `model` for inference on `target`.

    `model` is an nn.Module, a transformers model, the path of a GGUF file, a Hugging Face folder or a `.irx` file, or a
    Program. `example` is a tensor, a tuple (positional) or a dict (keywords); language models need none. `pipeline` is
    a preset or pipeline text. `data` is a list of texts, of ids, or of dicts of inputs; half of it is for passes that
    look at what the model computes, half is held out to measure what lossy passes cost. With a `budget`, one that leads
    over it is dropped; where `pipeline` names none, the fastest ones inside it are searched for, as `search` says.
    `dtype` None keeps the model's own; a GGUF file computes in f32 on a CPU and in bf16 on a GPU. `max_batch` and
    `max_length` bound the batch and the sequence. `tune` "quick" or "full" searches for faster schedules of the kernels
    first; what it finds is kept for later compilations. With `strict` a refused pass is an error. What passes gain, and
    what a search compares, is the time of a step behind `context` tokens (128), or of an encoder's pass over so many.
    Raises subclasses of IRXError; see `irx.errors`.
    """
    check_effort(tune)
    check_search(search, budget)
    check_budget(budget, data)
    goal = aim(target)
    limits: dict[str, Any] = {"dynamic": dynamic, "max_batch": max_batch, "max_length": max_length}
    source = read(model, example, dtype=dtype, activations=floats_of(goal), **limits)
    tokenizer = source.tokenizer if tokenizer is None else tokenizer
    known = split(data, source.program, tokenizer) if data is not None else None
    options: dict[str, Any] = {"strict": strict, "digest": source.digest, "budget": budget, "data": known}
    options["context"] = timed_context(context, source.program)
    run = optimize if budget is None or names_lossy(pipeline) else partial(search_passes, search=search or Search())
    program, ledger = run(source.program, goal, pipeline, **options)
    parts = divide(program, goal, ledger)
    schedule(program, parts, goal, ledger, tune)
    return assemble(program, parts, goal, ledger, source, tokenizer)


def load(path: str | Path) -> Executable:
    """The executable that `Executable.save` wrote; without the compiler, and without tracing anything.

    Raises ModelNotFound, DamagedArtifact, ArtifactVersionMismatch, MissingFeature.
    """
    found = artifact.load(path)
    compiled = restore(found, load_kernel)
    found.verify()
    return Executable(compiled)

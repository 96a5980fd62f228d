"""The passes of a pipeline on a program: checked, timed, judged on data, and remembered."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch

from irx.analysis.data import Data
from irx.analysis.quality import HeldOut
from irx.api.measuring import context_of, held_out, judge_of, latencies, latency
from irx.api.targets import preferred
from irx.backends.torch.call import call_on_arrays
from irx.budget import Budget
from irx.cache import CacheKey
from irx.ir.program import Program
from irx.ledger import Ledger
from irx.passes import passes
from irx.pipeline.base import Effect
from irx.pipeline.instruments import Compare, Gain, standard_instruments
from irx.pipeline.latency import CONTEXT
from irx.pipeline.memo import memo_key, remembered
from irx.pipeline.pipeline import Pipeline
from irx.target import Target


def optimize(
    program: Program,
    goal: Target,
    pipeline: str,
    *,
    strict: bool = False,
    digest: str = "",
    budget: Budget | None = None,
    data: Data | None = None,
    held: HeldOut | None = None,
    context: int = CONTEXT,
) -> tuple[Program, Ledger]:
    """Step 3: run the pipeline, with the oracle that also knows torch's functions, on the user's data if there are any.

    What it makes of a model with a `digest` is kept in the cache, unless somebody watches the passes or measures by a
    function of their own. `held` is what measures quality, where there is one that knows the original's predictions.
    Raises BudgetError for a budget that cannot be measured.
    """
    run = partial(_optimize, program, goal, pipeline, strict, budget, data, held, context)
    watched = any(os.environ.get(name, "0") not in ("", "0") for name in ("IRX_DEBUG", "IRX_DUMP_DIR"))
    if not digest or watched or (budget is not None and budget.metric is not None):
        return run()
    options = {"strict": str(strict), "budget": repr(budget), "data": data.digest if data is not None else ""}
    options["context"] = str(context)
    return remembered(key_of(digest, pipeline, goal, options), program, run)


def _optimize(
    program: Program,
    goal: Target,
    pipeline: str,
    strict: bool,
    budget: Budget | None,
    data: Data | None,
    held: HeldOut | None = None,
    context: int = CONTEXT,
) -> tuple[Program, Ledger]:
    measure = partial(latency, goal=goal, context=context)
    again = partial(latencies, goal=goal, context=context)
    judges = [judge_of(held or held_out(program, goal, data), budget)] if data is not None else []
    instruments = (*standard_instruments(*judges), Compare(call=call_on_arrays), Gain(measure, again=again))
    ctx = context_of(program, goal, data, context)
    optimized, ledger = Pipeline.parse(pipeline, passes(), instruments).run(program, ctx, strict=strict)
    ledger.notes += [data.describe()] if data is not None else []
    return optimized, ledger


def names_lossy(pipeline: str) -> bool:
    """True where a pipeline names lossy passes itself."""
    return any(one.effect is Effect.LOSSY for one in Pipeline.parse(pipeline, passes()).passes)


def key_of(digest: str, pipeline: str, goal: Target, options: Mapping[str, str]) -> CacheKey:
    """The key of what is made of a model with a digest, for this target on this machine."""
    host = f"{goal.device.title}, {goal.device.cores} cores, {torch.get_num_threads()} threads"
    stated = [("target", str(goal)), ("backend", preferred(goal).name), *options.items()]
    return memo_key(digest, pipeline, host, stated, _code_folders())


def _code_folders() -> list[Path]:
    """Where the compiler's own code is."""
    modules = [sys.modules[name] for name in ("irx", "irx.passes", "irx.backends")]
    return [Path(str(module.__file__)).parent for module in modules]

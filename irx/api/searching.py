"""The passes of the fastest program inside a budget."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from irx.analysis.calibration import FORWARD
from irx.analysis.data import Data
from irx.api.measuring import context_of, held_out, judge_of, latencies, latency
from irx.api.optimizing import key_of, optimize
from irx.budget import Budget
from irx.ir.printer import print_program
from irx.ir.program import Program
from irx.ledger import Ledger
from irx.passes import passes
from irx.passes.depth.policies.similarity import least_important
from irx.pipeline.base import Context
from irx.pipeline.latency import CONTEXT
from irx.pipeline.search import (
    Evaluator,
    Hunt,
    Journal,
    Search,
    Unit,
    joined,
    ranked,
    ranks,
    settle,
    units_of,
)
from irx.target import Target

SEARCHED_TOKENS = 1024  # of the calibration data, on which candidates are judged; held-out data decide on all tokens
GLANCED = 4  # one in so many of these is what a first look sees
FITTED_TOKENS = 2048  # of the others, which the passes of candidates look at; those of the chosen one look at all


def search_passes(
    program: Program,
    goal: Target,
    pipeline: str,
    *,
    budget: Budget,
    data: Data,
    search: Search,
    strict: bool = False,
    digest: str = "",
    context: int = CONTEXT,
) -> tuple[Program, Ledger]:
    """Step 3 with the fastest lossy passes inside the budget: searched on calibration data, chosen on held-out data.

    What was measured is kept in the cache, unless the budget has a function of the user's.
    """
    started = time.monotonic()
    sample = data.sample(SEARCHED_TOKENS, FITTED_TOKENS)
    ctx = context_of(program, goal, sample, context)
    clock = partial(latency, goal=goal, context=context)
    again = partial(latencies, goal=goal, context=context)
    own = budget.metric is not None  # a user's function looks at data of its own
    few = sample.few(GLANCED, program.graphs[FORWARD]) if not own else None
    glances = judge_of(held_out(program, goal, few), budget).measure if few is not None else None
    judge = judge_of(held_out(program, goal, sample), budget).measure
    evaluator = Evaluator(program, pipeline, passes(), ctx, judge, clock, search.prompt, glances, again)
    stated = {"data": sample.digest, "prompt": str(search.prompt), "context": str(context)}
    key = None if own else replace(key_of(digest or _digest(program), pipeline, goal, stated), kind="search")
    looked = replace(key, options=(*key.options, ("look", few.digest))) if key is not None and few is not None else None
    glance = Journal(evaluator.glance, looked) if glances is not None else None
    units = [] if budget.exact else _units(evaluator.normalized, ctx, search)
    journal = Journal(evaluator, key)
    timed = partial(_clock, [one for one in (journal, glance) if one is not None])
    hunt = Hunt(units, journal, budget, search, timed, glance=glance, again=evaluator.in_turns, started=started)
    found = hunt.run()
    held = held_out(program, goal, data)
    options: dict[str, Any] = {"strict": strict, "digest": digest, "budget": budget, "data": data, "held": held}
    options["context"] = context

    def confirm(text: str) -> Mapping[str, float]:
        return judge_of(held, budget).measure(*evaluator.made_of(text))

    def made_with(text: str) -> tuple[Program, Ledger]:
        return optimize(program, goal, str(joined(pipeline, text, passes())), **options)

    made, ledger = settle(found, made_with, budget, confirm)
    ledger.notes += [*evaluator.remarks(), *journal.notes()]
    return made, ledger


def _clock(journals: Sequence[Journal]) -> float:
    """Seconds, those that went into what is known from an earlier search among them."""
    return time.monotonic() + sum(journal.earlier for journal in journals)


def _digest(program: Program) -> str:
    """A hash of what a captured program computes, its weights included: about a second for half a gigabyte."""
    found = hashlib.sha256(print_program(program).encode())
    for weight in program.used_weights():
        found.update(program.weights.array(weight).tobytes())
    return found.hexdigest()


def _units(program: Program, ctx: Context, search: Search) -> list[Unit]:
    """What a search chooses from, the layers that matter least written out."""
    units = [unit for unit in units_of(program, passes()) if search.wants(unit, ctx.context)]
    return ranked(units, least_important(program, ctx.calibrated("a search"))) if ranks(units) else units

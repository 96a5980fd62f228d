"""Which of two methods does better at equal size, on the same windows or needles, as a table.

Every row is a mean of paired differences with its 95 % interval: an ordering counts where the interval excludes zero,
else it is undecided. Differences are the other method's loss minus that of the one that should win, so that positive
means it does. SmolLM2 on held-out text; MiniLM for the precision of weights, because SmolLM2's file lies on a grid of 4
bits already.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from irx.bench.guard import each, guarded
from irx.bench.lab import Lab
from irx.bench.paired import Paired, paired
from irx.bench.quality import text
from irx.bench.result import Result
from irx.bench.timing import Spread
from irx.bench.windows import Windows, windows

if TYPE_CHECKING:
    from irx.ir.program import Program

BLOCKS = 3  # that are left out
SWAPS, QUICK_SWAPS = 40, 2  # candidates of the search for which blocks go
NEEDLES, QUICK_NEEDLES = 40, 10
WINDOWS, QUICK_WINDOWS = 32, 4
QUICK_TEXT = 8_000  # letters, about 2000 tokens
PROMPT = 512  # tokens around a needle: SmolLM2 finds it there
FOUR_BITS = "quantize-weights{bits=4, skip=none"
EVICT = "default | kv-evict{keep=0.2, scorer="
NOISE = 0.005  # of perplexity on 2000 tokens


@dataclass(frozen=True)
class Sensitivity:
    """A change of SmolLM2 and the ratio of perplexities that it is known to cost, on other text."""

    passes: str
    ratio: float
    quick: bool = False


_LEFT_OUT = "skip-layers{policy=list, layers=["
_OWN_GRID = 'quantize-weights{bits=4, symmetric=false, mixed=["*embed_tokens.weight=8"]}'
SENSITIVITIES = {
    "block 15 left out": Sensitivity(f"{_LEFT_OUT}15]}}", 34.05 / 27.50, quick=True),
    "block 20 left out": Sensitivity(f"{_LEFT_OUT}20]}}", 34.66 / 27.50),
    "block 28 left out": Sensitivity(f"{_LEFT_OUT}28]}}", 85.65 / 27.50, quick=True),
    "blocks 10 and 20 left out": Sensitivity(f"{_LEFT_OUT}10, 20]}}", 44.19 / 27.50),
    "blocks 14 to 17 left out": Sensitivity(f"{_LEFT_OUT}14, 15, 16, 17]}}", 44.71 / 27.50),
    "weights in bf16": Sensitivity("cast-weights{dtype=bf16}", 27.503 / 27.50),
    "8-bit weights": Sensitivity("quantize-weights{bits=8, group=256}", 27.41 / 27.50),
    "4-bit weights, symmetric groups of 32": Sensitivity("quantize-weights{bits=4}", 36.29 / 27.50, quick=True),
    "4-bit weights on the file's own grid": Sensitivity(_OWN_GRID, 27.497 / 27.50, quick=True),
}


@dataclass(frozen=True)
class Orderings:
    """All rows."""

    name: str = "orderings"
    title: str = "which method does better, in pairs, with 95 % intervals"

    def measure(self, lab: Lab) -> Iterator[Result]:
        """Depth, weights, cache, and how much single changes cost."""
        parts = {"depth": _of_language, "precision of MiniLM's weights": _weights, "cache": _needles}
        for what, part in parts.items():
            lab.tell(f"  {what}")
            yield from each(Result(self.name, what, "", None, "d"), partial(part, lab))


def _of_language(lab: Lab) -> Iterator[Result]:
    """Windows of the language model in float32: depth, then what is known of single changes."""
    source = replace(lab.source("f32"), tokenizer=lab.tokenizer)
    data = text()[:QUICK_TEXT] if lab.quick else text()
    found = windows(source, [data], "kl", QUICK_WINDOWS if lab.quick else WINDOWS)
    yield from _sensitivities(lab, found)
    yield from _depth(lab, found)


def _depth(lab: Lab, found: Windows) -> Iterator[Result]:
    blocks = _block_count(found.program)
    keep = blocks - BLOCKS
    uniform = f"skip-layers{{policy=uniform, keep={keep}}}"
    similar = f"skip-layers{{policy=similarity, keep={keep}}}"
    yield _row(
        f"{BLOCKS} blocks left out: similarity beats uniform", lambda: (found.losses(similar), found.losses(uniform))
    )
    yield _row(
        f"{BLOCKS} blocks left out: a search beats similarity",
        lambda: (found.losses(_searched(lab, found, similar)), found.losses(similar)),
    )


def _sensitivities(lab: Lab, found: Windows) -> Iterator[Result]:
    for what, one in SENSITIVITIES.items():
        if lab.quick and not one.quick:
            continue
        lab.tell(f"    {what}")
        row = Result("orderings", f"SmolLM2, {what}: ratio of perplexities", one.passes, None, "r")
        yield guarded(row, partial(_sensitive, found, row, one))


def _sensitive(found: Windows, row: Result, one: Sensitivity) -> Result:
    """The ratio with the 95 % interval of its logarithm over windows, beside what is known from another text."""
    figures = found.figures(one.passes)
    logs: Paired = paired([math.log(window["ppl_ratio"]) for window in figures])
    ratio = Spread(*(math.exp(min(value, 700.0)) for value in (logs.mean, logs.low, logs.high)))
    within = ratio.low <= one.ratio * (1 + NOISE) and ratio.high >= one.ratio * (1 - NOISE)
    said = "holds" if within else "differs"
    agreed = _mean([window["top1"] for window in figures])
    note = f"{one.ratio:.3f} on 2000 tokens of news; here in {logs.count} windows, top-1 {agreed:.1%}"
    return row.measured(ratio, said, note=note)


def _searched(lab: Lab, found: Windows, similar: str) -> str:
    """Swaps of one block at a time, from similarity's choice, judged on calibration data; as many blocks go."""
    from irx.analysis.quality import HeldOut

    draw, sample = random.Random(0), found.data.sample(512 if lab.quick else 1024, 2048)
    judge = HeldOut(found.program, sample, found.judge.prepare)
    best = _chosen(found, similar)
    least = judge.figures(found.optimize(f"none | {_list(best)}")[0])["kl"]
    others = list(range(1, _block_count(found.program) - 1))
    for _ in range(QUICK_SWAPS if lab.quick else SWAPS):
        free = [block for block in others if block not in best]
        child = sorted([draw.choice(free), *draw.sample(best, len(best) - 1)])
        loss = judge.figures(found.optimize(f"none | {_list(child)}")[0])["kl"]
        if loss < least:
            best, least = child, loss
            lab.tell(f"    blocks {best}: kl {least:.4g} on calibration data")
    return _list(best)


def _list(blocks: Sequence[int]) -> str:
    return f"skip-layers{{policy=list, layers=[{', '.join(map(str, blocks))}]}}"


def _chosen(found: Windows, passes: str) -> list[int]:
    """The blocks that a policy leaves out, from the note of its row."""
    _, ledger = found.optimize(f"none | {passes}")
    note = next(row.reason for row in ledger.rows if row.name == "skip-layers")
    return [int(word) for word in note.partition(" of ")[0].replace(",", "").split()]


def _block_count(program: Program) -> int:
    import irx.api as api
    from irx.analysis.blocks import corresponding

    return len(corresponding(api.transform(program, api.aim("torch"), "none", None)[0])[0])


def _weights(lab: Lab) -> Iterator[Result]:
    from irx.frontends.sources import read

    ids, mask = _encoder_inputs(lab)
    source = read(lab.encoder("f32"), {"input_ids": ids[:2], "attention_mask": mask[:2]}, max_batch=16)
    rows = [{"input_ids": ids[i : i + 1], "attention_mask": mask[i : i + 1]} for i in range(len(ids))]
    found = windows(source, rows, "cosine", QUICK_WINDOWS if lab.quick else WINDOWS)
    pairs = {
        "4-bit weights: asymmetric beats symmetric": (f"{FOUR_BITS}, symmetric=false}}", f"{FOUR_BITS}}}"),
        "4-bit weights: groups of 32 beat rows": (f"{FOUR_BITS}}}", f"{FOUR_BITS}, group=256}}"),
    }
    for what, (better, worse) in pairs.items():
        yield _row(what, lambda better=better, worse=worse: (found.losses(better), found.losses(worse)))  # type: ignore[misc]


def _encoder_inputs(lab: Lab) -> Any:
    from irx.bench.rows.lossy import encoder_inputs

    return encoder_inputs(lab)


def _needles(lab: Lab) -> Iterator[Result]:
    """Recall at equal size: 1 for a needle that is missed."""
    known = lru_cache(partial(_missed, lab))
    for other in ("norm", "window"):
        yield _row(
            f"a fifth of the cache, needles at {PROMPT} tokens: snapkv beats {other}",
            lambda other=other: (known("snapkv"), known(other)),  # type: ignore[misc]
        )


def _missed(lab: Lab, scorer: str) -> list[float]:
    """For every needle 0 where it is found."""
    import torch

    from irx.analysis.needles import DEPTHS, plant

    fast = lab.made("file", f"{EVICT}{scorer}}}")
    count, found = QUICK_NEEDLES if lab.quick else NEEDLES, []
    for i in range(count):
        needle = plant(fast.tokenizer, text(), PROMPT, DEPTHS[i % len(DEPTHS)], i)
        ids = torch.as_tensor(needle.prompt)[None]
        answer = fast.generate(ids, max_new_tokens=len(needle.value))[0, ids.shape[1] :]
        found.append(float(answer.tolist() != needle.value.tolist()))
    return found


def _row(what: str, measure: Callable[[], tuple[Sequence[float], Sequence[float]]]) -> Result:
    """The losses of the better and of the other method as a row."""
    row = Result("orderings", what, "", None, "d")
    return guarded(row, lambda: _compared(row, *measure()))


def _compared(row: Result, better: Sequence[float], worse: Sequence[float]) -> Result:
    one = paired([b - a for a, b in zip(better, worse, strict=True)])
    return row.measured(one.spread, one.verdict, note=f"{one}; losses {_mean(better):.4g} and {_mean(worse):.4g}")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


FAMILY = Orderings()

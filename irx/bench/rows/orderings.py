"""Which of two methods does better at equal size, on the same windows or needles, as a table.

Every row is a mean of paired differences with its 95 % interval: an ordering counts where the interval excludes zero,
else it is undecided. Differences are the other method's loss minus that of the one that should win, so that positive
means it does. SmolLM2 on held-out text; MiniLM for the precision of weights, because SmolLM2's file lies on a grid of 4
bits already.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from irx.bench.baselines.absent import Absent
from irx.bench.lab import Lab
from irx.bench.paired import Paired, paired
from irx.bench.quality import text
from irx.bench.result import Result
from irx.errors import IRXError

if TYPE_CHECKING:
    from irx.analysis.data import Data
    from irx.analysis.quality import HeldOut
    from irx.ir.program import Program

BLOCKS = 3  # that are left out
SWAPS, QUICK_SWAPS = 40, 2  # candidates of the search for which blocks go
NEEDLES, QUICK_NEEDLES = 40, 2
PROMPT = 512  # tokens around a needle: SmolLM2 finds it there
FOUR_BITS = "quantize-weights{bits=4, skip=none"
EVICT = "default | kv-evict{keep=0.2, scorer="


@dataclass(frozen=True)
class Windows:
    """A model's program and its data; losses of other programs, window by window."""

    program: Program
    data: Data
    judges: Sequence[HeldOut]
    figure: str
    optimize: Callable[[str], tuple[Program, Any]]

    def losses(self, passes: str) -> list[float]:
        """KL of every window behind the passes, or 1 - cosine. Raises IRXError where one of them is not kept."""
        changed, ledger = self.optimize(f"none | {passes}" if passes else "none")
        bad = [row for row in ledger.rows if row.effect == "lossy" and row.decision != "kept"]
        if bad:
            raise Absent(f"{bad[0].name} was {bad[0].decision}: {bad[0].reason}")
        figures = [judge.figures(changed)[self.figure] for judge in self.judges]
        return figures if self.figure == "kl" else [1 - value for value in figures]


def windows(lab: Lab, source: Any, data: Any, figure: str, most: int) -> Windows:
    """Up to `most` held-out windows, each with a judge of its own, which keeps what the original predicts."""
    import irx.api as api
    from irx.analysis.data import split
    from irx.analysis.quality import HeldOut

    goal = api.aim("torch")
    found = split(data, source.program, source.tokenizer)
    batches = [
        {name: array[i : i + 1] for name, array in batch.items()} for batch in found.held_out for i in _rows(batch)
    ]
    parts = [replace(found, held_out=(batch,)) for batch in batches[:most]]
    prepare = api.runner(goal)
    judges = [HeldOut(source.program, part, prepare) for part in parts]
    optimize = partial(_optimized, source.program, found)
    return Windows(source.program, found, judges, figure, optimize)


def _optimized(program: Program, data: Data, pipeline: str) -> tuple[Program, Any]:
    import irx.api as api

    return api.transform(program, api.aim("torch"), pipeline, data)


def _rows(batch: Any) -> range:
    return range(len(next(iter(batch.values()))))


@dataclass(frozen=True)
class Orderings:
    """All rows."""

    name: str = "orderings"
    title: str = "which method does better, in pairs, with 95 % intervals"

    def measure(self, lab: Lab) -> Iterator[Result]:
        """Depth, weights, cache."""
        for part in (_depth, _weights, _needles):
            yield from part(lab)


def _depth(lab: Lab) -> Iterator[Result]:
    from irx.frontends.sources import read

    found = windows(lab, read(str(lab.path)), [text()], "kl", 2 if lab.quick else 32)
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


def _searched(lab: Lab, found: Windows, similar: str) -> str:
    """Swaps of one block at a time, from similarity's choice, judged on calibration data; as many blocks go."""
    from irx.analysis.quality import HeldOut

    draw, sample = random.Random(0), found.data.sample(1024, 2048)
    judge = HeldOut(found.program, sample, found.judges[0].prepare)
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

    try:
        ids, mask = _encoder_inputs(lab)
        source = read(lab.encoder("f32"), {"input_ids": ids[:2], "attention_mask": mask[:2]}, max_batch=16)
    except (Absent, IRXError) as error:
        yield Result("orderings", "precision of MiniLM's weights", "", None, "d").without("absent", str(error))
        return
    rows = [{"input_ids": ids[i : i + 1], "attention_mask": mask[i : i + 1]} for i in range(len(ids))]
    found = windows(lab, source, rows, "cosine", 2 if lab.quick else 32)
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
    for other in ("norm", "window"):
        yield _row(
            f"a fifth of the cache, needles at {PROMPT} tokens: snapkv beats {other}",
            lambda other=other: (_missed(lab, "snapkv"), _missed(lab, other)),  # type: ignore[misc]
        )


def _missed(lab: Lab, scorer: str) -> list[float]:
    """For every needle 0 where it is found."""
    import torch

    from irx.analysis.needles import DEPTHS, plant

    fast = lab.irx_with("file", f"{EVICT}{scorer}}}")
    count, found = QUICK_NEEDLES if lab.quick else NEEDLES, []
    for i in range(count):
        needle = plant(fast.tokenizer, text(), PROMPT, DEPTHS[i % len(DEPTHS)], i)
        ids = torch.as_tensor(needle.prompt)[None]
        answer = fast.generate(ids, max_new_tokens=len(needle.value))[0, ids.shape[1] :]
        found.append(float(answer.tolist() != needle.value.tolist()))
    return found


def _row(what: str, measure: Callable[[], tuple[Sequence[float], Sequence[float]]]) -> Result:
    """The losses of the better and of the other method as a row."""
    found = Result("orderings", what, "", None, "d")
    try:
        better, worse = measure()
    except (Absent, IRXError) as error:
        return found.without("absent", str(error))
    one: Paired = paired([b - a for a, b in zip(better, worse, strict=True)])
    return found.measured(one.spread, one.verdict, note=f"{one}; losses {_mean(better):.4g} and {_mean(worse):.4g}")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


FAMILY = Orderings()

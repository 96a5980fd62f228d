"""What a search makes of a budget: SmolLM2 in float32 against its exact program, eager and each family alone; MiniLM.

The searches come first and take their minutes; what they measured is kept, so that a second run goes on where the first
one was. Then the winner takes turns with the best that the search found of every family alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from irx.bench.baselines.absent import Absent
from irx.bench.baselines.encoder import eager_encoder
from irx.bench.baselines.language import eager_decode
from irx.bench.lab import Lab, irx_decode, moved
from irx.bench.predicted import Predicted
from irx.bench.quality import text
from irx.bench.race import Candidate, Race, Ready, Row
from irx.bench.result import Result, single
from irx.errors import IRXError
from irx.ledger import Point
from irx.ledger import Row as LedgerRow
from irx.pipeline.search.levels import TABLE, unrepaired
from irx.pipeline.search.settle import lost
from irx.pipeline.text import read_items

CONTEXT, LONG_CONTEXT = 128, 2048
MINUTES, QUICK_MINUTES = 10.0, 0.5
FAMILIES_ALONE = ("depth", "attention", "cache", "weights")
QUICK_ALONE = ("depth", "weights")
TRIES = 3  # candidates of a family, fastest first, until one stays inside on held-out data
EXACT, EAGER = "IRX exact f32", "eager f32"
FASTER = 8.0  # than the exact float32 program
FIRST_SECONDS, BEST_SECONDS = 180.0, 1200.0
COSINE = 0.99
LETTERS, QUICK_LETTERS = 120_000, 60_000  # of the text, half of them to judge by
TEXTS = 256  # of about 128 tokens, for the encoder


def texts_alone(points: Sequence[Point], family: str) -> list[str]:
    """The candidates inside the budget all of whose passes are of a family, and faster than none, fastest first."""
    family_of = {item.name: unit.family for unit in TABLE for level in unit.levels for item in read_items(level)}
    unchanged = min((point.seconds for point in points if not point.text), default=math.inf)
    inside = [point for point in points if point.text and point.share <= 1 and point.seconds < unchanged]
    texts = [point.text for point in sorted(inside, key=lambda point: point.seconds)]
    return [text for text in texts if {family_of[item.name] for item in read_items(unrepaired(text))} == {family}]


def outside(rows: Sequence[LedgerRow]) -> str:
    """The lossy passes that were dropped for what they cost, with the reason; empty where all stayed or do not pay."""
    return "; ".join(lost(rows))


@dataclass(frozen=True)
class Searched:
    """One budget on the language model in float32: at most `most` of a metric, for steps behind `context` tokens."""

    metric: str
    most: float
    context: int = CONTEXT
    wanted: float | None = FASTER
    quick: bool = False
    """Whether a quick run has it."""
    name: str = "lossy"

    @property
    def limit(self) -> str:
        """The budget."""
        return f"{self.metric} at most {self.most}"

    @property
    def label(self) -> str:
        """The budget, and what is special about the steps."""
        return self.limit if self.context == CONTEXT else f"{self.limit} behind {self.context} tokens"

    @property
    def title(self) -> str:
        """What is measured."""
        return f"SmolLM2 in float32 under a budget, {self.limit}: one decode step at a context of {self.context} tokens"

    def measure(self, lab: Lab) -> Iterator[Result]:
        """Times in turns, with what was chosen and what it spends."""
        if lab.quick and not self.quick:
            return
        families = QUICK_ALONE if lab.quick else FAMILIES_ALONE
        alone = {f"IRX {family} alone": partial(self._alone, family=family) for family in families}
        race = Race(
            name=self.name,
            title=self.title,
            reference=EXACT,
            candidates={
                EXACT: Candidate(lambda lab: self._step(lab, lab.made("f32", "default")), None),
                EAGER: Candidate(lambda lab: Ready(eager_decode(lab.module("f32"), lab.ids(self.context))), None),
                "IRX searched": Candidate(lambda lab: self._step(lab, self._searched(lab)), None),
                **{name: Candidate(make, None) for name, make in alone.items()},
            },
            rows=(
                self._row("the exact float32 program", EXACT, self.wanted),
                self._row("eager float32", EAGER, None),
                *(self._row(name.removeprefix("IRX "), name, 1.0) for name in alone),
            ),
        )
        for result in race.measure(lab):
            yield result.measured(result.figure, result.verdict, note=self._told(lab)) if result.figure else result
        yield from self._times(self._searched(lab).ledger().notes)

    def _row(self, what: str, other: str, wanted: float | None) -> Row:
        return Row(f"{self.label}: against {what}", "IRX searched", (other,), wanted, "searched")

    def _searched(self, lab: Lab) -> Any:
        import irx

        search = irx.Search(minutes=QUICK_MINUTES if lab.quick else MINUTES)
        return self._compiled(lab, "default", search=search)

    def _compiled(self, lab: Lab, pipeline: str, **options: Any) -> Any:
        import irx

        limits: dict[str, Any] = {self.metric: self.most}
        data, budget = [text()[: QUICK_LETTERS if lab.quick else LETTERS]], irx.Budget(**limits)
        return lab.irx_with("f32", pipeline, budget=budget, data=data, context=self.context, **options)

    def _alone(self, lab: Lab, family: str) -> Ready:
        """The best that the search found of one family, as held-out data see it.

        Raises Absent where there is nothing, or nothing of the fastest few stays inside the budget there.
        """
        from irx.passes import passes
        from irx.pipeline.search import joined

        reasons = f"no pass of {family} alone is faster inside the budget"
        for passes_alone in texts_alone(self._searched(lab).ledger().points, family)[:TRIES]:
            fast = self._compiled(lab, str(joined("default", passes_alone, passes())))
            reasons = outside(fast.ledger().rows)
            if not reasons:
                return self._step(lab, fast)
        raise Absent(reasons)

    def _step(self, lab: Lab, fast: Any) -> Ready:
        size = moved(fast, "decode", {"B": 1, "T": self.context + 1})
        return Ready(irx_decode(fast, lab.ids(self.context)), size)

    def _told(self, lab: Lab) -> str:
        """What was chosen, how long that took, and what it costs on held-out text."""
        try:
            ledger = self._searched(lab).ledger()
        except IRXError as error:
            return str(error)
        wanted = ("search: chosen", "search: a first answer", "search: the best is that of")
        notes = [note.removeprefix("search: ") for note in ledger.notes if note.startswith(wanted)]
        figures = ", ".join(f"{name} {value:.4g}" for name, value in ledger.summary.quality.items())
        return "; ".join([*notes, f"on held-out text {figures or 'nothing is spent'}"])

    def _times(self, notes: Sequence[str]) -> Iterator[Result]:
        """How long the search took; of one that went on with what an earlier one had measured, the note says so."""
        known = "; ".join(note for note in notes if "known from an earlier search" in note)
        for what, wanted, seconds in zip(("first usable answer", "best"), (FIRST_SECONDS, BEST_SECONDS), times(notes)):
            row = Result(self.name, f"{self.label}: time to the {what}", "searched", wanted, "s")
            yield single(row, seconds, known)


def times(notes: Sequence[str]) -> tuple[float, ...]:
    """Seconds to the first answer and to the best; nothing where the search found none."""
    found = [re.search(r"a first answer after (\d+) s, the best after (\d+) s", note) for note in notes]
    return next((tuple(map(float, match.groups())) for match in found if match), ())


def _encoder(lab: Lab) -> Ready:
    import irx

    ids, mask = encoder_inputs(lab)
    batches = [{"input_ids": ids[i : i + 1], "attention_mask": mask[i : i + 1]} for i in range(len(ids))]
    module = lab.encoder("f32")
    fast = irx.compile(
        module,
        {"input_ids": ids[:2], "attention_mask": mask[:2]},
        target=lab.target,
        budget=irx.Budget(cosine=COSINE),
        data=batches,
        search=irx.Search(minutes=QUICK_MINUTES if lab.quick else MINUTES),
    )
    chosen = [note for note in fast.ledger().notes if note.startswith("search: chosen")]
    lab.tell(f"    {'; '.join(chosen)}; {fast.ledger().summary.quality}")

    def step() -> torch.Tensor:
        states: torch.Tensor = fast(input_ids=ids[:1], attention_mask=mask[:1]).last_hidden_state
        return states

    return Ready(step, moved(fast, "forward", {"B": 1, "S": ids.shape[1]}))


def encoder_inputs(lab: Lab) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of 128 tokens of real text. Raises Absent without the tokenizer."""
    from irx.bench.baselines.models import minilm_tokenizer

    found = torch.tensor(minilm_tokenizer().encode(text()[: 400 * TEXTS], add_special_tokens=False).ids)
    count = min(16 if lab.quick else TEXTS, len(found) // 128)
    ids = found[: count * 128].reshape(count, 128)
    return ids, torch.ones_like(ids)


def _eager(lab: Lab) -> Ready:
    ids, mask = encoder_inputs(lab)
    return Ready(eager_encoder(lab.encoder("f32"), ids[:1], mask[:1]))


FAMILIES = (
    Predicted(),
    Searched("ppl_ratio", 1.02),
    Searched("kl", 0.05, quick=True),
    Searched("ppl_ratio", 1.02, LONG_CONTEXT, wanted=None),
    Race(
        name="lossy",
        title=f"MiniLM under a budget, cosine at least {COSINE}: one text of 128 tokens",
        reference="eager f32",
        candidates={"eager f32": Candidate(_eager, None), "IRX searched": Candidate(_encoder, None)},
        rows=(
            Row(f"MiniLM, cosine at least {COSINE}, against eager", "IRX searched", ("eager f32",), 2.5, "searched"),
        ),
    ),
)

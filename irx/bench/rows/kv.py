"""Layouts of the cache against the dense one in bf16: bytes, time of a decode step, and what is forgotten.

A layout is a line of the table. Models compute in bf16 with 4-bit weights, so that a step is not all weights: SmolLM2
on the grid of its file, so that nothing is lost, and a shape of 1B with random ones. Quality is measured on SmolLM2
alone; needles count only at contexts where the full cache finds most of them, which is printed first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from irx.analysis.needles import DEPTHS
from irx.bench.guard import each, guarded
from irx.bench.lab import Lab, moved
from irx.bench.quality import CONTINUED, continued, distance, ids_of, recalled
from irx.bench.race import Candidate, Race, Ready, Row
from irx.bench.result import Result, single

CONTEXTS = (512, 2048, 8192)
NEEDLES = {512: 8, 2048: 4, 8192: 1}
"""Needles at every depth: prompts take long."""
QUICK_CONTEXTS = (512,)
QUICK_LAYOUTS = ("4-bit token", "2-bit kivi", "snapkv 20 %")  # of the large model
ROOM = 256  # tokens of a context that are left for what is appended
DENSE = "IRX dense bf16"
LEAST_RECALL = 0.8
SHARED = "kv-share-prefix"
ROWS, PREFIX, QUICK_PREFIX = 8, 2048, 256


@dataclass(frozen=True)
class Layout:
    """A pass and what is claimed of it at the longest context: at most this part of the bytes, so many times faster."""

    passes: str
    most_bytes: float | None = None
    faster: float | None = None


LAYOUTS: Mapping[str, Layout] = {
    "8-bit token": Layout("kv-quantize{bits=8}"),
    "4-bit token": Layout("kv-quantize{bits=4}", 0.31, 1.0),
    "4-bit kivi": Layout("kv-quantize{scheme=kivi, bits=4}"),
    "2-bit kivi": Layout("kv-quantize{scheme=kivi, bits=2}", 0.21, 1.0),
    "snapkv 20 %": Layout("kv-evict{scorer=snapkv, keep=0.2}", None, 2.0),
    "h2o 20 %": Layout("kv-evict{scorer=h2o, keep=0.2}"),
    "norm 20 %": Layout("kv-evict{scorer=norm, keep=0.2}"),
    "window 20 %": Layout("kv-evict{scorer=window, keep=0.2}"),
    "ring of 512": Layout("kv-ring{window=512}"),
}
SMALL = "bf16"  # the module of the language model
MODELS: Mapping[str, str] = {
    SMALL: 'quantize-weights{bits=4, symmetric=false, mixed=["*embed_tokens.weight=8"]}',
    "llama-1b": "quantize-weights{bits=4, skip=none}",
}
"""Models with the weights that all layouts share."""


@dataclass(frozen=True)
class Entered:
    """A layout behind the prompt: what was compiled, its step of decoding, and the bytes of its cache."""

    fast: Any
    ready: Ready
    bytes: int


@dataclass(frozen=True)
class Known:
    """What the dense cache predicts behind the prompt, and how much of what is planted in it is found."""

    ids: Any
    predictions: Any
    recall: float
    needles: int


@dataclass(frozen=True)
class Layouts:
    """All rows of one model at one context."""

    model: str
    context: int
    name: str = "kv"

    @property
    def title(self) -> str:
        """What is measured."""
        return f"layouts of the cache, {_named(self.model)}, a context of {self.context} tokens"

    def measure(self, lab: Lab) -> Iterator[Result]:
        """Layout by layout, so that two caches and two copies of all weights are held: times, bytes, quality."""
        if lab.quick and self.context not in QUICK_CONTEXTS:
            return
        dense, known = self._entered(lab, Layout("")), None
        if self.model == SMALL:
            known = self._known(lab, dense)
            row = Result(self.name, self._what("dense bf16", "needles recalled"), "", None, "%")
            yield single(row, known.recall, f"{known.needles} needles at each of {len(DEPTHS)} depths")
        for name, layout in LAYOUTS.items():
            if lab.quick and self.model != SMALL and name not in QUICK_LAYOUTS:
                continue
            row = Result(self.name, self._what(name, "bytes"), layout.passes, None, "b")
            yield from each(row, partial(self._of_layout, lab, name, dense, known))

    def _of_layout(self, lab: Lab, name: str, dense: Entered, known: Known | None) -> Iterator[Result]:
        layout, last = LAYOUTS[name], self.context == max(CONTEXTS)
        ours = self._entered(lab, layout)
        found = Result(self.name, self._what(name, "bytes"), layout.passes, layout.most_bytes if last else None, "b")
        sizes = f"{ours.bytes / 1e6:.2f} MB, the dense cache {dense.bytes / 1e6:.2f} MB, as allocated"
        yield single(found, ours.bytes / dense.bytes, sizes)
        yield from self._race(name, dense, ours).measure(lab)
        if known is not None:
            yield from self._quality(lab, name, ours.fast, known)

    def _entered(self, lab: Lab, layout: Layout) -> Entered:
        lab.tell(f"  making {layout.passes or DENSE}")
        fast = lab.made(self.model, " | ".join(part for part in ("default", layout.passes, MODELS[self.model]) if part))
        session, ids = fast.session(1), self._ids(fast, self._prompt)
        session.append(ids)
        size = moved(fast, "decode", {"B": 1, "T": self._prompt + 1})
        return Entered(fast, Ready(_stepping(session, ids).step, size), int(session.memory()))

    def _race(self, name: str, dense: Entered, ours: Entered) -> Race:
        layout, mine = LAYOUTS[name], f"IRX {name}"
        wanted = layout.faster if self.context == max(CONTEXTS) else None
        return Race(
            name=self.name,
            title=self.title,
            reference=DENSE,
            candidates={
                DENSE: Candidate(lambda lab: dense.ready, None),
                mine: Candidate(lambda lab: ours.ready, None),
            },
            rows=[Row(self._what(name, "decode"), mine, (DENSE,), wanted, layout.passes)],
        )

    @property
    def _prompt(self) -> int:
        return self.context - ROOM if self.context == max(CONTEXTS) else self.context

    def _ids(self, fast: Any, count: int) -> Any:
        import torch

        if self.model == SMALL:
            return ids_of(fast, count)
        return torch.randint(0, 1000, (1, count), generator=torch.Generator().manual_seed(0))

    def _known(self, lab: Lab, dense: Entered) -> Known:
        """Recall of the full cache first: where it finds few needles itself, it says nothing of the others."""
        needles = 1 if lab.quick else NEEDLES[self.context]
        lab.tell(f"  what the dense cache predicts, and {needles} needles at every depth")
        ids = ids_of(dense.fast, self._prompt + CONTINUED)
        predictions = continued(dense.fast, ids, self._prompt)
        return Known(ids, predictions, recalled(dense.fast, self._prompt, needles), needles)

    def _quality(self, lab: Lab, name: str, fast: Any, known: Known) -> Iterator[Result]:
        figures = distance(known.predictions, continued(fast, known.ids, self._prompt))
        yield single(self._row(name, "KL", "nats"), figures["kl"])
        yield single(self._row(name, "top-1", "%"), figures["top1"])
        row = self._row(name, "needles recalled", "%")
        if known.recall < LEAST_RECALL:
            yield row.without("absent", f"the full cache itself recalls {100 * known.recall:.0f} %")
            return
        yield single(row, recalled(fast, self._prompt, known.needles))

    def _row(self, name: str, kind: str, unit: str) -> Result:
        return Result(self.name, self._what(name, kind), LAYOUTS[name].passes, None, unit)

    def _what(self, name: str, kind: str) -> str:
        return f"{_named(self.model)}, {self.context} tokens, {name}: {kind}"


@dataclass(frozen=True)
class SharedPrefix:
    """Rows that begin alike, and the same rows each with a copy of the beginning."""

    name: str = "kv"
    title: str = f"a decode step of {ROWS} rows that share a prefix"

    def measure(self, lab: Lab) -> Iterator[Result]:
        """Both compute the same, within rounding."""
        count = QUICK_PREFIX if lab.quick else PREFIX
        what = f"language model, {ROWS} rows: a shared prefix of {count} tokens"
        race = Race(
            name=self.name,
            title=self.title,
            reference="IRX unshared",
            candidates={
                "IRX unshared": Candidate(partial(self._unshared, count=count), 0.0),
                "IRX shared": Candidate(partial(self._shared, count=count), 0.05),
            },
            rows=(Row(what, "IRX shared", ("IRX unshared",), None if lab.quick else 3.0, SHARED),),
        )
        yield from race.measure(lab)

    def _unshared(self, lab: Lab, count: int) -> Ready:
        fast = lab.made(SMALL, f"default | {MODELS[SMALL]}")
        ids = ids_of(fast, count + 1).expand(ROWS, -1)
        session = fast.session(ROWS)
        session.append(ids[:, :-1])
        return _stepping(session, ids)

    def _shared(self, lab: Lab, count: int) -> Ready:
        fast = lab.made(SMALL, f"default | {SHARED} | {MODELS[SMALL]}")
        ids = ids_of(fast, count + 1).expand(ROWS, -1)
        return _stepping(fast.session(ROWS, prefix=fast.prefix(ids[:1, :-1])), ids)


@dataclass(frozen=True)
class Allocated:
    """What caches take at the longest context, without its prompt being computed, where the full rows are left out."""

    name: str = "kv"
    title: str = f"bytes allocated for {max(CONTEXTS)} tokens"

    def measure(self, lab: Lab) -> Iterator[Result]:
        """Of layouts that hold all tokens."""
        if not lab.quick:
            return
        program = lab.source(SMALL).program
        dense = _allocated(program, Layout(""))
        for name, layout in LAYOUTS.items():
            what = f"language model, {max(CONTEXTS)} tokens, {name}: bytes allocated"
            found = Result(self.name, what, layout.passes, layout.most_bytes, "b")
            if layout.passes.startswith("kv-quantize"):
                yield guarded(found, lambda found=found, one=layout: single(found, _allocated(program, one) / dense))  # type: ignore[misc]


def _allocated(program: Any, layout: Layout) -> int:
    """Bytes of empty states that have room for the longest context."""
    import torch

    import irx.api as api
    from irx.ir.types import KVType
    from irx.runtime.kv import empty_state

    passes = " | ".join(part for part in ("default", layout.passes) if part)
    changed, _ = api.transform(program, api.aim("cpu"), passes, None)
    found = 0
    for value in changed.graphs["decode"].inputs:
        if isinstance(value.type, KVType):
            state = empty_state(value.type, 1, torch.device("cpu"))
            state.reserve(max(CONTEXTS), max(CONTEXTS))
            found += state.bytes
    return found


def _stepping(session: Any, ids: Any) -> Ready:
    """The last column of ids, again and again; a cache that cannot be taken back keeps it, until there is no room."""
    from irx.errors import TokensEvicted

    length, spare = session.length, None

    def step() -> Any:
        nonlocal session, spare
        logits = session.append(ids[:, -1:].contiguous())
        try:
            session.truncate(length)
        except TokensEvicted:
            spare = spare or session.fork()
            session = spare.fork() if session.length == length + ROOM else session
        return logits

    return Ready(step)


def _named(model: str) -> str:
    return "language model" if model == SMALL else model


FAMILIES = (*(Layouts(model, context) for model in MODELS for context in CONTEXTS), Allocated(), SharedPrefix())

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

from irx.bench.lab import Lab, irx_decode, moved
from irx.bench.quality import CONTINUED, continued, distance, ids_of, recalled
from irx.bench.race import Candidate, Race, Ready, Row
from irx.bench.result import Result, single
from irx.errors import IRXError

CONTEXTS = (512, 2048, 8192)
QUICK_CONTEXTS = (512,)
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
        """Times, bytes, and on a real model quality."""
        if lab.quick and (self.context not in QUICK_CONTEXTS or self.model != SMALL):
            return
        yield from self._race(lab).measure(lab)
        for name, layout in LAYOUTS.items():
            yield self._bytes(lab, name, layout)
        if self.model == SMALL:
            yield from self._quality(lab)

    def _race(self, lab: Lab) -> Race:
        last = self.context == max(CONTEXTS)
        ours = {f"IRX {name}": Candidate(partial(self._ready, layout=one), None) for name, one in LAYOUTS.items()}
        return Race(
            name=self.name,
            title=self.title,
            reference=DENSE,
            candidates={DENSE: Candidate(partial(self._ready, layout=Layout("")), None), **ours},
            rows=[
                Row(self._what(name, "decode"), f"IRX {name}", (DENSE,), one.faster if last else None, one.passes)
                for name, one in LAYOUTS.items()
            ],
        )

    def _ready(self, lab: Lab, layout: Layout) -> Ready:
        fast = self._fast(lab, layout)
        size = moved(fast, "decode", {"B": 1, "T": self._prompt + 1})
        return Ready(irx_decode(fast, self._ids(fast, self._prompt)), size)

    @property
    def _prompt(self) -> int:
        return self.context - ROOM if self.context == max(CONTEXTS) else self.context

    def _fast(self, lab: Lab, layout: Layout) -> Any:
        passes = [part for part in ("default", layout.passes, MODELS[self.model]) if part]
        return lab.irx_with(self.model, " | ".join(passes))

    def _ids(self, fast: Any, count: int) -> Any:
        import torch

        if self.model == SMALL:
            return ids_of(fast, count)
        return torch.randint(0, 1000, (1, count), generator=torch.Generator().manual_seed(0))

    def _bytes(self, lab: Lab, name: str, layout: Layout) -> Result:
        wanted = layout.most_bytes if self.context == max(CONTEXTS) else None
        found = Result(self.name, self._what(name, "bytes"), layout.passes, wanted, "b")
        try:
            dense, ours = (self._allocated(self._fast(lab, one)) for one in (Layout(""), layout))
        except IRXError as error:
            return found.without("absent", str(error))
        return single(found, ours / dense, f"{ours / 1e6:.2f} MB, the dense cache {dense / 1e6:.2f} MB, as allocated")

    def _allocated(self, fast: Any) -> int:
        session = fast.session(1)
        session.append(self._ids(fast, self._prompt))
        return int(session.memory())

    def _quality(self, lab: Lab) -> Iterator[Result]:
        """Recall of the full cache first: where it finds few needles itself, it says nothing of the others."""
        dense, needles = self._fast(lab, Layout("")), 1 if lab.quick else 8
        ids = ids_of(dense, self._prompt + CONTINUED)
        before = continued(dense, ids, self._prompt)
        full = recalled(dense, self._prompt, needles)
        yield single(Result(self.name, self._what("dense bf16", "needles recalled"), "", None, "%"), full)
        for name, layout in LAYOUTS.items():
            yield from self._of_layout(lab, name, layout, (before, ids, full, needles))

    def _of_layout(self, lab: Lab, name: str, layout: Layout, known: tuple[Any, Any, float, int]) -> Iterator[Result]:
        before, ids, full, needles = known
        kinds = {"KL": ("nats", "kl"), "top-1": ("%", "top1"), "needles recalled": ("%", "")}
        rows = {
            kind: Result(self.name, self._what(name, kind), layout.passes, None, unit)
            for kind, (unit, _) in kinds.items()
        }
        try:
            fast = self._fast(lab, layout)
            figures = distance(before, continued(fast, ids, self._prompt))
            recall = recalled(fast, self._prompt, needles) if full >= LEAST_RECALL else None
        except IRXError as error:
            yield from (row.without("absent", str(error)) for row in rows.values())
            return
        for kind, row in rows.items():
            if kinds[kind][1]:
                yield single(row, figures[kinds[kind][1]])
            elif recall is None:
                yield row.without("absent", f"the full cache itself recalls {100 * full:.0f} %")
            else:
                yield single(row, recall)

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
        fast = lab.irx_with(SMALL, f"default | {MODELS[SMALL]}")
        ids = ids_of(fast, count + 1).expand(ROWS, -1)
        return _stepping(fast.session(ROWS), ids, ids[:, :-1])

    def _shared(self, lab: Lab, count: int) -> Ready:
        fast = lab.irx_with(SMALL, f"default | {SHARED} | {MODELS[SMALL]}")
        ids = ids_of(fast, count + 1).expand(ROWS, -1)
        return _stepping(fast.session(ROWS, prefix=fast.prefix(ids[:1, :-1])), ids, None)


def _stepping(session: Any, ids: Any, first: Any) -> Ready:
    """The last column of ids, again and again."""
    if first is not None:
        session.append(first)
    length = session.length

    def step() -> Any:
        logits = session.append(ids[:, -1:].contiguous())
        session.truncate(length)
        return logits

    return Ready(step)


def _named(model: str) -> str:
    return "language model" if model == SMALL else model


FAMILIES = (*(Layouts(model, context) for model in MODELS for context in CONTEXTS), SharedPrefix())

"""Fewer tokens and less attention: pruned prompts, shared keys and values, and what a repair brings back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

from irx.bench.guard import each, guarded
from irx.bench.lab import Lab, irx_prefill, moved, parsed
from irx.bench.paired import paired
from irx.bench.quality import ids_of, text
from irx.bench.race import Candidate, Race, Ready, Row
from irx.bench.result import Result, single
from irx.bench.windows import windows

PROMPT, QUICK_PROMPT = 4096, 512
PRUNED = "default | prune-tokens{keep=0.2}"
SHARING = "share-attention{leader=previous, group=2}"
SHARED = f"default | {SHARING}"
REPAIRED = f"{SHARED} | repair-output"
WINDOWS, QUICK_WINDOWS = 32, 4
QUICK_TEXT = 16_000  # letters, about 4000 tokens, half of them to fit the repair
REPAIR = 1 / 3  # of the KL that sharing costs, on held-out text


@dataclass(frozen=True)
class Pruned:
    """A prompt whose tokens are pruned after the middle layer."""

    name: str = "tokens"
    title: str = "a long prompt to the first token, pruned to a fifth after the middle layer"

    def measure(self, lab: Lab) -> Iterator[Result]:
        """Times in turns."""
        count = QUICK_PROMPT if lab.quick else PROMPT
        race = Race(
            name=self.name,
            title=self.title,
            reference="IRX",
            candidates={
                "IRX": Candidate(partial(_prefill, pipeline="default", count=count), None),
                "IRX pruned": Candidate(partial(_prefill, pipeline=PRUNED, count=count), None),
            },
            rows=(Row(f"prefill of {count}, pruned to 20 %", "IRX pruned", ("IRX",), 1.4, PRUNED),),
        )
        yield from race.measure(lab)


def _prefill(lab: Lab, pipeline: str, count: int) -> Ready:
    fast = lab.made("file", pipeline)
    size = moved(fast, "prefill", {"B": 1, "S": count, "R": 1, "T": count})
    return Ready(irx_prefill(fast, ids_of(fast, count)), size)


@dataclass(frozen=True)
class Shared:
    """Layers that read the keys and values of an earlier one: what goes, and how much of the loss a repair takes back.

    What should go is known before anything runs: of L layers, but for two at each end, every second one has neither
    projections for keys and values nor a cache.
    """

    name: str = "tokens"
    title: str = "layers that share keys and values, with and without repair"

    def measure(self, lab: Lab) -> Iterator[Result]:
        """Parameters, bytes of the cache, and the repair."""
        yield from each(Result(self.name, "share-attention", SHARED, None, "b"), lambda: self._sizes(lab))
        found = Result(self.name, "repair after share-attention: part of the KL gone", REPAIRED, REPAIR, "%")
        yield guarded(found, lambda: self._repair(lab, found))

    def _sizes(self, lab: Lab) -> Iterator[Result]:
        plain, shared = lab.made("file", "default"), lab.made("file", SHARED)
        layers = len(_states(plain))
        followers = (layers - 4) // 2
        yield _against("cache read for a token", _cache(plain), _cache(shared), 1 - followers / layers)
        before = _parameters(plain)
        yield _against("parameters", before, _parameters(shared), 1 - followers * _projections(plain) / before)

    def _repair(self, lab: Lab, found: Result) -> Result:
        """On windows that nothing was fitted to, in pairs."""
        data = text()[:QUICK_TEXT] if lab.quick else text()
        held_out = windows(lab.source("file"), [data], "kl", QUICK_WINDOWS if lab.quick else WINDOWS)
        lab.tell("    sharing, then its repair")
        shared, repaired = held_out.losses(SHARING), held_out.losses(f"{SHARING} | repair-output")
        gained = paired([(1 - REPAIR) * before - after for before, after in zip(shared, repaired, strict=True)])
        note = f"KL {fmean(shared):.4g}, repaired {fmean(repaired):.4g}; more than a third by {gained}"
        return single(found, 1 - fmean(repaired) / fmean(shared), note)


def _against(what: str, before: float, after: float, predicted: float) -> Result:
    """A part that should be what was predicted, to a part in a thousand."""
    share = after / before
    found = Result("tokens", f"share-attention in pairs: {what}, predicted {predicted:.3f}", SHARED, None, "b")
    said = "holds" if abs(share - predicted) <= 1e-3 else "wrong"
    return single(found, share).measured(single(found, share).figure, said)  # type: ignore[arg-type]


def _states(fast: Any) -> list[Any]:
    from irx.ir.types import KVType

    return [value.type for value in parsed(fast).graphs["decode"].inputs if isinstance(value.type, KVType)]


def _cache(fast: Any) -> float:
    session = fast.session(1)
    session.append(ids_of(fast, 256))
    return float(session.memory())


def _parameters(fast: Any) -> float:
    """Elements of all weights that decoding reads."""
    return float(sum(int(str(weight.tensor.elements)) for weight in _stored(fast)))


def _stored(fast: Any) -> list[Any]:
    from irx.ir.excerpt import only

    return list(only(parsed(fast), "decode").used_weights())


def _projections(fast: Any) -> float:
    """Elements of the key and the value projection of one layer, which read a stream as wide as the embedding."""
    kind, vocabulary = _states(fast)[0], parsed(fast).meta["vocab"]
    width = next(
        int(str(w.shape[1])) for w in _stored(fast) if len(w.shape) == 2 and str(w.shape[0]) == str(vocabulary)
    )
    return float((kind.heads * kind.k_dim + kind.value_heads * kind.v_dim) * width)


FAMILIES = (Pruned(), Shared())

"""What was measured is kept, so that a search that was killed goes on where it was, and has what time was left.

Every candidate is an entry of its own in the cache, under a key of the model, the data, the device and the compiler's
code. The budget is no part of it: another budget on the same model starts with all that is known.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from irx.cache import CacheKey, Store
from irx.pipeline.search.outcome import Measure, Outcome


@dataclass
class Journal:
    """Asks `measure` for what is not known yet. Without a `key` nothing outlives the object."""

    measure: Measure
    key: CacheKey | None = None
    store: Store = field(default_factory=Store)
    clock: Callable[[], float] = time.monotonic
    known: dict[str, Outcome] = field(default_factory=dict, init=False)
    measured: int = field(default=0, init=False)
    earlier: float = field(default=0.0, init=False)
    """Seconds that an earlier search took for what was known of it so far."""

    def __call__(self, text: str) -> Outcome:
        """The outcome of a candidate."""
        if text not in self.known:
            self.known[text] = self._loaded(text) or self._measured(text)
        return self.known[text]

    def notes(self) -> list[str]:
        """How much was known before, where that is something."""
        before = len(self.known) - self.measured
        return [f"search: {before} candidates were known from an earlier search"] if before else []

    def _loaded(self, text: str) -> Outcome | None:
        parts = self.store.load(self._entry(self.key, text)) if self.key is not None else None
        if parts is None:
            return None
        data = json.loads(parts["outcome"])
        self.earlier += data["took"]
        return _read(data)

    def _measured(self, text: str) -> Outcome:
        begin = self.clock()
        found = self.measure(text)
        self.measured += 1
        if self.key is not None:
            data = {**_written(found), "took": self.clock() - begin}
            self.store.save(self._entry(self.key, text), {"outcome": json.dumps(data).encode()})
        return found

    @staticmethod
    def _entry(key: CacheKey, text: str) -> CacheKey:
        return replace(key, options=(*key.options, ("candidate", text)))


def _written(outcome: Outcome) -> dict[str, object]:
    """JSON has neither infinity nor NaN, which are written as text."""
    figures = {name: repr(float(value)) for name, value in outcome.figures.items()}
    return {
        "seconds": repr(outcome.seconds),
        "figures": figures,
        "reason": outcome.reason,
        "noise": repr(outcome.noise),
    }


def _read(data: Mapping[str, object]) -> Outcome:
    figures = data["figures"]
    assert isinstance(figures, dict)
    numbers = {str(name): float(value) for name, value in figures.items()}
    seconds = float(str(data["seconds"])) if data["seconds"] else math.inf
    return Outcome(seconds, numbers, str(data["reason"]), float(str(data["noise"])))

"""Candidates close to each other are timed again, in turns: what was measured in different minutes misleads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from irx.pipeline.latency import Latency
from irx.pipeline.search.candidate import Candidate

Again: TypeAlias = Callable[[Sequence[str]], Mapping[str, Latency]]
"""The times of candidates, by their texts, taken now and in turns; none where times are predicted."""


def in_turns(candidates: Sequence[Candidate], again: Again) -> list[Candidate]:
    """The candidates with the times that they take now; none where there is nothing to compare."""
    if len(candidates) < 2:
        return []
    found = again([one.text for one in candidates])
    return [_timed(one, found[one.text]) for one in candidates if one.text in found]


def _timed(one: Candidate, time: Latency) -> Candidate:
    return replace(one, outcome=replace(one.outcome, seconds=time.seconds, noise=time.noise))

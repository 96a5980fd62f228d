"""How long something takes, as far as it was measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Latency:
    """Seconds, and the band within which two measurements of the same thing lie."""

    seconds: float
    noise: float

"""What a row of the bench says: a figure with its spread, what was wanted, and whether it holds."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from irx.bench.timing import Spread, Timing

LITTLE = ("s", "w", "b", "nats")  # units of which little is wanted
_FORMS = {
    "%": "{:.0f} %",
    "s": "{:.3g} s",
    "b": "{:.3f} of the bytes",
    "nats": "{:.3g} nats",
    "d": "{:+.3g}",
    "r": "{:.3f}",
    "p": "{:.2f}",
}
SLACK = 0.95  # how far below what is wanted the lower quartile may be


@dataclass(frozen=True)
class Result:
    """A row: `figure` in `unit` against `wanted`. Units are `x`: how many times faster, `%`: share of a limit, `s`:
    seconds, `w`: times the bytes of the weights, `b`: part of the bytes without the pass, `nats`: a divergence, `d`: a
    difference, `r`: a ratio of perplexities, `p`: what was predicted in parts of what is measured.

    `verdict` is `holds`, `below`, `above` (of what should be little), `shown` (nothing was wanted), of an ordering also
    `reversed` or `undecided`, of a figure that is known from elsewhere `differs`, of a prediction `flagged`, else
    `absent` or `wrong` (another result, or a crash), the last two without figures and with the reason in `note`.
    `floor` is the seconds that moving the unavoidable bytes takes at the `bandwidth` of the run;
    `error` is the largest deviation from the reference, in parts of its largest value.
    """

    family: str
    what: str
    pipeline: str
    wanted: float | None
    unit: str
    figure: Spread | None = None
    verdict: str = "absent"
    ours: Timing | None = None
    theirs: Timing | None = None
    rival: str = ""
    floor: float | None = None
    bandwidth: str = ""
    error: float | None = None
    note: str = ""

    def measured(self, figure: Spread, verdict: str, **facts: Any) -> Result:
        """With figures."""
        return replace(self, figure=figure, verdict=verdict, **facts)

    def without(self, verdict: str, note: str) -> Result:
        """Without figures, and why."""
        return replace(self, verdict=verdict, note=note)

    def facts(self) -> dict[str, Any]:
        """As plain data, in seconds and ratios."""
        return asdict(self)

    def line(self) -> str:
        """In one line."""
        figure = self.note if self.figure is None else _spread(self.figure, self.unit)
        return f"{self.what}: {self.verdict}, {figure}"

    def cells(self) -> dict[str, str]:
        """As the cells of a table."""
        return {
            "row": self.what,
            "pipeline": self.pipeline,
            "wanted": _wanted(self.wanted, self.unit),
            "measured": "" if self.figure is None else _spread(self.figure, self.unit),
            "IRX": _milliseconds(self.ours),
            "against": f"{self.rival} {_milliseconds(self.theirs)}".strip(),
            "floor": "" if self.floor is None else f"{self.floor * 1e3:.2f} ms",
            "error": "" if self.error is None else f"{self.error:.0e}",
            "verdict": self.verdict,
        }


def verdict(figure: Spread, wanted: float | None) -> str:
    """A row holds when the median reaches what is wanted and the lower quartile is at most 5 % below it."""
    if wanted is None:
        return "shown"
    return "holds" if figure.median >= wanted and figure.low >= SLACK * wanted else "below"


def single(found: Result, value: float, note: str = "") -> Result:
    """A figure that is no time, and needs no spread."""
    holds = found.wanted is None or (value <= found.wanted if found.unit in LITTLE else value >= found.wanted)
    said = "shown" if found.wanted is None else "holds" if holds else "above" if found.unit in LITTLE else "below"
    return found.measured(Spread(value, value, value), said, note=note)


def _wanted(value: float | None, unit: str) -> str:
    return "" if value is None else f"{'<= ' if unit in LITTLE else ''}{_number(value, unit)}"


def _spread(figure: Spread, unit: str) -> str:
    if figure.low == figure.high:
        return _number(figure.median, unit)
    low, high = _number(figure.low, unit), _number(figure.high, unit)
    return f"{_number(figure.median, unit)} ({low} to {high})"


def _number(value: float, unit: str) -> str:
    if unit in _FORMS:
        return _FORMS[unit].format(value * 100 if unit == "%" else value)
    return f"{value:.2f}x"


def _milliseconds(timing: Timing | None) -> str:
    return "" if timing is None else f"{timing.median * 1e3:.2f} ms"

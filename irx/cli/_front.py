"""The front of time against loss, as a search left it in the ledger: a plot in text, and one as SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from irx.ledger import Point

WIDTH, HEIGHT = 64, 14  # characters of the plot in text
_SIZE, _MARGIN = (720, 440), 56  # pixels
_MOST = 2.0  # shares of the budget up to which losses are drawn: what is far outside would hide the rest


def drawn(points: Sequence[Point]) -> list[Point]:
    """The points that a plot shows, by ascending loss."""
    return sorted((one for one in points if one.share <= _MOST), key=lambda one: (one.share, one.seconds))


def plot(points: Sequence[Point]) -> str:
    """Milliseconds of a step upwards, shares of the budget to the right: `*` is on the front, `#` was chosen."""
    shown = drawn(points)
    if not shown:
        return ""
    low, high = _range(shown)
    rows = [[" "] * WIDTH for _ in range(HEIGHT)]
    limit = round(1.0 / _right(shown) * (WIDTH - 1))
    for row in rows if limit < WIDTH else ():
        row[limit] = ":"
    for one in sorted(shown, key=lambda one: (one.chosen, one.front)):
        column = round(max(one.share, 0.0) / _right(shown) * (WIDTH - 1))
        line = round((high - one.seconds) / (high - low) * (HEIGHT - 1))
        rows[line][column] = "#" if one.chosen else "*" if one.front else "."
    marks = {0: f"{high * 1e3:9.3g} ms", HEIGHT - 1: f"{low * 1e3:9.3g} ms"}
    lines = [f"{marks.get(i, ''):>12} |{''.join(row).rstrip()}" for i, row in enumerate(rows)]
    foot = f"{'':>12} +{'-' * WIDTH}"
    scale = f"{'':>13} 0{'share of the budget on calibration data':^{WIDTH - 6}}{_right(shown):.2g}"
    return "\n".join([*lines, foot, scale, f"{'':>13} # chosen, * front, . other candidates, : the budget"])


def svg(points: Sequence[Point], title: str) -> str:
    """The same as a picture; every mark tells its passes under the pointer."""
    shown = drawn(points)
    (width, height), (low, high) = _SIZE, _range(shown)
    right = _right(shown)

    def x(share: float) -> float:
        return _MARGIN + max(share, 0.0) / right * (width - 2 * _MARGIN)

    def y(seconds: float) -> float:
        return _MARGIN + (high - seconds) / (high - low) * (height - 2 * _MARGIN)

    front = [one for one in shown if one.front]
    line = " ".join(f"{x(one.share):.1f},{y(one.seconds):.1f}" for one in front)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{_MARGIN}" y="24" font-size="15">{escape(title)}</text>',
        *_axes(x, y, right, low, high),
        f'<polyline points="{line}" fill="none" stroke="#1f6feb"/>',
        *(_mark(one, x(one.share), y(one.seconds)) for one in sorted(shown, key=lambda one: (one.chosen, one.front))),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _axes(x: Callable[[float], float], y: Callable[[float], float], right: float, low: float, high: float) -> list[str]:
    (width, height), end = _SIZE, _SIZE[1] - _MARGIN
    ticks = [low + (high - low) * i / 4 for i in range(5)]
    shares = [right * i / 4 for i in range(5)]
    return [
        f'<path d="M{_MARGIN},{_MARGIN} V{end} H{width - _MARGIN}" fill="none" stroke="black"/>',
        f'<path d="M{x(1.0):.1f},{_MARGIN} V{end}" stroke="#d1242f" stroke-dasharray="4"/>',
        *(f'<text x="{_MARGIN - 6}" y="{y(t) + 4:.1f}" text-anchor="end">{t * 1e3:.3g}</text>' for t in ticks),
        *(f'<text x="{x(s):.1f}" y="{end + 18}" text-anchor="middle">{s:.2g}</text>' for s in shares),
        f'<text x="{width / 2}" y="{height - 12}" text-anchor="middle">share of the budget, calibration data</text>',
        f'<text x="16" y="{height / 2}" text-anchor="middle" transform="rotate(-90 16 {height / 2})">ms a step</text>',
    ]


def _mark(one: Point, x: float, y: float) -> str:
    color = "#d1242f" if one.chosen else "#1f6feb" if one.front else "#8c959f"
    radius = 6 if one.chosen else 4 if one.front else 2.5
    told = f"{one.seconds * 1e3:.3g} ms, {one.share:.2f} of the budget: {one.text or 'nothing lossy'}"
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{color}"><title>{escape(told)}</title></circle>'


def _right(shown: Sequence[Point]) -> float:
    """Where the axis of shares ends: behind the budget at least."""
    return max([1.1, *(one.share for one in shown)])


def _range(shown: Sequence[Point]) -> tuple[float, float]:
    """The least and the most seconds, some room between them."""
    low, high = min(one.seconds for one in shown), max(one.seconds for one in shown)
    room = max((high - low) * 0.05, high * 0.01)
    return low - room, high + room

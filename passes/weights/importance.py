"""How much channels and blocks matter: the two levels of CFSP (Wang et al. 2024, arXiv:2409.13199).

Fine: the score of a channel is the RMS of its activations times the mean share that it has in the rows of the matrices
around it. Coarse: a block matters by the angle between what goes in and what comes out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from irx.analysis.calibration import Calibration
from irx.ir.graph import Value
from irx.ir.opdef import Array
from irx.ir.program import Program


def channel_scores(rms: Array, down: Array, incoming: Sequence[Array]) -> Array:
    """The score `[F]` of every channel: `rms` [F] of the activations, `down` [D, F], `incoming` [F, D] each.

    Every row of |down| * rms and of |incoming| transposed is normalised over the channels.
    """
    shares = _shares(np.abs(down) * rms)
    for matrix in incoming:
        shares = shares + _shares(np.abs(matrix).T)
    return np.asarray(rms * shares)


def _shares(magnitudes: Array) -> Array:
    """The mean over rows of each channel's share of its row; a row of zeros gives nothing."""
    totals = magnitudes.sum(axis=1, keepdims=True, dtype=np.float64)
    return np.asarray((magnitudes / np.where(totals > 0, totals, 1.0)).mean(axis=0))


def lost_share(rms: Array, down: Array, kept: Array) -> float:
    """The RMS of what a product loses without the channels that are not `kept`, relative to its result's.

    For channels that vary independently of each other.
    """
    energy = rms**2 * np.square(down, dtype=np.float64).sum(axis=0)
    total = energy.sum()
    return float(np.sqrt(max(0.0, 1 - energy[kept].sum() / total))) if total > 0 else 0.0


def angular_importance(
    calibration: Calibration, program: Program, pairs: Sequence[Sequence[tuple[Value, Value]]]
) -> list[float]:
    """For every block the mean of arccos(cos(in, out)) / pi over all tokens of its pairs of values of `forward`."""
    values = list(dict.fromkeys(value for block in pairs for pair in block for value in pair))
    places = {value: index for index, value in enumerate(values)}
    sums, counts = [0.0] * len(pairs), [0] * len(pairs)
    for arrays in calibration.values(program, values):
        for index, block in enumerate(pairs):
            for before, after in block:
                angles = _angles(arrays[places[before]], arrays[places[after]])
                sums[index] += float(angles.sum())
                counts[index] += angles.size
    return [total / max(1, count) for total, count in zip(sums, counts, strict=True)]


def _angles(before: Array, after: Array) -> Array:
    a, b = (x.reshape(-1, x.shape[-1]).astype(np.float64) for x in (before, after))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = np.einsum("nk,nk->n", a, b) / np.where(lengths > 0, lengths, 1.0)
    return np.asarray(np.arccos(np.clip(cosines, -1.0, 1.0)) / np.pi)


def keep_ratios(importances: Sequence[float], keep: float) -> list[float]:
    """A ratio for every block: the sigmoid of its centred importance, rescaled to the mean `keep` and capped at 1.

    What the cap takes from a block the others get.
    """
    centred = np.asarray(importances) - np.mean(importances)
    shape = 1 / (1 + np.exp(-centred))
    ratios = np.full(len(shape), keep)
    free = np.ones(len(shape), dtype=bool)
    while free.any():
        left = keep * len(shape) - ratios[~free].sum()
        ratios[free] = shape[free] * left / shape[free].sum()
        over = free & (ratios > 1)
        if not over.any():
            break
        ratios[over] = 1.0
        free &= ~over
    return [min(float(ratio), 1.0) for ratio in ratios]


def kept_counts(ratios: Sequence[float], widths: Sequence[int], multiple: int) -> list[int]:
    """Channels to keep of each width: multiples of `multiple`, at least one, or all there are.

    Rounding goes up where the fraction is largest, so that the sum stays as close to its target as multiples allow. A
    ratio of 1 keeps all.
    """
    wanted = [ratio * width / multiple for ratio, width in zip(ratios, widths, strict=True)]
    counts = [max(1, int(one + 1e-9)) for one in wanted]
    spare = round(sum(wanted)) - sum(counts)
    by_fraction = sorted(range(len(wanted)), key=lambda i: counts[i] - wanted[i])
    for index in by_fraction[: max(0, spare)]:
        counts[index] += 1
    rounded = [min(count * multiple, width) for count, width in zip(counts, widths, strict=True)]
    return [width if one > 1 - 1e-9 else count for one, count, width in zip(ratios, rounded, widths, strict=True)]

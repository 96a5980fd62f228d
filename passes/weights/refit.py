"""The product behind removed channels, fitted anew: the kept channels take over what the others gave, where they can.

With h the channels of a network, K those that are kept and R the others, the new columns are

    W_K + W_R C_RK (C_KK + ridge)^-1,    C = E[h h^T] on the calibration data,

the least-squares solution of W h ~ W' h_K with a ridge that pulls towards the old columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from irx.analysis.calibration import Calibration
from irx.ir.graph import Value, Weight
from irx.ir.opdef import Array
from irx.ir.program import Program

RIDGE = 0.1
"""Relative to the mean square of a kept channel."""

_ELEMENTS_AT_ONCE = 1 << 27  # of second moments: half a gigabyte, and one run over the data for each such part


def second_moments(
    calibration: Calibration, program: Program, wanted: Mapping[Weight, Sequence[Value]]
) -> Iterator[tuple[Weight, Array]]:
    """E[h h^T] `[F, F]` in float32 of the values of `forward` of every key, over all data."""
    part: dict[Weight, Sequence[Value]] = {}
    elements = 0
    for key, values in wanted.items():
        size = int(str(values[0].shape[-1])) ** 2
        if part and elements + size > _ELEMENTS_AT_ONCE:
            yield from _moments(calibration, program, part)
            part, elements = {}, 0
        part[key] = values
        elements += size
    yield from _moments(calibration, program, part)


def _moments(
    calibration: Calibration, program: Program, wanted: Mapping[Weight, Sequence[Value]]
) -> Iterator[tuple[Weight, Array]]:
    values = list(dict.fromkeys(value for group in wanted.values() for value in group))
    places = {value: index for index, value in enumerate(values)}
    widths = {key: int(str(group[0].shape[-1])) for key, group in wanted.items()}
    sums = {key: np.zeros((width, width), np.float32) for key, width in widths.items()}
    rows = dict.fromkeys(wanted, 0)
    for arrays in calibration.values(program, values) if values else ():
        for key, group in wanted.items():
            for value in group:
                h = arrays[places[value]].reshape(-1, widths[key]).astype(np.float32)
                sums[key] += h.T @ h
                rows[key] += len(h)
    while sums:
        key, total = sums.popitem()
        yield key, total / max(1, rows[key])


def refitted(down: Array, moments: Array, kept: Array, ridge: float = RIDGE) -> Array:
    """The new columns `[D, len(kept)]` of `down` [D, F]; `moments` [F, F], `kept` the indices of channels."""
    others = np.setdiff1d(np.arange(down.shape[1]), kept)
    known = moments[np.ix_(kept, kept)].astype(np.float64)
    known[np.diag_indices_from(known)] += ridge * max(float(np.trace(known)) / len(kept), 1e-30)
    taken_over = np.linalg.solve(known, moments[np.ix_(kept, others)].astype(np.float64) @ down[:, others].T)
    return np.asarray(down[:, kept] + taken_over.T)

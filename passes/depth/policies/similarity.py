"""similarity: the units that change the stream least are left out.

A unit's importance is I = 1 - mean cos(x, x'), where x is the stream before it and x' the stream behind it, over the
tokens of the calibration data (Yang et al. 2025, EfficientVLA, arXiv:2506.10100; Men et al. 2024, ShortGPT,
arXiv:2403.03853, call it block influence). The first and the last block are protected: what they do to the stream is
seldom small, and the last one's importance says nothing of what the head makes of it. With `rescore` importances are
measured again after each unit that goes, as the streams behind it are others then.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

import numpy as np

from irx.analysis.blocks import Kind, corresponding, find_blocks
from irx.analysis.calibration import FORWARD, Calibration, Inputs
from irx.ir.graph import Builder, Value
from irx.ir.opdef import Array
from irx.ir.program import Program
from irx.passes.depth.removal import Removal, leaving, obstacle

Key = TypeVar("Key")
Score = Callable[[Collection[int]], dict[int, float]]
"""Importances of the candidates that are left once some are gone."""


def similarity(candidates: Sequence[int], drop: int, rescore: bool, score: Score) -> list[int]:
    """The `drop` candidates of least importance, in the order in which they went."""
    if not rescore:
        scores = score(())
        return sorted(candidates, key=lambda index: (scores[index], index))[:drop]
    gone: list[int] = []
    while len(gone) < drop:
        scores = score(gone)
        gone.append(min((c for c in candidates if c not in gone), key=lambda index: (scores[index], index)))
    return gone


def importances(
    program: Program, calibration: Calibration, kinds: frozenset[Kind], gone: Collection[int]
) -> dict[int, float]:
    """I of every block's units of `kinds`, by the number of the block, once those of the blocks `gone` are left out."""
    return _mean(*_with_cosines(program, kinds, gone), calibration)


def _mean(changed: Program, cosines: Mapping[Key, Value], calibration: Calibration) -> dict[Key, float]:
    """1 - the mean of every cosine over the tokens of the data."""
    mask = _mask(changed)
    sums, counts = dict.fromkeys(cosines, 0.0), dict.fromkeys(cosines, 0.0)
    values = calibration.values(changed, list(cosines.values()))
    for batch, arrays in zip(calibration.batches, values):
        for index, array in zip(cosines, arrays):
            weights = _weights(batch, mask, array.shape)
            sums[index] += float((array.astype(np.float64) * weights).sum())
            counts[index] += float(weights.sum())
    return {index: 1 - sums[index] / max(counts[index], 1.0) for index in cosines}


def least_important(program: Program, calibration: Calibration) -> dict[str, list[int]]:
    """Numbers of blocks by the importance of all of them (`block`), and of their `attn` and `mlp` units, least first.

    The first and the last block of a stream, and what cannot go, are left out. The data are looked at once.
    """
    rows, _ = corresponding(program)
    inner = [i for i in range(1, len(rows) - 1) if rows[i - 1].keys() == rows[i].keys() == rows[i + 1].keys()]
    graph = program.graphs[FORWARD].clone()
    blocks, removal, builder = find_blocks(graph).blocks, Removal(graph), Builder(graph)
    cosines: dict[tuple[str, int], Value] = {}
    for name, kinds in UNITS.items():
        for i in inner:
            units = leaving(blocks[i], kinds)
            if units and all(obstacle(leaving(block, kinds)) is None for block in rows[i].values()):
                cosines[name, i] = removal.cosine(builder, units, blocks[i])
    changed = Program(program.name, {FORWARD: graph}, program.weights, dict(program.sizes), meta=program.meta)
    scores = _mean(changed, cosines, calibration) if cosines else {}
    return {name: [i for _, i in sorted((scores[key], key[1]) for key in scores if key[0] == name)] for name in UNITS}


UNITS: dict[str, frozenset[Kind]] = {
    "block": frozenset({"attention", "mlp"}),
    "attn": frozenset({"attention"}),
    "mlp": frozenset({"mlp"}),
}
"""What of a block can go, by the names that skip-layers has for it."""


def _with_cosines(program: Program, kinds: frozenset[Kind], gone: Collection[int]) -> tuple[Program, dict[int, Value]]:
    """A program whose `forward` also computes the cosines, so that no stream has to be kept, and these by block."""
    graph = program.graphs[FORWARD].clone()
    blocks, removal, builder = find_blocks(graph).blocks, Removal(graph), Builder(graph)
    for index in gone:
        removal.leave_out(leaving(blocks[index], kinds), blocks[index])
    units = {index: leaving(block, kinds) for index, block in enumerate(blocks) if index not in gone}
    cosines = {index: removal.cosine(builder, found, blocks[index]) for index, found in units.items() if found}
    return Program(program.name, {FORWARD: graph}, program.weights, dict(program.sizes), meta=program.meta), cosines


def _mask(program: Program) -> str | None:
    """The input that tells tokens from padding."""
    return next((item["name"] for item in program.meta.get("inputs", ()) if item.get("role") == "mask"), None)


def _weights(batch: Inputs, mask: str | None, shape: tuple[int, ...]) -> Array:
    """1 for tokens and 0 for padding, where the data say so and tokens are what the cosines are of."""
    given = batch.get(mask) if mask is not None else None
    if given is None or np.shape(given) != shape:
        return np.ones(shape)
    return np.asarray(given, dtype=np.float64)

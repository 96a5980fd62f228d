"""What a search chooses from: units, each with levels from weak to strong, in the order in which families are applied.

A configuration is a level for every unit; as text it is the passes of those levels, behind each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from irx.analysis.blocks import corresponding
from irx.ir.program import Program
from irx.pipeline.index import PassIndex
from irx.pipeline.text import read_items

Configuration: TypeAlias = tuple[int, ...]
"""The level of every unit, 0 where the unit does nothing."""


@dataclass(frozen=True)
class Unit:
    """Passes that exclude each other. Level 0 is none of them, level i is `levels[i - 1]`, as text of a pipeline."""

    family: str
    levels: tuple[str, ...]


FAMILIES = ("weights", "depth", "attention", "tokens", "cache")
"""In which order families are tried: what mostly gains most first, what is measured token by token last."""
BLOCKS_LEFT_OUT = (1, 2, 3, 4, 6, 8)

# Data: a method joins the search by a line here. Left out is what the time of one step cannot see, such as pruning the
# tokens of a prompt, and what only serves other passes.
TABLE: Sequence[Unit] = (
    Unit("depth", tuple(f"skip-layers{{policy=similarity, keep=N-{count}}}" for count in BLOCKS_LEFT_OUT)),
    Unit("tokens", tuple(f"merge-tokens{{per-layer={count}}}" for count in (2, 4, 8, 12))),
    Unit("attention", tuple(f"share-attention{{threshold={least}}}" for least in (0.95, 0.9, 0.8))),
    Unit("cache", ("kv-quantize{bits=8}", "kv-quantize{bits=4}")),
    Unit("weights", tuple(f"slice-ffn{{keep={share}}}" for share in (0.95, 0.9, 0.8))),
    Unit(
        "weights",
        (
            "cast-weights",
            "quantize-weights{bits=8}",
            "quantize-weights{mean-bits=6.5}",
            "quantize-weights{bits=4, symmetric=false}",
            "quantize-weights{bits=4}",
        ),
    ),
    Unit("weights", ("cast-activations{to=bf16}", "cast-activations{to=a8}")),
)


def units_of(program: Program, known: PassIndex, table: Sequence[Unit] = TABLE) -> list[Unit]:
    """The units of a normalized program: those of the table whose passes are known, with its number of blocks for N."""
    blocks = len(corresponding(program)[0])
    found = []
    for unit in table:
        filled = [text for level in unit.levels if (text := _filled(level, blocks)) is not None]
        levels = tuple(level for level in filled if all(item.name in known for item in read_items(level)))
        found += [Unit(unit.family, levels)] if levels else []
    return found


def spelled(units: Sequence[Unit], configuration: Configuration) -> str:
    """The pipeline text of a configuration, empty where no unit does anything."""
    return " | ".join(unit.levels[level - 1] for unit, level in zip(units, configuration, strict=True) if level)


def _filled(level: str, blocks: int) -> str | None:
    """A level with the number of blocks for N; None where nothing would be left of them."""
    head, mark, tail = level.partition("N-")
    if not mark:
        return level
    count, end = tail.split("}", 1)[0], tail[tail.index("}") :]
    return f"{head}{blocks - int(count)}{end}" if blocks > int(count) else None

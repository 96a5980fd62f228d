"""What a search chooses from: units, each with levels from weak to strong, in the order in which families are applied.

A configuration is a level for every unit; as text it is the passes of those levels, behind each other. Units may be
parts of one pass: `skip-layers{policy=list, layers=[7]}` and the same of block 9 are one pass that leaves out both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from irx.analysis.blocks import corresponding
from irx.ir.program import Program
from irx.pipeline.index import PassIndex
from irx.pipeline.text import Item, format_value, read_items

Configuration: TypeAlias = tuple[int, ...]
"""The level of every unit, 0 where the unit does nothing."""


@dataclass(frozen=True)
class Unit:
    """Passes that exclude each other. Level 0 is none of them, level i is `levels[i - 1]`, as text of a pipeline.

    `fine` units, of which there are many, are tried when the others have given a first answer. What a unit with
    `prompts` gains, only prompts show; what one of `contexts` gains, only steps behind many tokens.
    """

    family: str
    levels: tuple[str, ...]
    fine: bool = False
    prompts: bool = False
    contexts: bool = False


STAGES = ("depth", "tokens", "attention", "cache", "weights")
"""In which order families are applied."""
FAMILIES = ("weights", "depth", "attention", "tokens", "cache")
"""In which order families are tried: what mostly gains most first, what is measured token by token last."""
SERVING: Mapping[str, str] = {"repair-output": "attention"}
"""Passes that mend what others did, once: the family behind which they stand."""
BLOCKS_LEFT_OUT = (1, 2, 3, 4, 6, 8)
FINE = 6  # attention and feed-forward units and blocks, the least important, that are units of a search
_BY_SIMILARITY = "skip-layers{policy=similarity"
REPAIRED = " | repair-output"
THE_REST = " | quantize-weights{bits=8}"  # embedding and LM head, which 4 bits leave as they are
THE_REST_IN_5 = " | quantize-weights{bits=5, symmetric=false, skip=none}"
_CODES_WITH_TAIL = tuple(f"kv-quantize{{scheme=kivi, bits={bits}}}" for bits in (4, 2))
_RING = "kv-ring{window=256}"
# These exclude each other, and gain where contexts are longer than their tails and windows. Codes and rings are judged
# by `forward`, which they change alike; evictions teacher-forced behind the first half of each window, which is the
# prompt that loses tokens (`irx.analysis.quality`).

# Data: a method joins the search by a line here.
TABLE: Sequence[Unit] = (
    Unit("depth", tuple(f"{_BY_SIMILARITY}, keep=N-{count}}}{REPAIRED}" for count in BLOCKS_LEFT_OUT)),
    Unit("tokens", tuple(f"merge-tokens{{per-layer={count}}}" for count in (2, 4, 8, 12))),
    Unit("tokens", tuple(f"prune-tokens{{keep={share}}}" for share in (0.7, 0.5, 0.3, 0.2)), prompts=True),
    Unit("attention", tuple(f"share-attention{{threshold={least}}}{REPAIRED}" for least in (0.95, 0.9, 0.8))),
    Unit("cache", ("kv-quantize{bits=8}", "kv-quantize{bits=4}")),
    Unit(
        "cache", (*_CODES_WITH_TAIL, *(f"kv-evict{{keep={share}}}" for share in (0.5, 0.3, 0.2)), _RING), contexts=True
    ),
    Unit("weights", tuple(f"slice-ffn{{keep={share}}}" for share in (0.95, 0.9, 0.8))),
    Unit("weights", tuple(f"lowrank-weights{{rank={share}}}" for share in (0.6, 0.45, 0.3))),
    Unit(
        "weights",
        (
            "cast-weights",
            "quantize-weights{bits=8}",
            f"quantize-weights{{mean-bits=7.5, symmetric=false}}{THE_REST}",
            f"quantize-weights{{mean-bits=6.5, symmetric=false}}{THE_REST}",
            f"quantize-weights{{bits=4, symmetric=false}}{THE_REST}",
            f"quantize-weights{{bits=4, symmetric=false}}{THE_REST_IN_5}",
            "quantize-weights{bits=4, symmetric=false, skip=none}",
            "quantize-weights{bits=4, skip=none}",
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
        found += [replace(unit, levels=levels)] if levels else []
    return found


def ranks(units: Sequence[Unit]) -> bool:
    """True where the units want to know which layers matter least."""
    return any(level.startswith(_BY_SIMILARITY) for unit in units for level in unit.levels)


def ranked(units: Sequence[Unit], least: Mapping[str, Sequence[int]]) -> list[Unit]:
    """The units with the layers of least importance written out, and some of these as units of their own.

    `least` holds numbers of blocks for `block`, `attn` and `mlp`, the least important first. What data say of layers
    is so looked at once, and not for every candidate.
    """
    found: list[Unit] = []
    for unit in units:
        counts = [count for count in BLOCKS_LEFT_OUT if count <= len(least["block"])][: len(unit.levels)]
        if not unit.levels[0].startswith(_BY_SIMILARITY):
            found.append(unit)
        elif counts:
            levels = [_skipping([str(block) for block in sorted(least["block"][:count])]) for count in counts]
            single = [f"{block}.{kind}" for kind in ("attn", "mlp", "block") for block in least[kind][:FINE]]
            found.append(replace(unit, levels=tuple(levels)))
            found += [Unit(unit.family, (_skipping([name]),), fine=True) for name in single]
    return found


def spelled(units: Sequence[Unit], configuration: Configuration) -> str:
    """The pipeline text of a configuration, empty where no unit does anything."""
    families: dict[str, list[Item]] = {family: [] for family in STAGES}
    last: dict[str, list[Item]] = {family: [] for family in STAGES}
    for unit, level in zip(units, configuration, strict=True):
        for item in read_items(unit.levels[level - 1]) if level else ():
            serves = item.name in SERVING
            _join((last if serves else families)[SERVING.get(item.name, unit.family)], item)
    return " | ".join(_text(item) for family in STAGES for item in (*families[family], *last[family]))


def unrepaired(text: str) -> str:
    """The passes of a pipeline text without those that mend what others did."""
    return " | ".join(_text(item) for item in read_items(text) if item.name not in SERVING) if text else text


def _skipping(layers: Sequence[str]) -> str:
    return f"skip-layers{{policy=list, layers={format_value(tuple(layers))}}}{REPAIRED}"


def _join(items: list[Item], new: Item) -> None:
    """Add an item: to one of its name where they differ in lists alone, else at the end."""
    for i, item in enumerate(items):
        if item.name == new.name and item.options.keys() == new.options.keys():
            pairs = {name: (value, new.options[name]) for name, value in item.options.items()}
            lists = {name: (a, b) for name, (a, b) in pairs.items() if isinstance(a, tuple) and isinstance(b, tuple)}
            if all(a == b for name, (a, b) in pairs.items() if name not in lists):
                joined = {name: tuple(dict.fromkeys((*a, *b))) for name, (a, b) in lists.items()}
                items[i] = Item(item.name, {**item.options, **joined})
                return
    items.append(new)


def _text(item: Item) -> str:
    options = ", ".join(f"{name.replace('_', '-')}={_value(value)}" for name, value in item.options.items())
    return f"{item.name}{{{options}}}" if options else item.name


def _value(value: object) -> str:
    """Words as they are written by hand."""
    word = isinstance(value, str) and value.isidentifier()
    return str(value) if word else format_value(value)  # type: ignore[arg-type]


def _filled(level: str, blocks: int) -> str | None:
    """A level with the number of blocks for N; None where nothing would be left of them."""
    head, mark, tail = level.partition("N-")
    if not mark:
        return level
    count, end = tail.split("}", 1)[0], tail[tail.index("}") :]
    return f"{head}{blocks - int(count)}{end}" if blocks > int(count) else None

"""A pipeline: passes in order, and the instruments that watch them. Its text parses back to the same passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from irx.errors import BadOption, PassConflict, PipelineOrder, UnknownPass, UnknownPreset, nearest
from irx.ir.program import Program
from irx.ledger import Ledger
from irx.pipeline.base import Context, Pass, Stage
from irx.pipeline.index import PassIndex
from irx.pipeline.instruments.base import Instrument
from irx.pipeline.options import configure, spell
from irx.pipeline.presets import PRESETS
from irx.pipeline.runner import run
from irx.pipeline.text import Item, read_items


@dataclass(frozen=True)
class Pipeline:
    """Passes by ascending stage. Raises PipelineOrder and PassConflict when they do not go together."""

    passes: tuple[Pass, ...] = ()
    instruments: tuple[Instrument, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        _check_order(self.passes)
        _check_requirements(self.passes)
        _check_conflicts(self.passes)

    def __str__(self) -> str:
        return " | ".join(map(spell, self.passes))

    @staticmethod
    def parse(
        text: str,
        index: PassIndex,
        instruments: Sequence[Instrument] = (),
        presets: Mapping[str, str] = PRESETS,
    ) -> Pipeline:
        """The pipeline that `text` spells: passes between bars, after the name of a preset or without one.

        Passes behind a preset are put at the end of their stage; one that the preset has already takes its place.
        Raises ParseError, UnknownPass, UnknownOption, BadOption, PipelineOrder and PassConflict.
        """
        return Pipeline(_passes(text, index, presets), tuple(instruments))

    def run(self, program: Program, ctx: Context, *, strict: bool = False) -> tuple[Program, Ledger]:
        """The optimized program and what every pass did to it; `program` itself stays as it is.

        A pass that raises, breaks the program or fails its check is refused and named in the ledger; with `strict`
        that is a PassRefused error.
        """
        return run(self.passes, self.instruments, program, ctx, strict=strict, text=str(self))


def _passes(text: str, index: PassIndex, presets: Mapping[str, str]) -> tuple[Pass, ...]:
    items = read_items(text)
    base: list[Pass] = []
    if items and items[0].name in presets:
        if items[0].options:
            raise BadOption(f"the preset {items[0].name!r} has no options")
        base = list(_passes(presets[items[0].name], index, presets))
        items = items[1:]
        return _extended(base, [_load(item, index, presets, items) for item in items])
    return tuple(_load(item, index, presets, items) for item in items)


def _load(item: Item, index: PassIndex, presets: Mapping[str, str], items: Sequence[Item]) -> Pass:
    if item.name in presets:
        raise PipelineOrder(f"the preset {item.name!r} stands behind a pass", fix="write a preset first")
    if item.name not in index:
        if len(items) == 1 and nearest(item.name, [*index, *presets]) in presets:
            raise UnknownPreset(item.name, presets)
        raise UnknownPass(item.name, index, fix=f"presets: {', '.join(presets)}" if len(items) == 1 else None)
    return configure(index.load(item.name), item.options)


def _extended(base: list[Pass], more: Sequence[Pass]) -> tuple[Pass, ...]:
    _check_order(more)
    preset = {one.name for one in base}
    for one in more:
        if one.name in preset:
            base = [replace(one) if other.name == one.name else other for other in base]
        else:
            base.insert(sum(other.stage <= one.stage for other in base), one)
    return tuple(base)


def _check_order(passes: Sequence[Pass]) -> None:
    for first, second in pairwise(passes):
        if second.stage < first.stage:
            what = f"{second.name!r} of stage {second.stage.name} stands behind {first.name!r} of {first.stage.name}"
            raise PipelineOrder(what, fix=f"the order is {', '.join(stage.name for stage in Stage)}")


def _check_requirements(passes: Sequence[Pass]) -> None:
    seen: set[str] = set()
    for one in passes:
        missing = [name for name in one.requires if name not in seen]
        if missing:
            raise PipelineOrder(f"{one.name!r} needs {missing[0]!r} somewhere before it")
        seen.add(one.name)


def _check_conflicts(passes: Sequence[Pass]) -> None:
    names = {one.name for one in passes}
    for one in passes:
        clashing = sorted(names.intersection(one.conflicts) - {one.name})
        if clashing:
            raise PassConflict(
                f"{one.name!r} and {clashing[0]!r} cannot be in one pipeline", fix="leave one of them out"
            )

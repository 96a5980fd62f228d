"""skip-layers: whole layers, or only their attention or MLP, do not run; the stream goes on as it came.

Before:

    %n = irx.rms_norm(%x, $1.norm) {eps=1e-05}
    ...
    %y = irx.add(%x, %a)                                   // block 1: attention
    %m = irx.rms_norm(%y, $1.norm2) {eps=1e-05}
    ...
    %z = irx.add(%y, %f)                                   // block 1: MLP
    %o = irx.rms_norm(%z, $2.norm) {eps=1e-05}             // block 2

After, with policy=list, layers=1:

    %o = irx.rms_norm(%x, $2.norm) {eps=1e-05}

and in `prefill` and `decode` the KV state of block 1 is gone. All graphs change alike, so `forward` still computes what
`prefill` and `decode` do. With phases=decode, prompts run through the whole model: layers that decode leaves out store
no keys, and attend, in prefill, to the tokens of the same call only. `forward` is then what decode computes when every
token goes through it, so quality is judged on the phase that loses most.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from irx.analysis.blocks import Block, Kind, Unit, corresponding, find_blocks
from irx.errors import BadOption
from irx.ir.graph import Loc, Value
from irx.ir.program import Program
from irx.passes.depth.policies.explicit import UnitName, explicit
from irx.passes.depth.policies.similarity import importances, similarity
from irx.passes.depth.policies.tail import tail
from irx.passes.depth.policies.uniform import uniform
from irx.passes.depth.removal import Removal, leaving, obstacle
from irx.passes.depth.states import attend_within_call, drop_encoded, drop_states, needs_cache
from irx.pipeline.base import Context, Effect, NearMiss, Pass, Report, Site, Stage

Layer = int | str
_KINDS: dict[UnitName, frozenset[Kind]] = {
    "block": frozenset({"attention", "mlp"}),
    "attn": frozenset({"attention"}),
    "mlp": frozenset({"mlp"}),
}


@dataclass(frozen=True)
class SkipLayers(Pass):
    """Leave out blocks of the model, or only their attention or MLP units, with their weights and KV states.

    `keep` blocks stay: a number, or a share of those there are. `policy`: similarity (those go that change the stream
    least on calibration data; `rescore` measures anew after each), uniform (evenly spread, both ends stay), tail (the
    last go), list (`layers` go, counted from 0; 7.attn and 7.mlp name units). `unit`: what goes of a block. `phases`:
    with decode, prompts still run through everything.
    """

    policy: Literal["similarity", "uniform", "tail", "list"] = "similarity"
    keep: int | float = 0.9
    layers: tuple[Layer, ...] | Layer = ()
    unit: UnitName = "block"
    phases: Literal["both", "decode"] = "both"
    rescore: bool = False

    name = "skip-layers"
    stage = Stage.DEPTH
    effect = Effect.LOSSY
    paper = (
        "uniform: Liu et al. 2024, Unified Layer Skipping, arXiv:2404.06954; similarity: Yang et al. 2025, "
        "EfficientVLA, arXiv:2506.10100, and Men et al. 2024, ShortGPT, arXiv:2403.03853"
    )
    measure = "mean KL of next-token distributions under teacher forcing; for encoders the cosine of embeddings"

    def __post_init__(self) -> None:
        if self.policy == "list" and not self.listed:
            raise ValueError("policy=list needs layers=..., the blocks that are left out, counted from 0")
        if self.policy != "list" and self.listed:
            raise ValueError(f"layers is for policy=list, and policy is {self.policy}")
        if self.keep < 1 and isinstance(self.keep, int) or not self.keep > 0:
            raise ValueError(f"keep is {self.keep}, but at least one block must stay")
        if isinstance(self.keep, float) and self.keep > 1:
            raise ValueError(f"keep is {self.keep}: write a share up to 1.0, or a whole number of blocks")
        if self.rescore and self.policy != "similarity":
            raise ValueError(f"rescore is for policy=similarity, and policy is {self.policy}")
        explicit(self.listed, self.unit)

    @property
    def listed(self) -> tuple[Layer, ...]:
        """`layers` as a tuple."""
        return self.layers if isinstance(self.layers, tuple) else (self.layers,)

    def run(self, program: Program, ctx: Context) -> Report:
        rows, reason = corresponding(program)
        if not rows:
            return Report(near_misses=_near_misses(program), note=reason)
        if self.phases == "decode" and "decode" not in program.graphs:
            return Report(note="phases=decode, and the program has no decode")
        return _Skipping(self, program, ctx, rows).run()


@dataclass
class _Skipping:
    """One application; `rows` are the blocks, each in every graph that holds it."""

    options: SkipLayers
    program: Program
    ctx: Context
    rows: list[dict[str, Block]]
    report: Report = field(default_factory=Report)

    def run(self) -> Report:
        chosen = [(index, kinds) for index, kinds in self._chosen() if self._may_go(index, kinds)]
        chosen = [choice for choice in chosen if self.ctx.fuel.take()]
        if not chosen:
            return self.report
        states = [state.name for index, kinds in chosen for state in self._states(index, kinds)]
        self._tell(chosen)
        self._edit(chosen)
        dropped = drop_states(self.program, states)
        drop_encoded(self.program)
        self.program.weights.keep({weight.name for weight in self.program.used_weights()})
        self.report.note += f"; {len(dropped)} KV states are gone" if states else ""
        return self.report

    # --- what goes --------------------------------------------------------------------------------------------------

    def _chosen(self) -> list[tuple[int, frozenset[Kind]]]:
        """Numbers of blocks, and what of each goes, as the policy says."""
        options, kinds = self.options, _KINDS[self.options.unit]
        if options.policy == "list":
            return self._listed()
        candidates = [index for index, row in enumerate(self.rows) if self._units(row, kinds)]
        keep = _kept(options.keep, len(candidates))
        if keep >= len(candidates):
            self.report.note = f"keep={options.keep} keeps all {len(candidates)} blocks: nothing is left out"
            return []
        return [(index, kinds) for index in self._by_policy(candidates, keep, kinds)]

    def _listed(self) -> list[tuple[int, frozenset[Kind]]]:
        found: dict[int, frozenset[Kind]] = {}
        for index, unit in explicit(self.options.listed, self.options.unit):
            if index >= len(self.rows) or not self._units(self.rows[index], _KINDS[unit]):
                raise BadOption(f"skip-layers: layers has {index}, and the model has no {unit} {index} to leave out")
            found[index] = found.get(index, frozenset()) | _KINDS[unit]
        return sorted(found.items())

    def _by_policy(self, candidates: list[int], keep: int, kinds: frozenset[Kind]) -> list[int]:
        if self.options.policy == "uniform":
            return [candidates[i] for i in uniform(len(candidates), keep)]
        if self.options.policy == "tail":
            return [candidates[i] for i in tail(len(candidates), keep)]
        return self._least_important(candidates, len(candidates) - keep, kinds)

    def _least_important(self, candidates: list[int], drop: int, kinds: frozenset[Kind]) -> list[int]:
        free = [index for index in candidates if not self._at_an_end(index) and self._obstacle(index, kinds) is None]
        if drop > len(free):
            what = f"skip-layers: {drop} of {len(candidates)} blocks should go, and {len(free)} can"
            raise BadOption(what, fix="keep more: policy=similarity protects the first and the last block of a stream")
        calibration = self.ctx.calibrated("skip-layers with policy=similarity")
        scores: dict[int, float] = {}

        def score(gone: Collection[int]) -> dict[int, float]:
            found = importances(self.program, calibration, kinds, gone)
            scores.update(found)
            return found

        gone = similarity(free, drop, self.options.rescore, score)
        self.report.note = "importances " + ", ".join(f"{index}: {scores[index]:.3g}" for index in gone)
        return sorted(gone)

    def _at_an_end(self, index: int) -> bool:
        """True for the first and the last block of a stream, as an encoder's and a decoder's."""
        around = [self.rows[i].keys() for i in (index - 1, index + 1) if 0 <= i < len(self.rows)]
        return len(around) < 2 or any(graphs != self.rows[index].keys() for graphs in around)

    def _may_go(self, index: int, kinds: frozenset[Kind]) -> bool:
        """False for units that cannot go; the reason is told."""
        reason = self._obstacle(index, kinds)
        if reason is not None:
            block = self.rows[index]["forward"]
            self.report.near_misses.append(NearMiss("forward", Loc(block.module), f"block {index} stays: {reason}"))
        return reason is None

    def _obstacle(self, index: int, kinds: frozenset[Kind]) -> str | None:
        row = self.rows[index]
        found = [obstacle(leaving(block, kinds)) for block in row.values()]
        if self.options.phases == "decode":
            found += [needs_cache(unit) for unit in leaving(row["prefill"], kinds)]
        return next((reason for reason in found if reason is not None), None)

    def _units(self, row: Mapping[str, Block], kinds: frozenset[Kind]) -> list[Unit]:
        """What could go of a block; nothing where only decode changes and the block is no part of it."""
        if self.options.phases == "decode" and "decode" not in row:
            return []
        return leaving(row["forward"], kinds)

    # --- the edit ---------------------------------------------------------------------------------------------------

    def _edit(self, chosen: Sequence[tuple[int, frozenset[Kind]]]) -> None:
        removals = {name: Removal(graph) for name, graph in self.program.graphs.items()}
        for index, kinds in chosen:
            for name, block in self.rows[index].items():
                if name == "prefill" and self.options.phases == "decode":
                    for unit in leaving(block, kinds):
                        attend_within_call(self.program.graphs[name], unit, self.options.name)
                else:
                    removals[name].leave_out(leaving(block, kinds), block)

    def _states(self, index: int, kinds: frozenset[Kind]) -> list[Value]:
        return [state for unit in leaving(self.rows[index].get("prefill", _NONE), kinds) for state in unit.states]

    def _tell(self, chosen: Sequence[tuple[int, frozenset[Kind]]]) -> None:
        options, told = self.options, [_spelled(index, kinds) for index, kinds in chosen]
        parts = [f"{', '.join(told)} of {len(self.rows)} blocks left out", self.report.note]
        if options.phases == "decode":
            parts.append("prompts run through all, and forward stands for what decode computes")
        self.report.note = "; ".join(part for part in parts if part)
        for index, kinds in chosen:
            for name, block in self.rows[index].items():
                here = name == "prefill" and options.phases == "decode"
                what = "runs without a cache" if here else f"{_name(kinds)} left out"
                self.report.sites.append(Site(name, Loc(block.module), what))


_NONE = Block(())


def _kept(keep: int | float, count: int) -> int:
    """How many of `count` blocks stay; a share is rounded up."""
    return keep if isinstance(keep, int) else math.ceil(keep * count - 1e-9)


def _spelled(index: int, kinds: frozenset[Kind]) -> str:
    """`7`, `7.attn` or `7.mlp`, as `layers` takes it."""
    name = _name(kinds)
    return str(index) if name == "block" else f"{index}.{name}"


def _name(kinds: frozenset[Kind]) -> str:
    return next(name for name, meant in _KINDS.items() if meant == kinds)


def _near_misses(program: Program) -> list[NearMiss]:
    """Sums that look residual and are none, with the reason."""
    reasons = find_blocks(program.graphs["forward"]).reasons if "forward" in program.graphs else ()
    return [NearMiss("forward", node.loc, reason) for node, reason in reasons]

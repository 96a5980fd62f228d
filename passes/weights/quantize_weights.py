"""quantize-weights: matrices of linears, embeddings and experts are stored in 8, 5 or 4 bits, in blocks with scales.

Before:

    weight $w : f32[1536, 576]
    %y = irx.linear(%x, $w) : f32[B, S, 1536]

After, with bits=8:

    weight $w : f32[1536, 576]
    weight $w.q8_0 : q8_0[1536, 576] = irx.quantize($w) {format="q8_0"}
    %d = irx.dequantize($w.q8_0) : f32[1536, 576]
    %y = irx.linear(%x, %d) : f32[B, S, 1536]

A weight that several nodes read, as a table that is embedding and LM head, is packed once and for all of them, or for
none. Rounding is to nearest. Data are needed only for `mean-bits`, which gives each matrix the bits that it needs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from irx.analysis.calibration import Calibration
from irx.errors import UnboundWeight
from irx.ir.blocks import unpack
from irx.ir.graph import Builder, Value, Weight
from irx.ir.opdef import Array
from irx.ir.packing import pack
from irx.ir.program import Program
from irx.passes.weights.error import ProductError, on_grid
from irx.passes.weights.grouping import GROUPS, ONLY, bits_of, finest_needed, fitting, format_name
from irx.passes.weights.mixture import KEPT, Levels, Override, finest, output_error, stated_bits
from irx.passes.weights.moments import channel_rms, floats, product_inputs
from irx.passes.weights.uses import EMBEDDING, HEAD, Matrix, matrices, prepared
from irx.pipeline.base import Context, Effect, NearMiss, Pass, Report, Site, Stage
from irx.rewrite.report import Fuel

Part = Literal["head", "embed"]
_NAMES = {HEAD: "the LM head", EMBEDDING: "an embedding"}


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Store matrices in 8, 5 or 4 bits with a float16 scale (and, unless `symmetric`, a minimum) for groups of a row.

    `scheme` rtn: groups of `group`, or the largest smaller size that divides a row (in 5 bits always 32); fine: groups
    as coarse as the matrix allows, at least `group`. `skip` keeps parts as they are: `head`, `embed`, `none`; by
    default both, and none in 8 bits. `mixed` states other bits for matrices by name, 16 for none, whatever `skip` says:
    `["*.down_proj.weight=8"]`. `mean-bits` lets the output error on the user's data decide which linears get 8 bits and
    which 4, so that these take at most that many an element on average, scales included (or all get 4).
    """

    scheme: Literal["rtn", "fine"] = "rtn"
    bits: int = 8
    group: int = 32
    symmetric: bool = True
    skip: tuple[Part, ...] | Part | Literal["auto"] | None = "auto"
    mixed: tuple[str, ...] = ()
    mean_bits: float | None = None

    name = "quantize-weights"
    stage = Stage.WEIGHTS
    effect = Effect.LOSSY
    paper = "fine: Kim et al. 2023, FineQuant, arXiv:2308.09723"
    measure = "mean KL of next-token distributions under teacher forcing; for encoders the cosine of embeddings"

    def __post_init__(self) -> None:
        if self.bits not in (4, 5, 8):
            raise ValueError(f"bits is {self.bits}, but must be 4, 5 or 8")
        groups = ONLY.get(self.bits, GROUPS)
        if self.group not in groups:
            raise ValueError(f"group is {self.group}, but must be one of {', '.join(map(str, sorted(groups)))}")
        if self.bits == 8 and not self.symmetric and not self.mixed and self.mean_bits is None:
            raise ValueError("symmetric=false is for bits=4 and 5: in 8 bits a minimum gains nothing")
        if self.scheme == "fine" and (not self.symmetric or self.bits in ONLY):
            raise ValueError("symmetric=false and bits=5 are for scheme=rtn: FineQuant has neither")
        if self.mean_bits is not None and self.scheme == "fine":
            raise ValueError("mean-bits is for scheme=rtn")
        if self.mean_bits is not None and self.bits != 8:
            raise ValueError(f"bits={self.bits} and mean-bits exclude each other: that chooses 4 or 8 for every matrix")
        if self.mean_bits is not None and not 4 < self.mean_bits < 16:
            raise ValueError(f"mean-bits is {self.mean_bits}, but must be between 4 and 16")
        for text in self.mixed:
            Override.parse(text)

    def run(self, program: Program, ctx: Context) -> Report:
        work = _Quantization(self, program, ctx.fuel)
        if self.mean_bits is not None:
            work.choose(ctx.calibrated("quantize-weights with mean-bits"), self.mean_bits)
        return work.run()

    @property
    def overrides(self) -> list[Override]:
        """What `mixed` says. Raises ValueError for what it cannot say."""
        return [Override.parse(text) for text in self.mixed]

    @property
    def skipped(self) -> frozenset[str]:
        """The parts that stay as they are."""
        if self.skip == "auto":
            return frozenset({HEAD, EMBEDDING} if self.bits < 8 or self.mean_bits is not None else ())
        parts = (self.skip,) if isinstance(self.skip, str) else self.skip or ()
        return frozenset(parts)


@dataclass
class _Quantization:
    options: QuantizeWeights
    program: Program
    fuel: Fuel
    report: Report = field(default_factory=Report)
    chosen: dict[Weight, int] = field(default_factory=dict)

    def choose(self, calibration: Calibration, mean: float) -> None:
        """Decide between 4 and 8 bits for every matrix that neither `mixed` nor `skip` nor its shape decides for."""
        found = [m for m in matrices(self.program) if self._is_open(m)]
        inputs = product_inputs(found)
        rms = channel_rms(calibration, self.program, inputs)
        levels: dict[str, Levels] = {}
        for weight, squares in rms.items():
            array = floats(self.program.weights, weight)
            if array is not None:
                levels[weight.name] = self._levels(array, squares)
        fine = finest(levels, mean)
        self.chosen = {self.program.weights[name]: 8 if name in fine else 4 for name in levels}

    def _is_open(self, matrix: Matrix) -> bool:
        stated = stated_bits(matrix.weight.name, self.options.overrides)
        return stated is None and self._format(matrix)[0] is not None

    def _levels(self, array: Array, rms: Array) -> Levels:
        """The two formats of a matrix, with the bits that they take and the error that they make."""
        (group,) = fitting(array.shape[-1], self.options.group, 4)[:1]
        coarse, fine = self._name(4, group), self._name(8, group)
        errors = output_error(array, rms, coarse), output_error(array, rms, fine)
        return Levels(array.size, (bits_of(coarse), bits_of(fine)), errors)

    def _name(self, bits: int, group: int) -> str:
        return format_name(bits, self.options.symmetric or bits == 8, group)

    def run(self) -> Report:
        measured = ProductError(self.program.weights)
        self.report.near_misses += prepared(self.program)
        for matrix in matrices(self.program):
            form, reason = self._format(matrix)
            if form is None:
                self.report.near_misses.append(NearMiss(matrix.graph, matrix.loc, reason))
            elif self.fuel.take():
                self._pack(matrix, form, measured)
        return self.report

    def _pack(self, matrix: Matrix, form: str, measured: ProductError) -> None:
        weight, by = matrix.weight, self.options.name
        error = measured.of_weight(weight, lambda w: on_grid(w, _rounded(w, form), form, weight.name), form)
        packed = self.program.weights.derive(f"{weight.name}.{form}", "quantize", [weight], format=form)
        matrix.redirect(by, lambda b: _dequantized(b, packed, weight.dtype))
        what = f"{form}, {bits_of(form):g} bits an element"
        self.report.sites += [Site(use.graph.name, use.node.loc, what, error) for use in matrix.uses]

    def _format(self, matrix: Matrix) -> tuple[str | None, str]:
        """The format for a weight, or None and why it stays as it is."""
        options, weight = self.options, matrix.weight
        stated = stated_bits(weight.name, options.overrides)
        kept = self._kept(matrix, stated)
        if kept is not None:
            return None, kept
        columns = weight.shape[-1]
        fine = options.scheme == "fine"
        bits = stated or self.chosen.get(weight, options.bits)
        groups = fitting(int(str(columns)), GROUPS[0] if fine else options.group, bits)
        if not groups:
            return None, f"rows of {columns} elements are no whole groups of {ONLY.get(bits, GROUPS)[-1]} or more"
        coarse = [group for group in groups if group >= options.group] or groups[:1]
        try:
            array: Array | None = self.program.weights.array(weight) if fine else None
        except UnboundWeight:
            return None, "fine looks at the weight, which has no array"
        group = groups[0] if array is None else finest_needed(array, coarse)
        return self._name(bits, group), ""

    def _kept(self, matrix: Matrix, stated: int | None) -> str | None:
        """Why a weight must stay as it is, whatever its size."""
        if stated == KEPT:
            return "mixed keeps it"
        skipped = sorted(self.options.skipped & matrix.roles) if stated is None else []
        if skipped:
            return f"{' and '.join(_NAMES[role] for role in skipped)}, which skip keeps"
        if matrix.others:
            return f"{matrix.others[0]} reads the weight as well"
        if any(use.node.op.name == "moe" and use.node.attr("transposed") for use in matrix.uses):
            return "transposed experts: rows of the weight are not what is summed"
        return None


def _dequantized(b: Builder, packed: Weight, dtype: str) -> Value:
    return b("dequantize", packed) if dtype == "f32" else b("dequantize", packed, dtype=dtype)


def _rounded(rows: Array, form: str) -> Array:
    return unpack(pack(rows, form), form)

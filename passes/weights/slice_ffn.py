"""slice-ffn: feed-forward networks keep the channels that matter; the three matrices around them become smaller.

Before:

    %gate = irx.linear(%x, $gate) : f32[B, S, 1536]
    %up = irx.linear(%x, $up) : f32[B, S, 1536]
    %h = irx.swiglu(%gate, %up) : f32[B, S, 1536]
    %y = irx.linear(%h, $down) : f32[B, S, 576]

After, with keep=0.75, refit=false:

    weight $down.channels : i64[1152]
    weight $gate.kept : f32[1152, 576] = irx.take($gate, $down.channels) {axis=0}
    weight $up.kept : f32[1152, 576] = irx.take($up, $down.channels) {axis=0}
    weight $down.kept : f32[576, 1152] = irx.take($down, $down.channels) {axis=1}
    %gate = irx.linear(%x, $gate.kept) : f32[B, S, 1152]
    %up = irx.linear(%x, $up.kept) : f32[B, S, 1152]
    %h = irx.swiglu(%gate, %up) : f32[B, S, 1152]
    %y = irx.linear(%h, $down.kept) : f32[B, S, 576]

With `refit`, which is the default, $down.kept is fitted anew by least squares on the data, and stored. All graphs get
the same slices. Rows of packed matrices are taken as they are; columns are unpacked, taken or fitted, and packed again
in the same format, which rounds them once more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from irx.analysis.calibration import FORWARD, Calibration
from irx.errors import BadOption
from irx.ir.blocks import FORMATS
from irx.ir.graph import Builder, Value, Weight
from irx.ir.opdef import Array
from irx.ir.packing import is_writable
from irx.ir.program import Program
from irx.ir.types import is_packed, numpy_dtype
from irx.ir.weights import Weights
from irx.ops.numerics import top_indices
from irx.passes.fuse.projections import Projection
from irx.passes.weights.feed_forward import Incoming, Network, Place, block_input, networks
from irx.passes.weights.importance import angular_importance, channel_scores, keep_ratios, kept_counts, lost_share
from irx.passes.weights.moments import channel_rms, floats
from irx.passes.weights.refit import refitted, second_moments
from irx.pipeline.base import Context, Effect, NearMiss, Pass, Report, Site, Stage
from irx.rewrite.cleanup import erase_unused


@dataclass(frozen=True)
class SliceFfn(Pass):
    """Keep the share `keep` of all channels of feed-forward networks, in multiples of `multiple`.

    `ratios` cfsp: networks of blocks that turn the residual stream more keep more; uniform: all keep the same share; or
    a list of one share for every network in the order of the program, in place of `keep`. With `refit` the product
    back is fitted anew by least squares, so that the channels that are left do what they can for those that are gone.
    """

    keep: float = 0.9
    multiple: int = 128
    ratios: Literal["cfsp", "uniform"] | tuple[float, ...] = "cfsp"
    refit: bool = True

    name = "slice-ffn"
    stage = Stage.WEIGHTS
    effect = Effect.LOSSY
    paper = "CFSP: Wang et al. 2024, arXiv:2409.13199"
    measure = "mean KL of next-token distributions under teacher forcing; for encoders the cosine of embeddings"

    def __post_init__(self) -> None:
        shares = [self.keep, *(self.ratios if isinstance(self.ratios, tuple) else ())]
        wrong = [share for share in shares if not 0 < share <= 1]
        if wrong:
            raise ValueError(f"a share to keep is {wrong[0]}, but must be above 0 and at most 1")
        if self.multiple < 1:
            raise ValueError(f"multiple is {self.multiple}, but must be positive")

    def run(self, program: Program, ctx: Context) -> Report:
        found, misses = networks(program)
        work = _Slicing(self, program, ctx, Report(near_misses=misses))
        work.run(found)
        return work.report


@dataclass
class _Slicing:
    options: SliceFfn
    program: Program
    ctx: Context
    report: Report

    def run(self, found: list[Network]) -> None:
        if not found:
            self.report.note = "there is no feed-forward network"
            return
        counts = self._counts(found)
        cut = [(one, count) for one, count in zip(found, counts, strict=True) if self._can_be_cut(one, count)]
        if not cut:
            return
        rms = channel_rms(self._calibration, self.program, {one.down: self._inputs(one) for one, _ in cut})
        chosen = [
            (network, channels)
            for network, count in cut
            if (channels := self._chosen(network, count, rms[network.down])) is not None
        ]
        fitted = dict(self._fitted(chosen)) if self.options.refit else {}
        for network, channels in chosen:
            self._slice(network, channels, rms[network.down], fitted.get(network.down))

    @property
    def _calibration(self) -> Calibration:
        return self.ctx.calibrated(self.options.name)

    def _inputs(self, network: Network) -> list[Value]:
        """The channels of a network in `forward`, on which it is judged."""
        return [place.down.x for place in network.places if place.graph.name == FORWARD]

    def _can_be_cut(self, network: Network, count: int) -> bool:
        reason = self._obstacle(network, count)
        if reason is not None:
            self.report.near_misses.append(NearMiss(network.places[0].graph.name, network.loc, reason))
        return reason is None

    def _obstacle(self, network: Network, count: int) -> str | None:
        form = network.down.dtype
        if count >= network.width:
            return f"all of its {network.width} channels are kept"
        if not self._inputs(network):
            return "it is not in the graph forward, on which channels are judged"
        if is_packed(form) and not is_writable(form):
            return f"${network.down.name} is {form}, which is only read: its columns cannot be packed again"
        if is_packed(form) and count % FORMATS[form].elements:
            return f"{count} channels are no whole blocks of {FORMATS[form].elements} of {form}"
        return None

    def _counts(self, found: list[Network]) -> list[int]:
        """How many channels every network keeps."""
        options, widths = self.options, [one.width for one in found]
        if isinstance(options.ratios, tuple):
            if len(options.ratios) != len(found):
                raise BadOption(
                    f"slice-ffn: {len(options.ratios)} ratios are given, but there are {len(found)} networks"
                )
            return kept_counts(options.ratios, widths, options.multiple)
        if options.ratios == "uniform" or options.keep == 1:
            return kept_counts([options.keep] * len(found), widths, options.multiple)
        outs = {place.out for one in found for place in one.places}
        pairs = [
            [(block_input(place, outs), place.out) for place in one.places if place.graph.name == FORWARD]
            for one in found
        ]
        importances = angular_importance(self._calibration, self.program, pairs)
        return kept_counts(keep_ratios(importances, options.keep), widths, options.multiple)

    def _chosen(self, network: Network, count: int, rms: Array) -> Array | None:
        """The best channels of a network, in their old order; None where that cannot be known or is too much."""
        weights, place = self.program.weights, network.places[0]
        down = floats(weights, network.down)
        incoming = [_rows(weights, one, network.width) for one in place.incoming.values()]
        given = [matrix for matrix in incoming if matrix is not None]
        if down is None or len(given) < len(incoming):
            self.report.near_misses.append(NearMiss(place.graph.name, network.loc, "its weights have no arrays"))
            return None
        if not self.ctx.fuel.take():
            return None
        return np.sort(top_indices(channel_scores(rms, down, given), count))

    def _fitted(self, chosen: list[tuple[Network, Array]]) -> Iterator[tuple[Weight, Array]]:
        """The new columns of every network's product back, for the channels that it keeps."""
        wanted = {network.down: self._inputs(network) for network, _ in chosen}
        channels = {network.down: kept for network, kept in chosen}
        for down, moments in second_moments(self._calibration, self.program, wanted):
            array = floats(self.program.weights, down)
            if array is not None:
                yield down, refitted(array, moments, channels[down]).astype(np.float32)

    def _slice(self, network: Network, channels: Array, rms: Array, columns: Array | None) -> None:
        down = floats(self.program.weights, network.down)
        error = None if down is None else lost_share(rms, down, channels)
        sliced = _Sliced(self.program.weights, network, channels, columns)
        for each in network.places:
            sliced.rewrite(each, self.options.name)
        what = f"{len(channels)} of {network.width} channels"
        self.report.sites += [Site(each.graph.name, each.down.node.loc, what, error) for each in network.places]


def _rows(weights: Weights, one: Incoming, width: int) -> Array | None:
    matrix = floats(weights, one.product.weight)
    return None if matrix is None else matrix[one.start : one.start + width]


class _Sliced:
    """The new weights of one network, made when a graph asks for them and shared by all."""

    def __init__(self, weights: Weights, network: Network, channels: Array, columns: Array | None) -> None:
        self.weights = weights
        self.width = network.width
        self.channels = weights.add_array(f"{network.down.name}.channels", channels)
        self.columns = columns
        self._made: dict[tuple[Weight, int], Weight] = {}

    def rewrite(self, place: Place, by: str) -> None:
        """Compute the network of one graph with the kept channels only."""
        graph, node = place.graph, place.down.node
        b = Builder(graph, node, node.loc.touched(by))
        known = {value: self._incoming(b, one, by) for value, one in place.incoming.items()}
        for inner in place.inner:
            b.loc = inner.loc.touched(by)
            known[inner.output] = b(inner.op.name, *(v and known.get(v, v) for v in inner.inputs), **inner.attrs)
        b.loc = node.loc.touched(by)
        made = _linear(b, place.down, known[place.down.x], self._columns(place.down.weight), place.down.bias)
        graph.replace(node.output, made)
        erase_unused(graph, [node])

    def _incoming(self, b: Builder, one: Incoming, by: str) -> Value:
        product = one.product
        b.loc = product.node.loc.touched(by)
        bias = None if product.bias is None else self._rows(product.bias, one.start)
        return _linear(b, product, product.x, self._rows(product.weight, one.start), bias)

    def _rows(self, weight: Weight, start: int) -> Weight:
        if (weight, start) not in self._made:
            source = weight
            if weight.shape[0] != self.width:
                stop = start + self.width
                source = self.weights.derive(
                    f"{weight.name}.{start}", "slice", [weight], axis=0, start=start, stop=stop
                )
            made = self.weights.derive(f"{source.name}.kept", "take", [source, self.channels], axis=0)
            self._made[weight, start] = made
        return self._made[weight, start]

    def _columns(self, weight: Weight) -> Weight:
        if (weight, -1) not in self._made:
            form, made = weight.dtype, self._kept_columns(weight)
            if is_packed(form):
                made = self.weights.derive(f"{weight.name}.kept.{form}", "quantize", [made], format=form)
            self._made[weight, -1] = made
        return self._made[weight, -1]

    def _kept_columns(self, weight: Weight) -> Weight:
        """The columns of the kept channels, as floats: taken from the weight, or fitted anew."""
        packed = is_packed(weight.dtype)
        if self.columns is not None:
            columns = self.columns if packed else self.columns.astype(numpy_dtype(weight.dtype))
            return self.weights.add_array(f"{weight.name}.kept", columns)
        source = self.weights.derive(f"{weight.name}.f32", "dequantize", [weight]) if packed else weight
        return self.weights.derive(f"{weight.name}.kept", "take", [source, self.channels], axis=1)


def _linear(b: Builder, like: Projection, x: Value, weight: Weight, bias: Weight | None) -> Value:
    unpacking = like.unpacking
    matrix = weight if unpacking is None else b(unpacking.op.name, weight, **unpacking.attrs)
    return b("linear", x, matrix, *([] if bias is None else [bias]))

"""The presets: names for pipelines, each an earlier preset extended or a pipeline of its own. Data, in one place."""

from __future__ import annotations

from collections.abc import Mapping

# Clean first, so that patterns meet few spellings. Recognition goes from rows to tokens: linears before raise-shapes,
# which moves reshapes through them. Masks are classified once attention is known. Constants are folded at the end, as
# what recognition leaves over; `arange` nodes stay, because insert-cache finds positions by them.
_NORMALIZE = (
    "remove-noops",
    "cse",
    "raise-norm",
    "raise-activation",
    "raise-linear",
    "raise-shapes",
    "raise-rope",
    "raise-attention",
    "classify-masks",
    "remove-noops",
    "fold-constants{generated=false}",
    "cse",
    "dead-nodes",
    "insert-cache",
    "slice-rows",
)

# First what nobody wants of a prompt goes, then products of one input are merged, while they stand alone. Then regions
# grow: what unpacks weights, what joins products, what follows them and what comes before. What no product, attention
# or lookup has taken is grouped at the end. The step without logits is a copy of the finished one.
_FUSE = (
    "trim-rows",
    "fold-scale",
    "merge-linears",
    "split-gated",
    "fuse-dequantize",
    "fuse-gated",
    "fuse-epilogue",
    "fuse-residual",
    "fuse-norm",
    "fuse-attention",
    "fuse-embedding",
    "fuse-regions",
    "fuse-topk",
)

_LOWER = ("lay-out-cache",)

PRESETS: Mapping[str, str] = {
    # What every program needs to run: the captured graph cleaned up, recognised and given its cache.
    "none": " | ".join(_NORMALIZE),
    # Every EXACT and ROUNDING pass that is worth it.
    "default": " | ".join(("none", *_FUSE, *_LOWER)),
}

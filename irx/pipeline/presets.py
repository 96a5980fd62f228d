"""The presets: names for pipelines, each an earlier preset extended or a pipeline of its own. Data, in one place."""

from __future__ import annotations

from collections.abc import Mapping

_CLEAN = "remove-noops | fold-constants | cse"
_RECOGNISE = "raise-linear | raise-norm | raise-activation | raise-rope | raise-shapes | raise-attention | classify-masks"
_CACHE = "dead-nodes | insert-cache | slice-rows"

PRESETS: Mapping[str, str] = {
    # What every program needs to run: the captured graph cleaned up, recognised and given its cache.
    "none": f"{_CLEAN} | {_RECOGNISE} | {_CACHE}",
    # Every EXACT and ROUNDING pass that is worth it.
    "default": "none",
}

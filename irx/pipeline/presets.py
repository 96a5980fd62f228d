"""The presets: names for pipelines, each an earlier preset extended or a pipeline of its own. Data, in one place."""

from __future__ import annotations

from collections.abc import Mapping

PRESETS: Mapping[str, str] = {
    # What every program needs to run: the captured graph cleaned up, recognised and given its cache.
    "none": "",
    # Every EXACT and ROUNDING pass that is worth it.
    "default": "none",
}

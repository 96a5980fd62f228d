"""Rules turn regions into kernels: one file per kind of region, tried in the order of `RULES`."""

from __future__ import annotations

from irx.backends.regions.lowered import Rule

RULES: tuple[Rule, ...] = ()

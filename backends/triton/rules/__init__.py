"""Rules turn regions into kernels: one file per kind of region, tried in the order of `RULES`."""

from __future__ import annotations

from irx.backends.regions.lowered import Rule
from irx.backends.triton.rules import attention, linear, regions, tokens

RULES: tuple[Rule, ...] = (linear.rule, attention.rule, tokens.rule, regions.rule)

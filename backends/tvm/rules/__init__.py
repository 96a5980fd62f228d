"""Rules turn regions into kernels: one file per kind of region, tried in the order of `RULES`."""

from __future__ import annotations

from irx.backends.regions.lowered import Rule
from irx.backends.tvm.rules import attention, conv, linear, moe, regions, tokens

RULES: tuple[Rule, ...] = (linear.rule, attention.rule, moe.rule, conv.rule, tokens.rule, regions.rule)

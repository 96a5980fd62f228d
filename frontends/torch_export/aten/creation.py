"""Tensors made from nothing: ranges, constants, triangles."""

from __future__ import annotations

from typing import Any

from irx.frontends.torch_export.site import Site
from irx.frontends.torch_export.tables import Untranslatable, rule
from irx.ir.dims import Dim, SymDim
from irx.ir.graph import Value


@rule("aten.arange.default")
def arange(site: Site, end: Any, dtype: Any) -> Value:
    return arange_step(site, 0, end, 1, dtype)


@rule("aten.arange.start")
def arange_start(site: Site, start: Any, end: Any, dtype: Any) -> Value:
    return arange_step(site, start, end, 1, dtype)


@rule("aten.arange.start_step")
def arange_step(site: Site, start: Any, end: Any, step: Any, dtype: Any) -> Value:
    if all(isinstance(bound, (int, SymDim)) for bound in (start, end, step)) and isinstance(step, int):
        return site("arange", start=start, stop=end, step=step, dtype=site.result.dtype)
    # A fractional range is start + step * (0, 1, ...), which is also how torch computes it.
    dtype_name = site.result.dtype
    counts = site.arange(site.result.shape[0], "f64" if dtype_name == "f64" else "f32")
    return site.cast(site("add", site("mul", counts, float(step)), float(start)), dtype_name)


def _filled(site: Site, value: Any) -> Value:
    if not isinstance(value, (bool, int, float)):
        raise Untranslatable("a tensor filled with a value known at run time only")
    return site.full(site.result.shape, value, site.result.dtype)


@rule("aten.full.default", "aten.new_full.default")
def full(site: Site, size: Any, fill_value: Any, dtype: Any, self: Value | None = None) -> Value:
    return _filled(site, fill_value)


@rule("aten.full_like.default")
def full_like(site: Site, self: Value, fill_value: Any, dtype: Any) -> Value:
    return _filled(site, fill_value)


@rule("aten.scalar_tensor.default")
def scalar_tensor(site: Site, s: Any, dtype: Any) -> Value:
    if isinstance(s, SymDim):
        return site.cast(site.value(s), site.result.dtype)
    return _filled(site, s)


# Memory that torch leaves unset reads as zeros: any value is right, and equal runs give equal results.
@rule(
    "aten.zeros.default",
    "aten.new_zeros.default",
    "aten.empty.memory_format",
    "aten.new_empty.default",
)
def zeros(site: Site, size: Any, dtype: Any, self: Value | None = None) -> Value:
    return _filled(site, 0)


@rule("aten.empty_permuted.default")
def empty_permuted(site: Site, size: Any, physical_layout: Any, dtype: Any) -> Value:
    return _filled(site, 0)


@rule("aten.zeros_like.default", "aten.empty_like.default")
def zeros_like(site: Site, self: Value, dtype: Any) -> Value:
    return _filled(site, 0)


@rule("aten.ones.default", "aten.new_ones.default")
def ones(site: Site, size: Any, dtype: Any, self: Value | None = None) -> Value:
    return _filled(site, 1)


@rule("aten.ones_like.default")
def ones_like(site: Site, self: Value, dtype: Any) -> Value:
    return _filled(site, 1)


@rule("aten.eye.default")
def eye(site: Site, n: Dim, dtype: Any) -> Value:
    return eye_wide(site, n, n, dtype)


@rule("aten.eye.m")
def eye_wide(site: Site, n: Dim, m: Dim, dtype: Any) -> Value:
    rows, columns = site.reshape(site.arange(n), (n, 1)), site.arange(m)
    return site.cast(site("eq", rows, columns), site.result.dtype)


@rule("aten.tril.default")
def tril(site: Site, self: Value, diagonal: Any) -> Value:
    return _triangle(site, self, "le", diagonal)


@rule("aten.triu.default")
def triu(site: Site, self: Value, diagonal: Any) -> Value:
    return _triangle(site, self, "ge", diagonal)


def _triangle(site: Site, x: Value, comparison: str, diagonal: Any) -> Value:
    """`x` where column - row `comparison` diagonal, else 0."""
    rows, columns = x.shape[-2:]
    edge = site.reshape(site.arange(rows), (rows, 1))
    edge = edge if diagonal == 0 else site("add", edge, diagonal)
    kept = site(comparison, site.arange(columns), edge)
    return site("and", x, kept) if x.dtype == "bool" else site("where", kept, x, 0)


@rule("aten.linspace.default")
def linspace(site: Site, start: Any, end: Any, steps: Any, dtype: Any) -> Value:
    known = not any(isinstance(bound, (Value, SymDim)) for bound in (start, end, steps))
    if not known or steps < 2:
        raise Untranslatable("a linear range with bounds known at run time only")
    counts = site.arange(steps, "f64")
    values = site("add", site("mul", counts, (end - start) / (steps - 1)), float(start))
    return site.cast(values, site.result.dtype)


@rule("aten.one_hot.default")
def one_hot(site: Site, self: Value, num_classes: int) -> Value:
    classes = site.result.shape[-1]
    return site.cast(site("eq", site.unsqueeze(self, len(self.shape)), site.arange(classes)), "i64")

"""Reductions, softmax, scans, and selection of the largest elements."""

from __future__ import annotations

from typing import Any

from irx.frontends.torch_export.aten.elementwise import truth
from irx.frontends.torch_export.site import Site
from irx.frontends.torch_export.tables import Untranslatable, rule
from irx.ir.dims import product
from irx.ir.graph import Value


@rule("aten.sum.dim_IntList")
def sum_axes(site: Site, self: Value, dim: Any, keepdim: bool, dtype: Any) -> Value:
    # Torch accumulates in the result's dtype, and integers in i64.
    return site("sum", site.cast(self, site.result.dtype), axes=site.axes(self, dim), keepdims=keepdim)


@rule("aten.sum.default")
def sum_all(site: Site, self: Value, dtype: Any) -> Value:
    return sum_axes(site, self, None, False, dtype)


@rule("aten.mean.dim")
def mean_axes(site: Site, self: Value, dim: Any, keepdim: bool, dtype: Any) -> Value:
    return site("mean", site.cast(self, site.result.dtype), axes=site.axes(self, dim), keepdims=keepdim)


@rule("aten.mean.default")
def mean_all(site: Site, self: Value, dtype: Any) -> Value:
    return mean_axes(site, self, None, False, dtype)


@rule("aten.amax.default")
def amax(site: Site, self: Value, dim: Any, keepdim: bool) -> Value:
    return site("amax", self, axes=site.axes(self, dim), keepdims=keepdim)


@rule("aten.amin.default")
def amin(site: Site, self: Value, dim: Any, keepdim: bool) -> Value:
    return site("amin", self, axes=site.axes(self, dim), keepdims=keepdim)


@rule("aten.max.default")
def max_all(site: Site, self: Value) -> Value:
    return amax(site, self, None, False)


@rule("aten.min.default")
def min_all(site: Site, self: Value) -> Value:
    return amin(site, self, None, False)


@rule("aten.max.dim")
def max_axis(site: Site, self: Value, dim: int, keepdim: bool) -> tuple[Value, Value]:
    return amax(site, self, dim, keepdim), argmax(site, self, dim, keepdim)


@rule("aten.min.dim")
def min_axis(site: Site, self: Value, dim: int, keepdim: bool) -> tuple[Value, Value]:
    return amin(site, self, dim, keepdim), argmin(site, self, dim, keepdim)


@rule("aten.argmax.default")
def argmax(site: Site, self: Value, dim: int | None, keepdim: bool) -> Value:
    if dim is None:
        return site("argmax", site.reshape(self, (self.tensor.elements,)), axis=0)
    return site("argmax", self, axis=site.axis(self, dim), keepdims=keepdim)


@rule("aten.argmin.default")
def argmin(site: Site, self: Value, dim: int | None, keepdim: bool) -> Value:
    return argmax(site, site("neg", self), dim, keepdim)


@rule("aten.any.dim")
def any_axis(site: Site, self: Value, dim: int, keepdim: bool) -> Value:
    return site("any", truth(site, self), axes=site.axes(self, dim), keepdims=keepdim)


@rule("aten.any.dims")
def any_axes(site: Site, self: Value, dim: Any, keepdim: bool) -> Value:
    return any_axis(site, self, dim, keepdim)


@rule("aten.any.default")
def any_all(site: Site, self: Value) -> Value:
    return site("any", truth(site, self), axes=site.axes(self, None))


@rule("aten.all.dim")
def all_axis(site: Site, self: Value, dim: int, keepdim: bool) -> Value:
    return site("all", truth(site, self), axes=site.axes(self, dim), keepdims=keepdim)


@rule("aten.all.dims")
def all_axes(site: Site, self: Value, dim: Any, keepdim: bool) -> Value:
    return all_axis(site, self, dim, keepdim)


@rule("aten.all.default")
def all_all(site: Site, self: Value) -> Value:
    return site("all", truth(site, self), axes=site.axes(self, None))


@rule("aten.cumsum.default")
def cumsum(site: Site, self: Value, dim: int, dtype: Any) -> Value:
    return site("cumsum", site.cast(self, site.result.dtype), axis=site.axis(self, dim))


@rule("aten.softmax.int", "aten._safe_softmax.default")
def softmax(site: Site, self: Value, dim: int, dtype: Any) -> Value:
    return site("softmax", site.cast(self, site.result.dtype), axis=site.axis(self, dim))


@rule("aten._softmax.default")
def raw_softmax(site: Site, self: Value, dim: int, half_to_float: bool) -> Value:
    return softmax(site, self, dim, None)


@rule("aten.log_softmax.int")
def log_softmax(site: Site, self: Value, dim: int, dtype: Any) -> Value:
    return site("log_softmax", site.cast(self, site.result.dtype), axis=site.axis(self, dim))


@rule("aten._log_softmax.default")
def raw_log_softmax(site: Site, self: Value, dim: int, half_to_float: bool) -> Value:
    return log_softmax(site, self, dim, None)


@rule("aten.logsumexp.default")
def logsumexp(site: Site, self: Value, dim: Any, keepdim: bool) -> Value:
    return site("logsumexp", site.floating(self), axes=site.axes(self, dim), keepdims=keepdim)


@rule("aten.topk.default")
def topk(site: Site, self: Value, k: Any, dim: int, largest: bool, sorted: bool) -> tuple[Value, ...]:
    axis = site.axis(self, dim)
    if largest:
        return site.many("topk", self, k=k, axis=axis)
    values, indices = site.many("topk", site("neg", self), k=k, axis=axis)
    return site("neg", values), indices


@rule("aten.sort.default")
def sort(site: Site, self: Value, dim: int, descending: bool) -> tuple[Value, ...]:
    if self.dtype == "bool":
        raise Untranslatable("an order of truth values")
    axis = site.axis(self, dim)
    return topk(site, self, self.shape[axis], axis, descending, True)


@rule("aten.sort.stable")
def sort_stable(site: Site, self: Value, stable: Any, dim: int, descending: bool) -> tuple[Value, ...]:
    return sort(site, self, dim, descending)


@rule("aten.argsort.default")
def argsort(site: Site, self: Value, dim: int, descending: bool) -> Value:
    return sort(site, self, dim, descending)[1]


@rule("aten.argsort.stable")
def argsort_stable(site: Site, self: Value, stable: bool, dim: int, descending: bool) -> Value:
    return argsort(site, self, dim, descending)


@rule("aten.var.correction")
def variance(site: Site, self: Value, dim: Any, correction: Any, keepdim: bool) -> Value:
    axes = site.axes(self, dim)
    centred = site("sub", self, site("mean", self, axes=axes, keepdims=True))
    squares = site("sum", site("pow", centred, 2), axes=axes, keepdims=keepdim)
    count = product(self.shape[axis] for axis in axes)
    return site("div", squares, count - int(1 if correction is None else correction))


@rule("aten.var.dim")
def variance_axes(site: Site, self: Value, dim: Any, unbiased: bool, keepdim: bool) -> Value:
    return variance(site, self, dim, int(unbiased), keepdim)


@rule("aten.std.correction")
def deviation(site: Site, self: Value, dim: Any, correction: Any, keepdim: bool) -> Value:
    return site("sqrt", variance(site, self, dim, correction, keepdim))


@rule("aten.std.dim")
def deviation_axes(site: Site, self: Value, dim: Any, unbiased: bool, keepdim: bool) -> Value:
    return deviation(site, self, dim, int(unbiased), keepdim)


@rule("aten.linalg_vector_norm.default")
def vector_norm(site: Site, self: Value, ord: Any, dim: Any, keepdim: bool, dtype: Any) -> Value:
    if ord not in (1, 2):
        raise Untranslatable(f"a norm of order {ord}")
    axes, x = site.axes(self, dim), site.cast(self, site.result.dtype)
    if ord == 1:
        return site("sum", site("abs", x), axes=axes, keepdims=keepdim)
    return site("sqrt", site("sum", site("pow", x, 2), axes=axes, keepdims=keepdim))


@rule("aten.norm.ScalarOpt_dim")
def norm(site: Site, self: Value, p: Any, dim: Any, keepdim: bool) -> Value:
    return vector_norm(site, self, 2 if p is None else p, dim, keepdim, None)

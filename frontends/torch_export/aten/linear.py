"""Matrix products, embeddings and einsum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from irx.frontends.torch_export.site import Site
from irx.frontends.torch_export.tables import Untranslatable, rule
from irx.ir.dims import product
from irx.ir.graph import Value


@rule("aten.linear.default")
def linear(site: Site, input: Value, weight: Value, bias: Value | None) -> Value:
    return site("linear", input, weight, bias)


@rule("aten.matmul.default")
def matmul(site: Site, self: Value, other: Value) -> Value:
    """A vector on the left is a row, one on the right a column; that axis is dropped again."""
    left = site.unsqueeze(self, 0) if len(self.shape) == 1 else self
    right = site.unsqueeze(other, 1) if len(other.shape) == 1 else other
    return site.reshape(site("matmul", left, right), site.result.shape)


@rule("aten.mm.default", "aten.bmm.default")
def mm(site: Site, self: Value, mat2: Value) -> Value:
    return site("matmul", self, mat2)


@rule("aten.mv.default")
def mv(site: Site, self: Value, vec: Value) -> Value:
    return matmul(site, self, vec)


@rule("aten.dot.default")
def dot(site: Site, self: Value, tensor: Value) -> Value:
    return matmul(site, self, tensor)


@rule("aten.addmm.default")
def addmm(site: Site, self: Value, mat1: Value, mat2: Value, beta: Any, alpha: Any) -> Value:
    product = site("matmul", mat1, mat2)
    scaled = product if alpha == 1 else site("mul", product, alpha)
    return site("add", scaled, self if beta == 1 else site("mul", self, beta))


@rule("aten.baddbmm.default")
def baddbmm(site: Site, self: Value, batch1: Value, batch2: Value, beta: Any, alpha: Any) -> Value:
    return addmm(site, self, batch1, batch2, beta, alpha)


@rule("aten.outer.default")
def outer(site: Site, self: Value, vec2: Value) -> Value:
    return site("mul", site.unsqueeze(self, 1), vec2)


@rule("aten.embedding.default")
def embedding(site: Site, weight: Value, indices: Value, **training: Any) -> Value:
    return site("embedding", indices, weight)


@rule("aten.einsum.default")
def einsum(site: Site, equation: str, tensors: Sequence[Value], path: Any) -> Value:
    """Two operands without repeated letters or ellipsis: permuted into one batched matrix product and back."""
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow or len(tensors) != 2 or "." in equation or any(len(set(t)) != len(t) for t in (*terms, result)):
        raise Untranslatable(f"einsum {equation!r}")
    return _contract(site, tensors, terms, result)


def _contract(site: Site, tensors: Sequence[Value], terms: Sequence[str], result: str) -> Value:
    first, second = terms
    batch = [c for c in first if c in second and c in result]
    inner = [c for c in first if c in second and c not in result]
    rows, columns = ([c for c in t if c not in other] for t, other in ((first, second), (second, first)))
    if any(c not in result for c in (*rows, *columns)):
        raise Untranslatable("einsum that sums over one operand's axis")
    sizes = {c: size for t, x in zip(terms, tensors, strict=True) for c, size in zip(t, x.shape, strict=True)}

    def grouped(x: Value, term: str, *groups: list[str]) -> Value:
        turned = site.permute(x, [term.index(c) for group in groups for c in group])
        return site.reshape(turned, [product(sizes[c] for c in group) for group in groups])

    a, b = grouped(tensors[0], first, batch, rows, inner), grouped(tensors[1], second, batch, inner, columns)
    order = [*batch, *rows, *columns]
    wide = site.reshape(site("matmul", a, b), [sizes[c] for c in order])
    return site.permute(wide, [order.index(c) for c in result])

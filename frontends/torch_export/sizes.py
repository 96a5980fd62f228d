"""Torch's symbolic sizes as dims: expressions converted, symbols named after the inputs they come from.

The first axis of the first input is `B`, its second axis `S`; any other symbol is called after the argument it was met
at first, as `pixel_values_2`. In an encoder-decoder model `S` belongs to the decoder and the encoder's length is `E`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from operator import add, mul
from typing import Any

import torch

from irx.errors import ExportFailed
from irx.ir.dims import Dim, Range, maximum, minimum, symbol
from irx.ir.dims import names as names_of

_UNBOUNDED = 2**31
_SIGNS = {"LessThan": "<=", "StrictLessThan": "<", "GreaterThan": ">=", "StrictGreaterThan": ">", "Equality": "=="}


class Sizes:
    """The named sizes of one capture. `dim` converts; `ranges` and `relations` are what the program records."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._hints: dict[str, int] = {}
        self._dims: dict[Any, Dim] = {}
        self._environment: Any = None
        self._not_one: set[str] = set()

    def name_axes(
        self, argument: str, shape: Iterable[Any], preferred: Mapping[int, str], *, shared: bool = False
    ) -> None:
        """Name the symbols that are met at an input's axes first; `preferred` gives names for some axes.

        With `shared` a preferred name may be given again to a symbol of the same value: the batch of ids and of their
        mask are one size even where the model would broadcast.
        """
        for axis, size in enumerate(shape):
            if not isinstance(size, torch.SymInt) or not size.node.expr.is_Symbol:
                continue
            text = str(size.node.expr)
            if text in self._names:
                continue
            hint = int(size.node.hint) if size.node.has_hint() else None
            plain = f"{argument}_{axis}"
            self._names[text] = self._free_name(preferred.get(axis, plain), plain, hint, shared)
            if hint is not None:
                self._hints[text] = hint

    def _free_name(self, wanted: str, otherwise: str, hint: int | None, shared: bool) -> str:
        taken = [text for text, name in self._names.items() if name == wanted]
        if not taken or (shared and all(self._hints.get(text) == hint for text in taken)):
            return wanted
        return otherwise

    def dim(self, size: Any) -> Dim:
        """A torch size, plain or symbolic, as a dim. Raises ExportFailed for what no dim can say."""
        if isinstance(size, int):
            return int(size)
        expr = size.node.expr if isinstance(size, (torch.SymInt, torch.SymFloat)) else size
        if isinstance(size, torch.SymInt):
            self._environment = size.node.shape_env or self._environment
        found = self._dims.get(expr)
        if found is None:
            found = self._dims[expr] = self._convert(expr)
        return found

    def shape(self, sizes: Iterable[Any]) -> tuple[Dim, ...]:
        """All sizes of a tensor as dims."""
        return tuple(self.dim(size) for size in sizes)

    def exclude_one(self, name: str) -> None:
        """The graph is wrong where this size is 1."""
        self._not_one.add(name)

    @property
    def hints(self) -> dict[str, int]:
        """The value each named size had at capture."""
        return {self._names.get(text, text): value for text, value in self._hints.items()}

    def ranges(self, limits: Mapping[str, int | None]) -> dict[str, Range]:
        """Bounds of every named size that occurs: torch's, the upper ones narrowed by `limits`.

        Torch's lower bound of 2 stands for 1, as it only says that 1 was not looked at; `exclude_one` keeps it.
        """
        used = sorted(set().union(*(names_of(dim) for dim in self._dims.values()))) if self._dims else []
        known = self._bounds()
        result = {}
        for name in used:
            low, high = known.get(name, (2, None))
            high = min((h for h in (high, limits.get(name)) if h is not None), default=None)
            low = 1 if low == 2 and name not in self._not_one else low
            result[name] = Range(low, high, self.hints.get(name))
        return result

    def relations(self) -> list[str]:
        """What torch had to assume about sizes, as text: `S <= 4*E`. Bounds of one size are in its range instead."""
        guards = getattr(self._environment, "guards", None) or []
        texts = (self._relation(guard.expr) for guard in guards)
        return list(dict.fromkeys(text for text in texts if text))

    def _bounds(self) -> dict[str, tuple[int, int | None]]:
        """Lower and finite upper bounds of bare symbols."""
        ranges = getattr(self._environment, "var_to_range", None) or {}
        bounds = {}
        for sym, bound in ranges.items():
            low, high = (int(b) if b.is_Integer else None for b in (bound.lower, bound.upper))
            name = self._names.get(str(sym), str(sym))
            bounds[name] = (low or 0, high if high is not None and high < _UNBOUNDED else None)
        return bounds

    def _relation(self, guard: Any) -> str | None:
        expr = self._environment.replace(guard)
        sign = _SIGNS.get(expr.func.__name__)
        if sign is None or len(expr.free_symbols) < 2:
            return None
        try:
            left, right = (self._convert(side) for side in expr.args)
        except ExportFailed:
            return None  # a guard about a size that no dim can say restricts nothing that a program can check
        return None if left == right else f"{left} {sign} {right}"

    def _convert(self, expr: Any) -> Dim:
        if expr.is_Integer:
            return int(expr)
        if expr.is_Symbol:
            return symbol(self._names.get(str(expr), str(expr)))
        kind = expr.func.__name__
        if kind == "Mul" and expr.args[0].is_Rational and not expr.args[0].is_Integer:
            return self._fraction(expr)
        convert = _FUNCTIONS.get(kind)
        if convert is None:
            raise ExportFailed(f"a size is computed as {expr}, which IRX cannot express")
        return convert(*(self._convert(argument) for argument in expr.args))

    def _fraction(self, expr: Any) -> Dim:
        """`s/2`, where torch knows that it is whole."""
        coefficient, *rest = expr.args
        product: Dim = reduce(mul, (self._convert(part) for part in rest), int(coefficient.p))
        return product // int(coefficient.q)


def _power(base: Dim, exponent: Dim) -> Dim:
    if not isinstance(exponent, int) or exponent < 0:
        raise ExportFailed(f"a size is computed as {base}**{exponent}, which IRX cannot express")
    return math.prod((base,) * exponent, start=1) if isinstance(base, int) else reduce(mul, (base,) * exponent, 1)


_FUNCTIONS: dict[str, Callable[..., Dim]] = {
    "Add": lambda *parts: reduce(add, parts),
    "Mul": lambda *parts: reduce(mul, parts),
    "Pow": _power,
    "PowByNatural": _power,
    "FloorDiv": lambda a, b: a // b,
    "CleanDiv": lambda a, b: a // b,
    "CeilDiv": lambda a, b: -((-a) // b),
    "Mod": lambda a, b: a % b,
    "PythonMod": lambda a, b: a % b,
    "ModularIndexing": lambda base, divisor, modulus: (base // divisor) % modulus,
    "Identity": lambda a: a,
    "Max": lambda *parts: reduce(maximum, parts),
    "Min": lambda *parts: reduce(minimum, parts),
}

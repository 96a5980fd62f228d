"""Arguments: the parameters of a kernel that is being written, each with what it is bound to, and indices of views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from irx.backends.regions.lowered import Binding, Call, Data
from irx.backends.regions.views import View
from irx.backends.triton.kernel import ALIGNMENT, Kernel, Parameter, Pointer, Size
from irx.backends.triton.writer import Writer
from irx.ir.dims import Dim, SymDim
from irx.ir.graph import Value


@dataclass(frozen=True)
class Launch:
    """How a kernel is started: a grid of texts over its sizes, warps of a program, and how far ahead loops load."""

    grid: tuple[str, ...]
    warps: int
    stages: int = 2


class Arguments:
    """Collects parameters while a template writes a body."""

    def __init__(self) -> None:
        self.parameters: list[Parameter] = []
        self.bindings: dict[str, Binding] = {}
        self._sizes: dict[Dim, str] = {}
        self._pointers: dict[tuple[str, Binding], str] = {}

    def size(self, dim: Dim) -> str:
        """The text of a size: a number as it is, an expression as a parameter, the same for equal expressions."""
        if isinstance(dim, int):
            return str(dim)
        if dim not in self._sizes:
            self._sizes[dim] = self.number(f"n{len(self._sizes)}", dim)
        return self._sizes[dim]

    def number(self, name: str, binding: Binding) -> str:
        """An integer parameter of that name."""
        if name not in self.bindings:
            whole = isinstance(binding, SymDim) and (binding // ALIGNMENT) * ALIGNMENT == binding
            self.parameters.append(Size(name, multiple=ALIGNMENT if whole else 1))
            self.bindings[name] = binding
        return name

    def pointer(self, name: str, dtype: str, binding: Binding) -> str:
        """A buffer parameter of that name, once for each binding; `dtype` is the IR's."""
        if name not in self.bindings:
            self.parameters.append(Pointer(name, dtype))
            self.bindings[name] = binding
        return name

    def tensor(self, value: Value) -> str:
        """The buffer of a tensor of the body."""
        return self.pointer(f"x_{value.name}", value.dtype, Data(value))

    def index(self, view: View, places: Sequence[str]) -> str:
        """The element of a view at `places`, an axis of size 1 at its only place; fewer places than axes end early."""
        terms = []
        for place, size, stride in zip(places, view.shape, view.strides, strict=False):
            if size != 1 and stride != 0 and place != "0":
                terms.append(times(place, self.size(stride)))
        return total(*terms, self.size(view.offset))

    def call(self, name: str, w: Writer, launch: Launch, note: str) -> Call:
        """The call of the kernel with the body that `w` has collected."""
        kernel = Kernel(
            name,
            tuple(self.parameters),
            w.text(),
            grid=launch.grid,
            warps=launch.warps,
            stages=launch.stages,
            note=note,
        )
        return Call(kernel, {p.name: self.bindings[p.name] for p in kernel.parameters})


def times(*factors: str) -> str:
    """The product of texts, with ones left out."""
    kept = [factor for factor in factors if factor != "1"]
    if "0" in kept:
        return "0"
    return " * ".join(f"({factor})" if " " in factor else factor for factor in kept) or "1"


def total(*terms: str) -> str:
    """The sum of texts, with zeros left out."""
    return " + ".join(term for term in terms if term != "0") or "0"

"""Arguments: the parameters of a kernel that is being written, each with what it is bound to."""

from __future__ import annotations

from irx.backends.regions.lowered import Binding, Call
from irx.backends.tvm.kernel import Kernel, Parameter, Pointer, Size
from irx.backends.tvm.writer import Writer
from irx.ir.dims import Dim


class Arguments:
    """Collects parameters while a template writes a body."""

    def __init__(self) -> None:
        self.parameters: list[Parameter] = []
        self.bindings: dict[str, Binding] = {}
        self._sizes: dict[Dim, str] = {}

    def size(self, dim: Dim) -> str:
        """The text of a size: a number as it is, an expression as a parameter, the same for equal expressions."""
        if isinstance(dim, int):
            return f"T.int64({dim})"
        if dim not in self._sizes:
            self._sizes[dim] = self.number(f"n{len(self._sizes)}", dim)
        return self._sizes[dim]

    def number(self, name: str, binding: Binding) -> str:
        """An i64 parameter of that name."""
        self.parameters.append(Size(name))
        self.bindings[name] = binding
        return name

    def pointer(self, name: str, dtype: str, binding: Binding) -> str:
        """A buffer parameter of that name; `dtype` as TIR spells it."""
        if name not in self.bindings:
            self.parameters.append(Pointer(name, dtype))
            self.bindings[name] = binding
        return name

    def call(self, name: str, w: Writer, note: str, *, llvm: str = "", aliases: bool = False) -> Call:
        """The call of the kernel with the body that `w` has collected."""
        return Call(Kernel(name, tuple(self.parameters), w.text(), llvm, note, aliases), self.bindings)


def times(*factors: str) -> str:
    """The product of texts of sizes, with zeros and ones left out."""
    if "T.int64(0)" in factors:
        return "T.int64(0)"
    kept = [f for f in factors if f != "T.int64(1)"]
    return " * ".join(f"({f})" if " " in f else f for f in kept) or "T.int64(1)"


def total(*terms: str) -> str:
    """The sum of texts, with zeros left out."""
    return " + ".join(t for t in terms if t != "T.int64(0)") or "T.int64(0)"


def whole(w: Writer, value: str) -> str:
    """An i64 computed once, in a register: TVM's simplifier looks into lets, which takes long where they build up."""
    return w.register(value, dtype="int64", lanes=1)

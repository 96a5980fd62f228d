"""What kernels that choose tokens share: a kernel over the elements of a result, a block of them in each program."""

from __future__ import annotations

from irx.backends.regions.lowered import Call, Data
from irx.backends.triton.templates.attention_arguments import Arguments, Launch
from irx.backends.triton.writer import Writer
from irx.ir.graph import Value

BLOCK = 256


class Elements:
    """A kernel that is being written: `i` are the numbers of a program's elements, `mask` those that there are."""

    def __init__(self, count: str, arguments: Arguments, block: int = BLOCK) -> None:
        self.w, self.arguments, self.block = Writer(), arguments, block
        self.count = count
        self.w(f"i = tl.program_id(0).to(tl.int64) * {block} + tl.arange(0, {block})")
        self.w(f"mask = i < {count}")

    def call(self, name: str, note: str) -> Call:
        """The call of the kernel."""
        return self.arguments.call(name, self.w, Launch((f"ceil({self.count}, {self.block})",), 4), note)


def pointers(arguments: Arguments, **values: Value | None) -> list[Value]:
    """Pointer parameters for operands and results, by their names."""
    found = []
    for name, value in values.items():
        assert value is not None, f"{name} is missing"
        arguments.pointer(name, value.dtype, Data(value))
        found.append(value)
    return found

"""The op for everything the compiler does not know: a function of torch, called as it was captured."""

from __future__ import annotations

from irx.errors import NoReference
from irx.ir.dims import Dim
from irx.ir.opdef import Array, Attr, OpDef
from irx.ir.types import TensorType, Type


class TorchCall(OpDef):
    """torch's function `target`, as "aten.histc.default", on the operands; results as `results` says.

    `args` and `kwargs` are the captured arguments, kwargs as (name, value) pairs, with `Operand(i)` in place of operand
    i and dtypes as "torch.float32". Counted as pure: a frontend captures functional graphs only. It has no numpy
    reference; an evaluation that meets it needs a way to call torch.
    """

    name = "torch.call"

    @staticmethod
    def infer(
        *xs: TensorType,
        target: str,
        args: tuple[Attr, ...] = (),
        kwargs: tuple[tuple[str, Attr], ...] = (),
        results: tuple[TensorType, ...],
    ) -> tuple[Type, ...]:
        return tuple(results)

    @staticmethod
    def reference(*xs: Array, target: str, **_attrs: object) -> Array:
        raise NoReference(target)

    @staticmethod
    def flops(*xs: TensorType, target: str, **_attrs: object) -> Dim:
        return 0

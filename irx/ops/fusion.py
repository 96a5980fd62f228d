"""The op that a fused region is: one node for many, which a backend makes one kernel (or a few) of."""

from __future__ import annotations

from irx.errors import NoReference, TypeRuleError
from irx.ir.dims import Dim
from irx.ir.graph import Graph
from irx.ir.opdef import Array, OpDef
from irx.ir.types import KVType, TensorType, Type


class Fusion(OpDef):
    """The results of `body`, a graph of ordinary nodes, on the operands, which are its inputs in order.

    Operands are tensors and KV states, weights among them (packed ones too), so that equal layers share one body;
    literals stand in the body. A state that the body replaces is replaced. The oracle evaluates the body node by node.
    """

    name = "fusion"

    @staticmethod
    def infer(*operands: TensorType | KVType, body: Graph) -> tuple[Type, ...]:
        if len(operands) != len(body.inputs):
            raise TypeRuleError(f"@{body.name} takes {len(body.inputs)} operands, got {len(operands)}")
        for value, operand in zip(body.inputs, operands, strict=True):
            if value.type != operand:
                raise TypeRuleError(f"@{body.name} takes {value.type} as %{value.name}, got {operand}")
        return tuple(value.type for value in body.outputs)

    @staticmethod
    def reference(*operands: Array, body: Graph) -> Array:
        raise NoReference(f"fusion @{body.name}")

    @staticmethod
    def flops(*operands: TensorType | KVType, body: Graph) -> Dim:
        total: Dim = 0
        for node in body.nodes:
            types = [value.type if value is not None else None for value in node.inputs]
            total = total + node.op.flops(*types, **node.attrs)
        return total

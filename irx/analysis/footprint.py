"""How many bytes a program has to hold: its weights, and one row of its caches."""

from __future__ import annotations

from irx.ir.codes import tailed
from irx.ir.dims import evaluate
from irx.ir.opdef import tensor_bytes
from irx.ir.program import Program
from irx.ir.types import KVType, item_bytes
from irx.ops.cache import kv_length


def footprint(program: Program, tokens: int) -> int:
    """Bytes of all weights that a graph reads, and of the states of one row of `tokens` tokens."""
    return weight_bytes(program) + sum(state_bytes(kv, tokens) for kv in _states(program))


def weight_bytes(program: Program) -> int:
    """Bytes of all weights that a graph reads, as they are stored."""
    return sum(int(str(tensor_bytes(weight.tensor))) for weight in program.used_weights())


def state_bytes(kv: KVType, tokens: int) -> int:
    """Bytes that a state holds of a row of `tokens` tokens: none for those that windows or evictions let go."""
    held = evaluate(kv_length(kv), {"T": tokens})
    code = tailed(kv.code)
    plain = min(held, code.tail) if code is not None else 0  # the newest tokens, as they are
    raw = (kv.heads * kv.k_dim + kv.value_heads * kv.v_dim) * item_bytes(kv.dtype)
    return round((held - plain) * kv.bytes_per_token + plain * raw)


def _states(program: Program) -> list[KVType]:
    """The states of the graph that has most of them, each counted where it is held."""
    graphs = [[v.type for v in graph.inputs if isinstance(v.type, KVType)] for graph in program.graphs.values()]
    return [kv for kv in max(graphs, key=len, default=[]) if kv.shared_with is None]

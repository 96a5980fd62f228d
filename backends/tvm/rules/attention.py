"""Regions around attention: heads are prepared by one kernel, then attended to with split keys or in blocks of queries.

Few queries (a decode step) share the keys among threads; many (a prompt) are divided among them. Attention without a
state lays its keys and values out as a state does, in temporaries.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from irx.backends.regions.attention_region import Append, Attend, Region, parse
from irx.backends.regions.lowered import (
    Binding,
    Call,
    Capacity,
    Case,
    Choices,
    Data,
    Lowered,
    Refusal,
    StatePart,
    Temporary,
)
from irx.backends.tvm.templates.append import Plain, Queries, Stored, Work, prepare
from irx.backends.tvm.templates.attention_bias import Bias, prepare_bias
from irx.backends.tvm.templates.attention_blocks import blocks
from irx.backends.tvm.templates.attention_form import BLOCK, KEYS, Form, instructions, packs, registers
from irx.backends.tvm.templates.attention_kernel import Sources
from irx.backends.tvm.templates.attention_split import split
from irx.backends.tvm.templates.attention_storage import STORAGES, Storage, Tailed, storage_of
from irx.backends.tvm.templates.pages import Pages
from irx.backends.tvm.templates.recent import Recent, encode, recall
from irx.ir.codes import tailed
from irx.ir.dims import Dim
from irx.ir.graph import Graph, Value
from irx.ir.types import KVType, TensorType
from irx.target import Device

FEW = 8  # queries whose keys are split among threads
LARGEST_HEAD = 512


def rule(body: Graph, choices: Choices) -> Lowered | None:
    """Kernels of a region with attention, appends to a cache, or rope."""
    region = parse(body)
    if region is None:
        return None
    if any(isinstance(value.type, TensorType) and value.dtype == "f16" for value in body.inputs):
        raise Refusal("tensors of f16")
    return _Lowering(region, choices).lowered()


@dataclass(frozen=True)
class _Lowering:
    region: Region
    choices: Choices

    def lowered(self) -> Lowered:
        attend = self.region.attend
        if attend is None:
            return Lowered((Case((prepare(self._stored() + self._rotated()),)),), "rope and append")
        length = attend.q.view.shape[2]
        if attend.kv is not None and tailed(attend.kv.code) is not None and length != 1:
            one = Case(self._calls(attend, few=True), length, 1)
            return Lowered((one, Case(self._mixed(attend))), "attention to codes and to the newest tokens, in blocks")
        few = Case(self._calls(attend, few=True), length, FEW)
        if isinstance(length, int) and length <= FEW:
            return Lowered((Case(few.calls),), "attention, keys split among threads")
        many = Case(self._calls(attend, few=False))
        return Lowered((few, many), "attention in blocks; keys split among threads for few queries")

    def _calls(self, attend: Attend, *, few: bool) -> tuple[Call, ...]:
        device = self.choices.device
        form = _form(attend, device, FEW if few else _queries(attend), few)
        target = Temporary("q", _query_bytes(attend, form))
        bias = prepare_bias(attend.mask, attend.bias)
        sources = self._sources(attend, target, bias)
        works = [Queries(attend.q, form, target), *self._stored(), *self._own(attend), *self._rotated()]
        last = split(form, sources) if few else (blocks(form, sources, _queries(attend)),)
        return (prepare(works), *(() if bias is None else (bias.call,)), *last)

    def _mixed(self, attend: Attend) -> tuple[Call, ...]:
        """Many tokens for a state with a tail, whose attention reads what they take the place of."""
        recent, queries = self._recent(attend), 2 * _queries(attend)
        form = _form(attend, self.choices.device, queries, few=False, storage=recent.plain)
        target = Temporary("q", _query_bytes(attend, form))
        sources = replace(self._sources(attend, target, None), recent=recent)
        append = self.region.append
        assert append is not None
        works: list[Work] = [Queries(attend.q, form, target)]
        for part, heads in (("k", append.k), ("v", append.v)):
            works.append(Stored(heads, part, recent.plain, recent.parts, recent.slots, append.positions, recent=recent))
            works.append(
                Stored(heads, part, recent.store, recent.state, recent.capacity, append.positions, recent=recent)
            )
        works += self._rotated()
        return (recall(recent), prepare(works), encode(recent), blocks(form, sources, queries))

    def _recent(self, attend: Attend) -> Recent:
        append = self.region.append
        if append is None or attend.positions is None:
            raise Refusal("attention of many tokens to codes with a tail, apart from their append")
        _check_state(append.kv)
        store = _storage(append.kv)
        assert isinstance(store, Tailed)
        return Recent(
            store=store,
            batch=attend.q.view.shape[0],
            length=attend.q.view.shape[2],
            heads=append.k.count,
            k_dim=append.k.size,
            v_dim=append.v.size,
            positions=Data(attend.positions.base),
            state=_state_parts(append.state, append.kv),
            capacity=Capacity(append.state),
        )

    def _stored(self) -> list[Work]:
        """Keys and values that go into a state."""
        append = self.region.append
        if append is None:
            return []
        _check_state(append.kv)
        if self.region.attend is None:
            _check_count(append.kv, append.k.view.shape[2])
        parts = _state_parts(append.state, append.kv)
        return [_work(append, part, parts) for part in ("k", "v")]

    def _own(self, attend: Attend) -> list[Work]:
        """Keys and values of plain attention, into temporaries."""
        if attend.k is None or attend.v is None:
            return []
        parts, capacity = _own_parts(attend), _own_capacity(attend)
        storage = STORAGES[attend.k.dtype]
        pairs = (("k", attend.k), ("v", attend.v))
        return [Stored(heads, part, storage, parts, capacity, None) for part, heads in pairs]

    def _rotated(self) -> list[Work]:
        found = self.region.rotated
        return [Plain(heads, Data(result.value), result.strides) for heads, result in found]

    def _sources(self, attend: Attend, target: Temporary, bias: Bias | None) -> Sources:
        result = self.region.result
        assert result is not None
        batch, _, length, _ = attend.q.view.shape
        parts: dict[str, Binding]
        capacity: Binding
        if attend.state is not None:
            assert attend.kv is not None and attend.positions is not None
            _check_state(attend.kv)
            parts, capacity, keys = _state_parts(attend.state, attend.kv), Capacity(attend.state), None
        else:
            assert attend.k is not None
            parts, capacity, keys = _own_parts(attend), _own_capacity(attend), attend.k.view.shape[2]
        return Sources(
            batch=batch,
            length=length,
            capacity=capacity,
            q=target,
            parts=parts,
            out=Data(result.value),
            out_dtype=result.value.dtype,
            out_strides=result.strides,
            positions=None if attend.positions is None else Data(attend.positions.base),
            keys=keys,
            prefix=_prefix_numbers(attend),
            pages=None if attend.state is None or attend.kv is None else _pages(attend.state, attend.kv),
            table=None if attend.table is None else (Data(attend.table), attend.table.dtype),
            sinks=None if attend.sinks is None else (Data(attend.sinks), attend.sinks.dtype),
            bias=None if bias is None else bias.buffer,
            bias_strides=(0, 0, 0) if bias is None else bias.strides,
            bias_width=0 if bias is None else bias.width,
        )


def _work(append: Append, part: str, parts: dict[str, Binding]) -> Work:
    heads = append.k if part == "k" else append.v
    pages = _pages(append.state, append.kv)
    return Stored(heads, part, _storage(append.kv), parts, Capacity(append.state), append.positions, pages)


def _check_state(kv: KVType) -> None:
    if kv.layout != "blocked":
        raise Refusal(f"the cache is {kv.layout}: kernels read blocks of 16 tokens (lay-out-cache)")
    store = _storage(kv)
    if isinstance(store, Tailed):
        _check_tailed(store, kv)
    if kv.page is not None and kv.page % KEYS:
        raise Refusal(f"pages of {kv.page} slots: kernels read {KEYS} keys at once")
    if kv.heads != kv.value_heads:
        raise Refusal("different numbers of key and value heads")


def _check_count(kv: KVType, tokens: Dim) -> None:
    if tailed(kv.code) is not None and tokens != 1:
        raise Refusal("more than one token at a time for codes with a tail: torch divides what each of them sees")


def _check_tailed(store: Tailed, kv: KVType) -> None:
    whole = store.group % BLOCK == 0 and (KEYS % store.group == 0 or store.group % KEYS == 0)
    if store.tail % KEYS or not whole or store.dtype not in ("f32", "bf16"):
        raise Refusal(f"groups of {store.group} behind a tail of {store.tail} tokens of {store.dtype}")
    if kv.k_dim % store.channels or kv.k_dim % BLOCK or kv.v_dim % store.group:
        raise Refusal(f"heads of {kv.k_dim} and {kv.v_dim} channels, which are no whole words of {store.name}")


def _state_parts(state: Value, kv: KVType) -> dict[str, Binding]:
    names = _storage(kv).arrays
    shared = [f"prefix_{name}" for name in names] if kv.prefix else []
    return {name: StatePart(state, name) for name in (*names, *shared)}


def _pages(state: Value, kv: KVType) -> Pages | None:
    """How kernels find the slots of a state that lie in pages."""
    return None if kv.page is None else Pages(StatePart(state, "pages"), Capacity(state, "columns"), kv.page)


def _prefix_numbers(attend: Attend) -> tuple[Binding, Binding] | None:
    """How long the prefix of a state is, and how many slots it has."""
    if attend.kv is None or attend.state is None or not attend.kv.prefix:
        return None
    if attend.window is not None or attend.table is not None:
        raise Refusal("distances to the tokens of a prefix, which slots do not tell")
    return Capacity(attend.state, "prefix_length"), Capacity(attend.state, "prefix_capacity")


def _storage(kv: KVType) -> Storage:
    found = storage_of(kv)
    if found is None:
        raise Refusal(f"a cache stored as {kv.storage}")
    return found


def _own_capacity(attend: Attend) -> Dim:
    assert attend.k is not None
    return (attend.k.view.shape[2] + (KEYS - 1)) // KEYS * KEYS


def _own_parts(attend: Attend) -> dict[str, Binding]:
    """Temporaries that hold keys and values of plain attention as a state would."""
    assert attend.k is not None and attend.v is not None
    slots = attend.k.view.shape[0] * attend.k.count * _own_capacity(attend)
    size = 4 if attend.k.dtype == "f32" else 2
    k_width, v_width = -(-attend.k.size // 2) * 2, -(-attend.v.size // 16) * 16
    return {"k": Temporary("keys", slots * k_width * size), "v": Temporary("values", slots * v_width * size)}


def _form(attend: Attend, device: Device, queries: int, few: bool, storage: Storage | None = None) -> Form:
    groups, v_dim, own = _keys(attend)
    storage = storage or own
    if attend.q.count % groups:
        raise Refusal(f"{attend.q.count} query heads for {groups} KV heads")
    if max(attend.q.size, v_dim) > LARGEST_HEAD:
        raise Refusal(f"heads of more than {LARGEST_HEAD} channels")
    if attend.table is not None and (attend.table.dtype != "f32" or not isinstance(attend.table.shape[1], int)):
        raise Refusal(f"a table of biases {attend.table.type}")
    shared = attend.q.count // groups
    together = shared if few and not (attend.kv is not None and attend.kv.prefix) else shared * queries
    rows, wide, vectors = registers(device, together, v_dim)  # rows of the batch meet a prefix together
    return Form(
        store=storage,
        heads=attend.q.count,
        groups=groups,
        k_dim=attend.q.size,
        v_dim=v_dim,
        scale=attend.scale,
        dot=instructions(storage, device),
        rows=rows,
        blocks=wide,
        vectors=vectors,
        window=attend.window,
        first=attend.first,
        softcap=attend.softcap,
        causal=attend.causal,
        table=0 if attend.table is None else int(attend.table.shape[1]),  # type: ignore[arg-type]
        sinks=attend.sinks is not None,
        packs=packs(storage, device),
        prefix=attend.kv is not None and attend.kv.prefix,
        biased=attend.mask is not None or attend.bias is not None,
    )


def _keys(attend: Attend) -> tuple[int, int, Storage]:
    """(KV heads, channels of a value, how they are stored)."""
    if attend.kv is not None:
        return attend.kv.heads, attend.kv.v_dim, _storage(attend.kv)
    assert attend.k is not None and attend.v is not None
    if attend.k.dtype != attend.v.dtype or attend.k.count != attend.v.count:
        raise Refusal("keys and values of different dtypes or numbers of heads")
    return attend.k.count, attend.v.size, STORAGES[attend.k.dtype]


def _queries(attend: Attend) -> int:
    """Queries of a block: with all heads that share a KV head they are about 48 rows."""
    return max(1, 48 * _keys(attend)[0] // attend.q.count)


def _query_bytes(attend: Attend, form: Form) -> Dim:
    batch, heads, length, _ = attend.q.view.shape
    return (batch * heads * length + form.rows) * (form.q_width * 4)

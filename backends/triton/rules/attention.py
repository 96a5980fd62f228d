"""Regions around attention: few queries in one kernel that divides the tokens, many in blocks after an append.

A decode step is a single kernel: heads are rotated where they are read, and new tokens are written by the program that
reads them. For a prompt one kernel appends, another attends. Keys of a plain attention that are rotated or normalised
go through a temporary; everything else is read where the projections left it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from irx.backends.regions.attention_region import Append, Attend, Heads, Region, parse
from irx.backends.regions.lowered import Call, Case, Choices, Data, Lowered, Refusal, Temporary
from irx.backends.regions.views import View, row_major
from irx.backends.triton.templates import append, attention_decode, attention_flash
from irx.backends.triton.templates.append import Target, append_call, heads_call
from irx.backends.triton.templates.append_prompt import codes_call, ring_call
from irx.backends.triton.templates.attention_decode import Decode, decode_calls
from irx.backends.triton.templates.attention_flash import Flash, flash_call, result_channels
from irx.backends.triton.templates.attention_logits import Form
from irx.backends.triton.templates.attention_storage import Rows, Slots, sides
from irx.backends.triton.templates.attention_tailed import Fresh, TailedKeys, TailedValues, tailed_sides
from irx.ir.codes import CODES, tailed
from irx.ir.graph import Graph
from irx.ir.types import KVType, item_bytes

FEW = 4  # queries whose tokens are divided among programs
MOST_ROWS = 64  # of a program: queries of all heads that share a KV head
LARGEST_HEAD = 512
WIDE = 64  # channels above which blocks of queries are rotated by a kernel before, for want of registers


def rule(body: Graph, choices: Choices) -> Lowered | None:
    """Kernels of a region with attention, appends to a cache, or rope."""
    region = parse(body)
    if region is None:
        return None
    return _Lowering(region, choices).lowered()


@dataclass(frozen=True)
class _Lowering:
    region: Region
    choices: Choices

    def lowered(self) -> Lowered:
        attend = self.region.attend
        if self.region.append is not None:
            _check_state(self.region.append.kv)
        if not self._divides(attend):
            raise Refusal("more than one token at a time for codes with a tail, appended and attended to apart")
        if attend is None:
            return Lowered((Case((*self._appended(), *self._rotated())),), "rope and append")
        length = attend.q.view.shape[2]
        most = length if isinstance(length, int) else FEW
        if _is_tailed(attend.kv) and length != 1:
            return Lowered((self._prompt(attend),), "attention in blocks, to codes and to what is none yet")
        if attend.state is None or most > FEW or most * _shared(attend) > MOST_ROWS:
            return Lowered((self._many(attend),), "attention in blocks")
        few = Case((*self._rotated(), *self._decode(attend, most)), length, most)
        if isinstance(length, int):
            return Lowered((Case(few.calls),), "attention, tokens divided among programs")
        note = "attention in blocks; tokens divided among programs for few queries"
        return Lowered((few, self._many(attend)), note)

    def _divides(self, attend: Attend | None) -> bool:
        """Whether what each token sees of codes with a tail can be told: of one, or of those appended here."""
        append = self.region.append
        kv = append.kv if append is not None else attend.kv if attend is not None else None
        if not _is_tailed(kv):
            return True
        if append is None or attend is None:
            heads = append.k if append is not None else attend.q if attend is not None else None
            return heads is not None and heads.view.shape[2] == 1
        return append.positions == attend.positions

    def _prompt(self, attend: Attend) -> Case:
        """Any number of tokens to codes with a tail, and their queries."""
        append = self.region.append
        assert append is not None
        sides, before = [], []
        for name, heads, side in zip(("keys", "values"), (append.k, append.v), _tailed(append), strict=True):
            length, size = heads.view.shape[2], int(item_bytes(side.dtype))
            buffer = Temporary(f"fresh_{name}", heads.view.shape[0] * heads.count * length * heads.size * size)
            strides = row_major((*heads.view.shape[:3], heads.size))
            before.append(self._heads(heads, Target("out", side.dtype, buffer, strides)))
            sides.append(replace(side, fresh=Fresh(buffer, append.positions, length)))
        keys, values = sides
        assert isinstance(keys, TailedKeys) and isinstance(values, TailedValues)
        form = replace(_state_form(attend), keys=keys, values=values)
        attention = self._flash(attend, form)
        codes, ring = codes_call(append, keys, values), ring_call(append, keys, values)
        return Case((*before, *self._rotated(), codes, *attention, ring))

    def _many(self, attend: Attend) -> Case:
        """Any number of queries."""
        return Case((*self._appended(), *self._rotated(), *self._flash(attend, None)))

    def _appended(self) -> tuple[Call, ...]:
        """Keys and values into their state."""
        found = self.region.append
        if found is None:
            return ()
        schedule = self.choices.schedule("append", _bucket(found.k, found.kv), append.defaults(found.k.size))
        return (append_call(found, schedule),)

    def _rotated(self) -> tuple[Call, ...]:
        """Heads that are results."""
        return tuple(
            self._heads(heads, Target("out", result.value.dtype, Data(result.value), result.strides))
            for heads, result in self.region.rotated
        )

    def _heads(self, heads: Heads, target: Target) -> Call:
        schedule = self.choices.schedule("append", _bucket(heads), append.defaults(heads.size))
        return heads_call(heads, target, schedule)

    def _decode(self, attend: Attend, most: int) -> tuple[Call, ...]:
        form, result = _state_form(attend), self.region.result
        assert result is not None and isinstance(attend.kv, KVType)
        item = int(item_bytes(form.keys.storage.dtype if isinstance(form.keys, Slots) else "f32"))
        cores = self.choices.device.cores
        chosen = self.choices.schedule(
            "attention_decode",
            f"{_bucket(attend.q, attend.kv)} rows{most}",
            attention_decode.defaults(cores, form.groups, max(form.keys.width, form.values.width), item),
        )
        knobs = {name: int(chosen[name]) for name in attention_decode.KNOBS}
        return decode_calls(Decode(form, self.region.append, result, most, **knobs))

    def _flash(self, attend: Attend, form: Form | None) -> tuple[Call, ...]:
        """In blocks; the form is what it is for the state, unless given."""
        result = self.region.result
        assert result is not None
        before: tuple[Call, ...] = ()
        if attend.state is None:
            form, before = self._plain_form(attend)
        elif form is None:
            if _is_tailed(attend.kv):
                raise Refusal(f"{_shared(attend)} query heads of a KV head, and codes with a tail")
            form = _state_form(attend)
        sizes = (attend.q.size, result_channels(form), int(item_bytes(form.dtype)))
        coded = isinstance(form.keys, Slots) and form.keys.storage.bits > 0
        mixed = isinstance(form.keys, TailedKeys)
        chosen = self.choices.schedule(
            "attention_flash",
            f"{_bucket(attend.q, attend.kv)}{' causal' if attend.causal else ''}",
            attention_flash.mixed_defaults(*sizes) if mixed else attention_flash.defaults(*sizes, coded),
        )
        knobs = {name: int(chosen[name]) for name in attention_flash.KNOBS}
        keys = None if attend.k is None else attend.k.view.shape[2]
        prepared = None
        if form.keys.width > WIDE and (attend.q.rotation is not None or attend.q.norm is not None):
            prepared = self._temporary("queries", attend.q)
            before = (*before, self._prepared(attend.q, prepared))
        return (*before, flash_call(Flash(form, result, keys, prepared, **knobs)))

    def _plain_form(self, attend: Attend) -> tuple[Form, tuple[Call, ...]]:
        """The form of attention to keys of its own, and what prepares them."""
        assert attend.k is not None and attend.v is not None
        if attend.k.dtype != attend.v.dtype or attend.k.count != attend.v.count:
            raise Refusal("keys and values of different dtypes or numbers of heads")
        _check(attend, attend.k.count, attend.v.size)
        view = attend.k.view
        before: tuple[Call, ...] = ()
        if attend.k.rotation is not None or attend.k.norm is not None:
            shape = (*view.shape[:3], attend.k.size)
            buffer = self._temporary("keys", attend.k)
            before = (self._prepared(attend.k, buffer),)
            view = View(view.base, shape, row_major(shape))
            keys = Rows(view, attend.k.size, buffer, attend.k.dtype)
        else:
            keys = Rows(view, attend.k.size)
        form = Form(attend, keys, Rows(attend.v.view, attend.v.size), attend.k.count, attend.k.dtype)
        return form, before

    def _temporary(self, name: str, heads: Heads) -> Temporary:
        """Room for heads [B, H, S, D]."""
        rows = heads.view.shape[0] * heads.view.shape[1] * heads.view.shape[2]
        return Temporary(name, rows * heads.size * int(item_bytes(heads.dtype)))

    def _prepared(self, heads: Heads, buffer: Temporary) -> Call:
        """Heads, normalised and rotated, in a temporary."""
        strides = row_major((*heads.view.shape[:3], heads.size))
        return self._heads(heads, Target("out", heads.dtype, buffer, strides))


def _state_form(attend: Attend) -> Form:
    kv, state = attend.kv, attend.state
    assert kv is not None and state is not None
    _check_state(kv)
    _check(attend, kv.heads, kv.v_dim)
    if kv.prefix and (attend.window is not None or attend.table is not None):
        raise Refusal("distances to the tokens of a prefix, which slots do not tell")
    keys, values = tailed_sides(state, kv) or sides(state, kv)
    stored = keys.storage.dtype if isinstance(keys, Slots) else keys.dtype
    coded = isinstance(keys, Slots) and keys.storage.bits > 0
    dtype = attend.q.dtype if coded or stored == attend.q.dtype else "f32"
    return Form(attend, keys, values, kv.heads, dtype)


def _is_tailed(kv: KVType | None) -> bool:
    return kv is not None and tailed(kv.code) is not None


def _tailed(append: Append) -> tuple[TailedKeys, TailedValues]:
    """Both sides of a state of codes with a tail."""
    found = tailed_sides(append.state, append.kv)
    assert found is not None
    return found


def _check_state(kv: KVType) -> None:
    from irx.runtime.kv_planes import LAYOUTS, ROUND

    if kv.layout not in LAYOUTS:
        raise Refusal(f"a cache in the layout {kv.layout}")
    if kv.prefix and kv.page is not None:
        raise Refusal("a cache in pages behind a prefix that rows share")
    if kv.page is not None and kv.layout == "blocked" and kv.page % ROUND:
        raise Refusal(f"pages of {kv.page} slots in blocks")
    known = tailed(kv.code) is not None or kv.code in CODES
    if not known and (kv.code is not None or kv.dtype not in ("f32", "f16", "bf16", "i8")):
        raise Refusal(f"a cache stored as {kv.storage}")
    if kv.heads != kv.value_heads:
        raise Refusal("different numbers of key and value heads")


def _check(attend: Attend, groups: int, value_channels: int) -> None:
    if attend.q.count % groups:
        raise Refusal(f"{attend.q.count} query heads for {groups} KV heads")
    if max(attend.q.size, value_channels) > LARGEST_HEAD:
        raise Refusal(f"heads of more than {LARGEST_HEAD} channels")
    if attend.table is not None and not isinstance(attend.table.shape[1], int):
        raise Refusal(f"a table of biases {attend.table.type}")


def _shared(attend: Attend) -> int:
    assert attend.kv is not None
    return attend.q.count // attend.kv.heads


def _bucket(heads: Heads, kv: KVType | None = None) -> str:
    """What schedules are kept by."""
    state = "" if kv is None else f" {kv.layout} {kv.storage}{_where(kv)}"
    groups = "" if kv is None else f"/{kv.heads}"
    return f"{heads.dtype} {heads.count}{groups}x{heads.size}{state}"


def _where(kv: KVType) -> str:
    """What a bucket says of where tokens lie."""
    return (" prefix" if kv.prefix else "") + ("" if kv.page is None else f" pages{kv.page}")

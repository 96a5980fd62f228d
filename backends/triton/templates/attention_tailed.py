"""States of codes in groups with a tail (`irx.runtime.kv_tailed`), as kernels of single steps read them.

Tiles are numbers here: steps and lowest values belong to channels of a group of keys and to groups of channels of a
value, so they are applied to codes one by one. A side is read as codes, or, `recent`, as whole tokens: from its ring,
and in a prompt (`Fresh`), whose tokens do not fit the ring, from where the prompt's own lie.
"""

from __future__ import annotations

from dataclasses import dataclass

from irx.backends.regions.lowered import Capacity, Refusal, StatePart, Temporary
from irx.backends.regions.views import View
from irx.backends.triton.templates.attention_arguments import Arguments
from irx.backends.triton.templates.attention_places import Beside, Head, Tokens
from irx.backends.triton.templates.attention_storage import width_of
from irx.backends.triton.writer import ELEMENTS, Writer
from irx.ir.codes import TailedCode, tailed
from irx.ir.dims import Dim
from irx.ir.graph import Value
from irx.ir.types import KVType

BLOCK = 16  # keys beside each other, and bytes of values that hold neighbours


@dataclass(frozen=True)
class Fresh:
    """Tokens of this call, as they are: a buffer [B, G, S, channels] of the state's dtype, at `positions` [B, S].

    Kernels that read them have named `b`, and `shift`, by which columns of the row are ahead of positions.
    """

    buffer: Temporary
    positions: View
    length: Dim

    def emit_shift(self, w: Writer, arguments: Arguments, b: str = "b") -> None:
        """Write `shift`: padding is at one end of a row, so one of its ends has a token, if it has any."""
        length = arguments.size(self.length)
        first, last = (w.let(self._position(arguments, b, s, ""), "end") for s in ("0", f"({length} - 1)"))
        w(f"shift = tl.where({first} >= 0, 0 - {first}, {length} - 1 - {last}).to(tl.int32)")

    def emit_columns(self, w: Writer, arguments: Arguments, tokens: Tokens, b: str = "b") -> tuple[str, str]:
        """(columns, where tokens are of this call), both of the tokens' shape."""
        column = w.let(f"{tokens.slot} + shift", "column")
        inside = w.let(f"{tokens.mask} & ({column} >= 0) & ({column} < {arguments.size(self.length)})", "inside")
        found = self._position(arguments, b, column, f", mask={inside}, other=-1")
        return column, w.let(f"{inside} & ({found} == {tokens.slot})", "new")

    def _position(self, arguments: Arguments, b: str, s: str, mask: str) -> str:
        place = arguments.index(self.positions, (b, s))
        return f"tl.load({arguments.tensor(self.positions.base)} + {place}{mask})"


@dataclass(frozen=True)
class _Side:
    """What keys and values have in common: `channels` of `heads`, whose ring is of `dtype`."""

    state: Value
    heads: int
    channels: int
    code: TailedCode
    dtype: str
    recent: bool = False
    fresh: Fresh | None = None

    @property
    def per(self) -> int:
        """Channels of a byte."""
        return 8 // self.code.bits

    @property
    def width(self) -> int:
        """Channels of a tile."""
        raise AssertionError

    def head(self, w: Writer, arguments: Arguments, b: str, g: str) -> Head:
        """The number of a head among those of all rows."""
        return Beside(w.let(f"({b} * {self.heads} + {g}).to(tl.int64)", "head"))

    def pointer(self, arguments: Arguments, name: str, dtype: str) -> str:
        """An array of the state."""
        return arguments.pointer(f"{name}_slots", dtype, StatePart(self.state, name))

    def ring(self, w: Writer, arguments: Arguments, first: str, slot: str, d: str) -> str:
        """Where channels [1, width] of tokens [T, 1] are in the ring."""
        raise AssertionError

    def whole(self, w: Writer, arguments: Arguments, first: str, column: Tokens, d: str, dtype: str) -> str:
        """Tokens [T, 1], as they are, as a tile [T, width]."""
        inside = f"{column.mask} & ({d} < {self.channels})"
        if self.fresh is None:
            place = self.ring(w, arguments, first, column.slot, d)
            return w.let(f"tl.load({place}, mask={inside}, other=0.0).to({ELEMENTS[dtype]})", "tile")
        number, new = self.fresh.emit_columns(w, arguments, column)
        source = arguments.pointer(self.fresh.buffer.name, self.dtype, self.fresh.buffer)
        place = f"({first} * {arguments.size(self.fresh.length)} + {number}) * {self.channels} + {d}"
        own = w.let(f"tl.load({source} + {place}, mask={new} & ({inside}), other=0.0)", "own")
        place = self.ring(w, arguments, first, column.slot, d)
        before = w.let(f"tl.load({place}, mask=({new} == 0) & ({inside}), other=0.0)", "before")
        return w.let(f"tl.where({new}, {own}, {before}).to({ELEMENTS[dtype]})", "tile")

    def capacity(self, arguments: Arguments) -> str:
        """Slots."""
        return arguments.number("capacity", Capacity(self.state))

    def numbers(self, w: Writer, codes: str, step: str, low: str, shape: tuple[int, ...], tile: tuple[int, int]) -> str:
        """Codes of the shape of a tile as numbers, by steps and lowest values that spread to `shape`."""
        found = f"tl.reshape({codes}, {shape})" if shape != tile else codes
        made = f"{found}.to(tl.float32) * {step} + {low}"
        return w.let(f"tl.reshape({made}, {tile})" if shape != tile else made, "tile")


@dataclass(frozen=True)
class TailedKeys(_Side):
    """Words [B, G, blocks, words, 16], parameters [B, G, groups, channels], ring [B, G, blocks, channels, 16].

    A word has 32 bits, and channels are padded to whole words.
    """

    @property
    def width(self) -> int:
        """Channels of a tile."""
        return width_of(self.channels, 4 * self.per)

    @property
    def words(self) -> int:
        """Words of a key."""
        return -(-self.channels // (4 * self.per))

    @property
    def padded(self) -> int:
        """Channels that are stored."""
        return self.words * 4 * self.per

    def tile(self, w: Writer, arguments: Arguments, head: Head, tokens: Tokens, dtype: str) -> str:
        """Tokens [T] as a tile [T, width] of `dtype`."""
        first, column = head.origin(w, tokens), tokens.column(w)
        d = w.let(f"tl.arange(0, {self.width})[None, :]", "d")
        if self.recent:
            return self.whole(w, arguments, first, column, d, dtype)
        count, group, (codes, words) = tokens.count, self.code.group, self.codes(w, arguments, first, column.slot)
        inside = f"{column.mask} & ({words} < {self.words})"
        found = w.let(f"tl.load({codes}, mask={inside}, other=0)", "words")
        mask = 2**self.code.bits - 1
        parts = w.let(
            f"tl.reshape(({found}[:, :, None] >> {self.shifts(w)}) & {mask}, ({count}, {self.width}))", "code"
        )
        groups = max(1, count // group)
        number = w.let(f"{tokens.start} // {group} + tl.arange(0, {groups})[:, None]", "group")
        step, low = (self._parameter(w, arguments, name, first, number, d) for name in ("scale", "zero"))
        if groups == 1:
            return w.let(f"({parts}.to(tl.float32) * {step} + {low}).to({ELEMENTS[dtype]})", "tile")
        shape = (groups, group, self.width)
        made = self.numbers(w, parts, f"{step}[:, None, :]", f"{low}[:, None, :]", shape, (count, self.width))
        return w.let(f"{made}.to({ELEMENTS[dtype]})", "tile")

    def ring(self, w: Writer, arguments: Arguments, first: str, slot: str, d: str) -> str:
        """Where channels [1, width] of tokens [T, 1] are in the ring."""
        blocks = -(-self.code.tail // BLOCK)
        r = w.let(f"{slot} % {self.code.tail}", "r")
        base = f"{self.pointer(arguments, 'k_tail', self.dtype)} + {first} * {blocks * self.padded * BLOCK}"
        return f"{base} + ({r} // {BLOCK} * {self.padded} + {d}) * {BLOCK} + {r} % {BLOCK}"

    def codes(self, w: Writer, arguments: Arguments, first: str, slot: str) -> tuple[str, str]:
        """Where words of tokens [T, 1] are, and the numbers [1, words] of the words."""
        word = w.let(f"tl.arange(0, {self.width // (4 * self.per)})[None, :]", "word")
        base = f"{self.pointer(arguments, 'k', 'i32')} + {first} * {self.capacity(arguments)} * {self.words}"
        return f"{base} + ({slot} // {BLOCK} * {self.words} + {word}) * {BLOCK} + {slot} % {BLOCK}", word

    def shifts(self, w: Writer) -> str:
        """The bit of each channel in a word, [1, 1, channels]: four neighbours are in four bytes."""
        c = w.let(f"tl.arange(0, {4 * self.per})[None, None, :]", "c")
        return w.let(f"{c} % 4 * 8 + {c} // 4 * {self.code.bits}", "shift")

    def groups(self, arguments: Arguments) -> str:
        """Groups that there is room for."""
        return f"(({self.capacity(arguments)} + {self.code.group - 1}) // {self.code.group})"

    def _parameter(self, w: Writer, arguments: Arguments, name: str, first: str, number: str, d: str) -> str:
        groups = self.groups(arguments)
        place = f"{self.pointer(arguments, f'k_{name}', 'f16')} + ({first} * {groups} + {number}) * {self.padded} + {d}"
        inside = f"({number} < {groups}) & ({d} < {self.padded})"
        return w.let(f"tl.load({place}, mask={inside}, other=0.0).to(tl.float32)", name)


@dataclass(frozen=True)
class TailedValues(_Side):
    """Bytes [B, G, slots, bytes], parameters [B, G, groups of channels, slots], ring [B, G, slots, padded channels]."""

    @property
    def width(self) -> int:
        """Channels of a tile."""
        return width_of(self.channels, BLOCK * self.per)

    @property
    def bytes(self) -> int:
        """Bytes of a value."""
        return -(-self.channels // (BLOCK * self.per)) * BLOCK

    @property
    def groups(self) -> int:
        """Groups of channels."""
        return self.channels // self.code.group

    def tile(self, w: Writer, arguments: Arguments, head: Head, tokens: Tokens, dtype: str) -> str:
        """Tokens [T] as a tile [T, width] of `dtype`."""
        first, column, count = head.origin(w, tokens), tokens.column(w), tokens.count
        if self.recent:
            d = w.let(f"tl.arange(0, {self.width})[None, :]", "d")
            return self.whole(w, arguments, first, column, d, dtype)
        e = w.let(f"tl.arange(0, {self.width // self.per})[None, :]", "e")
        inside = f"{column.mask} & ({e} < {self.bytes})"
        place = self.codes(arguments, first, column.slot, e)
        found = w.let(f"tl.load({place}, mask={inside}, other=0).to(tl.int32)", "bytes")
        spread = f"tl.reshape({found}, ({count}, {self.width // (self.per * BLOCK)}, 1, {BLOCK}))"
        shift = w.let(f"(tl.arange(0, {self.per}) * {self.code.bits})[None, None, :, None]", "shift")
        parts = w.let(f"({spread} >> {shift}) & {2**self.code.bits - 1}", "code")
        c = w.let(f"tl.arange(0, {self.width // self.code.group})[None, :]", "c")
        inside = f"{column.mask} & ({c} < {self.groups})"
        step, low = (
            w.let(
                f"tl.load({self.parameter(arguments, name, first, column.slot, c)}, mask={inside}, other=0.0)"
                ".to(tl.float32)",
                name,
            )
            for name in ("scale", "zero")
        )
        shape = (count, self.width // self.code.group, self.code.group)
        made = self.numbers(w, parts, f"{step}[:, :, None]", f"{low}[:, :, None]", shape, (count, self.width))
        return w.let(f"{made}.to({ELEMENTS[dtype]})", "tile")

    def ring(self, w: Writer, arguments: Arguments, first: str, slot: str, d: str) -> str:
        """Where channels [1, width] of tokens [T, 1] are in the ring."""
        padded = -(-self.channels // BLOCK) * BLOCK
        base = f"{self.pointer(arguments, 'v_tail', self.dtype)} + {first} * {self.code.tail * padded}"
        return f"{base} + {slot} % {self.code.tail} * {padded} + {d}"

    def codes(self, arguments: Arguments, first: str, slot: str, e: str) -> str:
        """Where bytes `e` of tokens are."""
        base = f"{self.pointer(arguments, 'v', 'u8')} + {first} * {self.capacity(arguments)} * {self.bytes}"
        return f"{base} + {slot} * {self.bytes} + {e}"

    def parameter(self, arguments: Arguments, name: str, first: str, slot: str, c: str) -> str:
        """Where a parameter of groups `c` of channels of tokens is."""
        pointer = self.pointer(arguments, f"v_{name}", "f16")
        return f"{pointer} + ({first} * {self.groups} + {c}) * {self.capacity(arguments)} + {slot}"


def tailed_sides(state: Value, kv: KVType) -> tuple[TailedKeys, TailedValues] | None:
    """Keys and values of a state, None where its code has no tail. Raises Refusal."""
    code = tailed(kv.code)
    if code is None:
        return None
    if code.group & (code.group - 1) or kv.v_dim % code.group:
        raise Refusal(f"groups of {code.group} for values of {kv.v_dim} channels")
    keys = TailedKeys(state, kv.heads, kv.k_dim, code, kv.dtype)
    return keys, TailedValues(state, kv.value_heads, kv.v_dim, code, kv.dtype)

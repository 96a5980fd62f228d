"""Keys and values as they lie in memory: of a state, dense or in blocks, as numbers or as codes; or of a plain tensor.

A tile [tokens, width] of codes is read as codes; their steps and lowest values are applied to the logits and to the
weights, so that q (s c + z) = s (q c) + z sum(q), and p (s c + z) = (p s) c + p z.
"""

from __future__ import annotations

from dataclasses import dataclass

from irx.backends.regions.lowered import Temporary
from irx.backends.regions.views import View
from irx.backends.triton.templates.attention_arguments import Arguments, times
from irx.backends.triton.templates.attention_places import Beside, Head, Room, Tokens
from irx.backends.triton.writer import ELEMENTS, Writer
from irx.ir.codes import CODES
from irx.ir.dims import Dim
from irx.ir.graph import Value
from irx.ir.types import KVType

LEAST_WIDTH = 16  # of an operand of tl.dot


@dataclass(frozen=True)
class Storage:
    """How one side of a state (`part` k or v) is stored.

    Elements of `bits` (0: numbers) have `offset` added. `slots` tokens lie beside each other, `group` elements of each;
    a byte of two codes holds channels `half` apart. `elements` are those of a token, padding included.
    """

    part: str
    dtype: str
    channels: int
    elements: int
    bits: int = 0
    offset: int = 0
    slots: int = 1
    group: int = 1
    half: int = 1

    @property
    def width(self) -> int:
        """Channels of a tile."""
        return width_of(self.channels, 2 * self.half if self.bits == 4 else 1)

    @property
    def parameters(self) -> tuple[str, ...]:
        """What is kept for every token beside its elements."""
        if not self.bits:
            return ()
        return ("scale",) if self.dtype == "i8" or self.offset else ("scale", "zero")

    @property
    def parameter(self) -> str:
        """The dtype of parameters."""
        return "f16" if "zero" in self.parameters else "f32"

    @property
    def zeros(self) -> bool:
        """Whether code 0 has a value of its own."""
        return "zero" in self.parameters

    def element(self, slot: str, number: str) -> str:
        """The place of an element of a slot, counted from the first slot of its head."""
        if self.slots == 1:
            return f"{slot} * {self.elements} + {number}"
        block = f"{slot} // {self.slots} * {self.slots * self.elements} + {slot} % {self.slots} * {self.group}"
        if self.group == 1:
            return f"{block} + {number} * {self.slots}"
        return f"{block} + {number} // {self.group} * {self.slots * self.group} + {number} % {self.group}"


def width_of(channels: int, least: int = 1) -> int:
    """The power of two that a tile of so many channels takes."""
    return max(LEAST_WIDTH, least, 1 << (channels - 1).bit_length())


def storages(kv: KVType) -> tuple[Storage, Storage]:
    """The two sides of a state, as `irx.runtime.kv_planes` lays them out. Raises KeyError for others."""
    from irx.runtime.kv_planes import arrangements, codings
    from irx.runtime.tensors import TORCH

    names = {dtype: name for name, dtype in TORCH.items()}
    found = []
    for part, channels, coding in zip("kv", (kv.k_dim, kv.v_dim), codings(kv), strict=True):
        arrangement = arrangements(kv, coding.dtype.itemsize)["kv".index(part)]
        bits = CODES[kv.code] if kv.code is not None else 8 if kv.dtype == "i8" else 0
        found.append(
            Storage(
                part,
                names[coding.dtype],
                channels,
                arrangement.width(coding.width(channels)),
                bits,
                int(coding.empty),
                arrangement.slots,
                arrangement.group,
                getattr(coding, "half", 1) if bits == 4 else 1,
            )
        )
    return found[0], found[1]


@dataclass(frozen=True)
class Slots:
    """One side of a state as a kernel reads and writes it."""

    room: Room
    storage: Storage

    @property
    def width(self) -> int:
        """Channels of a tile."""
        return self.storage.width

    def pointer(self, arguments: Arguments, parameter: str = "") -> str:
        """The buffer of the elements, or of a parameter."""
        name = f"{self.storage.part}_{parameter}" if parameter else self.storage.part
        return self.room.pointer(arguments, name, self.storage.parameter if parameter else self.storage.dtype)

    def head(self, w: Writer, arguments: Arguments, b: str, g: str) -> Head:
        """A head: b and g are scalars, or columns."""
        return self.room.head(w, arguments, b, g)

    def tile(self, w: Writer, arguments: Arguments, head: Head, tokens: Tokens, dtype: str) -> str:
        """Tokens [T] as a tile [T, width] of `dtype`: numbers, or codes."""
        s, tokens = self.storage, tokens.column(w)
        slot, mask = tokens.slot, tokens.mask
        base = w.let(f"{self.pointer(arguments)} + {head.origin(w, tokens)} * {s.elements}", "base")
        if s.bits == 4:
            return self._nibbles(w, base, slot, mask, dtype)
        d = w.let(f"tl.arange(0, {self.width})[None, :]", "d")
        inside = mask if s.channels == self.width else f"{mask} & ({d} < {s.channels})"
        found = w.let(
            f"tl.load({base} + {s.element(slot, d)}, mask={inside}, other={'0' if s.bits else '0.0'})", "tile"
        )
        if s.offset:
            found = w.let(f"{found}.to(tl.float32) - {float(s.offset)}", "tile")
        elif s.bits:
            found = w.let(f"{found}.to(tl.float32)", "tile")
        return w.let(f"{found}.to({ELEMENTS[dtype]})", "tile")

    def _nibbles(self, w: Writer, base: str, slot: str, mask: str, dtype: str) -> str:
        s, half, count = self.storage, self.storage.half, f"{slot}.shape[0]"
        e = w.let(f"tl.arange(0, {self.width // 2})[None, :]", "e")
        inside = mask if s.elements == self.width // 2 else f"{mask} & ({e} < {s.elements})"
        byte = w.let(f"tl.load({base} + {s.element(slot, e)}, mask={inside}, other=0)", "byte")
        low, high = (
            w.let(f"({part}).to(tl.float32).to({ELEMENTS[dtype]})", "code") for part in (f"{byte} & 15", f"{byte} >> 4")
        )
        if half == 1:
            return w.let(f"tl.interleave({low}, {high})", "tile")
        both = w.let(f"tl.reshape(tl.join({low}, {high}), ({count}, {self.width // (2 * half)}, {half}, 2))", "both")
        return w.let(f"tl.reshape(tl.permute({both}, (0, 1, 3, 2)), ({count}, {self.width}))", "tile")

    def values(self, w: Writer, arguments: Arguments, parameter: str, head: Head, tokens: Tokens) -> str:
        """A parameter of tokens [T] in float32."""
        place = f"{self.pointer(arguments, parameter)} + {head.origin(w, tokens)} + {tokens.slot}"
        return w.let(f"tl.load({place}, mask={tokens.mask}, other=0.0).to(tl.float32)", parameter)


def sides(state: Value, kv: KVType) -> tuple[Slots, Slots]:
    """Keys and values of a state."""
    room, (keys, values) = Room.of(state, kv), storages(kv)
    return Slots(room, keys), Slots(room, values)


@dataclass(frozen=True)
class Rows:
    """Keys or values of plain attention: a view [B, G, T, D] whose channels lie beside each other.

    A view of its base, or of a `buffer` of some `dtype` that was made from it.
    """

    view: View
    channels: int
    buffer: Temporary | None = None
    dtype: str = ""

    @property
    def width(self) -> int:
        """Channels of a tile."""
        return width_of(self.channels)

    def head(self, w: Writer, arguments: Arguments, b: str, g: str) -> Head:
        """A head, whose elements are counted from its first."""
        return Beside(w.let(arguments.index(self.view, (b, g)), "first"))

    def tile(self, w: Writer, arguments: Arguments, head: Head, tokens: Tokens, dtype: str) -> str:
        """Tokens [T] as a tile [T, width] of `dtype`."""
        d = w.let(f"tl.arange(0, {self.width})[None, :]", "d")
        stride: Dim = self.view.strides[2]
        place = f"{head.origin(w, tokens)} + {times(f'{tokens.slot}[:, None]', arguments.size(stride))} + {d}"
        mask = f"{tokens.mask}[:, None]"
        inside = mask if self.channels == self.width else f"{mask} & ({d} < {self.channels})"
        if self.buffer is None:
            source = arguments.tensor(self.view.base)
        else:
            source = arguments.pointer(self.buffer.name, self.dtype, self.buffer)
        return w.let(f"tl.load({source} + {place}, mask={inside}, other=0.0).to({ELEMENTS[dtype]})", "tile")

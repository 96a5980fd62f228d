"""How keys and values are stored, as the kernels of attention read them: one small class for each storage.

Keys are read as words of 32 bits, 16 tokens beside each other: a word has one channel, a pair, a quad or eight of them.
Values are read 16 channels (`token4`: twice 16) at a time. Codes have parameters for each token: a `scale`, and with
`zero` the value of code 0, so that q (s c + z) = s (q c) + z sum(q), and p (s c + z) = (p s) c + p z.
"""

from __future__ import annotations

from dataclasses import dataclass

from irx.ir.codes import tailed
from irx.ir.types import KVType


@dataclass(frozen=True)
class Storage:
    """Plain float32."""

    name: str = "f32"
    word: str = "float32"
    """How kernels read keys."""
    channels: int = 1
    """Channels of a key in a word."""
    value: str = "float32"
    """How kernels read values."""
    tokens: int = 1
    """Tokens whose values of one channel lie beside each other in an element."""
    halves: int = 1
    """Channels, 16 apart, in an element of values."""
    parameters: tuple[str, ...] = ()
    parameter: str = "float32"
    """The dtype of parameters."""
    offset: int = 0
    """What has been added to codes of keys."""

    @property
    def per_line(self) -> int:
        """How many vectors of values are in a line of 64 bytes."""
        return 64 // (16 * int("".join(filter(str.isdigit, self.value))) // 8)

    @property
    def zeros(self) -> bool:
        """Whether code 0 has a value of its own."""
        return "zero" in self.parameters

    @property
    def arrays(self) -> tuple[str, ...]:
        """The arrays of a state."""
        return tuple(name for side in "kv" for name in (side, *(f"{side}_{part}" for part in self.parameters)))

    def lanes(self, word: str) -> list[str]:
        """The float32 lanes of each channel in words of keys."""
        return [word]

    def quads(self, word: str) -> list[str]:
        """Words of four unsigned bytes that are in words of keys."""
        return [word]

    def values(self, found: str) -> list[str]:
        """The float32 lanes in elements of values: of each token, or of each half."""
        return self.lanes(found)


@dataclass(frozen=True)
class Pairs(Storage):
    """bf16."""

    name: str = "bf16"
    word: str = "int32"
    channels: int = 2
    value: str = "int32"
    tokens: int = 2

    def lanes(self, word: str) -> list[str]:
        """Two numbers are the halves of a word."""
        high = f"T.bitwise_and({word}, T.broadcast(T.int32(-65536), 16))"
        low = f"T.shift_left({word}, T.broadcast(T.int32(16), 16))"
        return [f'T.reinterpret("float32x16", {bits})' for bits in (low, high)]


@dataclass(frozen=True)
class Bytes(Storage):
    """i8: signed bytes with a scale; of keys 128 more."""

    name: str = "i8"
    word: str = "int32"
    channels: int = 4
    value: str = "int8"
    parameters: tuple[str, ...] = ("scale",)
    offset: int = 128

    def lanes(self, word: str) -> list[str]:
        """Four bytes, without their offset."""
        bytes = [_bits(word, 8 * number, 255) for number in range(4)]
        offset = f" - T.broadcast(T.int32({self.offset}), 16)" if self.offset else ""
        return [f'T.cast({byte}{offset}, "float32x16")' for byte in bytes]

    def values(self, found: str) -> list[str]:
        """A byte each."""
        return [f'T.cast({found}, "float32x16")']


@dataclass(frozen=True)
class TokenBytes(Bytes):
    """token8: unsigned bytes with a scale and a zero."""

    name: str = "token8"
    value: str = "uint8"
    parameters: tuple[str, ...] = ("scale", "zero")
    parameter: str = "float16"
    offset: int = 0


@dataclass(frozen=True)
class TokenNibbles(TokenBytes):
    """token4: a word has the low codes of four bytes, then their high ones."""

    name: str = "token4"
    channels: int = 8
    halves: int = 2

    def lanes(self, word: str) -> list[str]:
        """Eight codes."""
        bits = [8 * number + half for half in (0, 4) for number in range(4)]
        return [f'T.cast({_bits(word, first, 15)}, "float32x16")' for first in bits]

    def quads(self, word: str) -> list[str]:
        """The low codes of all bytes, and the high ones."""
        return [_bits(word, first, 0x0F0F0F0F) for first in (0, 4)]

    def values(self, found: str) -> list[str]:
        """The low code of each byte is of a channel, the high one of that 16 further on."""
        words = f'T.cast({found}, "int32x16")'
        return [f'T.cast({part}, "float32x16")' for part in (_bits(words, 0, 15), _shifted(words, 4))]


@dataclass(frozen=True)
class Tailed(Storage):
    """Codes in groups with a tail, `irx.runtime.kv_tailed`: kernels of their own read and write them.

    Weights and scores are plain: steps and lowest values belong to channels of keys and to groups of channels of
    values, not to tokens alone.
    """

    name: str = "kivi2-32-128"
    word: str = "int32"
    channels: int = 16
    value: str = "uint8"
    halves: int = 4
    parameter: str = "float16"
    bits: int = 2
    group: int = 32
    tail: int = 128
    dtype: str = "f32"
    """Of the tail."""

    @property
    def arrays(self) -> tuple[str, ...]:
        """The arrays of a state."""
        return tuple(name for side in "kv" for name in (side, *(f"{side}_{x}" for x in ("scale", "zero", "tail"))))

    def lanes(self, word: str) -> list[str]:
        """Byte k has channels 4 i + k at bit `bits` i."""
        places = [(i, k) for i in range(8 // self.bits) for k in range(4)]
        found = [_bits(word, 8 * k + self.bits * i, 2**self.bits - 1) for i, k in places]
        return [f'T.cast({codes}, "float32x16")' for codes in found]

    @property
    def above(self) -> list[int]:
        """What `pairs` has added to the codes at bit `bits` i of a byte."""
        return [2 ** (7 - self._place(i)) for i in range(self.halves)]

    def _place(self, i: int) -> int:
        """The bit of a bf16 that the codes at bit `bits` i of a byte begin at: its last 7 bits are a fraction."""
        return min(self.bits * i, 7 - self.bits)

    def pairs(self, shifted: dict[int, str]) -> list[str]:
        """Words of two bf16 each, codes with `above` added, of bits `bits` i: of bytes 0 and 2, then of 1 and 3.

        Codes become the fraction of a power of 2, which takes a mask and an exponent. `shifted` has words shifted to
        the right by all of `shifts`.
        """
        made = []
        for i in range(self.halves):
            place = self._place(i)
            mask, power = (2**self.bits - 1 << place) * 0x10001, (134 - place << 7) * 0x10001
            for byte in range(2):
                words = shifted[8 * byte + self.bits * i - place]
                kept = f"T.bitwise_and({words}, T.broadcast(T.int32({mask}), 16))"
                made.append(f"T.bitwise_or({kept}, T.broadcast(T.int32({power}), 16))")
        return made

    @property
    def shifts(self) -> list[int]:
        """By how much words are shifted for `pairs`."""
        return sorted({8 * byte + self.bits * i - self._place(i) for i in range(self.halves) for byte in range(2)})

    def values(self, found: str) -> list[str]:
        """Channels that are 16 apart."""
        words, mask = f'T.cast({found}, "int32x16")', 2**self.bits - 1
        return [f'T.cast({_bits(words, self.bits * i, mask)}, "float32x16")' for i in range(self.halves)]


def _bits(word: str, first: int, mask: int) -> str:
    return f"T.bitwise_and({_shifted(word, first)}, T.broadcast(T.int32({mask}), 16))"


def _shifted(word: str, bits: int) -> str:
    return f"T.shift_right({word}, T.broadcast(T.int32({bits}), 16))" if bits else word


def storage_of(kv: KVType) -> Storage | None:
    """How kernels read a state's tokens, None where there are no kernels for them."""
    code = tailed(kv.code)
    if code is None:
        return STORAGES.get(kv.storage)
    per = 8 // code.bits
    return Tailed(
        str(code), channels=4 * per, halves=per, bits=code.bits, group=code.group, tail=code.tail, dtype=kv.dtype
    )


STORAGES = {storage.name: storage for storage in (Storage(), Pairs(), Bytes(), TokenBytes(), TokenNibbles())}

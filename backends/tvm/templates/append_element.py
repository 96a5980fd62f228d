"""Elements of keys and values, made from a head's channels in float32: numbers as they are, or codes.

Codes are made as `irx.runtime.kv_codes` and the oracle make them: `SymmetricBytes` and `TokenCodes`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from irx.backends.tvm.templates.attention_storage import Storage
from irx.backends.tvm.writer import Writer, narrowed
from irx.ops.precision import HALF_MAX, LEAST_STEP, RELATIVE_STEP

Write: TypeAlias = Callable[[Sequence[str]], str]
"""The text of an element with these channels."""


@dataclass(frozen=True)
class Element:
    """Elements of keys (or values) from `buffer[start:]`, which holds `size` channels and zeros behind them."""

    store: Storage
    buffer: str
    start: str
    size: int
    key: bool

    @property
    def dtype(self) -> str:
        """How one is written."""
        if self.store.zeros or (self.store.parameters and self.key):
            return "uint8"
        return {"f32": "float32", "bf16": "uint16", "i8": "int8"}[self.store.name]

    def writer(self, w: Writer, parameters: Sequence[str]) -> Write:
        """Store the parameters at their places, and give what makes elements."""
        if self.store.zeros:
            return self._token_codes(w, *parameters)
        if self.store.parameters:
            return self._symmetric(w, *parameters)
        return lambda channels: narrowed(w, self._channel(channels[0]), self.store.name, 1)

    def _channel(self, channel: str) -> str:
        return f"{self.buffer}[{self.start} + {channel}]"

    def _symmetric(self, w: Writer, scale: str) -> Write:
        most = largest(w, self.buffer, self.start, self.size)
        w(f"{scale} = {most} * T.float32({1 / 127!r})")
        ratio = f"T.if_then_else({most} > T.float32(0), T.float32(127) / {most}, T.float32(0))"
        inverse = w.register(ratio, lanes=1)
        offset = self.store.offset if self.key else 0

        def write(channels: Sequence[str]) -> str:
            number = f'T.cast(T.nearbyint({self._channel(channels[0])} * {inverse}), "int32") + {offset}'
            return f'T.cast({number}, "{self.dtype}")'

        return write

    def _token_codes(self, w: Writer, scale: str, zero: str) -> Write:
        top = f"T.float32({2 ** (8 // self.store.halves) - 1})"
        least, most = self._range(w)
        low = half(w, least)
        with w.block(f"if {low} > {least}:"):
            w(f"{low} = {half(w, f'{low} - {next_half(low)}')}")
        step = half(w, f"({most} - {low}) / {top}")
        with w.block(f"if {step} * {top} + {low} < {most}:"):
            w(f"{step} = {half(w, f'{step} + {next_half(step)}')}")
        with w.block(f"if {step} == T.float32(0):"):
            w(f"{step} = T.float32(1)")
        w(f'{scale} = T.cast({step}, "float16")')
        w(f'{zero} = T.cast({low}, "float16")')
        inverse = w.register(f"T.float32(1) / {step}", lanes=1)

        def code(channel: str) -> str:
            number = f"T.nearbyint(({self._channel(channel)} - {low}) * {inverse})"
            return f'T.cast(T.max(T.min({number}, {top}), T.float32(0)), "int32")'

        def write(channels: Sequence[str]) -> str:
            codes = [code(c) if not n else f"T.shift_left({code(c)}, {4 * n})" for n, c in enumerate(channels)]
            return f'T.cast({" + ".join(codes)}, "uint8")'

        return write

    def _range(self, w: Writer) -> tuple[str, str]:
        """The least and the most of all channels, as far as float16 goes."""
        least, most = (w.register(self._channel("0"), lanes=1) for _ in range(2))
        with w.block(f"for d in T.serial({self.size}):"):
            w(f"{least} = T.min({least}, {self._channel('d')})")
            w(f"{most} = T.max({most}, {self._channel('d')})")
        for place in (least, most):
            w(f"{place} = {clipped(place)}")
        return least, most


def largest(w: Writer, buffer: str, start: str, size: int) -> str:
    """The largest magnitude of `size` elements."""
    found = w.register("T.float32(0)", lanes=1)
    with w.block(f"for d in T.serial({size}):"):
        w(f"{found} = T.max({found}, T.abs({buffer}[{start} + d]))")
    return found


def clipped(value: str) -> str:
    """As far as float16 goes."""
    return f"T.max(T.min({value}, T.float32({HALF_MAX})), T.float32({-HALF_MAX}))"


def half(w: Writer, value: str) -> str:
    """Rounded to float16, in a register of float32."""
    return w.register(f'T.cast(T.cast({clipped(value)}, "float16"), "float32")', lanes=1)


def next_half(value: str) -> str:
    """What takes a float16 to its neighbour, when it is added or subtracted and the sum is rounded."""
    return f"(T.abs({value}) * T.float32({RELATIVE_STEP!r}) + T.float32({LEAST_STEP!r}))"

"""What the numbers of a packed format are, whatever order their bytes are in.

Every packed format of `irx.ir.blocks` is `value = scale * (code - zero) + minimum` with one scale (and minimum) for
each `group` elements of a row. In the two-level formats the scale of a group is a small integer times a float16 that
256 elements share; their minimum is subtracted.
"""

from __future__ import annotations

from dataclasses import dataclass

from irx.ir.blocks import OWN_GROUPS


@dataclass(frozen=True)
class Coding:
    """How codes become values.

    `bits` are 4, 5, 6 or 8. `super_group` is the number of elements that share a float16 in a two-level format, else 0:
    then the scale is `super_scale * scale` with `scale` of dtype `small`, the minimum `-(super_minimum * minimum)`.
    """

    bits: int
    group: int
    zero: int = 0
    has_minimum: bool = False
    super_group: int = 0
    small: str = "u8"

    @property
    def codes_in_word(self) -> int:
        """Codes (or, above 4 bits, their low halves) in 32 bits."""
        return 4 if self.bits == 8 else 8

    @property
    def high_bits(self) -> int:
        """Bits of a code that lie in the second plane."""
        return self.bits - 4 if self.bits in (5, 6) else 0

    @property
    def high_in_word(self) -> int:
        """Elements whose high bits share 32 bits."""
        return 32 // self.high_bits


CODINGS: dict[str, Coding] = {
    "q8_0": Coding(8, 32, zero=128),
    "q4_0": Coding(4, 32, zero=8),
    "q4_1": Coding(4, 32, has_minimum=True),
    "q5_0": Coding(5, 32, zero=16),
    "q5_1": Coding(5, 32, has_minimum=True),
    "q4_k": Coding(4, 32, has_minimum=True, super_group=256),
    "q5_k": Coding(5, 32, has_minimum=True, super_group=256),
    "q6_k": Coding(6, 16, zero=32, super_group=256, small="i8"),
    **{f"i8g{group}": Coding(8, group, zero=128) for group in OWN_GROUPS},
    **{f"i4g{group}": Coding(4, group, zero=8) for group in OWN_GROUPS},
    **{f"u4g{group}": Coding(4, group, has_minimum=True) for group in OWN_GROUPS},
}
"""8-bit codes are kept as unsigned bytes with 128 added, which is what the dot-product instructions take."""

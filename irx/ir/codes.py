"""Codes: how a KV state stores tokens that it does not store as they are, by the word that its type prints.

`token8` and `token4` keep every token as codes of 8 or 4 bits with a float16 step and a float16 lowest value.
`kivi2-32-128` keeps codes of 2 bits: of keys each channel of 32 tokens has a step and a lowest value, of values each 32
channels of a token; the newest tokens, up to 128, are kept as they are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

CODES = {"token8": 8, "token4": 4}
"""Bits of an element by code, of those that code each token by itself."""
CODE_BYTES = 4
"""Bytes beside the codes of each group: a float16 step and a float16 lowest value."""
_TAILED = re.compile(r"kivi([24])-([1-9]\d{0,3})-([1-9]\d{0,4})")


@dataclass(frozen=True)
class TailedCode:
    """Codes of `bits` bits in groups of `group` tokens (keys) or channels (values), behind a tail of whole tokens.

    The query at position p sees keys of positions below p - p mod tail and values below p + 1 - tail as codes, and all
    later ones as they are. (KIVI, Liu et al. 2024, arXiv:2402.02750.)
    """

    bits: int
    group: int
    tail: int

    def __str__(self) -> str:
        return f"kivi{self.bits}-{self.group}-{self.tail}"

    def coded_keys(self, position: int) -> int:
        """How many keys the query at a position sees as codes."""
        return position - position % self.tail

    def coded_values(self, position: int) -> int:
        """How many values the query at a position sees as codes."""
        return max(0, position + 1 - self.tail)


@lru_cache(maxsize=64)
def tailed(code: str | None) -> TailedCode | None:
    """What a code with a tail says, None for any other word. A tail holds whole groups."""
    found = _TAILED.fullmatch(code or "")
    if found is None:
        return None
    bits, group, tail = (int(number) for number in found.groups())
    return TailedCode(bits, group, tail) if tail % group == 0 else None


def is_code(code: str) -> bool:
    """True for a word that names a code."""
    return code in CODES or tailed(code) is not None


def code_bytes(code: str, channels: int) -> float:
    """Bytes of a token's channels in one head, as codes; a tail, which does not grow with tokens, is not counted."""
    tail = tailed(code)
    if tail is None:
        return -(-channels * CODES[code] // 8) + CODE_BYTES
    return channels * tail.bits / 8 + CODE_BYTES * channels / tail.group

"""A prefix: tokens that are computed and stored once, for sessions of many rows to begin with.

prefix = executable.prefix(ids)                          # i64 [1, T]
session = executable.session(batch=8, prefix=prefix)     # 8 rows of T tokens, which hold none of them
logits = session.append(own_ids)                         # [8, S], each row its own

Nobody copies its keys and values: attention to them reads them once for all rows. (Hydragen, Juravsky et al. 2024,
arXiv:2402.05099.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from irx.runtime.kv import KVState


@dataclass(frozen=True, eq=False)
class Prefix:
    """The states of one row of `length` tokens, by name. They are never changed; the caches of all rows point to them.

    Lives as long as somebody holds it, or a session that begins with it.
    """

    states: Mapping[str, KVState]
    length: int

    def memory(self) -> int:
        """Bytes of keys and values, as allocated."""
        return sum(state.bytes for state in self.states.values())

"""Permission to use AMX: its registers are so large that Linux gives them to processes that ask, and to no other."""

from __future__ import annotations

import ctypes
import platform
import sys
from functools import cache

_SYSTEM_CALL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18  # arch_prctl of x86-64 Linux


@cache
def may_use_amx() -> bool:
    """Ask the system, once, to let this process and its threads use AMX; False where it does not."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    system = ctypes.CDLL(None, use_errno=True)
    return int(system.syscall(_SYSTEM_CALL, _REQUEST_PERMISSION, _TILE_DATA)) == 0

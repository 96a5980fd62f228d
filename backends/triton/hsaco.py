"""What a kernel of an AMD binary takes: the metadata in its note, written in MessagePack under `amdhsa.kernels`.

Only the forms of MessagePack that this metadata uses are read: maps, lists, texts, integers and booleans.
"""

from __future__ import annotations

import struct
from typing import Any

from irx.backends.triton.elf import read_elf
from irx.backends.triton.usage import Usage
from irx.errors import DamagedArtifact

_METADATA = 32  # the note's kind
_KERNELS = "amdhsa.kernels"


def read_hsaco(data: bytes, kernel: str, *, shared: int, warps: int) -> Usage:
    """What `kernel` takes, with `shared` bytes asked for at launch. Raises DamagedArtifact."""
    note = read_elf(data, kernel).section(".note")
    if note is None:
        raise DamagedArtifact("the binary has no metadata", where=kernel, fix="compile it again")
    try:
        kernels = _metadata(note)[_KERNELS]
        (facts,) = [facts for facts in kernels if facts[".name"] == kernel]
        return _usage(facts, shared, warps)
    except (struct.error, IndexError, KeyError, TypeError, ValueError) as error:
        raise DamagedArtifact(f"the binary's metadata cannot be read: {error!r}", where=kernel) from None


def _usage(facts: dict[str, Any], shared: int, warps: int) -> Usage:
    arguments = [argument for argument in facts[".args"] if not argument[".value_kind"].startswith("hidden_")]
    stack = facts[".private_segment_fixed_size"]
    scalars = facts[".sgpr_spill_count"] if stack else 0  # else they wait in lanes of vector registers, not in memory
    return Usage(
        registers=facts[".vgpr_count"],  # on CDNA those for matrices are among them
        shared=shared + facts[".group_segment_fixed_size"],
        warps=warps,
        stack=stack,
        spills=facts[".vgpr_spill_count"] + scalars,
        parameters=tuple(argument[".size"] for argument in arguments),
        code=0,
    )


def _metadata(section: bytes) -> Any:
    """The metadata among a section's notes, each of which has a name and a content in whole words."""
    place = 0
    while place + 12 <= len(section):
        name, size, kind = struct.unpack_from("<III", section, place)
        place += 12 + (-(-name // 4) * 4)
        if kind == _METADATA:
            return _value(section[place : place + size], 0)[0]
        place += -(-size // 4) * 4
    raise ValueError("no note holds it")


_LENGTHS = {0xD9: ("text", ">B"), 0xDA: ("text", ">H"), 0xDC: ("list", ">H"), 0xDE: ("map", ">H"), 0xDF: ("map", ">I")}
_NUMBERS = {0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}


def _value(data: bytes, place: int) -> tuple[Any, int]:
    """The value that starts at `place`, and where the next one starts."""
    first = data[place]
    if first < 0x80:
        return first, place + 1
    if first < 0x90:
        return _collected("map", first & 0x0F, data, place + 1)
    if first < 0xA0:
        return _collected("list", first & 0x0F, data, place + 1)
    if first < 0xC0:
        return _collected("text", first & 0x1F, data, place + 1)
    if first in (0xC2, 0xC3):
        return first == 0xC3, place + 1
    if first in _NUMBERS:
        (number,) = struct.unpack_from(_NUMBERS[first], data, place + 1)
        return number, place + 1 + struct.calcsize(_NUMBERS[first])
    if first in _LENGTHS:
        kind, form = _LENGTHS[first]
        (length,) = struct.unpack_from(form, data, place + 1)
        return _collected(kind, length, data, place + 1 + struct.calcsize(form))
    raise ValueError(f"a value of the form {first:#x}")


def _collected(kind: str, length: int, data: bytes, place: int) -> tuple[Any, int]:
    if kind == "text":
        return data[place : place + length].decode(), place + length
    found = []
    for _ in range(2 * length if kind == "map" else length):
        value, place = _value(data, place)
        found.append(value)
    return (dict(zip(found[::2], found[1::2], strict=True)) if kind == "map" else found), place

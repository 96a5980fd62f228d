"""What a kernel of an NVIDIA binary takes, read from the binary itself: no device, driver or tool is needed.

The facts stand in `.nv.info` as records: a byte of form, a byte of meaning, and a value of two bytes or, in form 4, of
as many bytes as these two say. Those that count here were compared with `cuobjdump -res-usage`. Shared memory that is
asked for at launch is not among them: it is in the compiler's metadata.
"""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from irx.backends.triton.elf import Elf, read_elf
from irx.backends.triton.usage import Usage
from irx.errors import DamagedArtifact

_REGISTERS, _STACK, _PARAMETER = 0x2F, 0x12, 0x17
_SIZED = 4
_RESERVED = 1024  # since sm_90 the driver's own part of the shared memory is listed as the kernel's
_STORE_TO_STACK = re.compile(r"\bSTL(?:\.\w+)*\s")


def read_cubin(data: bytes, kernel: str, *, shared: int, warps: int) -> Usage:
    """What `kernel` takes, with `shared` bytes asked for at launch. Raises DamagedArtifact."""
    elf = read_elf(data, kernel)
    stack = _fact(elf, kernel, _STACK) or 0
    registers = _fact(elf, kernel, _REGISTERS)
    if registers is None:
        raise DamagedArtifact(f"the binary does not say how many registers {kernel} takes")
    return Usage(
        registers=registers,
        shared=shared + _static_shared(elf, kernel),
        warps=warps,
        stack=stack,
        spills=None if stack else 0,
        parameters=_parameters(_needed(elf, f".nv.info.{kernel}")),
        code=len(_needed(elf, f".text.{kernel}")),
    )


def count_spills(usage: Usage, data: bytes, disassembler: Path) -> Usage:
    """The same with its spills counted by `nvdisasm`. A kernel without a stack has none, and nothing is run."""
    if usage.spills is not None:
        return usage
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(data)
        file.flush()
        done = subprocess.run([disassembler, "-c", file.name], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return usage
    return replace(usage, spills=len(_STORE_TO_STACK.findall(done.stdout)))


def _fact(elf: Elf, kernel: str, wanted: int) -> int | None:
    """A number that `.nv.info` has for the kernel's symbol."""
    symbols = list(elf.symbols())
    for meaning, value in _records(_needed(elf, ".nv.info")):
        if meaning == wanted and len(value) == 8:
            symbol, amount = struct.unpack("<II", value)
            if symbol < len(symbols) and symbols[symbol] == kernel:
                return int(amount)
    return None


def _parameters(info: bytes) -> tuple[int, ...]:
    """Bytes of every parameter, in order; a record has two bytes of its number at 4, and the size above bit 18 at 8."""
    records = [struct.unpack("<IHHI", value) for meaning, value in _records(info) if meaning == _PARAMETER]
    return tuple(packed >> 18 for _, _, _, packed in sorted(records, key=lambda record: record[1]))


def _static_shared(elf: Elf, kernel: str) -> int:
    size = len(elf.section(f".nv.shared.{kernel}") or b"")
    newer = elf.section(".nv.shared.reserved.0") is not None
    return size - _RESERVED if newer and size >= _RESERVED else size


def _records(info: bytes) -> Iterator[tuple[int, bytes]]:
    """Every record's meaning and value."""
    place = 0
    while place + 4 <= len(info):
        form, meaning, size = struct.unpack_from("<BBH", info, place)
        place += 4
        length = size if form == _SIZED else 0
        yield meaning, info[place : place + length] if length else info[place - 2 : place]
        place += (length + 3) & ~3


def _needed(elf: Elf, section: str) -> bytes:
    found = elf.section(section)
    if found is None:
        raise DamagedArtifact(f"the binary has no section {section}", fix="compile it again")
    return found

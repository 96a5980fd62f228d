"""Sections and symbols of a 64-bit little-endian ELF file: the form of NVIDIA's and AMD's GPU binaries."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from irx.errors import DamagedArtifact

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_NO_BITS = 8  # a section that takes room in memory, none in the file
_LARGEST = 1 << 20  # more than any kernel can have there
_MAGIC = b"\x7fELF\x02\x01"  # 64 bits, little-endian


@dataclass(frozen=True)
class Section:
    """One section: its name, what it holds, and the number of the section that belongs to it."""

    name: str
    content: bytes
    link: int


@dataclass(frozen=True)
class Elf:
    """The sections in order, and the header's flags, which name the architecture in a way of each maker's own."""

    sections: tuple[Section, ...]
    flags: int

    def section(self, name: str) -> bytes | None:
        """The content of a section, None where there is none of that name."""
        return next((section.content for section in self.sections if section.name == name), None)

    def symbols(self) -> Iterator[str]:
        """Names of all symbols, by number."""
        for table in self.sections:
            if table.name == ".symtab":
                names = self.sections[table.link].content
                for name, *_ in _SYMBOL.iter_unpack(table.content):
                    yield _text(names, name)


def read_elf(data: bytes, name: str) -> Elf:
    """Read a binary. `name` is for the message of DamagedArtifact, raised for anything but a whole file."""
    try:
        return _read(data)
    except (struct.error, IndexError, ValueError) as error:
        raise DamagedArtifact(f"the binary is no whole ELF file: {error}", where=name) from None


def _read(data: bytes) -> Elf:
    if not data.startswith(_MAGIC):
        raise ValueError("its first bytes are others")
    header = _HEADER.unpack_from(data)
    start, flags, size, count, names = header[6], header[7], header[11], header[12], header[13]
    rows = [_SECTION.unpack_from(data, start + size * number) for number in range(count)]
    texts = _content(data, rows[names])
    return Elf(tuple(Section(_text(texts, row[0]), _content(data, row), row[6]) for row in rows), flags)


def _content(data: bytes, row: tuple[int, ...]) -> bytes:
    kind, offset, size = row[1], row[4], row[5]
    if kind == _NO_BITS:
        return bytes(min(size, _LARGEST))
    if offset + size > len(data):
        raise ValueError("a section ends behind the file")
    return data[offset : offset + size]


def _text(names: bytes, start: int) -> str:
    return names[start : names.index(b"\0", start)].decode()

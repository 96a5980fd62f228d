"""Device: what the compiler knows of a processor, read from one TOML file each in `devices/`.

Every field of the file is required, and no other is allowed, so that a cost model never meets a half-described device.
The file's name is the device's name; `aliases` are other names for it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from irx.errors import BadDevice, NameClash, UnknownTarget

FOLDER = Path(__file__).parent / "devices"
KINDS = ("cpu", "cuda")


@dataclass(frozen=True)
class Device:
    """Facts of one processor, in the units their names say.

    `peak_tflops` holds dense peaks by IRX dtype (10**12 operations a second, accumulating in 32 bits). `cores` counts
    CPU cores or streaming multiprocessors. `shared_memory_kib` is what one thread block can use, 0 on a CPU. `features`
    are the instruction sets as the operating system spells them, or abilities of the GPU generation. `driver_names` are
    the model names under which a driver reports the device, `sources` say where the figures are from.
    """

    name: str
    title: str
    kind: str
    architecture: str
    cores: int
    peak_tflops: Mapping[str, float]
    bandwidth_gb_s: float
    memory_gb: float
    shared_memory_kib: int
    features: frozenset[str]
    aliases: tuple[str, ...]
    driver_names: tuple[str, ...]
    sources: tuple[str, ...]

    @property
    def bandwidth(self) -> float:
        """Bytes a second between the device and its memory."""
        return self.bandwidth_gb_s * 1e9

    @property
    def memory(self) -> int:
        """Bytes of memory."""
        return int(self.memory_gb * 1e9)

    def peak(self, dtype: str) -> float:
        """Operations a second in `dtype`. A dtype the device has no units for computes as f32."""
        return self.peak_tflops.get(dtype, self.peak_tflops["f32"]) * 1e12


@cache
def devices() -> Mapping[str, Device]:
    """All shipped devices by name."""
    return MappingProxyType({path.stem: read_device(path) for path in sorted(FOLDER.glob("*.toml"))})


@cache
def _names() -> Mapping[str, str]:
    """Every name and alias, with the device it means."""
    names: dict[str, str] = {}
    for device in devices().values():
        for name in (device.name, *device.aliases):
            if name in names:
                raise NameClash("device", name, f"{names[name]}.toml", f"{device.name}.toml")
            names[name] = device.name
    return names


def find_device(name: str) -> Device:
    """The device of that name or alias. Raises UnknownTarget naming the nearest one."""
    if name not in _names():
        raise UnknownTarget(name, _names())
    return devices()[_names()[name]]


def read_device(path: Path) -> Device:
    """Read one device file. Raises BadDevice for a field that is missing, unknown or of the wrong kind."""
    try:
        table = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise BadDevice(f"not valid TOML: {error}", where=str(path)) from None
    wanted = {field.name for field in fields(Device)} - {"name"}
    if missing := sorted(wanted - table.keys()):
        raise BadDevice(f"lacks {', '.join(missing)}", where=str(path), fix="every field is required")
    if extra := sorted(table.keys() - wanted):
        raise BadDevice(f"has unknown fields {', '.join(extra)}", where=str(path))
    _check(table, path)
    return Device(
        name=path.stem,
        **{
            **table,
            "peak_tflops": MappingProxyType(table["peak_tflops"]),
            "features": frozenset(table["features"]),
            **{name: tuple(table[name]) for name in ("aliases", "driver_names", "sources")},
        },
    )


def _check(table: dict[str, Any], path: Path) -> None:
    expected: dict[str, type | tuple[type, ...]] = {
        **dict.fromkeys(("title", "kind", "architecture"), str),
        **dict.fromkeys(("cores", "shared_memory_kib"), int),
        **dict.fromkeys(("bandwidth_gb_s", "memory_gb"), (int, float)),
        **dict.fromkeys(("features", "aliases", "driver_names", "sources"), list),
        "peak_tflops": dict,
    }
    for name, kind in expected.items():
        if not isinstance(table[name], kind):
            raise BadDevice(f"{name} = {table[name]!r} is of the wrong kind", where=str(path))
    if table["kind"] not in KINDS:
        raise BadDevice(f"kind = {table['kind']!r}, not one of {', '.join(KINDS)}", where=str(path))
    if "f32" not in table["peak_tflops"]:
        raise BadDevice("peak_tflops lacks f32, which stands for every dtype without units of its own", where=str(path))
    if not table["sources"]:
        raise BadDevice("sources is empty", where=str(path), fix="say where the figures are from")

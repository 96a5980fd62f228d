"""Device: what the compiler knows of a processor, read from one TOML file each in `devices/`.

Every field of the file is required, and no other is allowed, so that a cost model never meets a half-described device.
The file's name is the device's name; `aliases` are other names for it. A GPU's file has a table `[gpu]`, a CPU's none.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

from irx.errors import BadDevice, NameClash, UnknownTarget

FOLDER = Path(__file__).parent / "devices"
KINDS = ("cpu", "cuda", "hip")
Kinds: TypeAlias = Mapping[str, type | tuple[type, ...]]
_NUMBER = (int, float)


@dataclass(frozen=True)
class Gpu:
    """What a model of time and of occupancy needs of a GPU; but for the first three, of one multiprocessor.

    `launch_us` is what one kernel of a captured graph costs at least. `registers` are 32-bit ones, allocated to warps
    in units of `register_unit`, from as many banks of equal size as `register_banks` says; a thread has at most
    `max_registers`. `shared_kib` is what the blocks on a multiprocessor share, in units of `shared_unit` bytes, and of
    which each takes `reserved_shared` bytes besides its own. An AMD GPU's warps are wavefronts, its shared memory LDS.
    """

    clock_mhz: float
    l2_mib: float
    launch_us: float
    warp_threads: int
    max_warps: int
    max_blocks: int
    registers: int
    max_registers: int
    register_unit: int
    register_banks: int
    shared_kib: int
    shared_unit: int
    reserved_shared: int


@dataclass(frozen=True)
class Device:
    """Facts of one processor, in the units their names say.

    `peak_tflops` holds dense peaks by IRX dtype (10**12 operations a second, accumulating in 32 bits). `cores` counts
    CPU cores or streaming multiprocessors. `shared_memory_kib` is what one thread block can use, 0 on a CPU. `features`
    are the instruction sets as the operating system spells them, or abilities of the GPU generation. `driver_names` are
    the model names under which a driver reports the device, `sources` say where the figures are from. `gpu` is None
    on a CPU.
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
    gpu: Gpu | None

    @property
    def is_gpu(self) -> bool:
        """True for a GPU of any maker."""
        return self.kind != "cpu"

    @property
    def place(self) -> str:
        """The kind of device that torch puts tensors on: it calls AMD's GPUs cuda too."""
        return "cuda" if self.is_gpu else "cpu"

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
    gpu = _read_gpu(table, path)
    _check_names(table, {field.name for field in fields(Device)} - {"name", "gpu"}, path)
    _check(table, path)
    return Device(
        name=path.stem,
        **{
            **table,
            "peak_tflops": MappingProxyType(table["peak_tflops"]),
            "features": frozenset(table["features"]),
            **{name: tuple(table[name]) for name in ("aliases", "driver_names", "sources")},
            "gpu": gpu,
        },
    )


def _read_gpu(table: dict[str, Any], path: Path) -> Gpu | None:
    """Take the table of a GPU out of a device's. Whether it has to be there depends on the kind, checked later."""
    facts = table.pop("gpu", None)
    if (facts is None) != (table.get("kind", "cpu") == "cpu"):
        raise BadDevice("the table [gpu] belongs to a GPU, and every GPU needs one", where=str(path))
    if facts is None:
        return None
    _check_names(facts, {field.name for field in fields(Gpu)}, path)
    _check_kinds(facts, {field.name: _NUMBER if field.type == "float" else int for field in fields(Gpu)}, path)
    return Gpu(**facts)


def _check_names(table: dict[str, Any], wanted: set[str], path: Path) -> None:
    if missing := sorted(wanted - table.keys()):
        raise BadDevice(f"lacks {', '.join(missing)}", where=str(path), fix="every field is required")
    if extra := sorted(table.keys() - wanted):
        raise BadDevice(f"has unknown fields {', '.join(extra)}", where=str(path))


def _check_kinds(table: dict[str, Any], expected: Kinds, path: Path) -> None:
    for name, kind in expected.items():
        if not isinstance(table[name], kind):
            raise BadDevice(f"{name} = {table[name]!r} is of the wrong kind", where=str(path))


def _check(table: dict[str, Any], path: Path) -> None:
    expected: Kinds = {
        **dict.fromkeys(("title", "kind", "architecture"), str),
        **dict.fromkeys(("cores", "shared_memory_kib"), int),
        **dict.fromkeys(("bandwidth_gb_s", "memory_gb"), _NUMBER),
        **dict.fromkeys(("features", "aliases", "driver_names", "sources"), list),
        "peak_tflops": dict,
    }
    _check_kinds(table, expected, path)
    if table["kind"] not in KINDS:
        raise BadDevice(f"kind = {table['kind']!r}, not one of {', '.join(KINDS)}", where=str(path))
    if "f32" not in table["peak_tflops"]:
        raise BadDevice("peak_tflops lacks f32, which stands for every dtype without units of its own", where=str(path))
    if not table["sources"]:
        raise BadDevice("sources is empty", where=str(path), fix="say where the figures are from")

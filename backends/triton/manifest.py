"""A compiled kernel as files: the binary, and what must be known to launch it, readable without triton or its source.

<symbol>.cubin (or .hsaco)   the binary
<symbol>.cu                  the CUDA text it was made of, where it was
<symbol>.json                architecture, parameters in order, bytes of shared memory, warps, grid, constants
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from irx.backends.triton.compiling import Binary, target_of
from irx.backends.triton.kernel import Kernel
from irx.errors import DamagedArtifact
from irx.target import Device

SUFFIXES = {"cuda": "cubin", "hip": "hsaco"}


def written(kernel: Kernel, binary: Binary, device: Device) -> dict[str, bytes]:
    """The files of a kernel."""
    launch = {
        "symbol": kernel.symbol,
        "note": kernel.note,
        "arch": device.architecture,
        "parameters": [[p.name, kernel.signature[p.name]] for p in kernel.parameters],
        "aligned": list(kernel.divisible),
        "constants": dict(kernel.constants),
        "grid": list(binary.grid or kernel.grid),
        "warps": binary.warps,
        "shared": binary.shared,
        "fusion": kernel.fusion,
    }
    names = kernel.symbol
    text = {f"{names}.cu": binary.text} if binary.text else {}
    return {f"{names}.{_suffix(device)}": binary.data, f"{names}.json": json.dumps(launch, indent=1).encode(), **text}


def read_all(symbols: Iterable[str], blobs: Mapping[str, bytes], device: Device) -> dict[str, Binary]:
    """All binaries there are for the device. Raises DamagedArtifact as `read`."""
    return {symbol: binary for symbol in symbols if (binary := read(symbol, blobs, device)) is not None}


def read(symbol: str, blobs: Mapping[str, bytes], device: Device) -> Binary | None:
    """The binary of a kernel, None where it is not among the files, or was made for another architecture.

    Raises DamagedArtifact for a description that is none.
    """
    data, described = blobs.get(f"{symbol}.{_suffix(device)}"), blobs.get(f"{symbol}.json")
    if data is None or described is None:
        return None
    try:
        launch = json.loads(described)
        if launch["arch"] != device.architecture:
            return None
        grid = tuple(str(text) for text in launch["grid"])
        return Binary(data, int(launch["shared"]), int(launch["warps"]), grid)
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedArtifact(f"the description of a kernel cannot be read: {error}", where=symbol) from error


def _suffix(device: Device) -> str:
    return SUFFIXES[target_of(device)[0]]

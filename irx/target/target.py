"""Target: what the user asked to compile for, as text and back. The spellings:

host                    this machine: its GPU if there is a known one, else its CPU
cpu, cuda               this machine's CPU, this machine's GPU
a100, cpu-avx512        a device by name or alias, on this machine or not
torch, triton           a backend on this machine
triton:h100             both
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from irx.errors import DeviceNotFound, UnknownTarget
from irx.target.device import Device, devices, find_device
from irx.target.gpu import host_gpu
from irx.target.host import host_cpu, host_device

BACKENDS = ("torch", "tvm", "triton", "mlir")


@dataclass(frozen=True)
class Target:
    """A device, and the backend where the user named one. With `backend` None the compiler chooses."""

    device: Device
    backend: str | None = None

    @classmethod
    def parse(cls, text: str, backends: Iterable[str] = BACKENDS) -> Target:
        """Read the text form. Raises UnknownTarget for a name nobody declared, DeviceNotFound for an absent GPU."""
        first, colon, rest = text.strip().partition(":")
        if not colon:
            return cls(host_device(), first) if first in backends else cls(_device(first, backends))
        if first not in backends:
            raise UnknownTarget(first, backends, where=f"the backend in target {text!r}")
        return cls(_device(rest), first)

    def __str__(self) -> str:
        return f"{self.backend}:{self.device.name}" if self.backend else self.device.name


def _device(name: str, others: Iterable[str] = ()) -> Device:
    """The device called `name`; `others` are names that would have been right in its place."""
    if name == "host":
        return host_device()
    if name == "cpu":
        return host_cpu()
    if name == "cuda":
        return _gpu()
    try:
        return find_device(name)
    except UnknownTarget as error:
        raise UnknownTarget(name, {*error.choices, *others, "host", "cpu", "cuda"}) from None


def _gpu() -> Device:
    gpu = host_gpu()
    if gpu is None:
        named = ", ".join(name for name, device in devices().items() if device.is_gpu)
        advice = f"name the device to compile for: {named}"
        raise DeviceNotFound("target 'cuda' is this machine's GPU, and it has none that IRX knows", fix=advice)
    return gpu

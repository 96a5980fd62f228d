"""For what a program is compiled: `Device` (facts from a TOML file) and `Target` (a device and maybe a backend).

Adding a device is adding one file to `devices/`; nothing here imports torch.
"""

from irx.target.device import Device, Gpu, devices, find_device
from irx.target.gpu import host_gpu, runs_on
from irx.target.host import host_cpu, host_device
from irx.target.measurement import Measurement, is_measured, measure_host, measured
from irx.target.target import Target

__all__ = [
    "Device",
    "Gpu",
    "Measurement",
    "Target",
    "devices",
    "find_device",
    "host_cpu",
    "host_device",
    "host_gpu",
    "is_measured",
    "measure_host",
    "measured",
    "runs_on",
]

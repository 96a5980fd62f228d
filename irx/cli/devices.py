"""List the devices IRX can compile for, and what it knows of each.

This machine comes first. Peaks are dense, in 10**12 operations a second; those of CPUs are nominal, but this machine's
are measured with --measure, which takes seconds and is remembered. On a busy machine they are not kept.

examples:
  irx devices
  irx devices --measure cpu
  irx devices a100 h100
  irx devices --json
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from typing import Any

from irx.cli._output import add_json, print_rows, progress
from irx.target import Device, Target, devices, host_cpu, host_gpu, is_measured, measured

COLUMNS = ("name", "device", "cores", "f32", "bf16", "i8", "GB/s", "GB", "also")


def configure(parser: ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("name", nargs="*", help="devices or targets to show; all of them by default")
    parser.add_argument("--measure", action="store_true", help="measure this machine's CPU anew")
    add_json(parser)


def run(arguments: Namespace) -> None:
    """Print the devices."""
    if arguments.measure:
        _measure()
    named = [Target.parse(name).device for name in arguments.name] or [host_cpu(), *devices().values()]
    chosen = [measured(device) for device in named]
    if arguments.json:
        print_rows([_facts(device) for device in chosen], (), as_json=True)
        return
    print_rows([_row(device) for device in chosen], COLUMNS, as_json=False)


def _measure() -> None:
    from irx.backends.tvm.probe import measure

    with progress("Measuring this machine"):
        measure(again=True)


def _here(device: Device) -> bool:
    return device in (measured(host_cpu()), host_gpu())


def _facts(device: Device) -> dict[str, Any]:
    return {
        "name": device.name,
        "title": device.title,
        "this_machine": _here(device),
        "kind": device.kind,
        "architecture": device.architecture,
        "cores": device.cores,
        "peak_tflops": dict(device.peak_tflops),
        "bandwidth_gb_s": device.bandwidth_gb_s,
        "measured": is_measured(device),
        "memory_gb": round(device.memory_gb, 2),
        "shared_memory_kib": device.shared_memory_kib,
        "gpu": asdict(device.gpu) if device.gpu is not None else None,
        "features": sorted(device.features),
        "aliases": list(device.aliases),
        "sources": list(device.sources),
    }


def _row(device: Device) -> dict[str, Any]:
    also = [
        *device.aliases,
        *(["this machine"] if _here(device) else []),
        *(["measured"] if is_measured(device) else []),
    ]
    peaks = {dtype: f"{device.peak(dtype) / 1e12:.4g}" for dtype in ("f32", "bf16", "i8")}
    memory = f"{device.memory_gb:.4g}"
    bandwidth = f"{device.bandwidth_gb_s:.4g}"
    return {
        "name": device.name,
        "device": device.title,
        "cores": device.cores,
        **peaks,
        "GB/s": bandwidth,
        "GB": memory,
        "also": also,
    }

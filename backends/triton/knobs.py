"""What can be chosen for each kernel template on a device, bounded by its file: the search's side of templates.

The bounds leave out what no kernel of the template could have: threads of a block, registers for the sums alone, shared
memory for the loads in flight alone. What a kernel really takes is read from its binary, and refused there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

from irx.analysis.occupancy import MAX_THREADS
from irx.backends.triton.templates import append, attention_decode, attention_flash, chain, gemm_shape, matvec_shape
from irx.target import Device
from irx.tuning import Choice, Knob, Schedule, Space, Task, TaskKey

RUNNER = "irx.backends.triton.tuning:run"
MODEL = "irx.backends.triton.tuning:model"

VALUES: Mapping[str, Mapping[str, tuple[Choice, ...]]] = {
    "matvec": matvec_shape.KNOBS,
    "gemm": gemm_shape.KNOBS,
    "attention_decode": attention_decode.KNOBS,
    "attention_flash": attention_flash.KNOBS,
    "append": append.KNOBS,
    "chain": chain.KNOBS,
}
"""The values of every knob. Adding one leaves schedules valid."""

VERSIONS: Mapping[str, str] = {}
"""By template, where it is not 1: raise it when kernels change so much that older schedules say nothing about them.

The texts of templates are not hashed, unlike the CPU's: schedules shipped for thirteen devices, most of which nobody
can measure here, would be lost with every comment. A schedule that no longer fits is passed over all the same.
"""

SMALLEST_ITEM = 2  # bytes of what products are made of

_Numbers: TypeAlias = Mapping[str, int]


def task(device: Device, template: str, bucket: str, defaults: Mapping[str, Choice], **more: Any) -> Task:
    """What tuning knows a kernel by. The defaults, which depend on the kernel, are always in the space."""
    values = VALUES.get(template, {})
    knobs = tuple(
        Knob(name, tuple(sorted({*values.get(name, ()), default})), default) for name, default in defaults.items()
    )
    default = Schedule(defaults)
    space = Space(knobs, lambda schedule: schedule == default or _fits(device, template, schedule))
    return Task(TaskKey(template, VERSIONS.get(template, "1"), bucket, ""), space, RUNNER, **more)


def tasks_for(device: Device) -> Callable[..., Task]:
    """`task` of one device."""
    return partial(task, device)


def _fits(device: Device, template: str, schedule: Schedule) -> bool:
    gpu = device.gpu
    assert gpu is not None
    chosen = {name: int(value) for name, value in schedule.items()}
    threads = chosen.get("warps", 1) * gpu.warp_threads
    if threads > MAX_THREADS:
        return False
    if _sums(template, chosen) > threads * gpu.max_registers // 2:
        return False
    return _in_flight(template, chosen) <= device.shared_memory_kib * 1024


def _sums(template: str, chosen: _Numbers) -> int:
    """Registers of a block that hold sums."""
    if template == "matvec":
        return chosen["columns"] * chosen["span"]
    if template == "gemm":
        return chosen["rows"] * chosen["columns"]
    return chosen["queries"] * chosen["tokens"] if template == "attention_flash" else 0


def _in_flight(template: str, chosen: _Numbers) -> int:
    """Bytes of shared memory that loads on their way take at least."""
    if template != "gemm":
        return 0
    return (chosen["stages"] - 1) * chosen["rows"] * chosen["depth"] * SMALLEST_ITEM

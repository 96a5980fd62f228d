"""What can be chosen for each kernel template, and the schedule that is used for it: the search's side of templates."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from irx.target import Device
from irx.tuning import Choice, Knob, Schedules, Space, Task, TaskKey

RUNNER = "irx.backends.tvm.tuning:run"
TEMPLATES = Path(__file__).parent / "templates"
SHARED = ("instructions.py", "linear_*.py")

VALUES: Mapping[str, Mapping[str, tuple[Choice, ...]]] = {
    "matvec": {
        "vectors": (1, 2, 4),
        "unroll": (1, 2, 4, 8),
        "prefetch": (0, 1024, 2048, 4096, 8192, 16384),
    },
    "gemm": {
        "block": (4, 5, 6, 8, 10, 12, 14),
        "vectors": (1, 2, 4),
        "unroll": (1, 2, 4, 8),
        "stripe": (1, 2, 4, 8, 16, 32),
    },
}
"""The values of every knob. Adding one leaves measured schedules valid."""


def task(template: str, bucket: str, defaults: Mapping[str, Choice], **more: Any) -> Task:
    """What tuning knows a kernel by. The defaults, which depend on the kernel, are always among the values."""
    values = VALUES.get(template, {})
    knobs = tuple(
        Knob(name, tuple(sorted({*values.get(name, ()), default})), default) for name, default in defaults.items()
    )
    return Task(TaskKey(template, version(template), bucket, ""), Space(knobs), RUNNER, **more)


@cache
def version(template: str) -> str:
    """A hash of the files that make the template's kernels, those it shares with other templates included."""
    found = hashlib.sha256()
    for pattern in (f"{template}*.py", *SHARED):
        for path in sorted(TEMPLATES.glob(pattern)):
            found.update(path.read_bytes())
    return found.hexdigest()[:12]


class Book:
    """The schedules of one compilation: what was measured, shipped or lent by a similar device, else defaults.

    `used` are those that are not defaults, by template and bucket, so that an artifact can be loaded with the same.
    """

    def __init__(self, device: Device) -> None:
        self._schedules = Schedules(device)
        self.used: dict[str, dict[str, Choice]] = {}
        self.origins: dict[str, str] = {}

    def __call__(self, template: str, bucket: str, defaults: Mapping[str, Choice]) -> Mapping[str, Choice]:
        """The knobs to build a kernel with."""
        chosen, origin = self._schedules.find(task(template, bucket, defaults))
        if origin.kind != "default":
            self.used[name(template, bucket)] = dict(chosen)
            self.origins[name(template, bucket)] = str(origin)
        return chosen


class Recorded:
    """The schedules that an earlier `Book` used."""

    def __init__(self, used: Mapping[str, Mapping[str, Choice]]) -> None:
        self._used = used

    def __call__(self, template: str, bucket: str, defaults: Mapping[str, Choice]) -> Mapping[str, Choice]:
        """The knobs to build a kernel with."""
        return {**defaults, **self._used.get(name(template, bucket), {})}


def name(template: str, bucket: str) -> str:
    """One text for both."""
    return f"{template}: {bucket}"

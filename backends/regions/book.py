"""The schedules that a compilation uses, and how an artifact is loaded with the same ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from irx.target import Device
from irx.tuning import Choice, Schedules, Task


class Book:
    """The schedules of one compilation: what was measured, shipped or lent by a similar device, else defaults.

    `task(template, bucket, defaults)` is what tuning knows a kernel by. `used` are those that are not defaults, by
    template and bucket, so that an artifact can be loaded with the same; `origins` says where each is from.
    """

    def __init__(self, device: Device, task: Callable[[str, str, Mapping[str, Choice]], Task]) -> None:
        self._schedules = Schedules(device)
        self._task = task
        self.used: dict[str, dict[str, Choice]] = {}
        self.origins: dict[str, str] = {}

    def __call__(self, template: str, bucket: str, defaults: Mapping[str, Choice]) -> Mapping[str, Choice]:
        """The knobs to build a kernel with."""
        chosen, origin = self._schedules.find(self._task(template, bucket, defaults))
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

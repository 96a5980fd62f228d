"""What can be tuned: one kernel at one size on one device, and how a worker process tries a schedule of it.

A kernel's template and a tuning run meet only here. The template gives a `Task`: its key, its space, and the name of a
runner, `package.module:function`, that a worker process imports and calls as

    runner(args, schedule) -> Outcome

with plain data only. The runner builds the kernel, compares its result with the reference, and times it. Whatever it
raises, and every crash of its process, counts against the candidate alone.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from irx.target import Device
from irx.tuning.space import Schedule, Space


@dataclass(frozen=True)
class TaskKey:
    """What a measured schedule is found by; together with the device it was measured on.

    `template` is the kernel's name and `version` a hash of everything that makes kernels from schedules, but not of the
    values that knobs may have: one more value must not invalidate what was measured. `shape` is a bucket, as
    `rows=1,n=1536,k=576`: sizes that are served by one kernel. `dtype` names formats, as `q4_1` or `bf16,f32`.
    """

    template: str
    version: str
    shape: str
    dtype: str

    def __str__(self) -> str:
        return f"{self.template}[{self.shape}, {self.dtype}]"


@dataclass(frozen=True)
class Fingerprint:
    """The device of a measurement: kind, model, cores, and the features that code generation can use."""

    kind: str
    model: str
    cores: int
    features: tuple[str, ...]

    @classmethod
    def of(cls, device: Device) -> Fingerprint:
        """The fingerprint of a device; a renamed or measured one has the same."""
        return cls(device.kind, device.title, device.cores, tuple(sorted(device.features)))

    @property
    def digest(self) -> str:
        """A short hash of all fields."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        return f"{self.model} ({self.cores} cores)"


@dataclass(frozen=True)
class Task:
    """One kernel to tune.

    `runner` is `package.module:function` and `args` the plain data it gets besides the schedule. `where` says what the
    kernel is for, as module paths; `uses` how often a run of the model calls it, which decides what is tuned first.
    `picks` are schedules that a cost model thinks well of; they are tried right after the defaults. `model` is called
    as the runner is where the device is not this machine's, and gives the time of a model; empty where there is none.
    """

    key: TaskKey
    space: Space
    runner: str
    args: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""
    uses: int = 1
    picks: tuple[Schedule, ...] = ()
    model: str = ""

    def default(self) -> Schedule:
        """The schedule without measurements."""
        return self.space.default()


@dataclass(frozen=True)
class Outcome:
    """What became of one candidate: seconds of its calls, and its error against the largest one allowed.

    `failure` says why there is nothing to time: it did not build, crashed, or took too long.
    """

    seconds: tuple[float, ...] = ()
    error: float = 0.0
    limit: float = 0.0
    failure: str = ""

    @property
    def refusal(self) -> str:
        """Why the candidate must not win; empty where it may. An error that is not a number is too large."""
        if self.failure:
            return self.failure
        if not self.error <= self.limit:
            return f"its result is off: error {self.error:.3g}, at most {self.limit:.3g} is allowed"
        if not self.seconds or not all(math.isfinite(value) and value > 0 for value in self.seconds):
            return "it gave no usable times"
        return ""

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Outcome:
        """What `to_json` gave. Raises TypeError for other data."""
        return cls(**{**data, "seconds": tuple(data.get("seconds", ()))})

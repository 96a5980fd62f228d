"""What a target stands for: the device, the backend that is best for it, and where torch runs in its place."""

from __future__ import annotations

import torch

from irx.backends import find_backend, known_backends
from irx.errors import DeviceNotFound, MissingFeature
from irx.pipeline.backend import Backend
from irx.target import Device, Target


def aim(target: str) -> Target:
    """Step 1: the target. The torch backend runs where it compiles, so what it would serve must be here.

    Raises UnknownTarget and DeviceNotFound.
    """
    goal = Target.parse(target, known_backends())
    if goal.backend is not None and (reason := find_backend(goal.backend).missing(goal.device)) is not None:
        raise MissingFeature(f"the backend {goal.backend} cannot be used: {reason}", fix="use another target")
    if preferred(goal).name == "torch":
        present(goal.device)
    return goal


def floats_of(goal: Target) -> str:
    """What a GGUF file, which has weights only, computes in on this target."""
    return "bf16" if goal.device.is_gpu else "f32"


def preferred(goal: Target) -> Backend:
    """The backend that the target names, else the first for its kind of device that is here."""
    if goal.backend is not None:
        return find_backend(goal.backend)
    found = map(find_backend, preference(goal.device))
    return next(backend for backend in found if backend.missing(goal.device) is None)


def preference(device: Device) -> list[str]:
    """Backends for a kind of device, best first; torch, the last, can always be used."""
    wanted = ("tvm", "torch") if device.kind == "cpu" else ("triton", "torch")
    return [name for name in wanted if name in known_backends()]


def absent(goal: Target) -> list[str]:
    """Why backends that would be better are not used."""
    if goal.backend is not None:
        return []
    better = preference(goal.device)
    better = better[: better.index(preferred(goal).name)]
    return [f"the backend {name} is not used: {find_backend(name).missing(goal.device)}" for name in better]


def here(goal: Target) -> Target:
    """Where torch runs programs while compiling: on the target where that is here, else on the CPU."""
    if not goal.device.is_gpu or torch.cuda.is_available():
        return goal
    return Target.parse("torch:cpu-generic", known_backends())


def present(device: Device) -> Device:
    """The device, which must be in this machine. Raises DeviceNotFound."""
    if device.is_gpu and not torch.cuda.is_available():
        raise DeviceNotFound(f"torch sees no GPU, but {device.name} is one", fix="run it on a machine that has one")
    return device

"""One command on a machine with a GPU: its tests, a search for schedules, and the tables, with device and versions."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from irx.bench.result import Result
from irx.errors import NoGpu
from irx.target import Device

TESTS = Path("tests/gpu")
TESTED = "tests on the GPU"
LIMIT = 420.0  # seconds of all tests: one that hangs must not take the machine's time from the rows
SEARCH = 60.0  # seconds for the schedules of a program
QUICK_ROUNDS = 3
PACKAGES = ("irx", "torch", "triton")


def run(
    device: Device,
    *,
    rounds: int = 10,
    quick: bool = False,
    only: str = "",
    tell: Callable[[str], object] = lambda line: None,
) -> Iterator[Result]:
    """The rows of this machine's GPU, those with the words `only` in their titles. Raises NoGpu without one."""
    import torch

    from irx.bench.gpu.isolated import Plan, results

    if not torch.cuda.is_available():
        raise NoGpu(f"the bench of {device.name} runs on a GPU, and torch sees none", fix="run it where there is one")
    if only in TESTED:
        yield gpu_tests(tell)
    plan = Plan(device.name, QUICK_ROUNDS if quick else rounds, 0.05 if quick else 0.2, 0.0 if quick else SEARCH)
    for row in results(plan, only, tell):
        tell(f"  {row.line()}")
        yield row


def gpu_tests(tell: Callable[[str], object], limit: float = LIMIT) -> Result:
    """The tests that need a GPU, as a row; absent where the checkout's tests or pytest are not here."""
    row = Result("gpu", TESTED, "", None, "x")
    if not TESTS.is_dir():
        return row.without("absent", f"{TESTS} is not here: run it in a checkout")
    if find_spec("pytest") is None:
        return row.without("absent", "pytest is not installed")
    tell(f"running the {TESTED}")
    words = [sys.executable, "-m", "pytest", "-v", "-o", "addopts=--import-mode=importlib", str(TESTS)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired as error:
        said = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        return row.without("wrong", f"not over after {limit:g} s, at: {_last(said)}")
    for line in done.stdout.splitlines():
        if line.startswith(("FAILED", "ERROR")):
            tell(f"  {line}")
    return row.without("holds" if done.returncode == 0 else "wrong", _last(done.stdout or done.stderr))


def _last(text: str) -> str:
    """The last line that says something."""
    return (text.strip() or "no output").splitlines()[-1].strip("= ")


def about(device: Device) -> dict[str, Any]:
    """What belongs beside every figure: the device, versions, the day."""
    import torch

    title = torch.cuda.get_device_name() if torch.cuda.is_available() else device.title
    driver = _driver()
    versions = {name: found for name in PACKAGES if (found := _version(name))}
    return {"device": title, "driver": driver, **versions, "python": platform.python_version(), "day": _day()}


def table(results: Sequence[Result], facts: Mapping[str, Any]) -> str:
    """The rows in Markdown, under what belongs beside them."""
    cells = [result.cells() | {"note": result.note} for result in results]
    names = list(cells[0]) if cells else []
    lines = [names, ["---"] * len(names), *([row[name] for name in names] for row in cells)]
    head = ", ".join(f"{name} {value}" for name, value in facts.items() if value)
    return "\n".join([head, "", *(f"| {' | '.join(line)} |" for line in lines)]) + "\n"


def _driver() -> str:
    from irx.backends.triton.driver import open_driver

    try:
        return f"CUDA {open_driver().version}"
    except NoGpu:
        return ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _day() -> str:
    return time.strftime("%Y-%m-%d")

"""What can be chosen for each kernel template: the search's side of templates."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from irx.tuning import Choice, Knob, Space, Task, TaskKey

RUNNER = "irx.backends.tvm.tuning:run"
TEMPLATES = Path(__file__).parent / "templates"
SHARED = ("instructions.py", "linear_*.py")

VALUES: Mapping[str, Mapping[str, tuple[Choice, ...]]] = {
    "matvec": {
        "vectors": (1, 2, 4),
        "unroll": (1, 2, 4, 8),
        "prefetch": (0, 2048, 4096, 8192, 16384, 32768),
        "halves": (0, 1),
    },
    "gemm": {
        "block": (4, 5, 6, 8, 10, 12, 14),
        "vectors": (1, 2, 4),
        "unroll": (1, 2, 4, 8),
        "stripe": (1, 2, 4, 8, 16, 32),
        "prefetch": (0, 1),
    },
}
"""The values of every knob. Adding one leaves measured schedules valid."""

_STRINGS_AND_COMMENTS = re.compile(
    r'"""(?:[^\\]|\\.)*?"""|"(?:[^"\\\n]|\\.)*"|\'(?:[^\'\\\n]|\\.)*\'|#[^\n]*', re.DOTALL
)


def task(template: str, bucket: str, defaults: Mapping[str, Choice], **more: Any) -> Task:
    """What tuning knows a kernel by. The defaults, which depend on the kernel, are always among the values."""
    values = VALUES.get(template, {})
    knobs = tuple(
        Knob(name, tuple(sorted({*values.get(name, ()), default})), default) for name, default in defaults.items()
    )
    return Task(TaskKey(template, version(template), bucket, ""), Space(knobs), RUNNER, **more)


@cache
def version(template: str) -> str:
    """A hash of the code that makes the template's kernels, that which it shares with other templates included."""
    found = hashlib.sha256()
    for pattern in (f"{template}*.py", *SHARED):
        for path in sorted(TEMPLATES.glob(pattern)):
            found.update(_code(path.read_text()).encode())
    return found.hexdigest()[:12]


def _code(source: str) -> str:
    """A module's text without what changes no kernel: comments, docstrings and the space between words."""

    def kept(match: re.Match[str]) -> str:
        before = source[source.rfind("\n", 0, match.start()) + 1 : match.start()]
        is_docstring = match[0].startswith('"""') and not before.strip()
        return "" if is_docstring or match[0].startswith("#") else match[0]

    return "".join(_STRINGS_AND_COMMENTS.sub(kept, source).split())

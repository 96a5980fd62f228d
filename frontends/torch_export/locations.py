"""Where a traced node comes from: the module path and the source line that torch recorded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import fx

from irx.ir.graph import Loc

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_TORCH = f"{Path(fx.__file__).parent.parent}"


def location(node: fx.Node) -> Loc:
    """The innermost module that was running, and the innermost line outside torch itself."""
    return Loc(module_path(node.meta.get("nn_module_stack")), source_line(node.meta.get("stack_trace")))


def module_path(stack: Any) -> str:
    """`model.layers.0.mlp`; empty for the model itself and for graphs without such a record."""
    if not stack:
        return ""
    entry = list(stack.values())[-1]
    path = str(entry[0] if isinstance(entry, tuple) else entry)
    path = re.sub(r"^L\['(self|fn)'\]\.?|^L__self__\.?", "", path).partition("@")[0]
    return re.sub(r"\['?([^'\]]*)'?\]", r".\1", path.replace("._modules", "")).strip(".")


def source_line(trace: str | None) -> str:
    """`modeling.py:123`; torch's own frames are passed over where there are others."""
    frames = _FRAME.findall(trace or "")
    if not frames:
        return ""
    outside = [frame for frame in frames if not frame[0].startswith(_TORCH)]
    file, line = (outside or frames)[-1]
    return f"{Path(file).name}:{line}"

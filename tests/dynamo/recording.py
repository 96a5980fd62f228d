"""A backend that compiles with IRX and remembers what became of every graph."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from irx.dynamo import irx_backend
from irx.dynamo.build import Built
from irx.dynamo.graph import CompiledGraph


class Recording:
    """`torch.compile(model, backend=recording)`; `graphs` has, for each, what IRX returned."""

    def __init__(self) -> None:
        self.graphs: list[Any] = []
        self.modules: list[fx.GraphModule] = []

    def __call__(self, module: fx.GraphModule, inputs: Sequence[Any], **kwargs: Any) -> Any:
        options = {"target": "torch", **(kwargs.pop("options", None) or {})}  # what is tested compiles in no time
        made = irx_backend(module, inputs, options=options, **kwargs)
        self.graphs.append(made)
        self.modules.append(module)
        return made

    @property
    def built(self) -> Built:
        """What the newest graph runs at present."""
        compiled = self.graphs[-1]
        assert isinstance(compiled, CompiledGraph)
        assert not compiled._given_up
        (prepared,) = compiled._frozen._prepared.values()
        return prepared.built


def operations(recording: Recording) -> list[str]:
    """Names of the ops that the newest graph runs."""
    text = b"".join(recording.built.files.values()).decode()
    return re.findall(r"^    %.+? = (?:irx\.)?([\w.]+)\(", text, re.MULTILINE)


def relative(made: torch.Tensor, expected: torch.Tensor) -> float:
    """max|made - expected| / max|expected|."""
    assert made.shape == expected.shape
    assert made.dtype == expected.dtype
    return float((made - expected).abs().max() / expected.abs().max().clamp(min=1e-30))

"""What the rows of a bench share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from irx.bench.lab import Lab
from irx.frontends import sources


@pytest.mark.parametrize(("target", "floats"), [("torch:cpu", "f32"), ("triton:h100-sxm", "bf16")])
def test_a_file_is_read_as_it_would_be_compiled(target: str, floats: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(sources, "read", lambda model, **options: seen.append({"model": model, **options}))
    Lab(Path("model.gguf"), target).source("file")
    assert [(options["model"], options["activations"]) for options in seen] == [("model.gguf", floats)]

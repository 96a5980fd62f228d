"""Programs from text and from files."""

from __future__ import annotations

from pathlib import Path

import pytest

from irx.errors import ModelNotFound, ParseError
from irx.frontends import text

TEXT = "graph @forward(%x: f32[B, 4]) -> (y: f32[B, 4]) {\n  %y = irx.silu(%x) : f32[B, 4]\n  return %y\n}\n"


def test_text() -> None:
    assert [node.op.name for node in text.capture(TEXT).graphs["forward"].nodes] == ["silu"]


def test_file(tmp_path: Path) -> None:
    path = tmp_path / "small.irx"
    path.write_text(TEXT)
    for source in (path, str(path)):
        assert "forward" in text.capture(source).graphs


def test_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "broken.irx"
    path.write_text(TEXT.replace("silu", "silly"))
    with pytest.raises(Exception, match="silu"):
        text.capture(path)
    path.write_text(TEXT.replace("return", "retrun"))
    with pytest.raises(ParseError, match=r"broken\.irx:3"):
        text.capture(path)
    with pytest.raises(ModelNotFound, match="missing"):
        text.capture(tmp_path / "missing.irx")

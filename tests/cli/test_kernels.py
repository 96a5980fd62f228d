"""`irx compile --report`: what every kernel takes of a device that is not here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from irx.backends import find_backend
from irx.cli import main
from irx.errors import ModelNotFound
from irx.frontends import sources
from irx.target import Target

TEXT = """\
weight $w : f32[48, 64]
graph @forward(%x: f32[1, 64]) -> (y: f32[1, 48]) {
  %y = irx.linear(%x, $w)  // model.head @ net.py:4
  return %y
}
"""
LACKING = find_backend("triton").missing(Target.parse("a100", ["triton"]).device)


@pytest.mark.skipif(LACKING is not None, reason=str(LACKING))
def test_every_kernel_is_compiled_and_what_it_takes_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IRX_CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "model.irx"
    path.write_text(TEXT)
    assert main(["compile", str(path), "--target", "a100", "--report", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["target"] == "a100-80gb"
    kernels = [row for row in report["rows"] if row["kernel"]]
    assert kernels
    assert all("no spills" in row["takes"] for row in kernels)
    assert any("launches" in row["takes"] for row in report["rows"])


@pytest.mark.parametrize(("target", "floats"), [("a100", "bf16"), ("tvm:cpu", "f32")])
def test_a_file_computes_in_what_it_would_be_compiled_for(
    target: str, floats: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def read(model: str, **options: Any) -> Any:
        asked.append(options["activations"])
        raise ModelNotFound(model)

    monkeypatch.setattr(sources, "read", read)
    for command in (["compile", "model.gguf", "--report"], ["tune", "model.gguf"]):
        assert main([*command, "--target", target]) == 2
    assert asked == [floats, floats]

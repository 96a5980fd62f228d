"""Weights packed from floats: made once, kept for saving, and the model they came from is let go and may change."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

import irx
from irx.runtime import spill


def compiled(pipeline: str = "default | quantize-weights") -> tuple[torch.nn.Module, irx.Executable]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.Linear(96, 32)).eval()
    return model, irx.compile(model, torch.randn(2, 64), target="torch", pipeline=pipeline)


def test_the_model_is_let_go_and_the_executable_can_still_be_saved(tmp_path: Path) -> None:
    model, fast = compiled()
    x = torch.randn(3, 64)
    expected = fast(x)
    alive = weakref.ref(model[0].weight)
    del model
    gc.collect()
    assert alive() is None
    fast.save(tmp_path / "model.irx")
    torch.testing.assert_close(irx.load(tmp_path / "model.irx")(x), expected, rtol=0, atol=0)


def test_a_model_that_changes_afterwards_is_saved_as_it_was(tmp_path: Path) -> None:
    model, fast = compiled()
    x = torch.randn(3, 64)
    expected = fast(x)
    with torch.no_grad():
        model[0].weight.zero_()
    fast.save(tmp_path / "model.irx")
    torch.testing.assert_close(irx.load(tmp_path / "model.irx")(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("pipeline", "share"),
    [("quantize-weights", 8.5 / 32), ("quantize-weights{bits=4}", 4.5 / 32), ("cast-weights", 0.5)],
)
def test_an_artifact_holds_only_the_packed_bytes(tmp_path: Path, pipeline: str, share: float) -> None:
    sizes = []
    for text in ("default", f"default | {pipeline}"):
        _, fast = compiled(text)
        fast.save(tmp_path / "model.irx")
        header = 2048
        sizes.append((tmp_path / "model.irx" / "weights.safetensors").stat().st_size)
    biases = 4 * (96 + 32)
    assert sizes[1] <= (sizes[0] - biases) * share + biases + header


def test_weights_are_packed_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _, fast = compiled()
    monkeypatch.setattr("irx.ops.precision.pack", lambda *_: pytest.fail("packed again"))
    fast.save(tmp_path / "model.irx")


def full() -> Any:
    return open("/dev/full", "r+b", buffering=0)


def refused() -> Any:
    raise OSError("no folder can be written to")


@pytest.mark.parametrize("opened", [full, refused])
def test_without_a_file_the_bytes_stay_in_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, opened: Any) -> None:
    monkeypatch.setattr(spill.tempfile, "TemporaryFile", opened)
    _, fast = compiled()
    monkeypatch.undo()
    fast.save(tmp_path / "model.irx")
    x = torch.randn(3, 64)
    torch.testing.assert_close(irx.load(tmp_path / "model.irx")(x), fast(x), rtol=0, atol=0)

"""Every test starts with nothing compiled and nothing said, and an error of IRX's own is not hidden by the fallback."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from irx.dynamo import notes
from tests.dynamo.recording import Recording


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    monkeypatch.setattr(notes, "_said", set())
    monkeypatch.setenv("IRX_DEBUG", "1")
    yield
    torch._dynamo.reset()


@pytest.fixture
def falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """As users have it: what cannot be compiled runs as it is."""
    monkeypatch.delenv("IRX_DEBUG")


@pytest.fixture
def recording() -> Recording:
    return Recording()

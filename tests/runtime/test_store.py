"""The weights of an executable: what is let go of after compiling, and what can be had again."""

from __future__ import annotations

import pytest
import torch

from irx.errors import UnboundWeight
from irx.runtime.store import WeightStore


def test_what_is_kept_in_another_form_can_be_had_again() -> None:
    """A graph that kernels cannot follow is run by torch, which wants the weights as they were."""
    weights = {"packed": torch.arange(4.0), "plain": torch.ones(2)}
    store = WeightStore(weights.__getitem__, torch.device("cpu"))
    store.recoverable("packed", lambda: torch.arange(4.0))
    store.detach(weights)
    assert torch.equal(store.keep("plain"), torch.ones(2))  # type: ignore[arg-type]
    assert torch.equal(store.keep("packed"), torch.arange(4.0))  # type: ignore[arg-type]
    with pytest.raises(UnboundWeight):
        store.keep("other")

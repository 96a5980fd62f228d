"""Found by its entry point, without an import of irx."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys, torch
assert "irx" in torch._dynamo.list_backends()
assert "irx" not in sys.modules
x = torch.randn(3, 4)
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 2)).eval()
with torch.no_grad():
    error = (torch.compile(model, backend="irx", options={"target": "torch"})(x) - model(x)).abs().max().item()
assert "irx.dynamo" in sys.modules
assert error < 1e-6, error
"""


def test_torch_finds_the_backend_by_its_name() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

"""Any `nn.Module` or traced ATen graph as an IRX program.

`capture` traces a module with `torch.export`; `translate` takes a graph of ATen operators that somebody else traced.
"""

from __future__ import annotations

from irx.frontends.torch_export.capture import capture
from irx.frontends.torch_export.translate import Translation, translate

__all__ = ["Translation", "capture", "translate"]

"""A process that compiles kernels ahead of time: `python -m irx.backends.triton.compiler_worker`.

A request is `{"symbol", "source", "signature", "constants", "divisible", "options", "target"}`; the answer has what a
launch must know, and the binary as its only part.
"""

from __future__ import annotations

import linecache
import sys
from typing import Any

from irx.backends.triton.framing import Message
from irx.backends.triton.kernel import ALIGNMENT
from irx.backends.triton.serving import serve

BINARIES = {"cuda": "cubin", "hip": "hsaco"}


def main() -> None:
    """Answer until the input ends."""
    sys.modules["torch"] = None  # type: ignore[assignment]  # Triton asks it for devices if it can, which takes long
    serve(answer)


def answer(request: Message, parts: list[bytes]) -> tuple[Message, list[bytes]]:
    """Compile one kernel. Raises what Triton raises, and ValueError for a kernel that no launcher here can start."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = _function(request["symbol"], request["source"])
    names = list(function.arg_names)
    attributes = {(names.index(name),): [["tt.divisibility", ALIGNMENT]] for name in request["divisible"]}
    source = ASTSource(function, request["signature"], constexprs=request["constants"], attrs=attributes)
    kind, architecture, warp = request["target"]
    made = triton.compile(source, target=GPUTarget(kind, architecture, warp), options=request["options"])
    metadata = made.metadata
    if reason := _objection(metadata):
        raise ValueError(reason)
    told = {"shared": metadata.shared, "warps": metadata.num_warps, "name": metadata.name}
    return told, [bytes(made.asm[BINARIES[kind]])]


def _objection(metadata: Any) -> str | None:
    """Why the kernel cannot be launched by address alone."""
    for name in ("global_scratch_size", "profile_scratch_size"):
        if getattr(metadata, name, 0):
            return f"it needs memory of its own ({name})"
    if getattr(metadata, "num_ctas", 1) != 1 or getattr(metadata, "launch_cooperative_grid", False):
        return "it needs a cluster or a cooperative launch"
    return None


def _function(symbol: str, source: str) -> Any:
    """The kernel as Triton's compiler takes it; its text is where `inspect` looks for it."""
    name = f"<{symbol}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    space: dict[str, Any] = {"__name__": symbol}
    exec(compile(source, name, "exec"), space)
    return space[symbol]


if __name__ == "__main__":
    main()

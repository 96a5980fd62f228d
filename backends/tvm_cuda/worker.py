"""A process that makes binaries of kernels: `python -m irx.backends.tvm_cuda.worker`.

A request is `{"symbol", "source", "parameters", "architecture", "shared", "fusion"}`; the answer has the grid and the
warps of a block, and two parts: the binary, and the CUDA text that TVM wrote.
"""

from __future__ import annotations

import os

from irx.backends.triton.framing import Message
from irx.backends.triton.serving import serve
from irx.backends.tvm_cuda.nvrtc import compile_cuda
from irx.backends.tvm_cuda.scheduling import scheduled
from irx.backends.tvm_cuda.signature import launchable


def main() -> None:
    """Answer until the input ends."""
    os.environ.setdefault("TVM_NUM_THREADS", "1")
    serve(answer)


def answer(request: Message, parts: list[bytes]) -> tuple[Message, list[bytes]]:
    """Compile one kernel. Raises what TVM raises, ValueError for what cannot be launched, and KernelFailed."""
    symbol = request["symbol"]
    made = scheduled(symbol, request["source"], request["architecture"], request["shared"])
    text = launchable(made, symbol, request["parameters"])
    binary = compile_cuda(text, request["architecture"], fusion=request["fusion"])
    return {"grid": list(made.grid), "warps": made.threads // 32}, [binary, text.encode()]


if __name__ == "__main__":
    main()

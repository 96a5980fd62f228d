"""A process that interprets kernels on the CPU: `python -m irx.backends.triton.interpreter_worker`.

A request holds the kernel's text, its arguments and the bytes of the buffers that pointers lie in; the answer the
bytes of the buffers after the kernel. Buffers are whole storages, so that pointers into one may overlap.
"""

from __future__ import annotations

import linecache
from functools import cache
from typing import Any

import numpy as np

from irx.backends.triton.framing import Message
from irx.backends.triton.serving import serve


def main() -> None:
    """Answer until the input ends."""
    from irx.backends.triton import interpreter_repairs

    interpreter_repairs.apply()
    serve(answer)


def answer(request: Message, parts: list[bytes]) -> tuple[Message, list[bytes]]:
    """Run one kernel. The answer's parts are the buffers that it changed; `changed` their numbers."""
    import torch

    buffers = [torch.frombuffer(bytearray(part), dtype=torch.uint8) for part in parts]
    arguments = [_argument(one, buffers) for one in request["arguments"]]
    grid = tuple(request["grid"])
    if all(grid):
        with np.errstate(all="ignore"):
            _function(request["symbol"], request["source"])[grid](*arguments, **request["constants"])
    after = [buffer.numpy().tobytes() for buffer in buffers]
    changed = [i for i, made in enumerate(after) if made != parts[i]]
    return {"changed": changed}, [after[i] for i in changed]


def _argument(one: dict[str, Any], buffers: list[Any]) -> Any:
    """A tensor that begins where the pointer does, or an integer of its own width."""
    import torch
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    if "value" in one:
        wide = one["dtype"] == "i64"
        handle = TensorHandle(np.array([one["value"]], np.int64 if wide else np.int32), tl.int64 if wide else tl.int32)
        return tl.tensor(handle, handle.dtype)
    if one["buffer"] is None:
        return torch.empty(1, dtype=getattr(torch, one["dtype"]))
    bytes = buffers[one["buffer"]][one["offset"] :]
    dtype = getattr(torch, one["dtype"])
    whole = bytes.numel() // dtype.itemsize * dtype.itemsize
    return bytes[:whole].view(dtype)


@cache
def _function(symbol: str, source: str) -> Any:
    """The kernel as the interpreter calls it; its text is where `inspect` looks for it."""
    name = f"<{symbol}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    space: dict[str, Any] = {"__name__": symbol}
    exec(compile(source, name, "exec"), space)
    return space[symbol]


if __name__ == "__main__":
    main()

"""TVM's CUDA text as the driver's launches want it: parameters in a kernel's own order, threads in one direction.

Before:

    extern "C" __global__ void __launch_bounds__(512) f_kernel(float* __restrict__ b1_ptr, float* __restrict__ b0_ptr);

After:

    extern "C" __global__ void __launch_bounds__(512) f(float* __restrict__ b0_ptr, float* __restrict__ b1_ptr,
    int64_t n0, void* scratch_, void* profile_);

The two pointers at the end are those that all kernels have which the driver here launches.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from irx.backends.tvm_cuda.scheduling import Scheduled

HIDDEN = ("void* scratch_", "void* profile_")


def launchable(made: Scheduled, symbol: str, parameters: Sequence[tuple[str, bool]]) -> str:
    """The text with `symbol` as its only function of these parameters (name, and whether it is a pointer).

    Raises ValueError for a text that cannot be launched so.
    """
    if foreign := set(made.parameters) - {_named(name, pointer) for name, pointer in parameters}:
        raise ValueError(f"TVM wants memory or numbers of its own: {', '.join(sorted(foreign))}")
    head = re.compile(rf"\b{re.escape(made.name)}\(([^)]*)\)")
    found = head.search(made.text)
    if found is None:
        raise ValueError(f"the text has no function {made.name}")
    declared = dict(zip(made.parameters, found[1].split(", "), strict=True))
    ordered = [declared.get(_named(*parameter), _unused(*parameter)) for parameter in parameters]
    return _flat(head.sub(f"{symbol}({', '.join((*ordered, *HIDDEN))})", made.text), made.block)


def _named(name: str, pointer: bool) -> str:
    """What TVM calls a parameter."""
    return f"{name}_ptr" if pointer else name


def _unused(name: str, pointer: bool) -> str:
    return f"void* {name}_ptr" if pointer else f"int64_t {name}"


def _flat(text: str, block: tuple[int, int, int]) -> str:
    """Threads are counted in one direction: x is the fastest, as the device counts them anyway."""
    x, y, _ = block
    own = "(int)threadIdx.x"
    places = {"x": f"({own} % {x})", "y": f"({own} / {x} % {y})", "z": f"({own} / {x * y})"}
    if block[1:] == (1, 1):
        return text
    return re.sub(r"threadIdx\.([xyz])", lambda found: places[found[1]], text)

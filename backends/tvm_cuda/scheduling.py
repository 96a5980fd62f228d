"""From blocks to CUDA text: TVM's own schedules of matrix-vector products, reductions and everything else.

The text must be one function: where a schedule makes several of a kernel, or wants memory in between, the kernel is
refused and the other path takes its region.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from typing import Any

from irx.errors import MissingExtra

BLOCK, GRID = ("threadIdx.x", "threadIdx.y", "threadIdx.z"), ("blockIdx.x", "blockIdx.y", "blockIdx.z")
WARP = 32


@dataclass(frozen=True)
class Scheduled:
    """CUDA text of one function `name`: its parameters in its own order, its grid as expressions, its block."""

    text: str
    name: str
    parameters: tuple[str, ...]
    grid: tuple[str, ...]
    block: tuple[int, int, int]

    @property
    def threads(self) -> int:
        """Threads of a block."""
        x, y, z = self.block
        return x * y * z


def scheduled(symbol: str, source: str, architecture: str, shared: int) -> Scheduled:
    """TVM's CUDA text of a kernel by the first of its schedules that makes one function of it.

    Raises ValueError with what is wrong with each where none does, and MissingExtra without TVM.
    """
    tvm = load_tvm()
    from tvm.s_tir.dlight import gpu

    target, reasons = _target(tvm, architecture, shared), []
    for rule in (gpu.GEMV(), gpu.Reduction(), gpu.GeneralReduction(), gpu.Fallback()):
        module = tvm.IRModule({symbol: tvm.script.from_source(source)})  # a new one: schedules change what they get
        try:
            return _scheduled(tvm, module, rule, target)
        except Exception as error:  # schedules assert, and raise errors of many kinds; all are told
            lines = str(error).strip().splitlines() or [type(error).__name__]
            reasons.append(f"{type(rule).__name__}: {lines[-1]}")
    raise ValueError("; ".join(reasons))


def _scheduled(tvm: Any, module: Any, rule: Any, target: Any) -> Scheduled:
    """The text by one schedule. Raises ValueError where it does not serve, and what TVM raises."""
    from tvm.s_tir.dlight import ApplyDefaultSchedule
    from tvm.tirx.build import codegen_build

    # What the host would compute for a kernel would be parameters that nobody gives it: nothing is taken out.
    with target, tvm.transform.PassContext(config={"tirx.disable_cse_tir": True}):
        made = ApplyDefaultSchedule(rule)(module)
        if any(not function.attrs.get("tirx.is_scheduled") for function in made.functions.values()):
            raise ValueError("it is for other kernels")
        devices = _lowered(tvm, made, target)
        functions = [(name, function) for part in devices.values() for name, function in part.functions.items()]
        if len(functions) != 1:
            raise ValueError(f"it makes {len(functions)} kernels of one")
        text = codegen_build(next(iter(devices.values())), target).inspect_source()
    ((name, function),) = functions
    sizes = _extents(tvm, function)
    grid = tuple(_text(tvm, sizes[tag]) for tag in GRID if tag in sizes)
    x, y, z = (int(sizes[tag]) if tag in sizes else 1 for tag in BLOCK)
    if x * y * z % WARP:
        raise ValueError(f"its blocks have {x * y * z} threads, which are no whole warps")
    return Scheduled(text, name.name_hint, tuple(p.name for p in function.params), grid or ("1",), (x, y, z))


@cache
def load_tvm() -> Any:
    """The tvm package. Raises MissingExtra."""
    os.environ.setdefault("TVM_NUM_THREADS", "1")
    try:
        import tvm
        import tvm.script
    except ImportError as error:
        raise MissingExtra("apache-tvm", "cuda", needed_for="the path to CUDA through TVM") from error
    return tvm


def _target(tvm: Any, architecture: str, shared: int) -> Any:
    """The GPU as TVM's schedules know it."""
    facts = {"max_threads_per_block": 1024, "max_shared_memory_per_block": shared, "thread_warp_size": WARP}
    return tvm.target.Target({"kind": "cuda", "arch": architecture, **facts, "host": {"kind": "llvm"}})


def _lowered(tvm: Any, module: Any, target: Any) -> Any:
    """The functions of the device, by target, ready to be written."""
    from tvm.tirx.build import split_host_device_mods

    bound = tvm.tirx.transform.BindTarget(target)(module)
    pipeline, _, finish = tvm.tirx.get_default_tir_pipeline(target)
    _, devices = split_host_device_mods(pipeline(bound))
    return {place: finish()(part) for place, part in devices.items()}


def _extents(tvm: Any, function: Any) -> dict[str, Any]:
    """The number of blocks and threads in every direction."""
    import tvm_ffi

    found: dict[str, Any] = {}

    def visit(node: Any) -> None:
        if node.attr_key == "thread_extent":
            found[str(node.node.thread_tag)] = node.value

    tvm_ffi.structural_walk(function.body, [(tvm.tirx.AttrStmt, visit)], order="post")
    return found


def _text(tvm: Any, value: Any) -> str:
    """An extent as an expression of a grid. Raises ValueError for what grids have no words for."""
    tirx = tvm.tirx
    signs = ((tirx.Add, "+"), (tirx.Sub, "-"), (tirx.Mul, "*"), (tirx.FloorDiv, "//"), (tirx.FloorMod, "%"))
    for kind, sign in signs:
        if isinstance(value, kind):
            return f"({_text(tvm, value.a)} {sign} {_text(tvm, value.b)})"
    if isinstance(value, tirx.Min | tirx.Max):
        name = "min" if isinstance(value, tirx.Min) else "max"
        return f"{name}({_text(tvm, value.a)}, {_text(tvm, value.b)})"
    if isinstance(value, tirx.IntImm):
        return str(int(value))
    if isinstance(value, tirx.Var):
        return str(value.name)
    if isinstance(value, tirx.Cast):
        return _text(tvm, value.value)
    if type(value).__name__ == "RShift" and isinstance(value.b, tirx.IntImm):
        return f"({_text(tvm, value.a)} // {1 << int(value.b)})"
    raise ValueError(f"its grid is {value}")

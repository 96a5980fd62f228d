"""`irx profile`: where the time of a step goes, by module and by kernel, beside the least time its bytes allow.

The bandwidth of the floor is measured in the same run. Bytes are what no compiler can avoid (`irx.analysis.roofline`):
every weight once, the cache, inputs and results; what stays in the processor's caches counts nothing.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irx.analysis.roofline import Floor, Work, least_work
from irx.bench.baselines.reading import reader
from irx.bench.lab import parsed
from irx.bench.timing import spread
from irx.errors import UnknownOption
from irx.ir.regions import body_of, expanded
from irx.runtime.profile import Profile, Timed
from irx.target import Device, host_cpu, is_measured, measured

if TYPE_CHECKING:
    import torch

    from irx.ir.graph import Graph, Node

GRAPHS = ("decode", "prefill", "forward")
RING = 1 << 28  # bytes that are read to measure the bandwidth
READS = 8
NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


@dataclass(frozen=True)
class Line:
    """A sum over steps: of one kernel, or of one module path with `*` for the layers' numbers.

    `count` is how many steps, `seconds` their medians together, `bytes` what they cannot avoid to move, `floor` the
    least seconds that takes.
    """

    name: str
    count: int
    seconds: float
    bytes: int
    floor: float
    kernels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """All of it for one graph; `seconds` is a whole call as it normally runs, without a clock between kernels."""

    graph: str
    sizes: dict[str, int]
    seconds: float
    steps: float
    floor: Floor
    modules: tuple[Line, ...]
    regions: tuple[Line, ...]

    def facts(self) -> dict[str, Any]:
        """As plain data, in seconds and bytes."""
        return {
            "graph": self.graph,
            "sizes": self.sizes,
            "seconds": self.seconds,
            "seconds_of_steps": self.steps,
            "bytes": self.floor.work.bytes,
            "bandwidth": self.floor.device.bandwidth,
            "floor": self.floor.seconds,
            "modules": [asdict(line) for line in self.modules],
            "regions": [asdict(line) for line in self.regions],
        }


def run(
    model: str | None,
    *,
    graph: str | None = None,
    target: str = "cpu",
    pipeline: str = "default",
    context: int = 128,
    batch: int = 1,
    threads: int | None = None,
    repeat: int = 20,
) -> Report:
    """Profile a model: a GGUF file, a folder or a saved artifact.

    `graph` is `decode` (one token after `context`), `prefill` (of `context` tokens) or `forward`; None takes decode
    where there is a cache. Raises UnknownOption for another one, or one that the model does not have.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        fast = _executable(model, target, pipeline)
        name = graph or ("decode" if "decode" in fast.graphs else "forward")
        if name not in GRAPHS or name not in fast.graphs:
            raise UnknownOption(name, [known for known in GRAPHS if known in fast.graphs])
        return _report(fast, name, context, batch, repeat)
    finally:
        torch.set_num_threads(before)


def _executable(model: str | None, target: str, pipeline: str) -> Any:
    import irx
    from irx.frontends.gguf.demo import SMOLLM2

    path = Path(model) if model else SMOLLM2.open().path
    if (path / "manifest.json").is_file():
        return irx.load(path)
    return irx.compile(str(path), target=target, pipeline=pipeline)


def _report(fast: Any, name: str, context: int, batch: int, repeat: int) -> Report:
    import torch

    program = parsed(fast).graphs[name]
    ids = _ids(fast, context, batch)
    sizes = {"B": batch, "S": context, "R": 1, "T": context + (name == "decode")}
    profile, call = _measured(fast, name, ids, repeat)
    device = _device(torch.get_num_threads())
    works = least_work(_as_run(program, profile.steps), sizes)
    return Report(
        name,
        sizes,
        spread([_seconds(call) for _ in range(repeat)]).median,
        profile.seconds,
        Floor(sum(works.values(), Work()), device),
        _lines(profile.steps, works, device, lambda op, place: NUMBER.sub("*", place) or "(no module)"),
        _lines(profile.steps, works, device, lambda op, place: op),
    )


def _as_run(graph: Graph, steps: Iterable[Timed]) -> Graph:
    """The graph with the regions that its backend ran as such: torch runs the nodes of a fusion one by one."""
    ran = {step.op for step in steps}
    fused = [body.name for node in graph.nodes if (body := body_of(node)) is not None]
    return graph if ran.intersection(fused) else expanded(graph)


def _ids(fast: Any, count: int, batch: int) -> torch.Tensor:
    import torch

    words = fast._compiled.meta.get("vocab") or 2
    return torch.randint(0, words, (batch, count), generator=torch.Generator().manual_seed(0))


def _measured(fast: Any, name: str, ids: torch.Tensor, repeat: int) -> tuple[Profile, Callable[[], object]]:
    """The profile of a graph, and a call of it."""
    import torch

    if name == "forward":
        given = {v.name: ids if v.name == "input_ids" else torch.ones_like(ids) for v in fast.graphs[name].inputs}
        return fast.profile(**given, repeat=repeat), lambda: fast(**given)
    session = fast.session(len(ids))
    tokens = ids
    if name == "decode":
        session.append(ids)
        tokens = ids[:, -1:].clone()
    length = session.length

    def call() -> None:
        session.append(tokens)
        session.truncate(length)

    return session.profile(tokens, repeat=repeat), call


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _device(threads: int) -> Device:
    """This machine, with the bandwidth of this run; with its peaks where they were measured."""
    step, _ = reader(RING, threads)
    best = min(_seconds(step) for _ in range(READS))
    device = measured(host_cpu())
    peaks = device.peak_tflops if is_measured(device) else dict.fromkeys(device.peak_tflops, float("inf"))
    return replace(device, bandwidth_gb_s=RING / best / 1e9, peak_tflops=peaks)


def _lines(
    steps: Iterable[Timed], works: dict[Node, Work], device: Device, group: Callable[[str, str], str]
) -> tuple[Line, ...]:
    """Steps and the work of their nodes by group, the slowest first."""
    found: dict[str, list[Timed]] = {}
    for step in steps:
        found.setdefault(group(step.op.removeprefix("irx."), step.place), []).append(step)
    work: dict[str, Work] = {}
    for node, part in works.items():
        key = group(*_named(node))
        work[key] = work.get(key, Work()) + part
    lines = [_line(name, rows, work.get(name, Work()), device) for name, rows in found.items()]
    return tuple(sorted(lines, key=lambda line: -line.seconds))


def _line(name: str, rows: list[Timed], work: Work, device: Device) -> Line:
    kernels = tuple(dict.fromkeys(row.kernel for row in rows if row.kernel))
    return Line(name, len(rows), sum(row.seconds for row in rows), work.bytes, Floor(work, device).seconds, kernels)


def _named(node: Node) -> tuple[str, str]:
    """The op or region of a node and its module path, as backends name their steps."""
    body: Graph | None = body_of(node)
    if body is None:
        return node.op.name.removeprefix("irx."), node.loc.module
    return body.name, node.loc.module or next((n.loc.module for n in body.nodes if n.loc.module), "")

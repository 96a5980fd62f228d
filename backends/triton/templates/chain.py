"""Matrix-vector products one after the other in one kernel: programs of a product wait for those of the one before.

    programs 0 .. a: first product -> count one more as done
    programs a .. b: [weights on their way] -> until a are done -> second product -> count one more as done
    the last of all: counters back to 0, for the next launch

Nobody waits for a program with a higher number, and GPUs start programs in the order of their numbers, so those that
are waited for always run (Merrill, Garland: Single-pass parallel prefix scan with decoupled look-back, 2016, rest on
the same). A launch costs more than a wait where products are small, and the weights of the next one are read meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from irx.backends.regions.lowered import Binding, Call, Temporary
from irx.backends.triton.kernel import Kernel, Parameter, Pointer
from irx.backends.triton.templates.linear_operands import parameters, region_bindings
from irx.backends.triton.templates.matvec import emit_program, memory_of, note_of
from irx.backends.triton.templates.matvec_shape import KNOBS as MATVEC_KNOBS
from irx.backends.triton.templates.matvec_shape import Shape
from irx.backends.triton.writer import Writer
from irx.tuning import Choice

KNOBS: Mapping[str, tuple[Choice, ...]] = {"phases": (1, 2, 3, 4), "warps": (1, 2, 4, 8)}
"""The most products of a kernel (1: no chains), and the warps of its programs. Measured schedules stay valid."""
DEFAULTS: Mapping[str, Choice] = {"phases": 2, "warps": 4}
APART = 32
"""Counters are as many words apart, so that those who wait do not hold up those who count."""


@dataclass(frozen=True)
class Phase:
    """One product. With `early` what it reads besides x is there from the start, so that it waits as late as it can."""

    shape: Shape
    early: bool

    @property
    def programs(self) -> int:
        """How many compute it."""
        return self.shape.units * self.shape.split

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """Those of its own kernel."""
        return parameters(self.shape.problem, self.shape.split > 1)


def widened(shape: Shape, warps: int) -> Shape:
    """The same product by programs of so many warps, each of them with as much to do as before."""
    columns = shape.columns * warps // shape.warps
    most = max(c for c in MATVEC_KNOBS["columns"] if isinstance(c, int) and c <= max(1, columns))
    return replace(shape, columns=most, warps=warps)


def chain_call(phases: Sequence[Phase]) -> Call:
    """The kernel of all phases, bound to the values of their bodies. All have the same number of warps."""
    bindings: dict[str, Binding] = {}
    for i, phase in enumerate(phases):
        bindings |= {_named(i, name): own_temporary(bound, i) for name, bound in _bindings(phase).items()}
    counters = Temporary("done", 4 * APART * len(phases), zeroed=True)
    kernel = chain_kernel(phases)
    return Call(kernel, {**bindings, "done": counters})


def chain_kernel(phases: Sequence[Phase]) -> Kernel:
    """The kernel alone."""
    pointers = [replace(p, name=_named(i, p.name)) for i, phase in enumerate(phases) for p in phase.parameters]
    return Kernel(
        "chain",
        (*pointers, Pointer("done", "i32")),
        _body(phases),
        (str(sum(phase.programs for phase in phases)),),
        helpers=_helpers(phases),
        warps=phases[0].shape.warps,
        stages=1,
        waits=True,
        note="; then ".join(note_of(phase.shape) for phase in phases),
    )


def _named(i: int, name: str) -> str:
    return f"p{i}_{name}"


def own_temporary(binding: Binding, i: int) -> Binding:
    """The binding of region `i` of several: their temporaries are different buffers."""
    return replace(binding, name=f"{binding.name}_{i}") if isinstance(binding, Temporary) else binding


def _bindings(phase: Phase) -> dict[str, Binding]:
    found = {**region_bindings(phase.shape.problem), **memory_of(phase.shape)}
    return {parameter.name: found[parameter.name] for parameter in phase.parameters}


def _helpers(phases: Sequence[Phase]) -> str:
    """One function for each phase; `place` counts the programs of its own."""
    w = Writer()
    for i, phase in enumerate(phases):
        names = ["place", *(["before"] if i else []), *(p.name for p in phase.parameters)]
        w("@triton.jit")
        with w.block(f"def phase_{i}({', '.join(names)}):"):
            _program(w, phase, phases[i - 1].programs if i else 0)
        w("")
        w("")
    return w.text()


def _program(w: Writer, phase: Phase, awaited: int) -> None:
    shape = phase.shape

    def wait() -> None:
        w('seen = tl.atomic_add(before, 0, sem="acquire")')
        with w.block(f"while seen < {awaited}:"):
            w('seen = tl.atomic_add(before, 0, sem="acquire")')

    if awaited and not phase.early:
        wait()
    w(f"unit = place % {shape.units}" if shape.split > 1 else "unit = place")
    if shape.split > 1:
        w(f"share = place // {shape.units}")
    emit_program(w, shape, wait if awaited and phase.early else None)


def _body(phases: Sequence[Phase]) -> str:
    w = Writer()
    w("place = tl.program_id(0)")
    first = 0
    for i, phase in enumerate(phases):
        end = first + phase.programs
        with w.block(f"if (place >= {first}) & (place < {end}):" if i else f"if place < {end}:"):
            before = [f"done + {(i - 1) * APART}"] if i else []
            own = [f"place - {first}" if i else "place", *before, *(_named(i, p.name) for p in phase.parameters)]
            w(f"phase_{i}({', '.join(own)})")
            w("tl.debug_barrier()  # all threads have written before one of them says so")
            w(f'came = tl.atomic_add(done + {i * APART}, 1, sem="acq_rel")')
            if i == len(phases) - 1:
                with w.block(f"if came == {phase.programs - 1}:"):
                    w(f"tl.store(done + tl.arange(0, {_power(len(phases))}) * {APART}, 0, mask={_mask(len(phases))})")
        first = end
    return w.text()


def _power(count: int) -> int:
    return 1 << (count - 1).bit_length()


def _mask(count: int) -> str:
    return f"tl.arange(0, {_power(count)}) < {count}"

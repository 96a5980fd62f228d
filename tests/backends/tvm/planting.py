"""Faults planted into kernels: what a rule makes, changed so that its result is wrong or that it does not compile.

monkeypatch.setattr(steps, "RULES", planted(wrong, "linear"))     # the kernels of every region that has a linear
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from irx.backends.regions.lowered import Call, Choices, Data, Lowered, Rule
from irx.backends.tvm.kernel import Kernel, Pointer
from irx.backends.tvm.rules import RULES
from irx.ir.graph import Graph

Spoil = Callable[[Call, Graph], Call]


def planted(spoil: Spoil, op: str) -> tuple[Rule, ...]:
    """The rules of the backend, with calls changed in every region that has this op."""

    def changed(rule: Rule) -> Rule:
        def apply(body: Graph, choices: Choices) -> Lowered | None:
            lowered = rule(body, choices)
            if lowered is None or all(node.op.name != op for node in body.nodes):
                return lowered
            return spoiled(lowered, body, spoil)

        return apply

    return tuple(changed(rule) for rule in RULES)


def spoiled(lowered: Lowered, body: Graph, spoil: Spoil) -> Lowered:
    """The same cases, with every call changed."""
    cases = (replace(case, calls=tuple(spoil(call, body) for call in case.calls)) for case in lowered.cases)
    return replace(lowered, cases=tuple(cases))


def wrong(call: Call, body: Graph) -> Call:
    """A kernel that writes a wrong first element of every result of the region."""
    lines = [call.kernel.body]
    for parameter in call.kernel.parameters:
        binding = call.bindings[parameter.name]
        if isinstance(parameter, Pointer) and isinstance(binding, Data) and binding.value in body.outputs:
            place = ", ".join("0" for _ in parameter.shape or (0,))
            lines.append(f'{parameter.name}[{place}] = T.Cast("{parameter.dtype}", 16000)')
    return _with(call, "\n".join(lines))


def unreadable(call: Call, body: Graph) -> Call:
    """A kernel that TVM refuses to read."""
    return _with(call, f"{call.kernel.body}\nplanted_fault = nowhere + 1")


def _with(call: Call, text: str) -> Call:
    kernel: Kernel = replace(call.kernel, body=text)
    return replace(call, kernel=kernel)

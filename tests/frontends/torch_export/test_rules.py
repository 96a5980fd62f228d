"""Every rule of the translation table, against torch: captured, with dynamic axes where possible, and run."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from irx.frontends import torch_export
from irx.frontends.hf.operators import operators
from irx.frontends.torch_export import nodes
from irx.frontends.torch_export.tables import IGNORED, rules
from tests.end_to_end.families import torch_calls
from tests.frontends.execution import largest_error, run
from tests.frontends.torch_export.cases import CASES, STATIC, Call

# Their results are not determined, or torch does not let a caller reach them; test_capture.py and the families do.
ELSEWHERE = {
    "aten.empty.memory_format",
    "aten.new_empty.default",
    "aten.empty_like.default",
    "aten.empty_permuted.default",
    "aten.detach_.default",
    "aten.lift.default",
    "aten.lift_fresh.default",
    "irx.mask.default",
    "irx.attention.default",
    "irx.experts.default",
}


def overload(name: str) -> Any:
    operators()
    space, function, variant = name.split(".")
    return getattr(getattr(getattr(torch.ops, space), function), variant)


class Calls(torch.nn.Module):
    """Calls one operator; its tensor arguments are the inputs."""

    def __init__(self, name: str, call: Call) -> None:
        super().__init__()
        self.operator = overload(name)
        self.leaves, self.tree = pytree.tree_flatten(call)

    def inputs(self) -> tuple[torch.Tensor, ...]:
        return tuple(leaf for leaf in self.leaves if isinstance(leaf, torch.Tensor))

    def forward(self, *tensors: torch.Tensor) -> Any:
        given = iter(tensors)
        leaves = [next(given) if isinstance(leaf, torch.Tensor) else leaf for leaf in self.leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self.tree)
        return self.operator(*args, **kwargs)


@pytest.mark.parametrize("name", CASES)
def test_rule_gives_what_torch_gives(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    met: set[str] = set()

    class Recording(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            met.add(key)
            return super().get(key, default)

    monkeypatch.setattr(nodes, "rules", lambda: Recording(rules()))
    for call in CASES[name]:
        met.clear()
        model = Calls(name, call)
        inputs = model.inputs()
        program = torch_export.capture(model, inputs, dynamic=name not in STATIC)
        assert not torch_calls(program), program.meta["notes"]
        assert name in met
        expected = model(*inputs)
        results = list(run(program, {f"tensors_{i}": x for i, x in enumerate(inputs)}).values())
        wanted = [t for t in pytree.tree_leaves(expected) if isinstance(t, torch.Tensor)]
        assert [v.dtype for v in program.graphs["forward"].outputs] == [short(t.dtype) for t in wanted]
        made, exact = dict(enumerate(results)), dict(enumerate(wanted))
        assert largest_error(made, exact) < (1e-2 if has_half(wanted) else 2e-6)  # type: ignore[arg-type]


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.").replace("bfloat", "bf").replace("float", "f").replace("int", "i")


def has_half(tensors: list[torch.Tensor]) -> bool:
    return any(t.dtype in (torch.float16, torch.bfloat16) for t in tensors)


def test_every_rule_has_a_case() -> None:
    assert set(rules()) - set(CASES) == ELSEWHERE
    assert set(CASES) <= set(rules())


@pytest.mark.parametrize("name", sorted(rules()))
def test_rule_takes_what_the_schema_has(name: str) -> None:
    arguments = {a.name: a for a in overload(name)._schema.arguments if a.name not in IGNORED}
    parameters = list(inspect.signature(rules()[name]).parameters.values())[1:]
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return
    for parameter in parameters:
        assert parameter.name in arguments or parameter.default is not inspect.Parameter.empty
    assert set(arguments) <= {p.name for p in parameters}

"""The translator proper: walks a traced graph, finds the rule of each operator, and checks what the rule made."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from irx.errors import ExportFailed, TypeRuleError
from irx.frontends.torch_export.calls import listed, torch_call
from irx.frontends.torch_export.complex_numbers import REAL, Complex, apply_complex, has_complex
from irx.frontends.torch_export.locations import location
from irx.frontends.torch_export.mutation import Memory, NotFunctional, functional_name, written_argument
from irx.frontends.torch_export.site import Site
from irx.frontends.torch_export.sizes import Sizes
from irx.frontends.torch_export.symbolic import float_of_sizes
from irx.frontends.torch_export.tables import IGNORED, Untranslatable, rules
from irx.frontends.torch_export.tensors import WeightTable, constant, dtype_name
from irx.ir.dims import Dim, evaluate, names
from irx.ir.graph import Graph, Value
from irx.ir.types import TensorType

_ITEMS = ("aten.item.default", "aten._local_scalar_dense.default")
_CHECKS = ("_assert", "sym_constrain", "_guards_fn", "_functional_assert", "_check")


class Translator:
    """Translates one traced graph into `graph`. `notes` says, for each operator kept as a call, why."""

    def __init__(self, graph: Graph, weights: WeightTable, sizes: Sizes) -> None:
        self.graph = graph
        self.weights = weights
        self.sizes = sizes
        self.notes: list[str] = []
        self._values: dict[fx.Node, Any] = {}
        self._memory = Memory(fx.Graph())
        self._module = fx.GraphModule({}, fx.Graph())

    def run(self, module: fx.GraphModule, placeholders: Mapping[fx.Node, Any]) -> list[Any]:
        """Translate and return the values of the graph's outputs, in order."""
        self._module, self._memory = module, Memory(module.graph)
        self._values.update(placeholders)
        live = _live(module.graph)
        for node in module.graph.nodes:
            if node.op == "output":
                return [self._argument(value) for value in _flat(node.args[0])]
            if node.op != "placeholder" and node in live:
                self._values[node] = self._visit(node)
                self._memory.refreshed(node)
        raise ExportFailed("the traced graph has no output")

    def written_placeholders(self) -> dict[fx.Node, Value]:
        """Placeholders the graph writes into, with their contents at the end."""
        roots = (node for node in self._memory.written_roots() if node.op == "placeholder")
        return {node: self._read(node) for node in roots}

    def _visit(self, node: fx.Node) -> Any:
        if node.op == "get_attr":
            return self._attribute(node)
        if node.op != "call_function":
            raise ExportFailed(f"{node.op} {node.target} in a graph of operators", where=str(location(node)))
        if node.target is operator.getitem:
            return self._argument(node.args[0])[node.args[1]]
        value = node.meta.get("val")
        if isinstance(value, (int, float, torch.SymInt, torch.SymFloat, torch.SymBool)):
            return self._scalar(node, value)
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            return self._inline(node)
        if not isinstance(node.target, torch._ops.OpOverload):
            raise NotFunctional(f"{node.target} is no operator", where=str(location(node)))
        written = written_argument(node)
        site = self._site(node)
        if written is None or str(node.target) in rules():
            return self._apply(site, node, str(node.target), self._bound(node))
        return self._write(site, node, written)

    def _scalar(self, node: fx.Node, value: Any) -> Any:
        """A number: a size, or something computed from sizes."""
        if isinstance(value, (bool, torch.SymBool)):
            return value
        if isinstance(value, (int, torch.SymInt)):
            return self._size(node, value)
        if isinstance(value, float):
            return value
        operands = [self._argument(x) for x in node.args]
        if str(node.target) in _ITEMS:
            return operands[0]  # a float that Dynamo passes as a tensor without axes stays one
        return float_of_sizes(self._site(node), node.target, operands)

    def _size(self, node: fx.Node, value: Any) -> Dim:
        if str(node.target) in _ITEMS:
            raise ExportFailed(
                "the model reads a tensor's element to compute a size",
                where=str(location(node)),
                fix="compute it from shapes, or pass it as a Python number",
            )
        try:
            return self.sizes.dim(value)
        except ExportFailed as error:
            raise ExportFailed(error.what, where=str(location(node))) from None

    def _attribute(self, node: fx.Node) -> Any:
        found: Any = operator.attrgetter(str(node.target))(self._module)
        if not isinstance(found, torch.Tensor):
            return found
        return constant(self.graph, self.weights, str(node.target), found)

    def _inline(self, node: fx.Node) -> Any:
        """Blocks such as `with torch.no_grad()`: a graph of their own, translated in place."""
        arguments = [self._argument(x) for x in node.args]
        at = next((i for i, x in enumerate(arguments) if isinstance(x, fx.GraphModule)), None)
        if at is None or "wrap_with" not in str(node.target):
            raise ExportFailed(f"{node.target} has no translation", where=str(location(node)))
        block = arguments[at]
        placeholders = [n for n in block.graph.nodes if n.op == "placeholder"]
        inner = Translator(self.graph, self.weights, self.sizes)
        returned = inner.run(block, dict(zip(placeholders, arguments[at + 1 :], strict=True)))
        if inner.written_placeholders():
            raise ExportFailed(f"{node.target} writes into its operands", where=str(location(node)))
        self.notes += inner.notes
        return returned

    # --- values -----------------------------------------------------------------------------------------------------

    def _read(self, node: fx.Node) -> Any:
        """The node's value; for a view of memory that was written to since, the view of the new contents."""
        source = self._memory.source(node)
        if source is not None and self._memory.is_stale(node):
            self._read(source)
            self._values[node] = self._again(node, source)
            self._memory.refreshed(node)
        return self._values[node]

    def _again(self, node: fx.Node, source: fx.Node) -> Any:
        if written_argument(node) is not None:
            return self._read(source)
        if node.target is operator.getitem:
            self._values[source] = self._visit(source)
        return self._visit(node)

    def _argument(self, argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            return self._read(argument)
        if isinstance(argument, (list, tuple)):
            return [self._argument(item) for item in argument]
        return argument

    def _bound(self, node: fx.Node) -> dict[str, Any]:
        """Arguments by the names of the operator's schema, defaults filled in."""
        schema = node.target._schema  # type: ignore[union-attr]
        bound = {a.name: a.default_value for a in schema.arguments}
        bound.update(zip(bound, node.args, strict=False))
        bound.update(node.kwargs)
        return {name: self._argument(value) for name, value in bound.items()}

    def _site(self, node: fx.Node) -> Site:
        values, place = _flat(node.meta.get("val")), location(node)
        try:
            types = [self._type(value) if isinstance(value, torch.Tensor) else None for value in values]
        except ExportFailed as error:
            raise ExportFailed(error.what, where=str(place), fix=error.fix) from None
        return Site(self.graph, place, types)

    def _type(self, value: torch.Tensor) -> TensorType:
        return TensorType(self.sizes.shape(value.shape), dtype_name(REAL.get(value.dtype, value.dtype)))

    # --- operators --------------------------------------------------------------------------------------------------

    def _write(self, site: Site, node: fx.Node, written: fx.Node) -> Value:
        """An in-place operator: its functional form, whose result everything that shares the memory sees."""
        target = self._read(written)
        value = self._apply(site, node, functional_name(node.target), self._bound(node))
        value = site.expand(site.cast(value, target.dtype), target.shape)
        values = self._memory.write(written, value, self._read, self._bound, site)
        self._values.update(values)
        return value

    def _apply(self, site: Site, node: fx.Node, name: str, arguments: dict[str, Any]) -> Any:
        rule = rules().get(name)
        if has_complex(list(arguments.values())) or any(_is_complex(v) for v in _flat(node.meta.get("val"))):
            kept = {key: value for key, value in arguments.items() if key not in IGNORED}
            return self._checked(site, apply_complex(site, name, kept, rule))
        if rule is not None:
            kept = {key: value for key, value in arguments.items() if key not in IGNORED}
            try:
                result = rule(site, **_accepted(rule, kept, node.target._schema))  # type: ignore[union-attr]
                return self._checked(site, result)
            except Untranslatable as reason:
                self._note(site, name, str(reason))
            except TypeRuleError as error:
                self._note(site, name, error.what)
        else:
            self._note(site, name, "no rule")
        outputs = torch_call(site, name, arguments)
        return outputs if isinstance(node.meta.get("val"), (list, tuple)) else outputs[0]

    def _note(self, site: Site, name: str, reason: str) -> None:
        self.notes.append(f"{name} stays a torch.call at {site.loc}: {reason}")

    def _checked(self, site: Site, result: Any) -> Any:
        """The rule's results with the dtypes torch found. Raises TypeRuleError where a shape is another one."""
        made = listed([result])
        if len(made) != len(site.results):
            raise TypeRuleError(f"{len(made)} results where torch has {len(site.results)}")
        fitted = [self._fitted(site, x, type) for x, type in zip(made, site.results, strict=True)]
        return fitted if isinstance(result, (list, tuple)) else fitted[0]

    def _fitted(self, site: Site, x: Any, type: TensorType | None) -> Any:
        if type is None:
            return x
        if isinstance(x, Complex):
            return Complex(self._fitted(site, x.real, type), self._fitted(site, x.imaginary, type))
        if not self._same_shape(x.shape, type.shape):
            raise TypeRuleError(f"the rule gives {x.type} where torch has {type}")
        # A table cut at S rows has Min(S, rows) of them by the rule; torch knows that S is not larger.
        return site.cast(site.reshape(x, type.shape), type.dtype)

    def _same_shape(self, made: Sequence[Dim], wanted: Sequence[Dim]) -> bool:
        """Equal, or equal for every size tried: two expressions of one size may look different.

        Where they differ for a size of 1, as `Min(2, S)` and 2, torch has assumed that it is larger.
        """
        if tuple(made) == tuple(wanted):
            return True
        if len(made) != len(wanted):
            return False
        used = set().union(*(names(dim) for dim in (*made, *wanted)))
        hints = self.sizes.hints
        trials = [hints, {n: h + 3 for n, h in hints.items()}, {n: 2 * h + 1 for n, h in hints.items()}]
        if not all(used <= t.keys() and _values(made, t) == _values(wanted, t) for t in trials):
            return False
        for name in used:
            single = {**hints, name: 1}
            if _values(made, single) != _values(wanted, single):
                self.sizes.exclude_one(name)
        return True


def _values(dims: Iterable[Dim], bindings: Mapping[str, int]) -> list[int]:
    return [evaluate(dim, bindings) for dim in dims]


def _accepted(rule: Any, arguments: dict[str, Any], schema: Any) -> dict[str, Any]:
    """The arguments a rule takes. One it does not know must have its default, or the rule would ignore a meaning."""
    parameters = inspect.signature(rule).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return arguments
    defaults = {a.name: a.default_value for a in schema.arguments}
    for name, value in arguments.items():
        if name not in parameters and (isinstance(value, Value) or value != defaults[name]):
            raise Untranslatable(f"argument {name}={value}")
    return {name: value for name, value in arguments.items() if name in parameters}


def _flat(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return [item for part in value for item in _flat(part)]
    return [value]


def _is_complex(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_complex()


def _live(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that outputs or writes into memory depend on; the checks that tracing leaves are none of them."""
    pending = [node for node in graph.nodes if node.op == "output" or _writes(node)]
    live: set[fx.Node] = set()
    while pending:
        node = pending.pop()
        if node in live:
            continue
        live.add(node)
        pending += node.all_input_nodes
    return live


def _writes(node: fx.Node) -> bool:
    return not any(check in str(node.target) for check in _CHECKS) and written_argument(node) is not None

"""Compile a program in text form and run it once, with random weights and inputs.

FILE is a `.irx` file, a saved artifact, or - for standard input. Every graph of the optimized program runs once;
its results are summed up in a table. With --check they are compared with the numpy references in float64, and the
status is 1 when a result is further off than its dtype allows. Named sizes are small unless --size says otherwise.

examples:
  irx run model.irx
  irx run model.irx --size B=2 --size S=5 --seed 7
  irx run model.irx --check
  irx run model.irx --check --graph forward -p none --target torch
  irx run model.irx --check --tolerance 1e-4 --json
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from irx.cli._output import add_json, print_json, print_rows, say
from irx.cli._programs import read_program
from irx.errors import BadOption, UnknownOption

if TYPE_CHECKING:
    from irx.ir.graph import Graph
    from irx.ir.program import Program
    from irx.runtime.executable import Executable

_COLUMNS = ("graph", "result", "shape", "dtype", "mean", "max abs")
_CHECKED = (*_COLUMNS, "error", "allowed")


def configure(parser: ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("file", help="a .irx file, a saved artifact, or - for standard input")
    parser.add_argument("-p", "--pipeline", default="default", help="a preset or pipeline text (default: default)")
    parser.add_argument("--target", default="host", help="device or backend:device (default: this machine)")
    parser.add_argument("--graph", action="append", help="run only this graph; may be repeated")
    parser.add_argument("--size", action="append", default=[], metavar="NAME=N", help="a named size; may be repeated")
    parser.add_argument("--seed", type=int, default=0, help="of weights and inputs (default 0)")
    parser.add_argument("--check", action="store_true", help="compare with the references in float64")
    parser.add_argument(
        "--tolerance", type=float, help="largest max|y - y0| / max|y0|; by the graph's dtypes otherwise"
    )
    add_json(parser)


def run(arguments: Namespace) -> int:
    """Run and print; 1 when a check failed or a pass was refused."""
    from irx.api import aim, compile, optimize

    goal = aim(arguments.target)
    source = read_program(arguments.file)
    _bind(source, arguments.seed)
    program, ledger = optimize(source, goal, arguments.pipeline)
    sizes, chosen = _sizes(arguments.size, program), _chosen(arguments.graph, program)
    trial = _Trial(source, program, compile(program, target=arguments.target, pipeline=""), sizes, arguments)
    rows = [row for name in chosen for row in trial.rows(name)]
    _print(rows, trial, arguments.json)
    for refused in ledger.refused():
        say(f"pass {refused.name!r} was refused: {refused.reason}")
    return int(any(row["ok"] is False for row in rows) or bool(ledger.refused()))


@dataclass(frozen=True)
class _Trial:
    source: Program
    program: Program
    fast: Executable
    sizes: Mapping[str, int]
    arguments: Namespace

    def rows(self, name: str) -> list[dict[str, Any]]:
        """One row for every result of a graph, two for a KV state."""
        from irx.analysis.inputs import random_inputs
        from irx.runtime.arrays import run_graph

        graph = self.program.graphs[name]
        inputs = random_inputs(graph, self.sizes, self.arguments.seed)
        results = _flat(graph, run_graph(self.fast.graphs[name], inputs, self.fast.device))
        expected = _flat(graph, self._oracle(name, inputs)) if self.arguments.check else {}
        return [
            {
                "graph": name,
                "result": result,
                "state": result not in graph.output_names,
                **_facts(array),
                **self._verdict(graph, array, expected.get(result)),
            }
            for result, array in results.items()
        ]

    def _oracle(self, name: str, inputs: Mapping[str, Any]) -> Sequence[Any]:
        """What the program as it was written computes; of a graph that passes made, what its operations mean."""
        from irx.analysis.reference import evaluate
        from irx.backends.torch.call import call_on_arrays

        owner = self.source if name in self.source.graphs else self.program
        return evaluate(owner.graphs[name], inputs, self.sizes, owner.weights, call_on_arrays)

    def _verdict(self, graph: Graph, array: Any, expected: Any) -> dict[str, Any]:
        from irx.rewrite.check import difference

        if expected is None:
            return {"error": None, "allowed": None, "ok": None}
        error, allowed = difference(array, expected), self._allowed(graph, array)
        return {"error": _number(error), "allowed": allowed, "ok": error <= allowed}

    def _allowed(self, graph: Graph, array: Any) -> float:
        """The tolerance of the coarsest dtype that the graph computes in; integers and booleans must be equal."""
        from irx.ir.types import dtype_of, is_float

        if not is_float(dtype_of(array.dtype)):
            return 0.0
        if self.arguments.tolerance is not None:
            return float(self.arguments.tolerance)
        computed = [(node.op.tolerance, v.type) for node in graph.nodes for v in node.outputs]
        return max((tolerance.of(type.dtype) for tolerance, type in computed), default=0.0)


def _bind(program: Program, seed: int) -> None:
    from irx.analysis.random_weights import bind_random_weights

    bind_random_weights(program.weights, seed)


def _sizes(given: Sequence[str], program: Program) -> dict[str, int]:
    """All named sizes: those of the command line, small ones for the rest."""
    from irx.rewrite.check import small_sizes

    sizes = small_sizes(program.sizes)
    for text in given:
        name, _, value = text.partition("=")
        if name not in sizes:
            raise UnknownOption(name, sizes, where=f"--size {text}")
        limits = program.sizes[name]
        if not value.isdigit() or int(value) not in limits:
            high = "any number" if limits.high is None else limits.high
            raise BadOption(
                f"--size {text} does not fit the program", fix=f"{name} is a whole number from {limits.low} to {high}"
            )
        sizes[name] = int(value)
    return sizes


def _chosen(names: Sequence[str] | None, program: Program) -> list[str]:
    for name in names or ():
        if name not in program.graphs:
            raise UnknownOption(name, program.graphs, where="--graph")
    return list(names or program.graphs)


def _flat(graph: Graph, results: Sequence[Any]) -> dict[str, Any]:
    """Arrays by the name of the result; the keys and values of a KV state apart, as `name.k` and `name.v`."""
    from irx.ops.cache import KVArrays

    found: dict[str, Any] = {}
    for name, result in zip(graph.output_names, results, strict=True):
        if isinstance(result, KVArrays):
            found |= {f"{name}.k": result.k, f"{name}.v": result.v}
        else:
            found[name] = result
    return found


def _facts(array: Any) -> dict[str, Any]:
    from irx.ir.types import dtype_of

    wide = array.astype("float64")
    mean, largest = (wide.mean(), abs(wide).max()) if wide.size else (0.0, 0.0)
    return {
        "shape": list(array.shape),
        "dtype": dtype_of(array.dtype),
        "mean": _number(float(mean)),
        "max abs": _number(float(largest)),
    }


def _number(value: float) -> float | str:
    """JSON has neither infinity nor NaN."""
    return value if abs(value) < float("inf") else str(value)


def _print(rows: list[dict[str, Any]], trial: _Trial, as_json: bool) -> None:
    if as_json:
        print_json({"sizes": trial.sizes, "seed": trial.arguments.seed, "results": rows})
        return
    print(f"sizes: {', '.join(f'{name}={value}' for name, value in trial.sizes.items()) or 'none'}")
    checked = trial.arguments.check
    shown = [row for row in rows if not row["state"] or row["ok"] is False]
    cells = [{name: _cell(value) for name, value in row.items()} for row in shown]
    print_rows(cells, _CHECKED if checked else _COLUMNS, as_json=False)
    if checked:
        wrong = [f"@{row['graph']} {row['result']}" for row in rows if not row["ok"]]
        counts = f"{len(rows)} results, {len(rows) - len(shown)} of them parts of KV states"
        print(f"Wrong: {', '.join(wrong)}." if wrong else f"All within their tolerance: {counts}.")


def _cell(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else str(value) if isinstance(value, list) else value

"""Say what IRX would make of a model, before compiling it.

MODEL is a GGUF file, a Hugging Face folder, or a program in IRX's text form. It is captured and recognised, nothing is
built. Three things are told, each with its place in the model: what would stay a call of torch, what recognition
nearly matched and the first condition that failed, and which attention sites get a cache. The status is 1 when the
model cannot be captured.

examples:
  irx check model.gguf
  irx check path/to/folder
  irx check model.irx --json
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from irx.cli._output import add_json, print_json, print_rows, progress
from irx.errors import IRXError, MissingExtra, ModelNotFound, NotAModule

if TYPE_CHECKING:
    from irx.ir.graph import Node
    from irx.ir.program import Program
    from irx.ledger import Ledger

_SHOWN = 3  # places that a line of the table names


def configure(parser: ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("model", help="a GGUF file, a Hugging Face folder, or a .irx program")
    add_json(parser)


def run(arguments: Namespace) -> int:
    """Print what was found; 1 when the model cannot be captured."""
    try:
        program = _captured(arguments.model)
    except (MissingExtra, ModelNotFound, NotAModule):
        raise
    except IRXError as error:
        _print_failure(arguments, error)
        return 1
    with progress("Recognising"):
        result, ledger = _recognised(program)
    found = _findings(arguments.model, program, result, ledger)
    print_json(found) if arguments.json else _print(found)
    return 0


def _captured(model: str) -> Program:
    from irx.frontends.sources import read

    with progress(f"Capturing {model}"):
        return read(model).program


def _recognised(program: Program) -> tuple[Program, Ledger]:
    """The preset that only recognises and inserts the cache, each site checked; the whole is not evaluated."""
    from irx.backends.torch.call import call_on_arrays
    from irx.passes import passes
    from irx.pipeline.base import Context
    from irx.pipeline.instruments import standard_instruments
    from irx.pipeline.oracle import Oracle
    from irx.pipeline.pipeline import Pipeline
    from irx.target import host_cpu

    ctx = Context.of(program, host_cpu(), Oracle(call=call_on_arrays))
    return Pipeline.parse("none", passes(), standard_instruments()).run(program, ctx)


def _findings(model: str, program: Program, result: Program, ledger: Ledger) -> dict[str, Any]:
    """Everything that is printed, as plain data."""
    caching = next((row for row in ledger.rows if row.name == "insert-cache"), None)
    misses = [(row, miss) for row in ledger.rows for miss in row.near_misses]
    return {
        "model": model,
        "captured": True,
        "nodes": {name: len(graph) for name, graph in program.graphs.items()},
        "torch_calls": list(_calls(result)),
        "near_misses": [
            {"pass": row.name, "graph": miss.graph, "place": miss.place, "reason": miss.reason} for row, miss in misses
        ],
        "attention": list(_attention(result)),
        "no_cache": "" if caching is None or "decode" in result.graphs else _reason(caching),
        "refused": [{"pass": row.name, "reason": row.reason} for row in ledger.refused()],
        "notes": [*program.meta.get("notes", ()), *ledger.notes],
    }


def _calls(program: Program) -> Iterator[dict[str, Any]]:
    """What stays a call of torch. Graphs made from `forward` repeat its calls, which count once."""
    first = next(iter(program.graphs), "")
    known: set[tuple[str, ...]] = set()
    for name, graph in program.graphs.items():
        found = [(str(node.attr("target")), *_place(node)) for node in graph.nodes if node.op.name == "torch.call"]
        for target, module, line in found:
            if name == first or (target, module, line) not in known:
                yield {"target": target, "graph": name, "module": module, "line": line}
        known.update(found)


def _attention(program: Program) -> Iterator[dict[str, Any]]:
    """The attention sites of `forward`, each with the state that caches it, None without one."""
    states = {entry["module"]: entry["state"] for entry in program.meta.get("cache", ())}
    forward = program.graphs.get("forward")
    for node in forward.nodes if forward is not None else ():
        if node.op.name == "attention":
            module, line = _place(node)
            yield {"module": module, "line": line, "cache": states.get(module)}


def _place(node: Node) -> tuple[str, str]:
    return node.loc.module, node.loc.line


def _reason(row: Any) -> str:
    return str(row.near_misses[0].reason if row.near_misses else row.reason)


def _print_failure(arguments: Namespace, error: IRXError) -> None:
    if arguments.json:
        facts = {"kind": type(error).__name__, "what": error.what, "where": error.where, "fix": error.fix}
        print_json({"model": arguments.model, "captured": False, "error": facts})
    else:
        print(f"{arguments.model} cannot be captured.\n{error}")


def _print(found: dict[str, Any]) -> None:
    counts = ", ".join(f"@{name} {count} nodes" for name, count in found["nodes"].items())
    print(f"Captured: {counts}.")
    _print_group("Left to torch", found["torch_calls"], ("target",))
    _print_group("Near misses", found["near_misses"], ("pass", "reason"))
    cached = sum(site["cache"] is not None for site in found["attention"])
    print(f"Attention: {len(found['attention'])} sites, {cached} with a cache.")
    if found["no_cache"]:
        print(f"  no cache: {found['no_cache']}")
    elif cached < len(found["attention"]):
        print(f"  without: {', '.join(map(_shown, (s for s in found['attention'] if s['cache'] is None)))}")
    for refused in found["refused"]:
        print(f"Refused: {refused['pass']}: {refused['reason']}")
    for note in found["notes"]:
        print(f"Note: {note}")


def _print_group(title: str, items: list[dict[str, Any]], keys: tuple[str, ...]) -> None:
    """How many there are, and a table of them by `keys` with the first places of each."""
    print(f"{title}: {len(items) or 'nothing'}.")
    groups: dict[tuple[str, ...], list[str]] = {}
    for item in items:
        groups.setdefault(tuple(item[key] for key in keys), []).append(_shown(item))
    rows = [{**dict(zip(keys, key)), "times": len(places), "where": _some(places)} for key, places in groups.items()]
    if rows:
        print_rows(rows, (*keys, "times", "where"), as_json=False)


def _shown(item: dict[str, Any]) -> str:
    place = item.get("place") or item.get("module") or "unknown place"
    return f"{place} ({item['line']})" if item.get("line") and item["line"] != place else str(place)


def _some(places: list[str]) -> str:
    distinct = list(dict.fromkeys(places))
    more = len(distinct) - _SHOWN
    return ", ".join(distinct[:_SHOWN]) + (f" and {more} more" if more > 0 else "")

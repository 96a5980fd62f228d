"""What the passes declare, read from their source: no pass is imported to be listed.

Passes of other packages, announced by entry points in the group `irx.passes`, are the exception: their files have no
known place, so their classes are loaded.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import fields
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from irx.errors import NameClash


def stages() -> list[str]:
    """The names of the stages, in order."""
    from irx.pipeline.base import Stage

    return [stage.name.lower() for stage in Stage]


def declared_passes() -> list[dict[str, Any]]:
    """One row per pass, by stage and name: what it declares, and the file or package it is in.

    Raises NameClash where two declare the same name.
    """
    rows = [*_built_in(), *_installed()]
    places: dict[str, str] = {}
    for row in rows:
        if row["name"] in places:
            raise NameClash("pass", row["name"], places[row["name"]], row["place"])
        places[row["name"]] = row["place"]
    order = stages()
    return sorted(rows, key=lambda row: (order.index(row["stage"]), row["name"]))


def _built_in() -> Iterator[dict[str, Any]]:
    package = import_module("irx.passes")
    folder = Path(package.__path__[0])
    for path in sorted(folder.glob("*/[!_]*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and (row := _read(node)):
                yield {**row, "place": f"passes/{path.relative_to(folder).as_posix()}"}


def _read(node: ast.ClassDef) -> dict[str, Any] | None:
    """The row of a class, None where it does not declare name, stage and effect and so is no pass."""
    values = {
        statement.targets[0].id: statement.value
        for statement in node.body
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
    }
    if not {"name", "stage", "effect"} <= values.keys():
        return None
    return {
        "name": ast.literal_eval(values["name"]),
        "stage": _member(values["stage"]),
        "effect": _member(values["effect"]),
        "options": list(_options(node)),
        "doc": _first_line(ast.get_docstring(node)),
        "paper": _stated(values.get("paper"), ""),
        "measure": _stated(values.get("measure"), ""),
        "conflicts": list(_stated(values.get("conflicts"), ())),
        "requires": list(_stated(values.get("requires"), ())),
    }


def _stated(value: ast.expr | None, otherwise: Any) -> Any:
    return otherwise if value is None else ast.literal_eval(value)


def _options(node: ast.ClassDef) -> Iterator[str]:
    """The dataclass fields, spelled as in a pipeline."""
    for field in node.body:
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        if "ClassVar" in ast.unparse(field.annotation):
            continue
        default = "" if field.value is None else f"={_plain(field.value)}"
        yield f"{field.target.id.replace('_', '-')}{default}"


def _plain(value: ast.expr) -> str:
    """A default as text; a string without its quotes."""
    return str(value.value) if isinstance(value, ast.Constant) else ast.unparse(value)


def _member(value: ast.expr) -> str:
    """`Stage.FUSE` as `fuse`."""
    return ast.unparse(value).rpartition(".")[2].lower()


def _first_line(docstring: str | None) -> str:
    return (docstring or "").strip().partition("\n")[0]


def _installed() -> Iterator[dict[str, Any]]:
    for entry in entry_points(group="irx.passes"):
        kind = entry.load()
        options = [f"{field.name.replace('_', '-')}={field.default}" for field in fields(kind)]
        yield {
            "name": kind.name,
            "stage": kind.stage.name.lower(),
            "effect": kind.effect.value,
            "options": options,
            "doc": _first_line(kind.__doc__),
            "paper": kind.paper,
            "measure": kind.measure,
            "conflicts": list(kind.conflicts),
            "requires": list(kind.requires),
            "place": entry.value,
        }

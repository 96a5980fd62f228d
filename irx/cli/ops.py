"""List the operations of the IR: operands, attributes and meaning.

Optional operands are followed by `?`, any number of operands by `...`.

examples:
  irx ops
  irx ops rms_norm irx.rope
  irx ops --family attention
  irx ops --json
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING, Any

from irx.cli._output import add_json, print_rows
from irx.errors import UnknownOp, UnknownOption

if TYPE_CHECKING:
    from irx.ir.opdef import OpDef, Parameter


def configure(parser: ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("name", nargs="*", help="ops to show; all of them by default")
    parser.add_argument("--family", help="only the ops of this family, a file in irx/ops")
    add_json(parser)


def run(arguments: Namespace) -> None:
    """Print the ops."""
    import irx.ops  # noqa: F401  declares the built-in ones
    from irx.ir.opdef import registry

    rows = sorted((_facts(op) for op in registry().values()), key=lambda row: (row["family"], row["name"]))
    rows = _chosen(rows, arguments.name, arguments.family)
    print_rows(rows, ("name", "family", "operands", "attributes", "doc"), arguments.json)


def _chosen(rows: list[dict[str, Any]], names: list[str], family: str | None) -> list[dict[str, Any]]:
    families = {row["family"] for row in rows}
    if family is not None and family not in families:
        raise UnknownOption(family, families, where="--family")
    known = {row["name"] for row in rows}
    wanted = [name.removeprefix("irx.") for name in names]
    for name in wanted:
        if name not in known:
            raise UnknownOp(name, known)
    return [row for row in rows if row["name"] in (wanted or known) and row["family"] == (family or row["family"])]


def _facts(op: type[OpDef]) -> dict[str, Any]:
    return {
        "name": op.name,
        "family": op.__module__.rpartition(".")[2],
        "operands": [_operand(parameter) for parameter in op.operands],
        "attributes": [_attribute(parameter) for parameter in op.attributes.values()],
        "doc": (op.__doc__ or "").strip().partition("\n")[0],
    }


def _operand(parameter: Parameter) -> str:
    if parameter.variadic:
        return f"{parameter.name}..."
    return f"{parameter.name}?" if parameter.optional else parameter.name


def _attribute(parameter: Parameter) -> str:
    return parameter.name if parameter.required else f"{parameter.name}={parameter.default}"

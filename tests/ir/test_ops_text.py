"""Every op of the case table in the text form: printed, parsed back, verified."""

from __future__ import annotations

import pytest

from irx.ir.equal import exact_difference
from irx.ir.graph import Graph
from irx.ir.opdef import lookup
from irx.ir.parser import parse
from irx.ir.printer import print_program
from irx.ir.program import Program
from irx.ir.types import KVType
from irx.ir.verify import verify
from tests.ops.cases import Case, all_cases


@pytest.mark.parametrize("case", all_cases(), ids=str)
def test_every_case_round_trips(case: Case) -> None:
    graph = Graph("f")
    types = case.types(case.arrays(case.dtypes[0]))
    operands = [
        value if value is None or isinstance(value, bool | int | float) else graph.add_input(f"x{index}", type)
        for index, (value, type) in enumerate(zip(case.operands, types, strict=True))
    ]
    outputs = graph.add(lookup(case.op), operands, case.attrs).outputs
    graph.set_outputs({f"y{index}": value for index, value in enumerate(outputs) if not isinstance(value.type, KVType)})
    program = Program("p", graphs={"f": graph})
    verify(program)
    again = parse(print_program(program))
    verify(again)
    assert exact_difference(program, again) is None

"""Kernels as data: their names follow their text, and grids are expressions and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from irx.backends.triton.kernel import Kernel, Pointer, Size, launch_grid

COPY = Kernel("copy", (Pointer("x", "bf16"), Size("rows")), "tl.store(x, tl.load(x))\n", ("rows",))


def test_whatever_changes_the_binary_changes_the_symbol() -> None:
    changed = [
        replace(COPY, body="tl.store(x, 0.0)\n"),
        replace(COPY, warps=8),
        replace(COPY, stages=3),
        replace(COPY, fusion=False),
        replace(COPY, constants=(("BLOCK", 64),)),
        replace(COPY, helpers="@triton.jit\ndef f(x):\n    return x\n"),
        replace(COPY, parameters=(Pointer("x", "bf16", aligned=False), Size("rows"))),
        replace(COPY, parameters=(Pointer("x", "f32"), Size("rows"))),
    ]
    assert len({kernel.symbol for kernel in (COPY, *changed)}) == len(changed) + 1
    assert replace(COPY, note="another place").symbol == COPY.symbol


def test_the_source_is_a_module_that_defines_the_kernel() -> None:
    source = replace(COPY, constants=(("BLOCK", 64),), note="copies").source
    assert source.startswith("# copies\nimport triton\n")
    assert "x, rows, BLOCK: tl.constexpr):" in source
    assert COPY.signature == {"x": "*bf16", "rows": "i32"}
    assert COPY.divisible == ("x",)


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        (("rows",), (7, 1, 1)),
        (("ceil(rows, 4)", "BLOCK * 2"), (2, 32, 1)),
        (("min(rows, 3) + rows % 4", "max(rows // 2, 1)", "1"), (6, 3, 1)),
    ],
)
def test_a_grid_is_computed_from_sizes_and_constants(grid: tuple[str, ...], expected: tuple[int, int, int]) -> None:
    assert launch_grid(grid, {"rows": 7, "BLOCK": 16}) == expected


@pytest.mark.parametrize("text", ["rows.real", "(lambda: 1)()", "'a'", "rows if rows else 1", "[1][0]", "rows ** 9"])
def test_nothing_but_sums_and_products_is_evaluated(text: str) -> None:
    with pytest.raises(ValueError, match="no expression of a grid"):
        launch_grid((text,), {"rows": 7})

"""Tiles of weights: they hold what was packed in as many bytes as they may take, and kernels can read their rows."""

import ml_dtypes
import numpy as np
import pytest

from irx.backends.layouts.coding import CODINGS
from irx.backends.tvm.kernel import Kernel, Pointer
from irx.backends.tvm.layouts.reading import emit_row
from irx.backends.tvm.layouts.tiles import tiles_for
from irx.backends.tvm.single import run_kernel
from irx.backends.tvm.writer import Writer
from irx.ir.blocks import FORMATS, unpack
from irx.target import Device
from irx.target.device import find_device
from irx.target.host import host_cpu

FLOATS = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}
GENERIC = find_device("cpu-generic")
READ = ("f32", "f16", "bf16", "q8_0", "q4_1", "q5_0", "q4_k", "q5_k", "q6_k", "i8g64", "i4g16", "u4g128")


def stored(form: str, rows: int, columns: int) -> np.ndarray:
    random = np.random.default_rng(rows)
    if form in FLOATS:
        return random.standard_normal((rows, columns)).astype(FLOATS[form])
    return random.integers(0, 256, FORMATS[form].packed_shape((rows, columns)), dtype=np.uint8)


def test_every_packed_format_has_a_coding() -> None:
    assert set(CODINGS) == set(FORMATS)


@pytest.mark.parametrize("form", sorted(FORMATS))
@pytest.mark.parametrize("rows", [1, 31, 100, 192])
def test_packed_weights_come_back_byte_for_byte(form: str, rows: int) -> None:
    weight = stored(form, rows, 768)
    layout = tiles_for(form, rows, 768)
    arrays = layout.pack([weight])
    assert {name: array.shape for name, array in arrays.items()} == {n: p.shape for n, p in layout.parts.items()}
    assert np.array_equal(layout.unpack(arrays)[0], weight)


@pytest.mark.parametrize("form", sorted(FLOATS))
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (7, 33), (100, 31), (128, 64)])
@pytest.mark.parametrize("turned", [False, True])
def test_float_weights_come_back_bit_for_bit(form: str, rows: int, columns: int, turned: bool) -> None:
    weight = stored(form, *((columns, rows) if turned else (rows, columns)))
    layout = tiles_for(form, rows, columns, turned=turned)
    (back,) = layout.unpack(layout.pack([weight]))
    assert back.dtype == weight.dtype and np.array_equal(back, weight)


@pytest.mark.parametrize("form", sorted(FORMATS))
@pytest.mark.parametrize("rows", [576, 960, 1536, 49152, 50257])
def test_tiles_take_at_most_a_twentieth_more_than_the_format(form: str, rows: int) -> None:
    layout = tiles_for(form, rows, 1536)
    allowed = FORMATS[form].packed_shape((rows, 1536))[1] * rows * 1.05
    assert layout.bytes <= allowed
    assert sum(array.nbytes for array in tiles_for(form, 64, 1536).pack([stored(form, 64, 1536)]).values()) == (
        tiles_for(form, 64, 1536).bytes
    )


@pytest.mark.parametrize("rows", [576, 960, 1536, 49152, 50257, 51865])
def test_padding_of_real_sizes_is_small(rows: int) -> None:
    layout = tiles_for("f32", rows, 64)
    assert layout.tiles * layout.tile <= rows * 1.05


@pytest.mark.parametrize(
    ("form", "device"), [*((form, host_cpu()) for form in READ), ("f16", GENERIC), ("q6_k", GENERIC)]
)
def test_rows_are_read_exactly(form: str, device: Device) -> None:
    rows, columns = 37, 512
    weight = stored(form, rows, columns)
    layout = tiles_for(form, rows, columns)
    w = Writer()
    with w.block(f"for i in T.serial({rows}):"):
        for lanes, first in ((16, 0), (1, columns // 2)):
            with w.block(f"for j in T.serial({columns // 2 // lanes}):"):
                column = f"{first} + j * {lanes}"
                value = emit_row(w, layout, {n: n for n in layout.parts}, "i", column, device, lanes)
                w.store("y", f"i * {columns} + {column}", "f32", value, lanes)
    pointers = [Pointer(name, part.dtype) for name, part in layout.parts.items()]
    kernel = Kernel("rows", (*pointers, Pointer("y", "float32")), w.text())
    arrays = {**layout.pack([weight]), "y": np.zeros((rows, columns), np.float32)}
    with np.errstate(invalid="ignore"):
        expected = unpack(weight, form) if form in FORMATS else weight.astype(np.float32)
    finite = np.isfinite(expected)
    assert np.array_equal(run_kernel(kernel, device, {}, arrays)["y"][finite], expected[finite])

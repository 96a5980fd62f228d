"""Block-quantized formats: `unpack` equals the gguf package bit for bit, and shapes convert both ways."""

from __future__ import annotations

import numpy as np
import pytest

from irx.ir import blocks

gguf = pytest.importorskip("gguf", reason="the gguf package is the second opinion on the block formats")

# Byte offsets of the float16 fields of each format, so that random blocks hold finite scales.
HALVES = {"q4_0": [0], "q4_1": [0, 2], "q5_0": [0], "q5_1": [0, 2], "q8_0": [0], "q4_k": [0, 2], "q5_k": [0, 2]}
HALVES |= {"q6_k": [208]}
GGML = tuple(HALVES)
for _group in blocks.OWN_GROUPS:
    HALVES |= {f"i8g{_group}": [_group], f"i4g{_group}": [_group // 2], f"u4g{_group}": [_group // 2, _group // 2 + 2]}


def random_blocks(form: blocks.BlockFormat, *lead: int) -> blocks.Bytes:
    """Random bytes `[*lead, 5 blocks]` whose scales are finite, zero and negative ones among them."""
    random = np.random.default_rng(7)
    raw = random.integers(0, 256, (*lead, 5, form.bytes), dtype=np.uint8)
    for at in HALVES[form.name]:
        halves = random.standard_normal((*lead, 5, 1)).astype("<f2")
        halves[0, ..., 0, :] = 0
        raw[..., at : at + 2] = halves.view(np.uint8)
    return raw.reshape(*lead, 5 * form.bytes)


@pytest.mark.parametrize("name", GGML)
def test_unpack_equals_the_gguf_package(name: str) -> None:
    form = blocks.FORMATS[name]
    kind = gguf.GGMLQuantizationType[name.upper()]
    raw = random_blocks(form, 3, 7)
    values = blocks.unpack(raw, name)
    assert values.dtype == np.float32
    assert values.shape == (3, 7, 5 * form.elements)
    np.testing.assert_array_equal(values.view(np.uint32), gguf.dequantize(raw, kind).view(np.uint32))
    assert gguf.GGML_QUANT_SIZES[kind] == (form.elements, form.bytes)


def test_own_formats_mean_what_their_layout_says() -> None:
    for name in set(blocks.FORMATS) - set(GGML):
        form = blocks.FORMATS[name]
        kind, group = name[0], form.elements
        raw = random_blocks(form, 3).reshape(3, 5, form.bytes)
        scale, *rest = [raw[..., at : at + 2].copy().view("<f2").astype(np.float32) for at in HALVES[name]]
        minimum = rest[0] if rest else np.float32(0)
        values = blocks.unpack(raw.reshape(3, -1), name).reshape(3, 5, group)
        for element in range(group):
            half = min(group, 32) // 2
            piece, place = divmod(element, 2 * half)
            byte = raw[..., element] if name[1] == "8" else raw[..., piece * half + place % half]
            code = byte.view(np.int8) if name[1] == "8" else byte >> (4 * (place // half)) & 15
            code = code.astype(np.float32) - (8 if kind == "i" and name[1] == "4" else 0)
            np.testing.assert_array_equal(values[..., element], (scale * code[..., None] + minimum)[..., 0])


@pytest.mark.parametrize("name", blocks.FORMATS)
def test_large_weights_are_unpacked_in_pieces(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = random_blocks(blocks.FORMATS[name], 3, 7)
    whole = blocks.unpack(raw, name)
    monkeypatch.setattr(blocks, "_BLOCKS_AT_ONCE", 8)
    np.testing.assert_array_equal(blocks.unpack(raw, name), whole)


def test_rows_are_independent() -> None:
    raw = random_blocks(blocks.FORMATS["q4_1"], 6)
    order = np.array([3, 0, 5, 1, 4, 2])
    np.testing.assert_array_equal(blocks.unpack(raw[order], "q4_1"), blocks.unpack(raw, "q4_1")[order])


@pytest.mark.parametrize("name", blocks.FORMATS)
def test_shapes_convert_both_ways(name: str) -> None:
    form = blocks.FORMATS[name]
    shape = (9, 2 * form.elements)
    assert form.packed_shape(shape) == (9, 2 * form.bytes)
    assert form.logical_shape(form.packed_shape(shape)) == shape
    with pytest.raises(ValueError, match="whole number"):
        form.packed_shape((9, form.elements + 1))


def test_unpack_rejects_wrong_input() -> None:
    with pytest.raises(TypeError, match="uint8"):
        blocks.unpack(np.zeros((2, 20), np.int8), "q4_1")
    with pytest.raises(ValueError, match="whole number"):
        blocks.unpack(np.zeros((2, 21), np.uint8), "q4_1")
    with pytest.raises(KeyError):
        blocks.unpack(np.zeros((2, 20), np.uint8), "q9_9")

"""Packing: the errors that the formats promise, packing again, and the gguf package's own quantizers beside it."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irx.ir import packing
from irx.ir.blocks import FORMATS, Floats, unpack
from irx.ir.packing import is_writable, pack, random_blocks

WRITABLE = [name for name in FORMATS if is_writable(name)]
ALL_CODES = {"q5_0": 16, **{name: 8 for name in WRITABLE if name == "q4_0" or name.startswith("i4")}}
"""Formats with a code more below 0 than above, and the magnitude of the lowest."""


def weights(form: str, rows: int = 37, seed: int = 0, scale: float = 0.04) -> Floats:
    """Normal weights with some large ones, a row of zeros and a row of equal numbers."""
    random = np.random.default_rng(seed)
    values = random.standard_normal((rows, 3 * FORMATS[form].elements)).astype(np.float32) * np.float32(scale)
    values[::5, ::7] *= 9
    values[1], values[2] = 0, np.float32(scale)
    return values


def scales(form: str, raw: Any) -> Floats:
    """The stored scale of every element's group."""
    size = FORMATS[form].bytes
    at = 0 if form.startswith("q") else size - (4 if form.startswith("u") else 2)
    halves = raw.reshape(len(raw), -1, size)[..., at : at + 2].copy().view("<f2").astype(np.float32)
    return np.asarray(np.abs(np.repeat(halves[..., 0], FORMATS[form].elements, axis=1)))


@pytest.mark.parametrize("form", WRITABLE)
@pytest.mark.parametrize("scale", [0.04, 1e-5, 3e-7, 300.0])
def test_errors_are_at_most_half_a_scale(form: str, scale: float) -> None:
    values = weights(form, scale=scale)
    raw = pack(values, form)
    error, step = np.abs(unpack(raw, form) - values), scales(form, raw)
    rounding = np.abs(values) * 2.0**-22
    assert (error <= (1.001 if form in ALL_CODES else 0.5001) * step + rounding).all()
    if form in ALL_CODES:  # only what lies beyond the last code is off by more than half
        beyond = np.abs(values) > (ALL_CODES[form] - 0.51) * step
        assert (error[~beyond] <= 0.5001 * step[~beyond] + rounding[~beyond]).all()
        assert beyond.mean() < 0.2


@pytest.mark.parametrize("form", WRITABLE)
def test_packing_what_was_unpacked_changes_nothing(form: str) -> None:
    values = unpack(pack(weights(form), form), form)
    np.testing.assert_array_equal(unpack(pack(values, form), form), values)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from(WRITABLE), st.integers(0, 1000), st.floats(-8, 8))
def test_packing_again_changes_nothing_at_any_magnitude(form: str, seed: int, exponent: float) -> None:
    values = unpack(pack(weights(form, 3, seed, 2.0**exponent), form), form)
    np.testing.assert_array_equal(unpack(pack(values, form), form), values)


@pytest.mark.parametrize("form", ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1"])
def test_the_gguf_packages_quantizers_agree(form: str) -> None:
    gguf = pytest.importorskip("gguf", reason="the gguf package is the second opinion on the block formats")
    values = weights(form, 200)[3:]
    raw, other = pack(values, form), gguf.quantize(values, gguf.GGMLQuantizationType[form.upper()])
    minimum = form.endswith("_1")  # minima are rounded down here
    if not minimum:
        np.testing.assert_array_equal(scales(form, raw), scales(form, other))
    ours, theirs = unpack(raw, form), unpack(other, form)
    most = 1.05 if form == "q5_1" else 1.001  # beside its steps the rounding of a minimum counts
    assert (np.abs(ours - theirs) <= most * scales(form, other)).all()
    assert (ours == theirs).mean() > (0.3 if minimum else 0.95)
    # Codes are chosen for the stored scale here, and for the scale before its rounding there.
    assert np.square(ours - values).sum() <= 1.002 * np.square(theirs - values).sum()


def test_low_precision_and_strided_weights_are_packed_as_their_values() -> None:
    values = weights("q8_0").astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(pack(values, "q8_0"), pack(values.astype(np.float32), "q8_0"))
    turned = np.ascontiguousarray(values.T).T
    np.testing.assert_array_equal(pack(turned, "q8_0"), pack(values, "q8_0"))
    stacked = values[:36].reshape(4, 9, -1)
    np.testing.assert_array_equal(pack(stacked, "i8g16").reshape(36, -1), pack(values[:36], "i8g16"))


def test_large_weights_are_packed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pack(weights("u4g64"), "u4g64")
    monkeypatch.setattr(packing, "_ELEMENTS_AT_ONCE", 100)
    np.testing.assert_array_equal(pack(weights("u4g64"), "u4g64"), whole)


def test_what_is_no_number_stays_in_its_group() -> None:
    values = weights("q8_0")
    values[0, 40] = np.nan
    found = unpack(pack(values, "q8_0"), "q8_0")
    assert np.isnan(found[0, 32:64]).all()
    assert np.isfinite(found[0, :32]).all() and np.isfinite(found[1:]).all()


def test_pack_rejects_wrong_input() -> None:
    with pytest.raises(ValueError, match="only read"):
        pack(np.zeros((2, 256), np.float32), "q6_k")
    with pytest.raises(ValueError, match="whole number"):
        pack(np.zeros((2, 33), np.float32), "q8_0")


@pytest.mark.parametrize("form", FORMATS)
def test_random_bytes_are_weights_whose_sums_stay_near_one(form: str) -> None:
    raw = random_blocks(np.random.default_rng(0), (64, 512), form)
    values = unpack(raw, form)
    assert len(np.unique(raw)) == 256, "any code"
    assert np.std(values) * 512**0.5 == pytest.approx(1, rel=0.05)
    assert np.array_equal(raw, random_blocks(np.random.default_rng(0), (64, 512), form))

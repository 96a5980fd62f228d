"""The shipped shapes: what they say they are, and weights that are the same every time."""

from __future__ import annotations

import numpy as np
import pytest

from irx.analysis.random_weights import bind_random_weights
from irx.bench.programs import FOLDER, shape, shapes
from irx.errors import UnknownOption
from irx.ir.types import TensorType
from irx.ir.verify import verify
from irx.ir.weights import Weights

PARAMETERS = {"smollm2-135m": 134_515_008, "llama-1b": 1_235_814_400}  # as the models' own cards count them


def test_every_shape_has_its_parameters() -> None:
    assert set(shapes()) == set(PARAMETERS)
    for name, expected in PARAMETERS.items():
        program = shape(name)
        verify(program)
        counts = [int(str(e.weight.tensor.elements)) for e in program.weights if e.weight.dtype == "bf16"]
        assert sum(counts) == expected


def test_frequencies_are_those_of_the_text() -> None:
    program = shape("llama-1b")
    table = program.weights.array(program.weights["model.rotary_emb.inv_freq"])
    assert table.shape == (32,) and table.dtype == np.float32
    assert table[0] == 1.0
    ratio = table[-1] * 500000.0 ** (62 / 64)
    assert ratio == pytest.approx(1 / 32)  # long wavelengths are stretched by the factor


def test_a_file_is_read_as_a_shipped_name() -> None:
    first, second = shape(str(FOLDER / "smollm2-135m.irx"), seed=3), shape("smollm2-135m", seed=3)
    name = "model.layers.7.mlp.up_proj.weight"
    arrays = [p.weights.array(p.weights[name]).view(np.uint16) for p in (first, second, shape("smollm2-135m"))]
    assert (arrays[0] == arrays[1]).all()
    assert (arrays[0] != arrays[2]).any()


def test_an_unknown_shape_names_the_known() -> None:
    with pytest.raises(UnknownOption, match="did you mean 'llama-1b'"):
        shape("lama-1b")


def test_rows_of_a_large_array_differ() -> None:
    weights = Weights()
    weight = weights.add("w", TensorType((5000, 1024), "f16"))
    bind_random_weights(weights)
    array = weights.array(weight)
    assert len(np.unique(array[:, :8].view(np.uint16), axis=0)) == 5000
    assert float(array.astype(np.float32).std()) == pytest.approx(1 / 32, rel=0.01)

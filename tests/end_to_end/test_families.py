"""Every family through `irx.compile`: forward, chunks and steps, padded batches, text form."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

import irx
from irx.ir.printer import print_program
from tests.end_to_end.families import DECODERS, FAMILIES
from tests.end_to_end.family_table import relative

EXAMPLES = [(2, 16), (1, 8), (1, 1)]
CACHED = [name for name in DECODERS if FAMILIES[name].fields == ("logits",)]
LIMIT = 1e-5


@cache
def pair(name: str, shape: tuple[int, int] = (2, 16), **changes: Any) -> tuple[Any, Any]:
    """A model and its executable, compiled from an example of that shape."""
    family = FAMILIES[name]
    model = family.model(**changes)
    return model, irx.compile(model, family.inputs(*shape), target="torch", strict=True)


@pytest.mark.parametrize("name", FAMILIES)
def test_forward_equals_eager_at_shapes_not_captured(name: str) -> None:
    family = FAMILIES[name]
    model, fast = pair(name)
    for shape in ((3, 21), (1, 21), (1, 1)):
        inputs = family.inputs(*shape)
        result = fast(**inputs)
        for field, expected in family.eager(model, inputs).items():
            made = result if isinstance(result, torch.Tensor) else result[field]
            assert relative(made, expected) < LIMIT, (field, shape)


@pytest.mark.parametrize("shape", EXAMPLES, ids=str)
@pytest.mark.parametrize("name", CACHED)
def test_prefill_chunks_and_steps_equal_the_full_forward(name: str, shape: tuple[int, int]) -> None:
    model, fast = pair(name, shape)
    ids = FAMILIES[name].inputs(3, 21)["input_ids"]
    session = fast.session(3)
    made = [session.append(part, logits_to_keep=0) for part in ids.split([9, 4, *[1] * 8], dim=1)]
    assert relative(torch.cat(made, 1), FAMILIES[name].eager(model, {"input_ids": ids})["logits"]) < LIMIT


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", CACHED)
def test_padded_rows_equal_the_rows_alone(name: str, side: str) -> None:
    model, fast = pair(name)
    ids, lengths = FAMILIES[name].inputs(3, 12)["input_ids"], (12, 7, 1)
    mask = torch.zeros(3, 12, dtype=torch.int64)
    padded = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        where = slice(12 - length, 12) if side == "left" else slice(0, length)
        mask[row, where], padded[row, where] = 1, ids[row, :length]
    session = fast.session(3)
    first = session.append(padded, mask)
    second = session.append(ids[:, :1])
    for row, length in enumerate(lengths):
        alone = torch.cat([ids[row : row + 1, :length], ids[row : row + 1, :1]], 1)
        expected = FAMILIES[name].eager(model, {"input_ids": alone})["logits"]
        assert relative(first[row], expected[0, -2:-1]) < LIMIT, row
        assert relative(second[row], expected[0, -1:]) < LIMIT, row


@pytest.mark.parametrize("window", [4, 64], ids=["smaller", "larger"])
@pytest.mark.parametrize("name", ["mistral", "gemma3", "gpt_oss"])
def test_windows_smaller_and_larger_than_the_sequence(name: str, window: int) -> None:
    model, fast = pair(name, (2, 16), sliding_window=window)
    ids = FAMILIES[name].inputs(2, 90)["input_ids"]
    session = fast.session(2)
    made = [session.append(part, logits_to_keep=0) for part in ids.split([70, 15, *[1] * 5], dim=1)]
    assert relative(torch.cat(made, 1), FAMILIES[name].eager(model, {"input_ids": ids})["logits"]) < LIMIT


@pytest.mark.parametrize("name", ["t5", "whisper"])
def test_encoder_decoder_models_generate_what_eager_does(name: str) -> None:
    model, fast = pair(name)
    inputs = FAMILIES[name].inputs(2, 11)
    source = next(key for key in inputs if key != "decoder_input_ids")
    start = torch.full((2, 1), model.config.decoder_start_token_id)
    expected = start
    for _ in range(12):
        logits = FAMILIES[name].eager(model, {source: inputs[source], "decoder_input_ids": expected})["logits"]
        expected = torch.cat([expected, logits[:, -1:].argmax(-1)], 1)
    assert fast.generate(**{source: inputs[source]}, max_new_tokens=12).tolist() == expected.tolist()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_text_of_a_compiled_program_parses_back(name: str) -> None:
    _, fast = pair(name)
    assert print_program(irx.parse(fast.program)) == fast.program

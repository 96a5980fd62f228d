"""A user's data: two parts that share nothing, windows of one length, and errors that say what does not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import irx
from irx.analysis.data import MOST, Data, split
from irx.errors import BadData, InputMismatch, TokenizerNeeded
from irx.ir.program import Program

LANGUAGE = """
weight $table : f32[50, 4]
graph @forward(%ids: i64[B, S]) -> (logits: f32[B, S, 50]) {
  %x = irx.embedding(%ids, $table)
  %logits = irx.linear(%x, $table)
  return %logits
}
"""
ENCODER = """
weight $table : f32[50, 4]
graph @forward(%ids: i64[B, S], %mask: i64[B, S]) -> (states: f32[B, S, 4]) {
  %states = irx.embedding(%ids, $table)
  return %states
}
"""


def language(longest: int = 512, rows: int = 4) -> Program:
    program = irx.parse(f"size B in [1, {rows}]\nsize S in [1, {longest}]\n{LANGUAGE}")
    program.meta |= {"causal": True, "vocab": 50, "eos": [7]}
    return program


def encoder() -> Program:
    program = irx.parse(ENCODER)
    program.meta["inputs"] = [{"name": "ids", "role": "ids"}, {"name": "mask", "role": "mask"}]
    return program


class Letters:
    """A tokenizer with a token for every letter, and one in front where special tokens are wanted."""

    def encode(self, text: str, add_special_tokens: bool = True) -> Any:
        ids = [ord(letter) - ord("a") for letter in text]
        return type("Encoding", (), {"ids": [49, *ids] if add_special_tokens else ids})


def tokens(part: Any) -> np.ndarray[Any, Any]:
    return np.concatenate([batch["ids"].reshape(-1) for batch in part])


def test_every_second_window_is_held_out() -> None:
    row = np.arange(4 * 256) % 50
    found = split([row], language())
    assert found.causal
    assert np.array_equal(tokens(found.held_out), np.concatenate([row[:256], row[512:768]]))
    assert np.array_equal(tokens(found.calibration), np.concatenate([row[256:512], row[768:]]))


def test_texts_are_joined_by_the_end_token() -> None:
    found = split(["abcdefg", "ijklmnopqr"], language(), Letters())
    assert tokens(found.held_out).tolist() == [*range(7), 7, 8]
    assert tokens(found.calibration).tolist() == [*range(9, 18)]
    assert found.bytes_per_token == 1.0


def test_rows_of_one_length_are_windows_as_they_are() -> None:
    rows = torch.arange(80).reshape(5, 16) % 50
    found = split([rows], language())
    assert [batch["ids"].shape for batch in found.held_out] == [(3, 16)]
    assert [batch["ids"].shape for batch in found.calibration] == [(2, 16)]
    assert tokens(found.calibration).tolist() == rows[1::2].flatten().tolist()


def test_rows_longer_than_the_model_takes_are_cut() -> None:
    found = split([np.zeros((2, 64), np.int32)], language(longest=16))
    assert {batch["ids"].shape[1] for batch in (*found.held_out, *found.calibration)} == {16}


def test_much_data_is_taken_evenly() -> None:
    row = np.repeat(np.arange(50), 2000)
    found = split([row], language())
    assert tokens(found.held_out).size == tokens(found.calibration).size == MOST
    assert tokens(found.held_out)[-1] >= 48, "the end of the data counts too"


def test_each_text_of_an_encoder_is_a_batch() -> None:
    found = split(["ab", "abc", "abcd"], encoder(), Letters())
    assert not found.causal
    assert [batch["ids"].tolist() for batch in found.held_out] == [[[49, 0, 1]], [[49, 0, 1, 2, 3]]]
    assert found.calibration[0]["mask"].tolist() == [[1, 1, 1, 1]]


def test_decoding_sees_the_same_with_more_rows_at_once() -> None:
    found = split([np.arange(20 * 256) % 50], language(rows=16))
    assert [batch["ids"].shape for batch in found.held_out] == [(4, 256), (4, 256), (2, 256)]
    assert [batch["ids"].shape for batch in found.decoded()] == [(8, 256), (2, 256)]
    assert np.array_equal(tokens(found.decoded()), tokens(found.held_out))
    few = split([np.arange(20 * 256) % 50], language(rows=4))
    assert [batch["ids"].shape for batch in few.decoded()] == [(4, 256), (4, 256), (2, 256)], "no session takes more"


def test_a_first_look_sees_a_part_of_what_is_held_out() -> None:
    row = np.arange(16 * 256) % 50
    found, graph = split([row], language()), language().graphs["forward"]
    assert [batch["ids"].shape for batch in found.held_out] == [(4, 256), (4, 256)]
    little = found.few(4, graph)
    assert np.array_equal(tokens(little.held_out), tokens(found.held_out)[:512])
    assert little.calibration == found.calibration and little.digest != found.digest
    fixed = irx.parse(LANGUAGE.replace("B, S", "4, S")).graphs["forward"]
    assert [batch["ids"].shape for batch in found.few(4, fixed).held_out] == [(4, 256)]
    many = split([row], language(64))
    assert len(many.held_out) == 8 and len(many.few(4, graph).held_out) == 2


def test_dicts_are_batches() -> None:
    items = [{"ids": torch.full((2, 3), i), "mask": torch.ones(2, 3, dtype=torch.bool)} for i in range(4)]
    found = split(items, encoder())
    assert [int(batch["ids"][0, 0]) for batch in found.held_out] == [0, 2]
    assert found.held_out[0]["mask"].dtype == np.int64


def test_equal_data_have_one_digest() -> None:
    def digest(*rows: Any) -> str:
        return split([np.array(row) for row in rows], language()).digest

    first = digest(range(20), range(20))
    assert first == digest(range(20), range(20))
    assert first != digest(range(20), range(1, 21))
    assert first != digest(range(40))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("one text", "is one str"),
        ([], "empty"),
        (["text", np.zeros(3)], "mix"),
        ([np.zeros(30)], "float64"),
        ([np.array([1, 2, 3])], "too few"),
        ([np.full(40, 50)], "the id 50"),
        ([np.full(40, -1)], "negative"),
        ([{"ids": np.zeros((1, 9))}], "too few for two parts"),
        ([{"tokens": np.zeros((1, 9))}], "takes ids"),
        (3, "is one int"),
    ],
)
def test_data_that_do_not_fit(data: Any, says: str) -> None:
    with pytest.raises(BadData, match=says):
        split(data, language(), Letters())


def test_texts_need_a_tokenizer() -> None:
    with pytest.raises(TokenizerNeeded, match="tokenizer="):
        split(["text"], language())


def test_sizes_of_dicts_are_checked() -> None:
    with pytest.raises(InputMismatch):
        split([{"ids": np.zeros((1, 9)), "mask": np.zeros((1, 8))}] * 2, encoder())


def test_what_decisions_rest_on_is_told() -> None:
    assert "128 held-out tokens; 64 others" in split([np.zeros((3, 64), int)], language()).describe()
    assert Data((), ({},)).describe() == "quality is measured on 1 held-out batches"

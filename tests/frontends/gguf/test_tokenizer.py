"""Tokenizers from GGUF metadata give the ids of independent implementations.

The goldens were computed without the code under test: `smollm2.json` by a BPE in plain Python over the file's merges,
`sentencepiece.json` by the sentencepiece library on two small models of its own (with and without a blank put in front;
the second has user-defined pieces, blanks among them).
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

tokenizers = pytest.importorskip("tokenizers", reason="the hf extra is not installed")

from irx.errors import DamagedFile, ModelNotFound, UnsupportedFile  # noqa: E402
from irx.frontends.gguf.demo import SMOLLM2  # noqa: E402
from irx.frontends.gguf.reader import GgufFile  # noqa: E402
from irx.frontends.gguf.splitting import SPLITTINGS  # noqa: E402
from irx.frontends.gguf.tokenizer import GgufTokenizer, build_tokenizer  # noqa: E402

GOLDENS = Path(__file__).parent / "goldens"
SMOLLM2_EXAMPLES = json.loads((GOLDENS / "smollm2.json").read_text())["examples"]
PIECES = json.loads((GOLDENS / "sentencepiece.json").read_text())
LETTERS = [chr(code) for code in range(33, 127)] + ["Ġ", "Ċ", "Ã", "©", "Ì", "ģ"]


def file_with(**metadata: Any) -> GgufFile:
    """A file of no tensors with this tokenizer metadata."""
    return GgufFile(Path("small.gguf"), 3, {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}, {})


@cache
def smollm2() -> GgufTokenizer:
    try:
        return build_tokenizer(GgufFile.open(SMOLLM2.path()))
    except ModelNotFound as missing:
        pytest.skip(str(missing))


@cache
def pieces(name: str, **changes: Any) -> GgufTokenizer:
    return build_tokenizer(file_with(**(pieces_metadata(name) | changes)))


def pieces_metadata(name: str) -> dict[str, Any]:
    model = PIECES[name]
    return {
        "model": "llama",
        "tokens": model["tokens"],
        "scores": model["scores"],
        "token_type": model["types"],
        "add_space_prefix": model["prefix"],
        "bos_token_id": model["bos"],
        "eos_token_id": model["eos"],
        "unknown_token_id": model["unk"],
    }


def byte_level(pre: str, **metadata: Any) -> GgufTokenizer:
    """A vocabulary of bytes, three merges and two special tokens."""
    tokens = [*LETTERS, "ab", "abc", "Ġa", "<|end|>", "<think>"]
    kinds = [1] * (len(tokens) - 2) + [3, 4]
    merges = ["a b", "ab c", "Ġ a"]
    return build_tokenizer(
        file_with(**({"model": "gpt2", "pre": pre, "tokens": tokens, "token_type": kinds, "merges": merges} | metadata))
    )


def words(tokenizer: GgufTokenizer, text: str) -> list[str]:
    """How a text is cut before merging; blanks and line ends in the vocabulary's spelling."""
    cut: list[tuple[str, Any]] = tokenizer.tokenizer.pre_tokenizer.pre_tokenize_str(text)
    return [word for word, _ in cut]


def without_frame(tokenizer: GgufTokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.tokenizer.encode(text, add_special_tokens=False).ids
    return ids


@pytest.mark.parametrize("example", SMOLLM2_EXAMPLES, ids=lambda example: repr(example["text"][:24]))
def test_smollm2_gives_the_golden_ids_and_the_text_back(example: dict[str, Any]) -> None:
    tokenizer = smollm2()
    assert tokenizer.tokenizer.encode(example["text"]).ids == example["ids"]
    assert tokenizer.tokenizer.decode(example["ids"], skip_special_tokens=False) == example["text"]


def test_smollm2_metadata() -> None:
    tokenizer = smollm2()
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.stop_token_ids == (2,)
    assert tokenizer.chat_template is not None
    assert "<|im_start|>" in tokenizer.chat_template
    ids = tokenizer.tokenizer.encode("<|im_start|>user").ids
    assert tokenizer.tokenizer.decode(ids) == "user", "special tokens are left out unless asked for"


def test_a_tokenizer_survives_saving_as_json() -> None:
    again = tokenizers.Tokenizer.from_str(smollm2().tokenizer.to_str())
    for example in SMOLLM2_EXAMPLES:
        assert again.encode(example["text"]).ids == example["ids"]


@pytest.mark.parametrize("name", PIECES)
def test_sentence_pieces_equal_the_sentencepiece_library(name: str) -> None:
    tokenizer = pieces(name)
    for example in PIECES[name]["examples"]:
        assert without_frame(tokenizer, example["text"]) == example["ids"], example["text"]


@pytest.mark.parametrize("name", PIECES)
def test_sentence_pieces_give_the_text_back(name: str) -> None:
    tokenizer = pieces(name).tokenizer
    for example in PIECES[name]["examples"]:
        blanks = example["text"].replace("\u2581", " ")  # the one character that stands for another
        assert tokenizer.decode(example["ids"], skip_special_tokens=False) == blanks


def test_sentence_pieces_begin_with_a_token_unless_the_file_says_not() -> None:
    begin = PIECES["prefixed"]["bos"]
    plain = without_frame(pieces("prefixed"), "Hello")
    assert pieces("prefixed").tokenizer.encode("Hello").ids == [begin, *plain]
    assert pieces("prefixed", add_bos_token=False).tokenizer.encode("Hello").ids == plain
    framed = pieces("prefixed", add_eos_token=True).tokenizer
    end = PIECES["prefixed"]["eos"]
    assert framed.encode("Hello").ids == [begin, *plain, end]
    assert framed.encode("Hello", "Hello").type_ids == [0] * (len(plain) + 2) + [1] * (len(plain) + 2)


def test_merges_of_a_file_are_preferred_to_scores() -> None:
    tokens = ["<unk>", "a", "b", "c", "ab", "bc"]
    metadata = {"model": "llama", "tokens": tokens, "token_type": [2, 1, 1, 1, 1, 1], "add_space_prefix": False}
    scored = build_tokenizer(file_with(**metadata, scores=[0.0, 0, 0, 0, -2, -1]))
    stated = build_tokenizer(file_with(**metadata, merges=["a b", "b c"]))
    assert without_frame(scored, "abc") == [1, 5]
    assert without_frame(stated, "abc") == [4, 3]


@pytest.mark.parametrize(
    ("pre", "text", "expected"),
    [
        ("gpt-2", "I'll pay 12345  USD", ["I", "'ll", "Ġpay", "Ġ12345", "Ġ", "ĠUSD"]),
        ("smollm", "I'll pay 123  USD", ["I", "'ll", "Ġpay", "Ġ", "1", "2", "3", "Ġ", "ĠUSD"]),
        ("llama-bpe", "I'LL pay 12345  USD", ["I", "'LL", "Ġpay", "Ġ", "123", "45", "Ġ", "ĠUSD"]),
        ("qwen2", "I'LL pay 123  USD", ["I", "'LL", "Ġpay", "Ġ", "1", "2", "3", "Ġ", "ĠUSD"]),
        ("gpt-2", "(x).\n\n  y", ["(", "x", ").", "ĊĊĠ", "Ġy"]),
        ("llama-bpe", "(x).\n\n  y", ["(x", ").ĊĊ", "Ġ", "Ġy"]),
    ],
)
def test_text_is_cut_as_the_file_says(pre: str, text: str, expected: list[str]) -> None:
    assert words(byte_level(pre), text) == expected


def test_patterns_are_those_of_the_models() -> None:
    converter = pytest.importorskip("transformers.convert_slow_tokenizer", reason="holds the pattern of Llama 3")
    qwen2 = pytest.importorskip("transformers.models.qwen2.tokenization_qwen2", reason="holds the pattern of Qwen2")
    assert SPLITTINGS["llama-bpe"].pattern == converter.TikTokenConverter().pattern
    assert SPLITTINGS["qwen2"].pattern == qwen2.PRETOKENIZE_REGEX


def test_accents_are_composed_only_where_the_model_did() -> None:
    combining, composed = "e\u0301", "é"
    assert without_frame(byte_level("qwen2"), combining) == without_frame(byte_level("qwen2"), composed)
    assert without_frame(byte_level("gpt-2"), combining) != without_frame(byte_level("gpt-2"), composed)


def test_special_and_added_tokens_are_found_whole() -> None:
    tokenizer = byte_level("gpt-2")
    end, think = len(LETTERS) + 3, len(LETTERS) + 4
    assert without_frame(tokenizer, "abc<|end|> a<think>") == [len(LETTERS) + 1, end, len(LETTERS) + 2, think]
    assert tokenizer.tokenizer.decode([end, think]) == "<think>"


def test_a_word_that_is_a_token_is_taken_whole_only_where_the_model_did() -> None:
    whole = {"merges": ["a b"]}  # no merge leads to "abc"
    assert len(without_frame(byte_level("llama-bpe", **whole), "abc")) == 1
    assert len(without_frame(byte_level("gpt-2", **whole), "abc")) == 2


def test_end_of_turn_stops_too() -> None:
    tokenizer = byte_level("gpt-2", eos_token_id=5, eot_token_id=7, bos_token_id=10**6)
    assert tokenizer.stop_token_ids == (5, 7)
    assert tokenizer.bos_token_id is None


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": "bert"}, UnsupportedFile, "kind 'bert'.*known kinds: gpt2, llama"),
        ({"pre": "viking"}, UnsupportedFile, "'viking'.*smollm"),
        ({"merges": ["a b", "x"]}, DamagedFile, "merge 1"),
        ({"merges": ["a nothere"]}, DamagedFile, "merge 0"),
        ({"token_type": [1, 1]}, DamagedFile, "token_type has 2 entries"),
        ({"token_type": 3}, DamagedFile, "token_type is not a list"),
        ({"tokens": "abc"}, DamagedFile, "tokens is not a list"),
        ({"merges": [1, 2]}, DamagedFile, "merges is not a list of texts"),
    ],
)
def test_byte_level_metadata_that_cannot_be_used(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        byte_level(**({"pre": "gpt-2"} | changes))
    assert "small.gguf" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"scores": [-1000.0] * 600}, UnsupportedFile, "neither merges nor scores"),
        ({"scores": [1.0]}, DamagedFile, "scores has 1 entries"),
        ({"remove_extra_whitespaces": True}, UnsupportedFile, "normalizes"),
    ],
)
def test_piece_metadata_that_cannot_be_used(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build_tokenizer(file_with(**(pieces_metadata("bare") | changes)))


def test_a_file_without_a_tokenizer() -> None:
    with pytest.raises(UnsupportedFile, match="no tokenizer"):
        build_tokenizer(file_with())

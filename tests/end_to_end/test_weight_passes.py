"""Passes on weights, on trained models: what they cost in quality and save in bytes, and what the ledger says of it.

MiniLM is a full-precision checkpoint: its cosines say what a scheme costs. SmolLM2's weights lie on a 4-bit grid with
minima, which is lossless under its own scheme and an honest test of any other.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import irx
from irx.ledger import Row
from tests.end_to_end import smollm2
from tests.end_to_end.test_minilm import embeddings, model, tokens

pytest.importorskip("transformers", reason="the hf extra is not installed")

__all__ = ["model", "tokens"]  # fixtures of the other file
TOKENS = 256


def weight_rows(compiled: irx.Executable) -> list[Row]:
    return [row for row in compiled.ledger().rows if row.stage == "weights"]


@pytest.mark.parametrize(
    ("pipeline", "least", "what", "bits"),
    [
        ("quantize-weights", 0.9995, "q8_0, 8.5 bits an element", 8.5),
        ("quantize-weights{scheme=fine, group=64}", 0.9993, "i8g128, 8.125 bits an element", None),
        ("quantize-weights{bits=4}", 0.92, "q4_0, 4.5 bits an element", None),
        ("quantize-weights{bits=4, group=64, symmetric=false, skip=none}", 0.88, "u4g64, 4.5 bits an element", 4.5),
        ("cast-weights", 0.99998, "stored as bf16", 16),
        ("cast-activations", 0.99998, "activations in bf16", None),
        ("quantize-weights | cast-activations{to=a8}", 0.998, "activations in a8", 8.5),
    ],
)
def test_the_encoders_embeddings_point_where_they_did(
    model: Any, tokens: dict[str, torch.Tensor], tmp_path: Path, pipeline: str, least: float, what: str, bits: Any
) -> None:
    compiled = irx.compile(model, target="torch", pipeline=f"default | {pipeline}")
    ours = embeddings(compiled(**tokens).last_hidden_state, tokens["attention_mask"])
    theirs = embeddings(model(**tokens).last_hidden_state, tokens["attention_mask"])
    cosine = float((ours * theirs).sum(-1).min())
    print(f"{pipeline}: cosine {cosine:.6f}")
    assert least < cosine < 1 - 1e-7, "a pass that changes nothing is a failure here"
    rows = weight_rows(compiled)
    assert what in [row.what for row in rows]
    assert all(row.decision == "kept" and row.error for row in rows)
    assert compiled.ledger().summary.error, "what a lossy pass did to the whole program is told"
    if bits is not None:  # one copy of every matrix, in the bytes of its format
        compiled.save(tmp_path / "model.irx")
        stored = (tmp_path / "model.irx" / "weights.safetensors").stat().st_size
        matrices = sum(p.numel() for p in model.parameters() if p.dim() == 2) * bits / 8
        assert matrices <= stored <= 1.05 * matrices


@pytest.fixture(scope="module")
def language_model() -> Any:
    pytest.importorskip("gguf", reason="the hf extra is not installed")
    return smollm2.reference()


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    from irx.frontends.gguf.reader import GgufFile
    from irx.frontends.gguf.tokenizer import build_tokenizer

    tokenizer = build_tokenizer(GgufFile.open(smollm2.path())).tokenizer
    text = (Path(__file__).parents[2] / "LICENSE").read_text()
    return torch.tensor([tokenizer.encode(text).ids[:TOKENS]])


def perplexity(logits: torch.Tensor, ids: torch.Tensor) -> float:
    return math.exp(torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]).item())


def divergence(logits: torch.Tensor, reference: torch.Tensor) -> float:
    """Mean KL(reference || logits) of next-token distributions."""
    p, q = reference[0].log_softmax(-1), logits[0].log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.mark.parametrize(
    ("pipeline", "kl", "ratio"),
    [
        ("quantize-weights", 0.005, 0.01),
        ("quantize-weights{bits=4, symmetric=false}", 1e-6, 1e-4),  # the file's own grid
    ],
)
def test_the_language_models_predictions_stay(
    language_model: Any, ids: torch.Tensor, pipeline: str, kl: float, ratio: float
) -> None:
    compiled = irx.compile(language_model, target="torch", pipeline=f"default | {pipeline}")
    logits, reference = compiled(ids).logits, language_model(ids).logits
    found = divergence(logits, reference)
    change = perplexity(logits, ids) / perplexity(reference, ids) - 1
    print(f"{pipeline}: KL {found:.5f}, perplexity {change:+.3%}")
    assert 0 < found < kl
    assert abs(change) < ratio
    first = weight_rows(compiled)[0]
    assert first.graphs == ("forward", "prefill", "decode")
    session = compiled.session()
    assert divergence(session.append(ids[:, :64]), logits[:, 63:64]) < 1e-4

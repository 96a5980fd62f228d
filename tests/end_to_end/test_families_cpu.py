"""Families on kernels: forward, cache and generated tokens against eager, and that no region is left to torch.

Compiling kernels takes longest here, so that is done for families that differ in what they need. What becomes of all
the others is seen in `test_every_family_has_kernels`, which compiles nothing.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

import irx
from irx.api import aim, optimize
from irx.backends.regions.lowered import Choices, default_schedule
from irx.backends.tvm.codegen import missing
from irx.backends.tvm.steps import Lowering
from irx.frontends.sources import read
from irx.runtime.generate import Sampler, Sampling
from tests.end_to_end.families import FAMILIES
from tests.end_to_end.family_table import relative

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

# Grouped heads and rope; learned positions and biases; windows, caps and head norms; experts; no cache; an encoder.
FLOAT32 = ("llama", "gpt2", "gemma2", "qwen3_moe", "bert", "t5")
BFLOAT16 = ("qwen2",)
LIMITS = {"f32": 1e-5, "bf16": 4e-2}
LATENT = {"attention": "concat beside attention", "scatter": "no kernel is generated for scatter"}
LEFT: dict[str, dict[str, dict[str, str]]] = {
    "f32": {"deepseek_v3": LATENT},
    "bf16": {"deepseek_v3": LATENT, "t5": {"attention": "a table of biases bf16"}},
}
"""What torch may be left with, and why, by dtype and family: kernels for it would be welcome, anything else is not."""

PAIRS = [*((name, "f32") for name in FLOAT32), *((name, "bf16") for name in BFLOAT16)]
CACHED = [(name, dtype) for name, dtype in PAIRS if FAMILIES[name].kind == "decoder"]


@cache
def pair(name: str, dtype: str) -> tuple[Any, irx.Executable]:
    """A model and its executable."""
    family = FAMILIES[name]
    model = family.model()
    if dtype == "bf16":
        model = model.to(torch.bfloat16)
    return model, irx.compile(model, family.inputs(2, 16), target="tvm:cpu", strict=True)


def eager(name: str, model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {field: tensor.float() for field, tensor in FAMILIES[name].eager(model, inputs).items()}


@pytest.mark.parametrize(("name", "dtype"), PAIRS)
def test_forward_equals_eager_at_shapes_not_captured(name: str, dtype: str) -> None:
    model, fast = pair(name, dtype)
    assert set(fast.ledger().summary.fallbacks.values()) == set()
    for shape in ((3, 21), (1, 1)):
        inputs = FAMILIES[name].inputs(*shape)
        made = fast(**inputs)
        for field, expected in eager(name, model, inputs).items():
            assert relative(made[field].float(), expected) < LIMITS[dtype], (field, shape)


@pytest.mark.parametrize(("name", "dtype"), CACHED)
def test_prefill_chunks_and_steps_equal_the_full_forward(name: str, dtype: str) -> None:
    model, fast = pair(name, dtype)
    ids = FAMILIES[name].inputs(3, 21)["input_ids"]
    session = fast.session(3)
    made = [session.append(part, logits_to_keep=0).float() for part in ids.split([9, 4, *[1] * 8], dim=1)]
    expected = eager(name, model, {"input_ids": ids})["logits"]
    assert relative(torch.cat(made, 1), expected) < LIMITS[dtype]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", [name for name, dtype in CACHED if dtype == "f32"])
def test_padded_rows_equal_the_rows_alone(name: str, side: str) -> None:
    model, fast = pair(name, "f32")
    ids, lengths = FAMILIES[name].inputs(3, 12)["input_ids"], (12, 7, 1)
    mask, padded = torch.zeros(3, 12, dtype=torch.int64), torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        where = slice(12 - length, 12) if side == "left" else slice(0, length)
        mask[row, where], padded[row, where] = 1, ids[row, :length]
    session = fast.session(3)
    first, second = session.append(padded, mask), session.append(ids[:, :1])
    for row, length in enumerate(lengths):
        alone = torch.cat([ids[row : row + 1, :length], ids[row : row + 1, :1]], 1)
        expected = eager(name, model, {"input_ids": alone})["logits"]
        assert relative(first[row], expected[0, -2:-1]) < LIMITS["f32"], row
        assert relative(second[row], expected[0, -1:]) < LIMITS["f32"], row


@pytest.mark.parametrize("name", [name for name, dtype in CACHED if dtype == "f32"])
def test_generated_tokens_are_those_of_eager(name: str) -> None:
    model, fast = pair(name, "f32")
    expected = FAMILIES[name].inputs(2, 9)["input_ids"]
    prompt = expected
    for _ in range(12):
        logits = eager(name, model, {"input_ids": expected})["logits"]
        expected = torch.cat([expected, logits[:, -1:].argmax(-1)], 1)
    assert fast.generate(prompt, max_new_tokens=12).tolist() == expected.tolist()


@pytest.mark.parametrize(("name", "dtype"), CACHED)
def test_the_likeliest_tokens_of_a_step_are_those_of_its_logits(name: str, dtype: str) -> None:
    _, fast = pair(name, dtype)
    prompt = FAMILIES[name].inputs(2, 9)["input_ids"]
    whole, best = fast.session(2), fast.session(2)
    token = whole.append(prompt).argmax(-1)
    best.append(prompt)
    for _ in range(3):
        order = whole.append(token).sort(dim=-1, descending=True, stable=True)
        found = best.top(token, 5)
        assert found is not None, "there is no step without logits"
        count = found[0].shape[-1]
        assert torch.equal(found[0], order.values[..., :count])
        assert torch.equal(found[1], order.indices[..., :count])
        token = found[1][..., 1]
    assert best.top(token, count + 1) is None
    assert best.lengths == whole.lengths


def test_draws_among_the_likeliest_are_those_of_all_logits() -> None:
    _, fast = pair("llama", "f32")
    prompt, sampling = FAMILIES["llama"].inputs(2, 9)["input_ids"], Sampling(1.5, top_k=6, top_p=0.9, seed=4)
    choose, session = Sampler(sampling), fast.session(2)
    expected = [choose(session.append(prompt))]
    for _ in range(8):
        expected.append(choose(session.append(expected[-1])))
    made = fast.generate(prompt, max_new_tokens=9, temperature=1.5, top_k=6, top_p=0.9, seed=4)
    assert made[:, 9:].tolist() == torch.cat(expected, 1).tolist()
    assert len({tuple(row) for row in made[:, 9:].tolist()}) == 2, "the draws are no draws"


def test_an_encoder_decoder_model_generates_what_eager_does() -> None:
    model, fast = pair("t5", "f32")
    source = FAMILIES["t5"].inputs(2, 11)["input_ids"]
    expected = torch.full((2, 1), model.config.decoder_start_token_id)
    for _ in range(8):
        logits = eager("t5", model, {"input_ids": source, "decoder_input_ids": expected})["logits"]
        expected = torch.cat([expected, logits[:, -1:].argmax(-1)], 1)
    assert fast.generate(input_ids=source, max_new_tokens=8).tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_kernels(name: str, dtype: str) -> None:
    goal, family = aim("tvm:cpu"), FAMILIES[name]
    source = read(family.model(), family.inputs(2, 16), dtype=dtype, dynamic=True, max_batch=16, max_length=None)
    program, ledger = optimize(source.program, goal, "default", strict=True)
    assert ledger.refused() == []
    lowering, known = Lowering(Choices(goal.device, default_schedule)), LEFT[dtype].get(name, {})
    for graph in program.graphs.values():
        for step in lowering.steps(graph).steps:
            if step.lowered is None:
                op = step.site.name.partition(".")[0]
                assert op in known, f"@{graph.name}: {step.site.name} is left to torch: {step.reason}"
                assert known[op] in step.reason

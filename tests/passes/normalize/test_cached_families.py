"""Families of the zoo on the oracle: masks and positions as inputs, encoders with padding, what captures differ in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from irx.frontends import hf, torch_export
from irx.ir.opdef import Array
from irx.ir.program import Program
from irx.passes.normalize.classify_masks import ClassifyMasks
from irx.passes.normalize.raise_attention import RaiseAttention
from tests.cases.running import context
from tests.end_to_end.families import DECODERS, FAMILIES
from tests.passes.normalize.tiny import cached, run, stepwise

ROUTED = ("mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3")  # their own experts need torch on the oracle
GENERIC = [name for name in DECODERS if name not in ROUTED]
LIMIT = 1e-5


def converted(program: Program) -> Program:
    for one in (RaiseAttention(), ClassifyMasks()):
        one.run(program, context(program))
    report = cached(program)
    assert report.near_misses == []
    assert all(site.error == 0.0 for site in report.sites)
    return program


def assert_close(made: Array, expected: torch.Tensor) -> None:
    wanted = expected.double().numpy()
    assert np.abs(made - wanted).max() <= LIMIT * np.abs(wanted).max()


def arrays(inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in inputs.items()}


@pytest.mark.parametrize("name", GENERIC)
def test_models_captured_as_plain_modules(name: str) -> None:
    family = FAMILIES[name]
    model = family.model()
    program = torch_export.capture(model, {**family.inputs(2, 16), "use_cache": False})
    converted(program)
    inputs = family.inputs(2, 14)
    made = stepwise(program, arrays(inputs)[program.meta["ids"]], [9, 3, 1, 1])
    assert_close(made, family.eager(model, inputs)[program.meta["logits"]])


@pytest.mark.parametrize("given", ["attention_mask", "position_ids", "both"])
@pytest.mark.parametrize("name", ["llama", "opt", "gpt2"])
def test_masks_and_positions_in_the_example_change_nothing(name: str, given: str) -> None:
    family = FAMILIES[name]
    model = family.model()
    example = family.inputs(2, 16)
    if given != "position_ids":
        example["attention_mask"] = torch.ones(2, 16, dtype=torch.int64)
    if given != "attention_mask":
        example["position_ids"] = torch.arange(16).expand(2, 16).clone()
    program = converted(hf.capture(model, example))
    assert [v.name for v in program.graphs["decode"].inputs] == ["input_ids", "pos", "kv0", "kv1"]
    inputs = family.inputs(2, 14)
    made = stepwise(program, arrays(inputs)["input_ids"], [9, 3, 1, 1])
    assert_close(made, family.eager(model, inputs)["logits"])


@pytest.mark.parametrize("adapted", [True, False], ids=["adapted", "plain"])
@pytest.mark.parametrize("name", ["t5", "whisper"])
def test_encoders_run_once_and_their_padding_is_kept(name: str, adapted: bool) -> None:
    family = FAMILIES[name]
    model = family.model()
    inputs = family.inputs(2, 16)
    if name == "t5":
        inputs["attention_mask"] = (torch.arange(16) < torch.tensor([[16], [11]])).long()
    captured = hf.capture(model, inputs) if adapted else torch_export.capture(model, {**inputs, "use_cache": False})
    program = converted(captured)
    given = arrays(inputs)
    encoded = run(program, "encode", given)
    made = stepwise(program, given["decoder_input_ids"], [4, 2, 1, 1], encoded)
    expected = family.eager(model, inputs)["logits"][:, :8]
    assert_close(made, expected)
    assert program.meta["encoder_inputs"] == [v.name for v in program.graphs["encode"].inputs]
    assert not [n for n in program.graphs["decode"].nodes if n.loc.module.startswith(("encoder", "model.encoder"))]

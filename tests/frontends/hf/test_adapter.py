"""The adapter: what it leaves behind, what it refuses, and when it steps aside."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import masking_utils
from transformers.models.llama import modeling_llama

from irx.errors import ExampleMismatch, ModelNotFound, UnsupportedAttention
from irx.frontends import hf
from irx.frontends.hf.experts import ExpertsSpec, recognise_experts
from irx.frontends.hf.masks import MaskSpec, UnknownMask, recognise
from irx.ir.program import Program
from tests.end_to_end.families import FAMILIES, LENGTH, VOCABULARY
from tests.frontends.execution import largest_error, run


def implementations(model: torch.nn.Module) -> list[tuple[Any, Any]]:
    """What every configuration in the model says about attention and experts."""
    configs = [module.config for module in model.modules() if hasattr(module, "config")]
    return [(config._attn_implementation, config._experts_implementation) for config in configs]


def sites(program: Program) -> list[Any]:
    return [node for node in program.graphs["forward"].nodes if node.op.name == "attention"]


# --- what is left behind ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "t5", "gpt_oss", "bert"])
def test_configurations_are_restored(name: str) -> None:
    model = FAMILIES[name].model()
    before = implementations(model)
    hf.capture(model)
    assert implementations(model) == before


def test_configurations_are_restored_after_a_failure() -> None:
    model = FAMILIES["mixtral"].model()
    before = implementations(model)
    model.lm_head = torch.nn.Linear(3, 3)
    with pytest.raises(ExampleMismatch, match="lm_head"):
        hf.capture(model)
    assert implementations(model) == before


def test_the_name_means_nothing_outside_a_capture() -> None:
    family = FAMILIES["llama"]
    model = family.model()
    hf.capture(model)
    model.set_attn_implementation("irx")
    with pytest.raises(UnsupportedAttention, match="only while a model is captured"):
        family.eager(model, family.inputs(2, 4))


# --- what is refused, and what is captured without the adapter --------------------------------------------------------


def test_unknown_keywords_are_refused() -> None:
    inputs = FAMILIES["llama"].inputs(2, 6)
    with pytest.raises(UnsupportedAttention, match="LlamaAttention passes 'surprise'") as caught:
        hf.capture(FAMILIES["llama"].model(), {**inputs, "surprise": torch.ones(2, 6)})
    assert caught.value.where == "model.layers.0.self_attn"


def test_unknown_masks_are_captured_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def first_three(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return key < 3

    widened = partial(masking_utils.create_causal_mask, or_mask_function=first_three)
    monkeypatch.setattr(modeling_llama, "create_causal_mask", widened)
    family = FAMILIES["llama"]
    model = family.model()
    program = hf.capture(model)
    assert "or_masks" in program.meta["notes"][-1]
    assert all(site.operand("mask") is not None for site in sites(program))
    inputs = family.inputs(3, 11)
    assert largest_error(run(program, inputs), family.eager(model, inputs)) < 1e-5


def test_given_positions_are_captured_as_they_are() -> None:
    family = FAMILIES["mixtral"]
    model = family.model()
    positions = torch.arange(9).expand(2, 9)
    inputs = {**family.inputs(2, 9), "position_ids": positions}
    program = hf.capture(model, inputs)
    assert any("positions are inputs" in note for note in program.meta["notes"])
    inputs["position_ids"] = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5, 6, 7, 8]])
    assert largest_error(run(program, inputs), family.eager(model, inputs)) < 1e-5
    assert [node.op.name for node in program.graphs["forward"].nodes].count("moe") == 2


def test_masks_are_recognised() -> None:
    causal = masking_utils.causal_mask_function
    assert recognise(causal) == MaskSpec(causal=True)
    assert recognise(masking_utils.bidirectional_mask_function) == MaskSpec()
    assert recognise(masking_utils.sliding_window_causal_mask_function(5)) == MaskSpec(True, 5)
    packed = masking_utils.packed_sequence_compatibility_function(causal, torch.arange(3), torch.zeros(3))
    assert recognise(packed) == MaskSpec(causal=True)
    for unknown in (
        masking_utils.chunked_causal_mask_function(4, torch.zeros(2)),
        masking_utils.sliding_window_bidirectional_mask_function(4),
        masking_utils.or_masks(causal, causal),
        lambda b, h, q, k: k <= q,
    ):
        with pytest.raises(UnknownMask):
            recognise(unknown)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "opt", "gpt_oss"])
def test_attention_masks(name: str, side: str) -> None:
    family = FAMILIES[name]
    model = family.model()
    mask = torch.ones(3, 12, dtype=torch.int64)
    for row, padding in enumerate((0, 3, 7)):
        mask[row, slice(0, padding) if side == "left" else slice(12 - padding, 12)] = 0
    program = hf.capture(model, {**family.inputs(2, 8), "attention_mask": torch.ones(2, 8, dtype=torch.int64)})
    assert all(site.attr("causal") and site.operand("mask") is not None for site in sites(program))
    inputs = {**family.inputs(3, 12), "attention_mask": mask}
    made, expected = run(program, inputs)["logits"], family.eager(model, inputs)["logits"].double().numpy()
    kept = mask.bool().numpy()
    assert np.abs(made[kept] - expected[kept]).max() < 1e-5 * np.abs(expected[kept]).max()


# --- experts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("mixtral", ExpertsSpec("silu", interleaved=False, transposed=False)),
        ("gpt_oss", ExpertsSpec("swigluoai", interleaved=True, transposed=True, alpha=1.702, limit=7.0)),
    ],
)
def test_experts_are_recognised_by_what_they_compute(name: str, spec: ExpertsSpec) -> None:
    module = FAMILIES[name].model().get_submodule("model.layers.0.mlp.experts")
    assert recognise_experts(module) == spec


def test_unknown_experts_are_captured_as_they_are() -> None:
    family = FAMILIES["mixtral"]
    model = family.model()
    for layer in model.get_submodule("model.layers").children():
        layer.get_submodule("mlp.experts").act_fn = torch.nn.Tanh()
    program = hf.capture(model)
    assert not any(node.op.name == "moe" for node in program.graphs["forward"].nodes)
    inputs = family.inputs(2, 5)
    assert largest_error(run(program, inputs), family.eager(model, inputs)) < 1e-5


# --- examples, folders, metadata --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in FAMILIES if not FAMILIES[name].plain and name != "llava_text"])
def test_examples_are_derived(name: str) -> None:
    family = FAMILIES[name]
    program = hf.capture(family.model())
    assert [value.name for value in program.graphs["forward"].inputs] == list(family.inputs(2, 16))
    assert set(family.fields) <= set(program.graphs["forward"].output_names)


def test_examples_may_be_tensors_and_tuples() -> None:
    ids = FAMILIES["llama"].inputs(2, 6)["input_ids"]
    for example in (ids, (ids,), [ids]):
        assert [v.name for v in hf.capture(FAMILIES["llama"].model(), example).graphs["forward"].inputs] == [
            "input_ids"
        ]


def test_a_cache_is_refused() -> None:
    inputs = FAMILIES["llama"].inputs(2, 6)
    with pytest.raises(ExampleMismatch, match="asks for a cache"):
        hf.capture(FAMILIES["llama"].model(), {**inputs, "use_cache": True})


def test_metadata_of_a_decoder() -> None:
    meta = hf.capture(FAMILIES["llama"].model()).meta
    assert meta["causal"]
    assert not meta["encoder_decoder"]
    assert (meta["max_length"], meta["vocab"]) == (LENGTH, VOCABULARY)
    assert (meta["bos"], meta["eos"], meta["pad"], meta["decoder_start"]) == (1, [2], 0, None)
    assert meta["model_type"] == "llama"
    assert meta["inputs"] == [{"name": "input_ids", "role": "ids"}]
    assert meta["output"]["class"] == "transformers.modeling_outputs.CausalLMOutputWithPast"
    assert meta["output"]["fields"] == ["logits"]
    assert [site["module"] for site in meta["sites"]] == ["model.layers.0.self_attn", "model.layers.1.self_attn"]


@pytest.mark.parametrize(
    ("name", "causal", "encoder_decoder", "length"),
    [
        ("bert", False, False, LENGTH),
        ("vit", False, False, None),
        ("t5", False, True, None),
        ("whisper", False, True, 64),
        ("gpt2", True, False, LENGTH),
        ("llava_text", True, False, LENGTH),
    ],
)
def test_kinds_of_models(name: str, causal: bool, encoder_decoder: bool, length: int | None) -> None:
    family = FAMILIES[name]
    meta = hf.capture(family.model(), family.inputs(2, 8)).meta
    assert (meta["causal"], meta["encoder_decoder"], meta["max_length"]) == (causal, encoder_decoder, length)


def test_encoder_decoder_sizes() -> None:
    program = hf.capture(FAMILIES["t5"].model())
    shapes = {value.name: str(value.type) for value in program.graphs["forward"].inputs}
    assert shapes == {"input_ids": "i64[B, E]", "decoder_input_ids": "i64[B, S]"}
    assert program.meta["decoder_start"] == 0


def test_folders(tmp_path: Path) -> None:
    family = FAMILIES["qwen3"]
    model = family.model()
    model.save_pretrained(tmp_path)
    program = hf.capture(tmp_path)
    assert program.meta["name_or_path"] == str(tmp_path)
    inputs = family.inputs(2, 5)
    assert largest_error(run(program, inputs), family.eager(model, inputs)) < 1e-5


def test_folders_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"config\.json"):
        hf.capture(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    with pytest.raises(ModelNotFound, match="cannot be loaded"):
        hf.capture(tmp_path)


def test_which_models_are_transformers_models() -> None:
    assert hf.is_model(FAMILIES["vit"].model())
    assert not hf.is_model(torch.nn.Linear(2, 2))
    assert not hf.is_model("path")

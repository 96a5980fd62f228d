"""A captured model over the file's packed weights computes what transformers computes with the dequantized ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("gguf", reason="the gguf package writes the files of these tests")
pytest.importorskip("transformers", reason="the models are built and checked with transformers")

from irx.analysis.reference import evaluate
from irx.frontends.gguf.model import load
from irx.frontends.gguf.program import bind_program
from irx.frontends.torch_export import capture
from tests.frontends.gguf.test_models import CASES, Case, loaded_values, original_of, written


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.name in ("llama-tied", "qwen3", "gemma2")], ids=lambda case: case.name
)
@pytest.mark.parametrize("storage", ["q8_0", "f16", "f32"])
def test_a_program_over_stored_weights_equals_the_model(case: Case, storage: str, tmp_path: Path) -> None:
    model = load(written(case, original_of(case), tmp_path / "model.gguf", storage))
    example = {"input_ids": torch.zeros(2, 8, dtype=torch.long), "use_cache": False}
    program = capture(model.module, example)
    bind_program(program, model.weights)
    ids = np.arange(33).reshape(3, 11) * 5 % 96
    (logits,) = evaluate(program.graphs["forward"], {"input_ids": ids}, {}, program.weights)

    values = {name: torch.from_numpy(array) for name, array in loaded_values(model).items()}
    model.module.load_state_dict(values, assign=True)
    expected = model.module.double()(torch.from_numpy(ids), use_cache=False).logits.numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5)


def test_weights_keep_their_storage_and_are_converted_once(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "llama-tied")
    model = load(written(case, original_of(case), tmp_path / "model.gguf", "q8_0"))
    program = capture(model.module, {"input_ids": torch.zeros(2, 8, dtype=torch.long), "use_cache": False})
    bind_program(program, model.weights)
    nodes = [node for node in program.graphs["forward"].nodes if node.op.name == "dequantize"]
    assert len(nodes) == 15, "seven matrices a layer, and the embedding once although two places read it"
    by_name = {weight.name: weight for weight in program.used_weights()}
    for name, stored in model.weights.items():
        if name == "lm_head.weight":
            continue
        assert (by_name[name].dtype, by_name[name].shape) == (stored.dtype, stored.shape)
        np.testing.assert_array_equal(program.weights.array(by_name[name]), stored.load())
    assert set(by_name) - set(model.weights) == {"model.rotary_emb.inv_freq"}

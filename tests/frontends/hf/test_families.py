"""Every family through the adapter and through plain capture: equal to the model itself at shapes not seen before."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest
import torch

from irx.frontends import hf, torch_export
from irx.ir.equal import exact_difference
from irx.ir.parser import parse
from irx.ir.printer import print_program
from irx.ir.program import Program
from irx.ir.verify import verify
from tests.end_to_end.families import DECODERS, FAMILIES, WINDOW, torch_calls
from tests.frontends.execution import largest_error, run

SHAPES = [(3, 21), (1, 21), (1, 1)]
EXAMPLES = [(2, 16), (1, 8), (1, 1)]
TOLERANCE = 1e-5

# transformers' own expert functions, which only the adapter replaces.
EXPERT_CALLS = {"aten.histc.default", "transformers.grouped_mm_fallback.default"}


@cache
def captured(name: str, batch: int = 2, length: int = 16) -> tuple[torch.nn.Module, Program]:
    family = FAMILIES[name]
    model = family.model()
    frontend = torch_export if family.plain else hf
    return model, frontend.capture(model, family.inputs(batch, length))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_forward_equals_the_model(name: str, example: tuple[int, int]) -> None:
    family = FAMILIES[name]
    model, program = captured(name, *example)
    verify(program)
    assert torch_calls(program) == Counter()
    for batch, length in SHAPES:
        inputs = family.inputs(batch, length)
        assert largest_error(run(program, inputs), family.eager(model, inputs)) < TOLERANCE


@pytest.mark.parametrize("name", [name for name in FAMILIES if not FAMILIES[name].plain])
def test_plain_capture_equals_the_model(name: str) -> None:
    family = FAMILIES[name]
    model = family.model()
    options = {"use_cache": False} if family.caches else {}
    program = torch_export.capture(model, {**family.inputs(2, 16), **options})
    verify(program)
    assert set(torch_calls(program)) <= EXPERT_CALLS
    inputs = family.inputs(3, 21)
    assert largest_error(run(program, inputs), family.eager(model, inputs)) < TOLERANCE


@pytest.mark.parametrize("name", FAMILIES)
def test_text_form_reads_back(name: str) -> None:
    program = captured(name)[1]
    assert exact_difference(parse(print_program(program)), program) is None


@pytest.mark.parametrize("name", DECODERS)
def test_attention_sites_say_what_the_model_does(name: str) -> None:
    program = captured(name)[1]
    sites = [node for node in program.graphs["forward"].nodes if node.op.name == "attention"]
    assert len(sites) == (3 if name == "gemma3" else 2)
    assert all(site.attr("causal") for site in sites)
    assert all(site.operand("mask") is None for site in sites)
    windows = {"gemma2": [WINDOW, None], "gemma3": [WINDOW, WINDOW, None], "gpt_oss": [WINDOW, None]}
    windows["mistral"] = [WINDOW, WINDOW]
    assert [site.attr("window") for site in sites] == windows.get(name, [None] * len(sites))
    assert [site.attr("softcap") is not None for site in sites] == [name == "gemma2"] * len(sites)
    assert [site.operand("sinks") is not None for site in sites] == [name == "gpt_oss"] * len(sites)


@pytest.mark.parametrize("name", ["llama", "gpt_oss", "gemma3"])
def test_bfloat16_models_keep_their_dtype(name: str) -> None:
    family = FAMILIES[name]
    program = hf.capture(family.model().bfloat16(), family.inputs(2, 16))
    assert program.graphs["forward"].outputs[0].dtype == "bf16"
    weights = {weight.name: weight.dtype for weight in program.used_weights()}
    assert {dtype for name, dtype in weights.items() if name.endswith("weight")} == {"bf16"}
    model = family.model().bfloat16()
    inputs = family.inputs(2, 9)
    assert largest_error(run(program, inputs), family.eager(model, inputs)) < 0.05

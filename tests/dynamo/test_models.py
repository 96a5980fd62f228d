"""Whole models under torch.compile: equal to eager at every shape, with no more graphs than any backend needs."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from irx.dynamo.graph import CompiledGraph
from tests.dynamo.recording import Recording, operations, relative
from tests.end_to_end.families import FAMILIES, Family

NAMES = ("llama", "gpt2", "gemma3", "mixtral", "bert", "vit")
GENERATING = (  # of families that differ in attention and cache in nothing one is enough
    ("llama", "dynamic"),
    ("gpt2", "dynamic"),
    ("gemma3", "static"),
)
COUNTED = (("llama", "dynamic"), ("gemma3", "static"))
SHAPES = ((2, 8), (2, 9), (2, 17), (3, 12), (1, 5))


def arguments(family: Family, shape: tuple[int, int]) -> dict[str, Any]:
    return {**family.inputs(*shape), **({"use_cache": False} if family.caches else {})}


@pytest.mark.parametrize("name", NAMES)
def test_equal_to_eager_at_every_shape(name: str, recording: Recording) -> None:
    family = FAMILIES[name]
    model = family.model()
    compiled = torch.compile(model, backend=recording, fullgraph=True)
    for shape in SHAPES:
        with torch.no_grad():
            result = compiled(**arguments(family, shape))
        for field, expected in family.eager(model, family.inputs(*shape)).items():
            assert relative(result[field], expected) < 1e-5, shape
        check_recognised(name, Counter(operations(recording)))
    assert all(isinstance(graph, CompiledGraph) for graph in recording.graphs)


def check_recognised(name: str, found: Counter[str]) -> None:
    """The ops of the newest graph are those that export would give."""
    layers = 3 if name == "gemma3" else 2
    assert found["attention"] == layers
    assert found["rms_norm"] + found["layer_norm"] >= 2 * layers
    assert found["torch.call"] == (6 if name == "mixtral" else 0)  # transformers' own operators for experts
    assert found["rope"] == (2 * layers if name in ("llama", "mixtral", "gemma3") else 0)


def generated(model: Any, family: Family, cache: str) -> list[torch.Tensor]:
    """Two prompts of different lengths; a static cache grows between them, and a sliding window fills up."""
    chosen = {"cache_implementation": "static"} if cache == "static" else {}
    return [
        model.generate(
            family.inputs(batch, length)["input_ids"],
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            **chosen,
        )
        for batch, length, count in ((2, 5, 6), (1, 9, 4))
    ]


def graphs_of(model: Any, family: Family, cache: str, backend: Any) -> tuple[list[torch.Tensor], int]:
    """What a model generates with a backend, and how many graphs dynamo makes; a break in one is an error."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    forward = model.forward
    model.forward = torch.compile(forward, backend=backend, fullgraph=True)
    with torch._dynamo.config.patch(recompile_limit=64):
        made = generated(model, family, cache)
    model.forward = forward
    return made, torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.parametrize(("name", "cache"), GENERATING)
def test_generate_gives_the_same_tokens(name: str, cache: str, recording: Recording) -> None:
    family = FAMILIES[name]
    model = family.model()
    expected = generated(model, family, cache)
    made, graphs = graphs_of(model, family, cache, recording)
    assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))
    assert all(isinstance(graph, CompiledGraph) for graph in recording.graphs)
    if (name, cache) in COUNTED:
        assert graphs == graphs_of(model, family, cache, "eager")[1] > 1, "dynamo makes more than for any backend"


def test_a_static_cache_is_written_in_place(recording: Recording) -> None:
    family = FAMILIES["llama"]
    model = family.model()
    model.forward = torch.compile(model.forward, backend=recording)
    ids = family.inputs(2, 9)["input_ids"]
    model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0, cache_implementation="static")
    found = Counter(operations(recording))
    assert found["scatter"] == 0
    assert found["torch.call"] == 4  # keys and values of two layers
    step = recording.built
    shapes = [value.shape for value in step.backend.load(step.files, step.goal.device).inputs]
    sizes = {index: shapes[step.capture.inputs.index(index)] for index, *_ in step.copied_back}
    assert set(sizes.values()) == {()}  # what is copied back are the lengths alone


def test_bf16_models_stay_bf16(recording: Recording) -> None:
    family = FAMILIES["llama"]
    model = family.model().to(torch.bfloat16)
    compiled = torch.compile(model, backend=recording)
    with torch.no_grad():
        result = compiled(**arguments(family, (2, 9))).logits
    exact = family.eager(family.model(), family.inputs(2, 9))["logits"]
    assert result.dtype == torch.bfloat16
    assert relative(result.float(), exact) < 0.05

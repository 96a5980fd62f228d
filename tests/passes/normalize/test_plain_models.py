"""Models in plain torch through the whole pipeline: attention recognised, cache inserted, chunks equal to eager."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from irx import api
from irx.ir.parser import parse
from irx.ir.program import Program
from irx.ir.regions import flat_nodes
from tests.passes.normalize.plain_models import MODELS, VOCABULARY, build


@cache
def compiled(name: str) -> tuple[torch.nn.Module, Any, Program]:
    model = build(name)
    made = api.compile(model, torch.randint(0, VOCABULARY, (2, 16)), target="torch", strict=True)
    return model, made, parse(made.program)


def sites(program: Program, op: str) -> list[Any]:
    return [node for node in flat_nodes(program.graphs["decode"]) if node.op.name == op]


@pytest.mark.parametrize("name", MODELS)
def test_attention_is_recognised_and_cached(name: str) -> None:
    _, _, program = compiled(name)
    assert len(sites(program, "kv_attention")) == 2
    assert not [node for graph in program.graphs.values() for node in graph.nodes if node.op.name == "softmax"]


@pytest.mark.parametrize("name", MODELS)
def test_chunks_and_steps_equal_eager(name: str) -> None:
    model, made, _ = compiled(name)
    ids = torch.randint(0, VOCABULARY, (3, 27), generator=torch.Generator().manual_seed(3))
    session = made.session(3)
    logits = torch.cat(
        [session.append(part, logits_to_keep=0) for part in torch.split(ids, [11, 6, *[1] * 10], dim=1)], 1
    )
    with torch.no_grad():
        expected = model(ids)
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_windows_caps_and_groups_are_found() -> None:
    _, _, program = compiled("window")
    for node in sites(program, "kv_attention"):
        assert (node.attr("window"), node.attr("softcap")) == (5, 30.0)
    _, _, program = compiled("repeated")
    assert {str(site.inputs[1].type) for site in sites(program, "kv_attention")} == {"kv<heads=2, dim=8, dense, f32>"}


def test_biases_of_distance_become_tables() -> None:
    _, _, program = compiled("buckets")
    assert [str(site.inputs[3].type) for site in sites(program, "kv_attention")] == ["f32[4, 9]"] * 2
    _, _, program = compiled("slopes")
    assert [str(site.inputs[3].type) for site in sites(program, "kv_attention")] == ["f32[4, 2048]"] * 2


def test_positions_read_the_models_own_tables() -> None:
    for name in ("repeated", "filled", "flat"):
        _, _, program = compiled(name)
        assert not [entry for entry in program.weights if entry.weight.name.startswith("positions.to")]
    _, _, program = compiled("window")
    assert [entry.weight.shape[1] for entry in program.weights if entry.weight.name.startswith("positions.")] == [32]

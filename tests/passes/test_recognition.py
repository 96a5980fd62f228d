"""Every norm, rotation, activation and projection that an architecture has is recognised, in float32 and in bfloat16,
and the recognised program computes what the captured one does."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

import irx.ops  # noqa: F401
from irx.analysis.inputs import random_inputs
from irx.analysis.reference import evaluate
from irx.frontends import hf, torch_export
from irx.ir.program import Program
from irx.ir.verify import verify
from irx.rewrite.check import difference
from tests.cases.running import context, find_passes
from tests.end_to_end.families import FAMILIES

PASSES = (
    "remove-noops | cse | raise-norm | raise-activation | raise-linear | raise-shapes | raise-rope | remove-noops"
    " | fold-constants{generated=false} | cse | dead-nodes"
)

# What two layers of each architecture have (gemma3: three); linears count the head and, in mixtures, the routers.
EXPECTED: dict[str, dict[str, int]] = {
    "llama": {"rms_norm": 5, "rope": 4, "swiglu": 2, "linear": 15},
    "llama_tied": {"rms_norm": 5, "rope": 4, "swiglu": 2, "linear": 15},
    "qwen2": {"rms_norm": 5, "rope": 4, "swiglu": 2, "linear": 15},
    "qwen3": {"rms_norm": 9, "rope": 4, "swiglu": 2, "linear": 15},
    "gemma2": {"rms_norm": 9, "rope": 4, "geglu": 2, "linear": 15},
    "gemma3": {"rms_norm": 19, "rope": 6, "geglu": 3, "linear": 22},
    "mistral": {"rms_norm": 5, "rope": 4, "swiglu": 2, "linear": 15},
    "phi3": {"rms_norm": 5, "rope": 4, "swiglu": 2, "linear": 9},
    "gpt2": {"layer_norm": 5, "gelu": 2, "linear": 9},
    "opt": {"layer_norm": 5, "linear": 13},
    "gptneox": {"layer_norm": 5, "rope": 4, "gelu": 2, "linear": 9},
    "mixtral": {"rms_norm": 5, "rope": 4, "linear": 11},
    "qwen3_moe": {"rms_norm": 9, "rope": 4, "linear": 11},
    "gpt_oss": {"rms_norm": 5, "rope": 4, "linear": 11},
    "deepseek_v3": {"rms_norm": 9, "rope": 4, "swiglu": 2, "linear": 18},
    "olmo2": {"rms_norm": 9, "rope": 4, "swiglu": 2, "linear": 15},
    "bert": {"layer_norm": 5, "gelu": 2, "linear": 13},
    "vit": {"layer_norm": 5, "gelu": 2, "linear": 13},
    "t5": {"rms_norm": 12, "geglu": 4, "linear": 37},
    "whisper": {"layer_norm": 12, "gelu": 6, "linear": 33},
    "llava_text": {"rms_norm": 5, "rope": 4, "swiglu": 2, "linear": 14},
    "llava_vision": {"layer_norm": 5, "gelu": 1, "linear": 14},
    "timm_vit": {"layer_norm": 5, "gelu": 2, "linear": 9},
}
RECOGNISED = ("rms_norm", "layer_norm", "rope", "silu", "gelu", "swiglu", "geglu", "linear")
# What the spelled out forms are made of: none may be left over where nothing else in the architecture needs it.
SPELLED = {"rsqrt": 0, "pow": 0, "cos": 0, "sin": 0, "mean": 0, "matmul": 0, "erf": 0, "scatter_slice": 0, "neg": 0}
NEEDED = {"t5": {"neg": 1}}  # of a distance between positions


def captured(name: str, dtype: str) -> Program:
    family = FAMILIES[name]
    wanted = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
    inputs = {key: x.to(wanted) if x.is_floating_point() else x for key, x in family.inputs(2, 16).items()}
    capture = torch_export.capture if family.plain else hf.capture
    return capture(family.model().to(wanted), inputs)


def counts(program: Program) -> Counter[str]:
    return Counter(node.op.name for node in program.graphs["forward"].nodes)


# In bfloat16 casts stand around norms, rotations and softmax, in as many ways as these families show.
CASTS = ("llama", "gemma3", "gptneox", "gpt_oss", "deepseek_v3", "olmo2", "t5")


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "f32") for name in FAMILIES), *((name, "bf16") for name in CASTS)]
)
def test_everything_is_recognised(name: str, dtype: str) -> None:
    with torch.no_grad():
        program = captured(name, dtype)
    before = program.clone()
    for one in find_passes(PASSES):
        report = one.run(program, context(program))
        verify(program)
        assert [miss.reason for miss in report.near_misses] == []
        assert (report.error or 0.0) < 1e-12
    found = counts(program)
    assert {op: found[op] for op in RECOGNISED if found[op]} == EXPECTED[name]
    assert {op: found[op] for op in SPELLED} == SPELLED | NEEDED.get(name, {})
    compare(before, program)


def compare(before: Program, after: Program) -> None:
    sizes = {"B": 2, "S": 5} | {name: range.hint or 5 for name, range in before.sizes.items() if name not in ("B", "S")}
    inputs = random_inputs(before.graphs["forward"], sizes)
    old = evaluate(before.graphs["forward"], inputs, sizes, before.weights, round_casts=False)
    new = evaluate(after.graphs["forward"], inputs, sizes, after.weights, round_casts=False)
    for a, b in zip(new, old, strict=True):
        assert difference(a, b) < 1e-5

"""From the prompt to the logits of its last token, for prompts of 128 and 512 tokens."""

from __future__ import annotations

from functools import partial

from irx.bench.baselines.language import eager_prefill, inductor_prefill
from irx.bench.baselines.llama import llama_prefill
from irx.bench.lab import Lab, irx_prefill, moved
from irx.bench.race import Candidate, Race, Ready, Row

BF16_ACTIVATIONS = "default | cast-activations{to=bf16}"


def _ours(lab: Lab, source: str, tokens: int, pipeline: str = "default") -> Ready:
    fast = lab.irx(source, pipeline)
    size = moved(fast, "prefill", {"B": 1, "S": tokens, "R": 1, "T": tokens})
    return Ready(irx_prefill(fast, lab.ids(tokens)), size)


def _eager(lab: Lab, dtype: str, tokens: int) -> Ready:
    return Ready(eager_prefill(lab.module(dtype), lab.ids(tokens)))


def _inductor(lab: Lab, dtype: str, tokens: int) -> Ready:
    return Ready(inductor_prefill(lab.module(dtype), lab.ids(tokens)))


def _llama(lab: Lab, tokens: int) -> Ready:
    return Ready(llama_prefill(lab.path, lab.ids(tokens), lab.threads))


def _candidates(tokens: int) -> dict[str, Candidate]:
    return {
        "eager f32": Candidate(partial(_eager, dtype="f32", tokens=tokens), 0.0),
        "Inductor f32": Candidate(partial(_inductor, dtype="f32", tokens=tokens), 1e-4),
        "eager bf16": Candidate(partial(_eager, dtype="bf16", tokens=tokens), 0.05),
        "Inductor bf16": Candidate(partial(_inductor, dtype="bf16", tokens=tokens), 0.05),
        "IRX f32": Candidate(partial(_ours, source="f32", tokens=tokens), 1e-4),
        "IRX bf16": Candidate(partial(_ours, source="bf16", tokens=tokens), 0.05),
    }


def _rows(tokens: int, bf16: float) -> tuple[Row, ...]:
    f32s, bf16s = ("eager f32", "Inductor f32"), ("eager bf16", "Inductor bf16")
    return (
        Row(f"prefill of {tokens}, float32, against the faster of eager and Inductor", "IRX f32", f32s, 1.2),
        Row(f"prefill of {tokens}, bf16 model, against the faster of eager and Inductor", "IRX bf16", bf16s, bf16),
    )


FAMILIES = (
    Race(
        name="prefill",
        title="a prompt of 128 tokens to the first token",
        reference="eager f32",
        candidates={
            **_candidates(128),
            "llama.cpp": Candidate(partial(_llama, tokens=128), 0.1),
            "IRX file": Candidate(partial(_ours, source="file", tokens=128), 1e-3),
            "IRX file, bf16 activations": Candidate(
                partial(_ours, source="file", tokens=128, pipeline=BF16_ACTIVATIONS), 0.05
            ),
        },
        rows=(
            *_rows(128, 1.8),
            Row("prefill of 128, the file, against llama.cpp", "IRX file", ("llama.cpp",), 5),
            Row(
                "prefill of 128, the file, against llama.cpp",
                "IRX file, bf16 activations",
                ("llama.cpp",),
                9,
                BF16_ACTIVATIONS,
            ),
        ),
    ),
    Race(
        name="prefill",
        title="a prompt of 512 tokens to the first token",
        reference="eager f32",
        candidates=_candidates(512),
        rows=_rows(512, 1.3),
    ),
)

"""An encoder: all-MiniLM-L6-v2 on a batch of 8 texts of 128 tokens."""

from __future__ import annotations

from functools import partial

import torch

from irx.bench.baselines.encoder import eager_encoder, inductor_encoder, openvino_encoder
from irx.bench.lab import Lab, moved
from irx.bench.race import Candidate, Race, Ready, Row

BATCH, TOKENS = 8, 128


def _inputs(lab: Lab) -> tuple[torch.Tensor, torch.Tensor]:
    words = lab.encoder("f32").config.vocab_size
    ids = torch.randint(0, words, (BATCH, TOKENS), generator=torch.Generator().manual_seed(0))
    return ids, torch.ones_like(ids)


def _eager(lab: Lab, dtype: str) -> Ready:
    return Ready(eager_encoder(lab.encoder(dtype), *_inputs(lab)))


def _inductor(lab: Lab, dtype: str) -> Ready:
    return Ready(inductor_encoder(lab.encoder(dtype), *_inputs(lab)))


def _openvino(lab: Lab) -> Ready:
    return Ready(openvino_encoder(lab.encoder("f32"), *_inputs(lab), lab.threads))


def _ours(lab: Lab, dtype: str) -> Ready:
    ids, mask = _inputs(lab)
    fast = lab.irx_encoder(dtype, ids, mask)

    def step() -> torch.Tensor:
        states: torch.Tensor = fast(input_ids=ids, attention_mask=mask).last_hidden_state
        return states

    return Ready(step, moved(fast, "forward", {"B": BATCH, "S": TOKENS}))


FAMILY = Race(
    name="minilm",
    title=f"MiniLM, {BATCH} texts of {TOKENS} tokens",
    reference="eager f32",
    candidates={
        "eager f32": Candidate(partial(_eager, dtype="f32"), 0.0),
        "Inductor f32": Candidate(partial(_inductor, dtype="f32"), 1e-4),
        "eager bf16": Candidate(partial(_eager, dtype="bf16"), 0.05),
        "Inductor bf16": Candidate(partial(_inductor, dtype="bf16"), 0.05),
        "OpenVINO": Candidate(_openvino, 1e-3),
        "IRX f32": Candidate(partial(_ours, dtype="f32"), 1e-4),
        "IRX bf16": Candidate(partial(_ours, dtype="bf16"), 0.05),
    },
    rows=(
        Row("MiniLM, float32, against the faster of eager and Inductor", "IRX f32", ("eager f32", "Inductor f32"), 1.1),
        Row("MiniLM, bf16, against the faster of eager and Inductor", "IRX bf16", ("eager bf16", "Inductor bf16"), 1.2),
        Row("MiniLM, float32, against OpenVINO", "IRX f32", ("OpenVINO",), None),
    ),
)

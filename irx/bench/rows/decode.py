"""One decode step at a context of 128 tokens, in every format of the weights."""

from __future__ import annotations

from irx.bench.baselines.language import eager_decode, inductor_decode
from irx.bench.baselines.llama import llama_decode
from irx.bench.lab import Lab, irx_decode, moved
from irx.bench.race import Candidate, Race, Ready, Row

CONTEXT = 128
EIGHT_BITS = "default | quantize-weights{bits=8}"


def ours(lab: Lab, source: str, pipeline: str = "default", batch: int = 1) -> Ready:
    """IRX's step and the bytes it moves."""
    fast = lab.irx(source, pipeline)
    size = moved(fast, "decode", {"B": batch, "T": CONTEXT + 1})
    return Ready(irx_decode(fast, lab.ids(CONTEXT, batch)), size)


FAMILY = Race(
    name="decode",
    title=f"one decode step at a context of {CONTEXT} tokens",
    reference="eager f32",
    candidates={
        "eager f32": Candidate(lambda lab: Ready(eager_decode(lab.module("f32"), lab.ids(CONTEXT))), 0.0),
        "Inductor f32": Candidate(lambda lab: Ready(inductor_decode(lab.module("f32"), lab.ids(CONTEXT))), 1e-4),
        "eager bf16": Candidate(lambda lab: Ready(eager_decode(lab.module("bf16"), lab.ids(CONTEXT))), 0.05),
        "Inductor bf16": Candidate(lambda lab: Ready(inductor_decode(lab.module("bf16"), lab.ids(CONTEXT))), 0.05),
        "llama.cpp": Candidate(lambda lab: Ready(llama_decode(lab.path, lab.ids(CONTEXT), lab.threads)), 0.1),
        "IRX f32": Candidate(lambda lab: ours(lab, "f32"), 1e-4),
        "IRX bf16": Candidate(lambda lab: ours(lab, "bf16"), 0.05),
        "IRX 8-bit": Candidate(lambda lab: ours(lab, "f32", EIGHT_BITS), 0.1),
        "IRX file": Candidate(lambda lab: ours(lab, "file"), 1e-3),
    },
    rows=(
        Row("decode, float32, against eager", "IRX f32", ("eager f32",), 1.5),
        Row("decode, float32, against Inductor", "IRX f32", ("Inductor f32",), 1.35),
        Row("decode, bf16 model, against eager bf16", "IRX bf16", ("eager bf16",), 4.2),
        Row("decode, bf16 model, against Inductor bf16", "IRX bf16", ("Inductor bf16",), 3.6),
        Row("decode, 8-bit weights, against eager float32", "IRX 8-bit", ("eager f32",), 9, EIGHT_BITS),
        Row("decode, the file's own 4-bit weights, against eager float32", "IRX file", ("eager f32",), 12),
        Row("decode, the file's own 4-bit weights, against llama.cpp", "IRX file", ("llama.cpp",), 2.6),
    ),
)

"""SmolLM2 in float32, saved, loaded by another process: the same tokens, and nothing of the compiler in sight."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import irx
from irx.frontends.gguf.reader import GgufFile
from irx.frontends.gguf.tokenizer import build_tokenizer
from tests.end_to_end import smollm2

pytest.importorskip("gguf", reason="the hf extra is not installed")
pytest.importorskip("transformers", reason="the hf extra is not installed")

LOADED = """
import json, sys
import torch, irx
compiled = irx.load(sys.argv[1])
ids = torch.tensor(json.loads(sys.argv[2]))
mask = torch.tensor(json.loads(sys.argv[3]))
print(json.dumps({
    "tokens": compiled.generate(ids, max_new_tokens=6, attention_mask=mask).tolist(),
    "tokenizer": compiled.tokenizer is not None,
    "loaded": [m for m in ("transformers", "gguf", "networkx", "torch._dynamo", "torch._inductor") if m in sys.modules],
}))
"""


def test_another_process_generates_the_same_tokens(tmp_path: Path) -> None:
    compiled = irx.compile(smollm2.reference(), target="torch", strict=True)
    tokenizer = build_tokenizer(GgufFile.open(smollm2.path())).tokenizer
    rows = [tokenizer.encode(prompt).ids for prompt in smollm2.PROMPTS[:2]]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    expected = [smollm2.reference().generate(torch.tensor([row]), max_new_tokens=6, do_sample=False) for row in rows]
    compiled.save(tmp_path / "model.irx")
    words = [sys.executable, "-c", LOADED, str(tmp_path / "model.irx"), json.dumps(ids.tolist()), str(mask.tolist())]
    run = subprocess.run(words, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["loaded"] == []
    for row, tokens, wanted in zip(rows, found["tokens"], expected, strict=True):
        assert tokens[width:] == wanted[0, len(row) :].tolist()

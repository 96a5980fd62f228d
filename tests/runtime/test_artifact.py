"""Artifacts: the same model in another process, damage of every kind, and a death while saving."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import irx
from irx.errors import ArtifactVersionMismatch, DamagedArtifact, MissingFeature, ModelNotFound
from irx.runtime import artifact as artifacts
from tests.runtime.conftest import close

FILES = ["manifest.json", "program.irx", "ledger.json", "weights.safetensors", "kernels/decode/graph.irx"]


@pytest.fixture
def saved(fast: irx.Executable, tmp_path: Path) -> Path:
    place = tmp_path / "model.irx"
    fast.save(place)
    return place


def run(code: str, *args: object) -> str:
    """What a new process prints."""
    found = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, check=False, timeout=300
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


LOADED = """
import sys, json
import torch, irx
compiled = irx.load(sys.argv[1])
ids = torch.tensor(json.loads(sys.argv[2]))
result = compiled(ids)
print(json.dumps({
    "tokens": compiled.generate(ids, max_new_tokens=8).tolist(),
    "logits": result.logits.tolist(),
    "kind": type(result).__name__,
    "fields": list(result.keys()),
    "first": result[0] is result["logits"],
    "ledger": len(compiled.ledger().rows),
    "pipeline": compiled.pipeline,
    "program": compiled.program,
    "loaded": [m for m in ("transformers", "tvm", "triton", "gguf", "networkx", "torch._dynamo") if m in sys.modules],
}))
"""


def test_a_new_process_computes_the_same(fast: irx.Executable, saved: Path, ids: torch.Tensor) -> None:
    found = json.loads(run(LOADED, saved, ids.tolist()))
    assert found["tokens"] == fast.generate(ids, max_new_tokens=8).tolist()
    assert close(torch.tensor(found["logits"]), fast(ids).logits)
    assert (found["kind"], found["fields"], found["first"]) == ("Output", ["logits"], True)
    assert found["ledger"] == len(fast.ledger().rows)
    assert found["pipeline"] == fast.pipeline
    assert found["program"] == fast.program
    assert found["loaded"] == [], "loading needs no frontend, no compiler and no tracing"


def test_a_loaded_artifact_can_be_saved_again(saved: Path, tmp_path: Path, ids: torch.Tensor) -> None:
    first = irx.load(saved)
    first.save(tmp_path / "again.irx")
    first.save(saved)  # over the very files it reads
    for place in (saved, tmp_path / "again.irx"):
        assert torch.equal(irx.load(place)(ids).logits, first(ids).logits)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["again.irx", "model.irx"], "nothing is left behind"


def test_packed_and_derived_weights_are_stored(tmp_path: Path) -> None:
    text = """
    weight $w : q8_0[4, 32]
    weight $b : f32[4]
    weight $b.1 : f32[4] = irx.add($b, 1.0)
    graph @forward(%x: f32[B, 32]) -> (y: f32[B, 4]) {
      %f = irx.dequantize($w)
      %y = irx.linear(%x, %f, $b.1)
      return %y
    }
    """
    program = irx.parse(text)
    raw = np.random.default_rng(0).integers(0, 60, (4, 34)).astype(np.uint8)
    program.weights.bind("w", lambda: raw)
    program.weights.bind("b", lambda: np.arange(4, dtype=np.float32))
    compiled = irx.compile(program, target="torch", pipeline="dead-nodes")
    compiled.save(tmp_path / "packed.irx")
    x = torch.randn(3, 32)
    assert torch.equal(irx.load(tmp_path / "packed.irx")(x), compiled(x))
    found = artifacts.load(tmp_path / "packed.irx")
    found.verify()
    assert {name: (t.dtype, tuple(t.shape)) for name, t in found.weights.items()} == {
        "w": (torch.uint8, (4, 34)),
        "b.1": (torch.float32, (4,)),
    }


def test_bfloat16_survives(tmp_path: Path) -> None:
    torch.manual_seed(0)
    block, x = torch.nn.Linear(8, 8).to(torch.bfloat16), torch.randn(2, 8, dtype=torch.bfloat16)
    compiled = irx.compile(block, x, target="torch")
    compiled.save(tmp_path / "model.irx")
    result = irx.load(tmp_path / "model.irx")(x)
    assert result.dtype == torch.bfloat16
    assert torch.equal(result, compiled(x))


# --- damage ---------------------------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    """Another byte in the last quarter, the size unchanged."""
    content = bytearray(path.read_bytes())
    place = len(content) * 7 // 8
    content[place] ^= 0x15
    path.write_bytes(content)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink], ids=["truncated", "altered", "missing"])
def test_damaged_files_are_errors(saved: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(saved / name)
    with pytest.raises(DamagedArtifact, match=name):
        irx.load(saved)


def edit(saved: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((saved / "manifest.json").read_text())
    change(manifest)
    if "facts" in manifest:
        manifest["sha256"] = artifacts.signature(manifest["facts"], manifest["files"])
    (saved / "manifest.json").write_text(json.dumps(manifest))


def test_another_format_is_its_own_error(saved: Path) -> None:
    edit(saved, lambda manifest: manifest.update(format=99))
    with pytest.raises(ArtifactVersionMismatch, match="format 99"):
        irx.load(saved)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("facts"),
        lambda m: m["facts"].pop("meta"),
        lambda m: m["facts"].update(sizes=3),
        lambda m: m["facts"]["backends"].update(absent="torch"),
        lambda m: m["facts"]["backends"].pop("forward"),
        lambda m: m["files"].pop("weights.safetensors"),
        lambda m: m["files"].update({"../outside": {"bytes": 1, "sha256": ""}}),
        lambda m: m.update(files=[]),
    ],
)
def test_manifests_that_contradict_themselves(saved: Path, change: Callable[[dict[str, Any]], None]) -> None:
    edit(saved, change)
    with pytest.raises(DamagedArtifact):
        irx.load(saved)


def test_a_manifest_that_was_edited_by_hand(saved: Path) -> None:
    text = (saved / "manifest.json").read_text()
    (saved / "manifest.json").write_text(text.replace('"high": 4', '"high": 5'))
    with pytest.raises(DamagedArtifact, match="the manifest was altered"):
        irx.load(saved)


def test_a_manifest_of_another_device(saved: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has the device that the test takes away")
    edit(saved, lambda manifest: manifest["facts"].update(target="torch:a100", device="cuda"))
    with pytest.raises(MissingFeature, match="compiled for torch:a100"):
        irx.load(saved)


def test_places_without_an_artifact(tmp_path: Path, fast: irx.Executable) -> None:
    with pytest.raises(ModelNotFound, match="there is no artifact at"):
        irx.load(tmp_path / "nothing")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").write_text("mine")
    with pytest.raises(DamagedArtifact, match="the manifest is missing"):
        irx.load(tmp_path / "folder")
    with pytest.raises(FileExistsError):
        fast.save(tmp_path / "folder")
    assert (tmp_path / "folder" / "mine.txt").read_text() == "mine"


# --- a death while saving -------------------------------------------------------------------------------------------

SAVING = """
import os, signal, sys
import numpy as np
from irx.runtime import artifact
from irx.runtime.weight_file import StoredArray
place, name, moment = sys.argv[1], sys.argv[2], int(sys.argv[3])
count = 0
def dying(function):
    def call(*args, **kwargs):
        global count
        count += 1
        if count == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call
# Everything that changes the disk goes through one of these.
for owner, function in (
    (artifact, "write_weights"), (artifact, "_write_texts"), (artifact, "_write_manifest"), (artifact, "_flush"),
    (artifact.Path, "rename"), (artifact.shutil, "rmtree"),
):
    setattr(owner, function, dying(getattr(owner, function)))
weights = [StoredArray("w", (1000,), "f32", lambda: np.full(1000, len(name), np.float32))]
artifact.save(place, facts={"name": name}, program=name, ledger="", tokenizer=None, kernels={}, weights=weights)
"""


def killed(place: Path, name: str, moment: int) -> bool:
    """Save in a process that dies at its `moment`-th step; False when it finished before."""
    command = [sys.executable, "-c", SAVING, str(place), name, str(moment)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode in (0, -signal.SIGKILL), found.stderr
    return found.returncode != 0


def test_a_death_at_any_moment_loses_neither_the_old_nor_the_new(tmp_path: Path) -> None:
    """Over and over, dying one step later each time; what is there must always be one of the two, whole."""
    place, moments, seen = tmp_path / "model.irx", 0, []
    assert not killed(place, "old", 0)
    while killed(place, "newer", moments + 1):
        moments += 1
        found = artifacts.load(place)
        found.verify()
        assert float(found.weights["w"][-1]) == len(found.facts["name"])
        assert found.program == found.facts["name"]
        seen.append(found.program)
    assert moments >= 8, "the steps were not reached"
    assert set(seen) == {"old", "newer"}
    assert seen == sorted(seen, reverse=True), "once the new one is in place it stays"
    assert artifacts.load(place).program == "newer"
    assert [path.name for path in tmp_path.iterdir()] == ["model.irx"], "what dead processes left was removed"

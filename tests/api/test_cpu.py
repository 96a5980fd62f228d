"""A language model on the CPU from end to end: any batch and length, threads, tensors, processes, and artifacts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch

import irx
from irx.analysis.random_weights import bind_random_weights
from irx.backends.tvm import codegen
from irx.backends.tvm.backend import BACKEND, CHOICES, GRAPH
from irx.backends.tvm.codegen import missing
from irx.errors import DamagedArtifact, InputMismatch, MissingExtra, PromptTooLong
from irx.runtime import artifact as artifacts
from irx.runtime.decoder import Decoder
from irx.target import host_cpu
from tests.api.cpu_model import program

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
NEW = 12


@pytest.fixture(scope="module")
def fast() -> irx.Executable:
    return irx.compile(program(), target="tvm:cpu", strict=True)


@pytest.fixture(scope="module")
def other() -> irx.Executable:
    """Another model of the same structure."""
    return irx.compile(program(seed=1), target="tvm:cpu", strict=True)


@pytest.fixture(scope="module")
def slow() -> irx.Executable:
    return irx.compile(program(), target="torch", strict=True)


def prompt(batch: int, length: int) -> torch.Tensor:
    return torch.randint(0, 64, (batch, length), generator=torch.Generator().manual_seed(batch * 100 + length))


def tokens(one: irx.Executable, ids: torch.Tensor, **more: Any) -> list[list[int]]:
    found: list[list[int]] = one.generate(ids, max_new_tokens=NEW, **more).tolist()
    return found


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return found.shape == expected.shape and float((found - expected).abs().max() / expected.abs().max()) < 1e-5


# --- what it is made of ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["cpu", "host"])
def test_the_cpu_means_kernels(target: str) -> None:
    if target == "host" and torch.cuda.is_available():
        pytest.skip("this machine's host is a GPU")
    compiled = irx.compile(program(), target=target)
    assert compiled.ledger().summary.backend == "tvm"


def test_the_ledger_tells_kernels_memory_and_that_nothing_is_left(fast: irx.Executable) -> None:
    ledger = fast.ledger()
    assert ledger.summary.fallbacks == {}
    for name in ("choose-kernels", "partition", "plan-memory"):
        graphs = {graph for row in ledger.rows if row.name == name for graph in row.graphs}
        assert graphs == {"forward", "prefill", "decode", "decode_top"}, name
    partitions = [row.what for row in ledger.rows if row.name == "partition"]
    assert all(what.endswith("regions to kernels, 0 to torch") for what in partitions)


def test_why_a_small_models_gains_are_absent_is_told(fast: irx.Executable) -> None:
    (note,) = (note for note in fast.ledger().notes if "gain" in note)
    assert "less than 8 MiB of weights" in note
    assert all(row.latency is None for row in fast.ledger().rows)


# --- batches, lengths, padding --------------------------------------------------------------------------------------


def test_any_batch_and_length_without_more_code(
    fast: irx.Executable, slow: irx.Executable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codegen, "_compiled", None)
    for batch in (1, 2, 3, 8, 9, 16):
        for length in (1, 2, 7, 33):
            ids = prompt(batch, length)
            assert close(fast(ids), slow(ids)), (batch, length)
            assert tokens(fast, ids) == tokens(slow, ids), (batch, length)


def test_up_to_the_capacity(fast: irx.Executable, slow: irx.Executable) -> None:
    session, reference = fast.session(2), slow.session(2)
    ids = prompt(2, 96)
    for part in ids.split([1, 30, *[1] * 40, 25], dim=1):
        assert close(session.append(part), reference.append(part))
    assert session.length == 96


def test_steps_of_two_sessions_in_turns(fast: irx.Executable, slow: irx.Executable) -> None:
    pairs = [(fast.session(batch), slow.session(batch), prompt(batch, 96)) for batch in (2, 3, 2)]
    for start in range(0, 80, 4):  # past the first 64 slots
        for session, reference, ids in pairs:
            for column in range(start, start + 4):
                step = ids[:, column : column + 1]
                assert close(session.append(step), reference.append(step)), (session.batch, column)


def test_steps_are_made_again_until_something_else_happens(fast: irx.Executable, slow: irx.Executable) -> None:
    session, reference, ids = fast.session(2), slow.session(2), prompt(2, 96)

    def steps(*columns: int) -> None:
        for column in columns:
            step = ids[:, column : column + 1]
            assert close(session.append(step), reference.append(step)), column

    steps(*range(5))
    assert session.lengths == (5, 5)
    with threads(1):
        steps(5, 6, 7)
    for one in (session, reference):
        one.truncate([4, 6])
    steps(8, 9, 10)
    branch, other = session.fork(), reference.fork()
    steps(11, 12)
    assert close(branch.append(ids[:, 20:21]), other.append(ids[:, 20:21])), "a fork goes on where it began"
    assert close(session.append(ids[:, 30:33]), reference.append(ids[:, 30:33]))
    steps(13, 14, 15)
    for wrong in (ids[:1, :1], ids[:, :1].float()):
        with pytest.raises(InputMismatch):
            session.append(wrong)
    assert session.lengths == reference.lengths
    steps(16)
    while session.length < 96:
        steps(session.length)
    with pytest.raises(PromptTooLong):
        session.append(ids[:, :1])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batches(side: str, fast: irx.Executable, slow: irx.Executable) -> None:
    ids, mask = prompt(4, 9), torch.zeros(4, 9, dtype=torch.int64)
    for row, length in enumerate((9, 4, 1, 7)):
        mask[row, slice(9 - length, 9) if side == "left" else slice(0, length)] = 1
    assert tokens(fast, ids, attention_mask=mask) == tokens(slow, ids, attention_mask=mask)
    session, reference = fast.session(4), slow.session(4)
    assert close(session.append(ids, mask), reference.append(ids, mask))
    assert close(session.append(ids[:, :2]), reference.append(ids[:, :2])), "and a chunk behind rows of many lengths"


def test_sessions_fork_and_go_back(fast: irx.Executable, slow: irx.Executable) -> None:
    made = []
    for one in (fast, slow):
        session = one.session(2)
        session.append(prompt(2, 20))
        branch = session.fork()
        made.append([session.append(prompt(2, 5)), branch.append(prompt(2, 3)), session.append(prompt(2, 1))])
        session.truncate(7)
        made[-1] += [session.append(prompt(2, 4)), branch.append(prompt(2, 1))]
    assert all(close(a, b) for a, b in zip(*made, strict=True))


# --- tensors and threads --------------------------------------------------------------------------------------------


def test_ids_that_lie_anywhere(fast: irx.Executable, slow: irx.Executable) -> None:
    ids = prompt(1, 40)
    for lying in (ids[:, 1:17], ids[:, ::3], ids.reshape(8, 5).T, ids.int()[:, 1:2], ids.expand(3, 40)):
        assert close(fast(lying), slow(lying.contiguous()))
        assert tokens(fast, lying) == tokens(slow, lying.contiguous())


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_threads_follow_torch_and_change_nothing(fast: irx.Executable) -> None:
    ids, made = prompt(3, 21), []
    for count in (1, 2, 4, 1):
        with threads(count):
            made.append((fast(ids), tokens(fast, ids)))
    assert all(torch.equal(logits, made[0][0]) and found == made[0][1] for logits, found in made)


def test_two_models_take_turns(fast: irx.Executable, other: irx.Executable) -> None:
    ids = prompt(2, 9)
    expected = [tokens(fast, ids), tokens(other, ids)]
    assert expected[0] != expected[1]
    sessions, last = [fast.session(2), other.session(2)], [ids, ids]
    found = [ids.tolist(), ids.tolist()]
    for _ in range(NEW):
        for i, session in enumerate(sessions):
            last[i] = session.append(last[i])[:, -1:].argmax(-1)
            found[i] = [row + new for row, new in zip(found[i], last[i].tolist(), strict=True)]
    assert found == expected


def test_two_models_in_two_threads(fast: irx.Executable, other: irx.Executable) -> None:
    work = [(one, prompt(batch, length)) for one in (fast, other) for batch, length in ((1, 5), (2, 30), (3, 1))] * 3
    expected = [tokens(one, ids) for one, ids in work]
    with threads(2), ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda pair: tokens(*pair), work)) == expected


def test_a_step_of_another_session_before_one_is_remembered(
    fast: irx.Executable, slow: irx.Executable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session makes its own last call again, whatever other threads do between the call and its being kept."""
    ours, theirs, reference = fast.session(2), fast.session(2), slow.session(2)
    ids, run, other = prompt(2, 8), Decoder.run, list[Thread]()

    def followed(decoder: Decoder, *given: Any) -> Any:
        results = run(decoder, *given)
        if not other and decoder is ours._decoder:
            other.append(Thread(target=theirs.append, args=(ids[:, 7:],)))
            other[0].start()
            other[0].join(0.5)
        return results

    monkeypatch.setattr(Decoder, "run", followed)
    for column in range(7):
        step = ids[:, column : column + 1]
        assert close(ours.append(step), reference.append(step)), column
    other[0].join()
    assert theirs.length == 1


# --- processors that have less --------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["tvm:cpu-avx2", "tvm:cpu-generic"])
def test_processors_that_have_less(target: str, slow: irx.Executable) -> None:
    compiled = irx.compile(program(), target=target, strict=True)
    assert compiled.ledger().summary.fallbacks == {}
    for ids in (prompt(1, 1), prompt(2, 33)):
        assert close(compiled(ids), slow(ids))
        assert tokens(compiled, ids) == tokens(slow, ids)


# --- weights --------------------------------------------------------------------------------------------------------

PACKED = """
weight $w : {form}[256, 512]
graph @many(%x: f32[B, 512]) -> (y: f32[B, 256]) {{
  %f = irx.dequantize($w)
  %y = irx.linear(%x, %f)
  return %y
}}
graph @one(%x: f32[1, 512]) -> (y: f32[1, 256]) {{
  %f = irx.dequantize($w)
  %y = irx.linear(%x, %f)
  return %y
}}
"""


@pytest.mark.parametrize(("form", "row"), [("q8_0", 34), ("q4_0", 18), ("q4_1", 20)])
def test_one_packed_copy_serves_all_graphs_and_unpacks_exactly(form: str, row: int, tmp_path: Path) -> None:
    raw = np.random.default_rng(0).integers(0, 60, (256, 512 // 32 * row), dtype=np.uint8)
    made = irx.parse(PACKED.format(form=form))
    made.weights.bind("w", lambda: raw)
    compiled, reference = (irx.compile(made, target=target) for target in ("tvm:cpu", "torch"))
    assert compiled.ledger().summary.fallbacks == {}
    for rows in (1, 3, 50):
        x = torch.randn(rows, 512)
        found, expected = compiled.graphs["many"](x)[0], reference.graphs["many"](x)[0]
        assert float((found - expected).abs().max() / expected.abs().max()) < 1e-4
    assert torch.equal(compiled.graphs["one"](x[:1])[0], compiled.graphs["many"](x[:1])[0])
    assert compiled.memory().weights <= 1.05 * raw.nbytes
    compiled.save(tmp_path / "model.irx")
    assert np.array_equal(artifacts.load(tmp_path / "model.irx").weights["w"].numpy(), raw)


def test_plain_weights_are_kept_once(fast: irx.Executable, tmp_path: Path) -> None:
    weights = program().weights
    given = {entry.weight.name: weights.array(entry.weight) for entry in weights}
    assert fast.memory().weights <= 1.1 * sum(array.nbytes for array in given.values()) + 64 * len(given)
    fast.save(tmp_path / "model.irx")
    saved = artifacts.load(tmp_path / "model.irx").weights
    for name in set(saved) & set(given):
        assert np.array_equal(saved[name].numpy(), given[name]), name


# --- compiling again, artifacts, other processes --------------------------------------------------------------------


def no_compilation(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("a compiler was started")


def test_a_second_compilation_generates_no_code(fast: irx.Executable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codegen, "_memory", {})  # as in a new process
    monkeypatch.setattr(codegen, "compile_all", no_compilation)
    again = irx.compile(program(), target="tvm:cpu", strict=True)
    assert tokens(again, prompt(2, 5)) == tokens(fast, prompt(2, 5))


FEW = """
weight $norm : f32[32]
weight $up : f32[48, 32]
graph @forward(%x: f32[B, 32]) -> (y: f32[B, 48]) {
  %n = irx.rms_norm(%x, $norm) {eps=1e-05}
  %u = irx.linear(%n, $up)
  %y = irx.silu(%u)
  return %y
}
"""
COMPILE = """
import json
from tests.api.test_cpu import few_kernels
print(json.dumps(few_kernels()))
"""
LOAD = """
import json, sys
sys.modules["tvm"] = None
import irx
from tests.api.test_cpu import prompt, tokens
print(json.dumps(tokens(irx.load(sys.argv[1]), prompt(2, 5))))
"""


def start(code: str, *words: object, cache: Path) -> subprocess.Popen[str]:
    """A process with nothing in its PATH."""
    env = {**os.environ, "PATH": "", "IRX_CACHE_DIR": str(cache), "PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result(process: subprocess.Popen[str]) -> Any:
    printed, failed = process.communicate(timeout=500)
    assert process.returncode == 0, failed
    return json.loads(printed)


def few_kernels() -> list[list[float]]:
    """What a program of one region computes, compiled by this process."""
    made = irx.parse(FEW)
    bind_random_weights(made.weights, seed=0)
    compiled = irx.compile(made, target="cpu", strict=True)
    assert compiled.ledger().summary.fallbacks == {}
    found: list[list[float]] = compiled.graphs["forward"](torch.linspace(-1, 1, 64).view(2, 32))[0].tolist()
    return found


def test_two_processes_compile_at_once_without_any_tool(tmp_path: Path) -> None:
    processes = [start(COMPILE, cache=tmp_path / "cache") for _ in range(2)]
    assert [result(process) for process in processes] == [few_kernels()] * 2


def test_an_artifact_runs_without_tvm(fast: irx.Executable, tmp_path: Path) -> None:
    fast.save(tmp_path / "model.irx")
    found = result(start(LOAD, tmp_path / "model.irx", cache=tmp_path / "empty"))
    assert found == tokens(fast, prompt(2, 5))


@pytest.mark.parametrize("damage", ["missing", "shorter", "altered"])
def test_kernels_of_an_artifact_that_are_damaged(damage: str, fast: irx.Executable, tmp_path: Path) -> None:
    fast.save(tmp_path / "model.irx")
    file = min((tmp_path / "model.irx" / "kernels" / "decode").glob("*.o"))
    data = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(data[:-10] if damage == "shorter" else data[:100] + b"?" + data[101:])
    with pytest.raises(DamagedArtifact) as caught:
        irx.load(tmp_path / "model.irx")
    assert file.name in str(caught.value)


def test_kernels_that_an_artifact_never_had_need_the_compiler(
    fast: irx.Executable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = {name: fast._compiled.blobs["decode"][name] for name in (GRAPH, CHOICES)}
    monkeypatch.setenv("IRX_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(codegen, "_memory", {})
    monkeypatch.setattr(codegen, "missing", lambda: "tvm not installed")
    with pytest.raises(MissingExtra, match="apache-tvm"):
        BACKEND.load(blobs, host_cpu())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [8, 4])
def test_kernels_of_packed_weights_pass_their_check_in_every_dtype(dtype: torch.dtype, bits: int) -> None:
    """Behind what makes small differences of large sums visible as well: tanh."""
    model = torch.nn.Sequential(torch.nn.Linear(512, 96), torch.nn.Tanh(), torch.nn.Linear(96, 512)).to(dtype).eval()
    x = torch.randn(3, 512, dtype=dtype)
    fast = irx.compile(model, x, target="tvm:cpu", pipeline=f"default | quantize-weights{{bits={bits}, skip=none}}")
    assert fast.ledger().summary.fallbacks == {}
    assert fast(x).dtype == dtype

"""The kernels that measure do the work that they are credited with. Their rates are not looked at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from irx.cache import Store
from irx.target import Device, Measurement, host_cpu, measured

pytest.importorskip("tvm")
pytest.importorskip("llvmlite")

from irx.backends.tvm import probe

PORTABLE = replace(host_cpu(), features=host_cpu().features & {"avx", "avx2", "fma", "f16c"})


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("size", [0, 512, 513, 77 * 512, 1 << 20])
def test_a_ring_is_read_to_its_end_by_all_threads(threads: int, size: int) -> None:
    ring = probe.Ring(size, threads)
    assert max(size, threads * 512) - 512 < ring.bytes <= max(size, threads * 512)
    words = ring._memory.view(np.uint32)
    words[:] = np.random.default_rng(0).integers(0, 2**32, words.size, np.uint32)
    ring()
    assert ring.total() == int(words.sum(dtype=np.uint64)) % 2**32
    words[-1] ^= 1
    before = ring.total()
    ring()
    assert ring.total() != before


@pytest.mark.parametrize("device", [host_cpu(), PORTABLE], ids=["host", "portable"])
@pytest.mark.parametrize("threads", [1, 2])
def test_every_step_multiplies_and_adds(device: Device, threads: int) -> None:
    steps = 100
    expected = {"f32": 2.0, "bf16": 2 * steps, "i8": 4 * steps}
    chosen = probe.multiplies(device)
    assert chosen[0] is probe.FLOAT
    for multiply in chosen:
        table, sums = probe.multiply_table(multiply, device, threads, steps)
        table.run(threads)
        assert sums.size >= threads * 5 * 16
        np.testing.assert_array_equal(sums, expected[multiply.dtype])


def test_only_what_the_processor_has_is_driven() -> None:
    full = {"avx512f", "avx512_vnni", "avx512_bf16"}
    assert [m.dtype for m in probe.multiplies(PORTABLE)] == ["f32"]
    assert [m.dtype for m in probe.multiplies(replace(PORTABLE, features=frozenset(full)))] == ["f32", "bf16", "i8"]
    tiles = frozenset({*full, "amx_bf16", "amx_int8"})
    assert [m.dtype for m in probe.multiplies(replace(PORTABLE, features=tiles))] == ["f32"]


def test_the_machine_is_measured_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "BUDGET", 0.0)
    monkeypatch.setattr(probe, "STEPS", 1000)
    monkeypatch.setattr("irx.target.measurement.RING_BYTES", 1 << 20)
    monkeypatch.setattr(probe, "SHARE", 0.0)
    found = probe.measure(Store(tmp_path), threads=1)
    assert isinstance(found, Measurement)
    assert set(found.peak_tflops) == {m.dtype for m in probe.multiplies(host_cpu())}
    assert measured(host_cpu(), Store(tmp_path)).bandwidth_gb_s == found.bandwidth_gb_s
    assert probe.measure(Store(tmp_path), threads=1) == found


def test_a_busy_machine_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    watch = probe.Watch(2)
    assert watch.undisturbed()
    monkeypatch.setattr(probe, "BUDGET", 0.0)
    monkeypatch.setattr("irx.target.measurement.RING_BYTES", 1 << 20)
    monkeypatch.setattr(probe, "SHARE", 1e9)
    probe.measure(Store(tmp_path), threads=1)
    assert "busy" in caplog.text
    assert measured(host_cpu(), Store(tmp_path)) == host_cpu()

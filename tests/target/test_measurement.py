"""Measured rates: taken once, kept, and put in the place of nominal ones. The kernels are numbers here."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest

from irx.cache import Store
from irx.target import find_device, host_cpu, is_measured, measure_host, measured
from irx.target.measurement import PART, RING_BYTES, _key


class Machine:
    """Says how fast it is, and counts how often it was asked."""

    def __init__(self, bandwidth: float = 40e9, peak: float = 2e11) -> None:
        self.bandwidth, self.peak, self.asked = bandwidth, peak, 0

    def read(self, size: int) -> float:
        assert size == RING_BYTES
        self.asked += 1
        return self.bandwidth

    def compute(self) -> float:
        return self.peak


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def measure(machine: Machine, store: Store, again: bool = False) -> float:
    return measure_host(machine.read, {"f32": machine.compute}, store=store, again=again).bandwidth_gb_s


def test_before_measuring_the_figures_are_nominal(store: Store) -> None:
    assert measured(host_cpu(), store) == host_cpu()
    assert not is_measured(host_cpu())


def test_measured_rates_replace_nominal_ones(store: Store) -> None:
    measure(Machine(), store)
    device = measured(host_cpu(), store)
    assert device.bandwidth == 40e9
    assert device.peak("f32") == pytest.approx(2e11)
    assert is_measured(device)
    assert "measured on 20" in device.sources[0]
    assert device.sources[1:] == host_cpu().sources
    assert (device.cores, device.features) == (host_cpu().cores, host_cpu().features)


def test_a_peak_that_was_not_measured_stays_nominal(store: Store) -> None:
    measure(Machine(), store)
    others = set(host_cpu().peak_tflops) - {"f32"}
    device = measured(host_cpu(), store)
    assert {dtype: device.peak_tflops[dtype] for dtype in others} == {d: host_cpu().peak_tflops[d] for d in others}


def test_one_measurement_serves_until_another_is_asked_for(store: Store) -> None:
    machine = Machine()
    assert measure(machine, store) == measure(machine, Store(store.folder)) == 40
    assert machine.asked == 1
    machine.bandwidth = 50e9
    assert measure(machine, store, again=True) == 50
    assert measured(host_cpu(), store).bandwidth_gb_s == 50


def test_figures_that_are_not_good_enough_are_not_kept(store: Store) -> None:
    machine = Machine()
    found = measure_host(machine.read, {}, keep=lambda: False, store=store)
    assert found.bandwidth_gb_s == 40
    assert measured(host_cpu(), store) == host_cpu()


def test_other_devices_are_left_as_they_are(store: Store) -> None:
    measure(Machine(), store)
    assert measured(find_device("a100"), store) is find_device("a100")
    assert measured(find_device("cpu-avx512"), store) is find_device("cpu-avx512")


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_an_impossible_rate_is_refused_and_not_kept(store: Store, rate: float) -> None:
    with pytest.raises(ValueError, match="bandwidth"):
        measure(Machine(bandwidth=rate), store)
    with pytest.raises(ValueError, match="f32"):
        measure(Machine(peak=rate), store)
    assert measured(host_cpu(), store) == host_cpu()


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"bandwidth_gb_s": "x", "peak_tflops": {}, "when": ""}'])
def test_what_cannot_be_read_is_measured_again(store: Store, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    store.save(_key(host_cpu()), {PART: content})
    with caplog.at_level(logging.WARNING):
        assert measured(host_cpu(), store) == host_cpu()
    assert "cannot be used" in caplog.text
    assert measure(Machine(), store) == 40
    assert is_measured(measured(host_cpu(), store))

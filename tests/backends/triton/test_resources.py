"""What is read from binaries, against NVIDIA's own tool, and the refusal of what cannot run."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton")

from irx.backends.triton import resources
from irx.backends.triton.hsaco import _usage as hsaco_usage
from irx.backends.triton.resources import disassembler, read_usage, require_fit, resource_rows
from irx.backends.triton.usage import Usage
from irx.errors import DamagedArtifact, KernelTooLarge
from irx.target import find_device
from tests.backends.triton.toy_kernels import compiled


def usage_of(device: str, kind: str) -> Usage:
    binary, metadata = compiled(device, kind)
    warps = metadata.num_warps
    return read_usage(binary, metadata.name, find_device(device), shared=metadata.shared, warps=warps)


def from_tool(device: str, kind: str, folder: Path) -> dict[str, int]:
    tool = disassembler()
    if tool is None or not (tool.parent / "cuobjdump").is_file():
        pytest.skip("cuobjdump is not installed")
    file = folder / "kernel.cubin"
    file.write_bytes(compiled(device, kind)[0])
    told = subprocess.run([tool.parent / "cuobjdump", "-res-usage", file], capture_output=True, text=True, check=True)
    return {name: int(value) for name, value in re.findall(r"(REG|STACK):(\d+)", told.stdout)}


@pytest.mark.parametrize(("device", "kind"), [("a100-80gb", "spilling"), ("a100-80gb", "add"), ("h200", "product")])
def test_registers_and_stack_are_those_of_the_tool(device: str, kind: str, tmp_path: Path) -> None:
    usage = usage_of(device, kind)
    assert {"REG": usage.registers, "STACK": usage.stack} == from_tool(device, kind, tmp_path)
    assert (usage.stack > 0) == (kind == "spilling")


def test_parameters_end_with_two_pointers_of_the_launcher() -> None:
    assert usage_of("h200", "product").parameters == (8, 8, 8, 4, 4, 8, 8)
    assert usage_of("mi300x", "product").parameters == (8, 8, 8, 4, 4, 8, 8)


def test_shared_memory_of_the_driver_is_not_counted() -> None:
    _, metadata = compiled("h200", "product")
    assert usage_of("h200", "product").shared == metadata.shared > 0


def test_spills_are_counted_where_the_tool_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert usage_of("a100-80gb", "product").spills == 0
    if disassembler() is not None:
        assert (usage_of("a100-80gb", "spilling").spills or 0) > 10
    monkeypatch.setattr(resources, "disassembler", lambda: None)
    unknown = usage_of("a100-80gb", "spilling")
    assert unknown.spills is None
    assert "spills not counted" in unknown.describe(find_device("a100"))


@pytest.mark.parametrize(("stack", "spills"), [(0, 2), (64, 15)])
def test_scalars_that_wait_in_vector_registers_are_no_spills(stack: int, spills: int) -> None:
    facts = {".args": [], ".vgpr_count": 170, ".group_segment_fixed_size": 0, ".vgpr_spill_count": 2}
    facts |= {".sgpr_spill_count": 13, ".private_segment_fixed_size": stack}
    assert hsaco_usage(facts, 0, 8).spills == spills


def test_metadata_of_an_amd_binary() -> None:
    usage, spilling = usage_of("mi300x", "product"), usage_of("mi300x", "spilling")
    assert 0 < usage.registers <= 512
    assert (usage.spills, usage.stack) == (0, 0)
    assert spilling.registers > usage.registers
    assert spilling.spills is not None and (spilling.spills > 0) == (spilling.stack > 0)


@pytest.mark.parametrize("device", ["h200", "mi300x"])
@pytest.mark.parametrize("keep", [0, 40, 3000])
def test_a_damaged_binary_is_an_error(device: str, keep: int) -> None:
    binary, metadata = compiled(device, "add")
    with pytest.raises(DamagedArtifact):
        read_usage(binary[:keep], metadata.name, find_device(device), shared=0, warps=4)
    with pytest.raises(DamagedArtifact):
        read_usage(binary, "another", find_device(device), shared=0, warps=4)


def test_a_kernel_that_cannot_run_is_refused() -> None:
    usage = usage_of("h200", "product")
    require_fit(usage, "product", find_device("h200"))
    large = replace(usage, shared=150 * 1024)
    require_fit(large, "product", find_device("a100"))
    with pytest.raises(KernelTooLarge, match=r"product takes 153600 bytes of .*, l4 has at most 101376"):
        require_fit(large, "product", find_device("l4"))


def test_rows_of_the_ledger_say_what_every_kernel_takes() -> None:
    usages = {"product": usage_of("a100-80gb", "product"), "large": usage_of("a100-80gb", "spilling")}
    rows = resource_rows("decode", usages, find_device("a100"))
    assert [row.what.split(":")[0] for row in rows] == ["large", "product"]
    assert {(row.stage, row.graphs) for row in rows} == {("lower", ("decode",))}
    assert re.search(r"\d+ registers, no spills, [\d.]+ KiB shared, 4 warps, \d+% occupancy", rows[1].what)

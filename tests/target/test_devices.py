from pathlib import Path

import pytest

from irx.errors import BadDevice, DeviceNotFound, UnknownTarget
from irx.ir.types import DTYPES
from irx.target import Device, Target, devices, find_device, host_cpu, host_device
from irx.target import device as device_module
from irx.target import gpu as gpu_module
from irx.target import host as host_module
from irx.target.device import FOLDER, read_device
from irx.target.host import describe_cpu

SERVER = """processor : 0
model name\t: A Server CPU
flags\t\t: fpu sse4_1 avx avx2 fma f16c avx512f avx512bw avx512vl avx512_vnni ht
"""


@pytest.mark.parametrize("device", devices().values(), ids=lambda device: device.name)
def test_shipped_devices_are_plausible(device: Device) -> None:
    # Other spellings than the IR's would never be asked for; tf32 is a way to compute f32, not a type of values.
    assert set(device.peak_tflops) <= {*DTYPES, "tf32"}
    assert device.peak("bf16") >= device.peak("f32") > 1e10
    assert 1e10 < device.bandwidth < 1e13
    assert device.memory >= 1e9
    assert (device.shared_memory_kib > 0) == device.is_gpu == (device.gpu is not None)


def test_a_missing_dtype_computes_as_f32() -> None:
    assert find_device("a100").peak("f8e4m3") == 19.5e12
    assert find_device("a100").peak("bf16") == 312e12


def test_aliases_name_the_device() -> None:
    assert find_device("h100") is find_device("h100-sxm")


def change(tmp_path: Path, old: str, new: str) -> Path:
    text = (FOLDER / "a100-80gb.toml").read_text()
    assert old in text
    path = tmp_path / "mine.toml"
    path.write_text(text.replace(old, new, 1))
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("cores = 108\n", "", "lacks cores"),
        ("cores = 108", "cores = 108\nclock = 3", "unknown fields clock"),
        ("cores = 108", 'cores = "many"', "cores = 'many' is of the wrong kind"),
        ('kind = "cuda"', 'kind = "tpu"', "not one of cpu, cuda, hip"),
        ("f32 = 19.5\ntf32", "tf32", "lacks f32"),
        ("cores = 108", "cores =", "not valid TOML"),
        ("\n[gpu]", "\n[chip]", "belongs to a GPU"),
        ('kind = "cuda"', 'kind = "cpu"', "belongs to a GPU"),
        ("max_warps = 64\n", "", "lacks max_warps"),
        ("max_warps = 64", "max_warps = 64.5", "max_warps = 64.5 is of the wrong kind"),
        ("max_warps = 64", "max_warps = 64\nmax_waves = 1", "unknown fields max_waves"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(BadDevice, match=message) as caught:
        read_device(change(tmp_path, old, new))
    assert "mine.toml" in str(caught.value)


def test_every_field_is_required(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('title = "x"')
    with pytest.raises(BadDevice) as caught:
        read_device(path)
    for field in set(Device.__dataclass_fields__) - {"name", "title", "gpu"}:
        assert field in str(caught.value)


def test_a_cpu_is_described_by_what_it_has() -> None:
    cpu = describe_cpu(SERVER, cores=4, memory_gb=16.0)
    assert cpu.title == "A Server CPU"
    assert "avx512_vnni" in cpu.features
    assert "fpu" not in cpu.features
    like = find_device("cpu-avx512")
    assert cpu.peak("f32") == pytest.approx(like.peak("f32") * 4 / like.cores)
    assert cpu.memory == 16e9


def test_a_cpu_is_like_the_device_of_its_width() -> None:
    narrow = SERVER.replace("avx512_vnni", "").replace("avx512f", "")
    assert describe_cpu(narrow, 8, 16.0).peak("f32") == find_device("cpu-avx2").peak("f32")
    wide = SERVER.replace("avx512_vnni", "avx512_vnni avx512_bf16 amx_tile amx_bf16 amx_int8")
    assert describe_cpu(wide, 16, 16.0).peak("bf16") == find_device("cpu-amx").peak("bf16")
    assert describe_cpu("", 4, 16.0).peak("f32") == find_device("cpu-generic").peak("f32")


@pytest.mark.parametrize("allowed", [True, False])
def test_amx_counts_where_the_system_allows_it(
    allowed: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(SERVER.replace("avx512_vnni", "avx512_vnni avx512_bf16 amx_tile amx_bf16 amx_int8"))
    monkeypatch.setattr(host_module, "CPUINFO", cpuinfo)
    monkeypatch.setattr(host_module, "may_use_amx", lambda: allowed)
    found = host_module.host_cpu.__wrapped__()
    assert ("amx_tile" in found.features) == ("amx_bf16" in found.features) == allowed
    assert "avx512_bf16" in found.features
    assert ("does not let this process use it" in caplog.text) != allowed


@pytest.mark.parametrize(
    ("text", "backend", "device"),
    [
        ("a100", None, "a100-80gb"),
        ("h100", None, "h100-sxm"),
        ("cpu", None, "cpu"),
        ("torch:cpu", "torch", "cpu"),
        ("triton:h100", "triton", "h100-sxm"),
        ("tvm:cpu-avx512", "tvm", "cpu-avx512"),
    ],
)
def test_targets_parse_and_print_back(text: str, backend: str | None, device: str) -> None:
    target = Target.parse(text)
    assert (target.backend, target.device.name) == (backend, device)
    assert Target.parse(str(target)) == target


def test_a_backend_alone_runs_on_this_machine() -> None:
    assert Target.parse("torch") == Target(host_device(), "torch")


@pytest.mark.parametrize(
    ("text", "nearest"), [("a1000", "a100"), ("tirton:h100", "triton"), ("triton:h20", "h200"), ("hots", "host")]
)
def test_an_unknown_target_names_the_nearest(text: str, nearest: str) -> None:
    with pytest.raises(UnknownTarget, match=f"did you mean '{nearest}'"):
        Target.parse(text)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine whose NVIDIA driver lists what the test writes; returns the driver's folder."""
    monkeypatch.setattr(gpu_module, "NVIDIA", tmp_path)
    monkeypatch.setattr(gpu_module, "AMD", tmp_path / "amd")
    monkeypatch.setattr(gpu_module, "LIBRARY", "libno-driver.so")
    monkeypatch.delenv("IRX_DEVICE", raising=False)
    caches = (gpu_module.host_gpu, host_module.host_device)
    for function in caches:
        function.cache_clear()
    yield tmp_path
    for function in caches:
        function.cache_clear()


def install_gpu(driver: Path, model: str) -> None:
    (driver / "0000:01:00.0").mkdir()
    (driver / "0000:01:00.0" / "information").write_text(f"Model: \t\t {model}\nIRQ:   \t\t 0\n")


def test_a_known_gpu_is_the_host(machine: Path) -> None:
    install_gpu(machine, "NVIDIA H200")
    assert Target.parse("host").device.name == "h200"
    assert Target.parse("cuda").device.name == "h200"
    assert Target.parse("cpu").device == host_cpu()


@pytest.mark.parametrize("model", [None, "NVIDIA GeForce 256"])
def test_without_a_known_gpu_the_cpu_is_the_host(machine: Path, model: str | None) -> None:
    if model:
        install_gpu(machine, model)
    assert Target.parse("host").device == host_cpu()
    with pytest.raises(DeviceNotFound, match="a100"):
        Target.parse("cuda")


def test_the_environment_names_the_host(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IRX_DEVICE", "l4")
    assert Target.parse("host").device.name == "l4"
    assert device_module.devices()["l4"].cores == 58

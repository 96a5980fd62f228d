"""Opening GGUF files: what is read equals the `gguf` package, and nothing damaged gets past the header."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from irx.errors import DamagedFile, IRXError, ModelNotFound, UnknownArchitecture, UnsupportedFile
from irx.frontends.gguf import reader
from irx.frontends.gguf.architectures import ARCHITECTURES, configure
from irx.frontends.gguf.demo import SMOLLM2, PackagedModel
from irx.frontends.gguf.reader import GgufFile

gguf = pytest.importorskip("gguf", reason="the gguf package writes the files of these tests")
from tests.frontends.gguf.writing import write  # noqa: E402

VALUES = {"count": 7, "scale": 0.5, "name": "τέστ", "flag": True, "list": ["a", "", "b"], "numbers": [1, 2, 3]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    values = np.arange(12 * 64, dtype=np.float32).reshape(12, 64) / 100
    tensors = {"a.weight": values, "b.weight": values[:3], "c.weight": values[0]}
    return write(tmp_path / "small.gguf", "llama", VALUES, tensors, "q4_1")


@pytest.fixture
def smollm2() -> Path:
    try:
        return SMOLLM2.path()
    except ModelNotFound as missing:
        pytest.skip(str(missing))


def assert_equals_gguf_package(path: Path) -> None:
    theirs, ours = gguf.GGUFReader(path), GgufFile.open(path)
    fields = {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert ours.metadata == fields
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        mine = ours.tensors[tensor.name]
        assert mine.shape == tuple(reversed(tensor.shape.tolist()))
        np.testing.assert_array_equal(mine.data, tensor.data, strict=True)
        np.testing.assert_array_equal(mine.values(), gguf.dequantize(tensor.data, tensor.tensor_type), strict=True)


def test_small_file_equals_the_gguf_package(path: Path) -> None:
    assert_equals_gguf_package(path)
    assert GgufFile.open(path).tensors["a.weight"].dtype == "q4_1"


def test_real_file_equals_the_gguf_package(smollm2: Path) -> None:
    assert_equals_gguf_package(smollm2)


def test_real_file_has_the_known_hash() -> None:
    try:
        file = SMOLLM2.open()
    except ModelNotFound as missing:
        pytest.skip(str(missing))
    assert file.sha256 == SMOLLM2.sha256
    assert file.architecture == "llama"


def test_data_is_a_view_and_cannot_be_written(path: Path) -> None:
    data = GgufFile.open(path).tensors["a.weight"].data
    assert data.base is not None
    with pytest.raises(ValueError, match="read-only"):
        data[0] = 0


@pytest.mark.parametrize("storage", ["f16", "bf16"])
def test_plain_storage_keeps_its_dtype(tmp_path: Path, storage: str) -> None:
    values = np.linspace(-2, 2, 8 * 32, dtype=np.float32).reshape(8, 32)
    path = write(
        tmp_path / "x.gguf", "llama", {}, {"a": values.astype(np.float16) if storage == "f16" else values}, storage
    )
    tensor = GgufFile.open(path).tensors["a"]
    assert tensor.dtype == storage
    assert tensor.data.dtype.name == {"f16": "float16", "bf16": "bfloat16"}[storage]
    np.testing.assert_allclose(tensor.values(), values, rtol=1e-2)


def test_every_truncation_is_a_damaged_file(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    cut = tmp_path / "cut.gguf"
    # The last tensor is a vector of 256 bytes, and padding after it may be cut off without loss.
    end = GgufFile.open(path).tensors["c.weight"]
    for length in [*range(0, 700, 3), end.start, end.start + end.nbytes - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(DamagedFile) as caught:
            GgufFile.open(cut)
        assert str(cut) in str(caught.value)


def test_damaged_bytes_never_raise_anything_else(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    header = GgufFile.open(path).tensors["a.weight"].start
    chance = random.Random(5)
    damaged = tmp_path / "damaged.gguf"
    refused = 0
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(header)] = chance.choice([0, 1, 9, 127, 255, chance.randrange(256)])
        damaged.write_bytes(data)
        refused += not _opens(damaged)
    assert refused > 100


def _opens(path: Path) -> bool:
    try:
        for tensor in GgufFile.open(path).tensors.values():
            tensor.values()
    except IRXError as error:
        return error.where is None  # an error that does not say where counts as a file that opened
    return True


def test_an_array_of_absurd_length_is_refused_at_once(path: Path, tmp_path: Path) -> None:
    data = bytearray(path.read_bytes())
    at = data.index(b"llama.numbers") + len(b"llama.numbers") + 8
    data[at : at + 8] = (1 << 60).to_bytes(8, "little")
    huge = tmp_path / "huge.gguf"
    huge.write_bytes(data)
    with pytest.raises(DamagedFile, match=r"llama\.numbers"):
        GgufFile.open(huge)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("start", 8, "not a multiple"),
        ("start", 0, "overlap"),
        ("start", 1 << 40, "ends early"),
        ("type", 23, "iq4_xs"),
        ("type", 99, "99"),
        ("size", 65, "whole blocks"),
        ("size", 0, "no elements"),
    ],
)
def test_a_damaged_table_entry_names_its_tensor(
    path: Path, tmp_path: Path, field: str, value: int, message: str
) -> None:
    data = bytearray(path.read_bytes())
    sizes = data.index(b"b.weight") + len(b"b.weight") + 4  # name, rank, then sizes, type, offset
    at, width = {"size": (sizes, 8), "type": (sizes + 16, 4), "start": (sizes + 20, 8)}[field]
    data[at : at + width] = value.to_bytes(width, "little")
    damaged = tmp_path / "entry.gguf"
    damaged.write_bytes(data)
    with pytest.raises((DamagedFile, UnsupportedFile), match=message) as caught:
        GgufFile.open(damaged)
    assert "b.weight" in str(caught.value)


def test_other_files_are_refused(tmp_path: Path, path: Path) -> None:
    with pytest.raises(ModelNotFound):
        GgufFile.open(tmp_path / "absent.gguf")
    other = tmp_path / "other.gguf"
    for content in (b"", b"PK\x03\x04 something else"):
        other.write_bytes(content)
        with pytest.raises(DamagedFile, match="not a GGUF file"):
            GgufFile.open(other)
    whole = path.read_bytes()
    for version in (1, 4, 3 << 24):
        other.write_bytes(whole[:4] + version.to_bytes(4, "little") + whole[8:])
        with pytest.raises(UnsupportedFile, match=r"version|big-endian"):
            GgufFile.open(other)


def test_a_split_model_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "part.gguf", "llama", {"split.count": 3}, {"a": np.zeros((2, 32), np.float32)})
    with pytest.raises(UnsupportedFile, match="3 files"):
        GgufFile.open(path)


def test_unknown_architecture_lists_the_known_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", "falcon", {}, {"a": np.zeros((2, 32), np.float32)})
    with pytest.raises(UnknownArchitecture) as caught:
        configure(GgufFile.open(path))
    assert all(name in str(caught.value) for name in ARCHITECTURES)


def test_storage_types_are_numbered_as_in_the_gguf_package() -> None:
    for number, name in (reader.DTYPES | reader._UNREAD).items():
        assert gguf.GGMLQuantizationType(number).name.lower() == name


def test_a_packaged_model_that_is_absent_or_altered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = PackagedModel("Nothing", "irx_no_such_package", "x.gguf", "00", "pip install nothing")
    with pytest.raises(ModelNotFound, match="pip install nothing"):
        absent.path()
    package = tmp_path / "irx_altered_package"
    package.mkdir()
    (package / "__init__.py").touch()
    write(package / "x.gguf", "llama", {}, {"a": np.zeros((2, 32), np.float32)})
    monkeypatch.syspath_prepend(tmp_path)
    altered: Any = PackagedModel("Altered", "irx_altered_package", "x.gguf", "00", "pip install altered")
    with pytest.raises(DamagedFile, match="sha256"):
        altered.open()

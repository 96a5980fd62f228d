"""Passes are found by file names, unimported, and by entry points; a name declared twice is an error."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from irx.errors import NameClash, UnknownPass
from irx.pipeline.base import Stage
from irx.pipeline.index import PassIndex, class_name
from tests.pipeline.toys import Look

PASS = """from dataclasses import dataclass
from irx.pipeline.base import Effect, Pass, Stage

@dataclass(frozen=True)
class {kind}(Pass):
    name = {name!r}
    stage = Stage.{stage}
    effect = Effect.EXACT
"""


def write(folder: Path, stage: str, file: str, name: str, declared_stage: str | None = None) -> None:
    path = folder / stage / f"{file}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / "__init__.py").touch()
    path.write_text(PASS.format(kind=class_name(file), name=name, stage=(declared_stage or stage).upper()))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An importable package with two passes and files that are none."""
    name = f"passes_{tmp_path.name}"
    folder = tmp_path / name
    write(folder, "fuse", "fuse_norm", "fuse-norm")
    write(folder, "cache", "kv_quantize", "kv-quantize")
    (folder / "fuse" / "shared.py").write_text("raise RuntimeError('imported')\nclass Helper: ...\n")
    (folder / "fuse" / "removal.py").write_text("raise RuntimeError('imported')\nclass Removal: ...\n")
    (folder / "fuse" / "_hidden.py").write_text("class Hidden: ...\n")
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_files_are_found_without_importing(package: Path) -> None:
    index = PassIndex.scan(package.name, [])
    assert list(index) == ["fuse-norm", "kv-quantize"]
    assert index.places["fuse-norm"].stage is Stage.FUSE
    assert not [name for name in sys.modules if name.startswith(package.name)]


def test_loading_imports_the_class(package: Path) -> None:
    (package / "__init__.py").write_text("")
    kind = PassIndex.scan(package.name, []).load("fuse-norm")
    assert (kind.__name__, kind.name, kind.stage) == ("FuseNorm", "fuse-norm", Stage.FUSE)


def test_unknown_name(package: Path) -> None:
    with pytest.raises(UnknownPass, match="did you mean 'fuse-norm'"):
        PassIndex.scan(package.name, []).load("fuse-nrom")


@pytest.mark.parametrize(("name", "stage"), [("other", "fuse"), ("fuse-norm", "cache")])
def test_a_class_must_be_what_its_place_says(package: Path, name: str, stage: str) -> None:
    (package / "__init__.py").write_text("")
    write(package, "fuse", "fuse_norm", name, stage)
    with pytest.raises(TypeError, match="fuse_norm:FuseNorm"):
        PassIndex.scan(package.name, []).load("fuse-norm")


def test_one_name_in_two_stages_clashes(package: Path) -> None:
    write(package, "lower", "fuse_norm", "fuse-norm")
    with pytest.raises(NameClash, match=r"fuse.fuse_norm:FuseNorm and .*lower.fuse_norm:FuseNorm"):
        PassIndex.scan(package.name, [])


def test_entry_points_add_passes_and_clash(package: Path) -> None:
    entry = EntryPoint("look", "tests.pipeline.toys:Look", "irx.passes")
    index = PassIndex.scan(package.name, [entry])
    assert "look" in index
    assert index.load("look") is Look
    with pytest.raises(NameClash, match=r"tests\.pipeline\.toys:Look"):
        PassIndex.scan(package.name, [EntryPoint("fuse-norm", entry.value, "irx.passes")])


def test_the_passes_of_irx_load() -> None:
    index = PassIndex.scan("irx.passes", [])
    assert "remove-noops" in index
    for name in index:
        assert index.load(name).name == name

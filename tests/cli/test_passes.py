import importlib
import json
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest

import irx.passes
from irx.cli import _pass_files, main
from irx.cli._pass_files import declared_passes, stages
from irx.errors import NameClash
from irx.pipeline.base import Effect, Pass, Report, Stage

SOURCE = '''"""A file with a pass and something beside it."""


class Policy:
    """Not a pass."""

    name = "policy"


@dataclass(frozen=True)
class DropLayers(Pass):
    """Leave out layers.

    At length.
    """

    name = "drop-layers"
    stage = Stage.DEPTH
    effect = Effect.LOSSY
    paper = "arXiv:0000.00000"
    conflicts = ("keep-layers",)
    seen: ClassVar[int] = 0
    keep_ratio: float = 0.5
    mode: str = "even"
    layers: tuple[int, ...] = ()
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "depth").mkdir()
    (tmp_path / "depth" / "__init__.py").write_text("")
    (tmp_path / "depth" / "drop_layers.py").write_text(SOURCE)
    monkeypatch.setattr(irx.passes, "__path__", [str(tmp_path)])
    return tmp_path


def test_a_pass_is_read_from_its_source(folder: Path) -> None:
    assert declared_passes() == [
        {
            "name": "drop-layers",
            "stage": "depth",
            "effect": "lossy",
            "options": ["keep-ratio=0.5", "mode=even", "layers=()"],
            "doc": "Leave out layers.",
            "paper": "arXiv:0000.00000",
            "measure": "",
            "conflicts": ["keep-layers"],
            "requires": [],
            "place": "passes/depth/drop_layers.py",
        }
    ]


def test_two_passes_of_one_name_clash(folder: Path) -> None:
    (folder / "depth" / "again.py").write_text(SOURCE)
    with pytest.raises(NameClash, match=r"passes/depth/again\.py and passes/depth/drop_layers\.py"):
        declared_passes()


class Installed(Pass):
    """A pass of another package."""

    name = "installed"
    stage = Stage.NORMALIZE
    effect = Effect.EXACT

    def run(self, program: object, ctx: object) -> Report:
        return Report()


def test_passes_of_other_packages_come_by_entry_point(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = SimpleNamespace(load=lambda: Installed, value="other.passes:Installed")
    monkeypatch.setattr(_pass_files, "entry_points", lambda group: [entry] if group == "irx.passes" else [])
    rows = declared_passes()
    assert [row["name"] for row in rows] == ["installed", "drop-layers"]  # in the order of the stages
    assert rows[0]["place"] == "other.passes:Installed"


def test_the_command_filters_by_stage(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["passes", "--stage", "fuse", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert main(["passes", "--stage", "depth"]) == 0
    assert "keep-ratio=0.5" in capsys.readouterr().out


SHIPPED = declared_passes()


@pytest.mark.parametrize("row", SHIPPED, ids=lambda row: row["name"])
def test_what_is_read_is_what_is_declared(row: dict[str, str]) -> None:
    path = Path(row["place"])
    module = importlib.import_module("irx." + ".".join(path.with_suffix("").parts))
    kind = getattr(module, "".join(word.capitalize() for word in path.stem.split("_")))
    assert issubclass(kind, Pass)
    assert row["name"] == kind.name == path.stem.replace("_", "-")
    assert row["stage"] == kind.stage.name.lower() == path.parts[1]
    assert row["effect"] == kind.effect.value
    assert [option.partition("=")[0] for option in row["options"]] == [
        field.name.replace("_", "-") for field in fields(kind)
    ]
    assert row["doc"]


def test_every_file_named_as_a_pass_of_a_stage_is_listed() -> None:
    """A class that derives from Pass but declares nothing would be missing from the list without a word."""
    root = Path(irx.passes.__path__[0])
    deriving = {path for path in root.glob("*/[!_]*.py") if "(Pass):" in path.read_text()}
    assert {f"passes/{path.relative_to(root).as_posix()}" for path in deriving} <= {row["place"] for row in SHIPPED}


def test_stages_are_those_of_the_pipeline() -> None:
    assert stages() == ["normalize", "depth", "tokens", "attention", "cache", "weights", "fuse", "lower"]


def test_lossy_passes_state_their_paper_and_measure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["passes", "--lossy", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) > 8 and {row["effect"] for row in rows} == {"lossy"}
    assert [row["name"] for row in rows if not row["measure"]] == []
    assert {row["name"] for row in rows if not row["paper"]} <= {"cast-weights"}, "a cast is no method of a paper"

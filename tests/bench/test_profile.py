"""`irx profile`: times and bytes by module and by region add up, whatever runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import irx
from irx.bench import profile
from irx.cli import main
from irx.errors import UnknownOption
from tests.cli.models import save_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_model(tmp_path_factory.mktemp("models") / "tiny")
    path = folder.parent / "saved.irx"
    irx.compile(str(folder), target="torch").save(path)
    return path


@pytest.fixture(autouse=True)
def small_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "RING", 1 << 16)


@pytest.mark.parametrize(("graph", "cached"), [("decode", 10), ("prefill", 9), ("forward", 0)])
def test_parts_add_up(saved: Path, graph: str, cached: int) -> None:
    report = profile.run(str(saved), graph=graph, context=9, repeat=2, threads=1)
    for lines in (report.modules, report.regions):
        assert sum(line.seconds for line in lines) == pytest.approx(report.steps)
        assert [line.seconds for line in lines] == sorted((line.seconds for line in lines), reverse=True)
    modules = {line.name: line for line in report.modules}
    regions = {line.name: line for line in report.regions}
    down = modules["model.layers.*.mlp.down_proj"]
    assert (down.count, down.bytes) == (2, 2 * 16 * 32 * 4), "two layers"
    if cached:
        assert regions["kv_attention"].bytes == 2 * 2 * 2 * 4 * 4 * cached, "layers, keys and values, heads, channels"
        assert report.sizes["T"] == cached
    assert report.seconds > 0
    assert report.floor.work.bytes >= sum(line.bytes for line in report.regions)


def test_as_a_command(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", str(saved), "--context", "7", "--threads", "1", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["graph"] == "decode"
    assert facts["floor"] == pytest.approx(facts["bytes"] / facts["bandwidth"], rel=0.5)
    assert main(["profile", str(saved), "--context", "7", "--graph", "forward", "--top", "3"]) == 0
    printed = capsys.readouterr().out
    assert "model.layers.*" in printed
    assert "times the floor" in printed


def test_a_graph_that_is_not_there(saved: Path) -> None:
    with pytest.raises(UnknownOption, match="known: decode, forward, prefill"):
        profile.run(str(saved), graph="encode")

"""What `irx compile` takes as texts and as a budget, and the front that it draws."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from irx.budget import Budget
from irx.cli import main
from irx.cli._data import budget, minutes, texts
from irx.cli._front import plot, svg
from irx.errors import BadData, BudgetError
from irx.ledger import Ledger, Point

POINTS = [
    Point("", 4e-3, 0.0, front=True),
    Point("a{b=1}", 2e-3, 0.5, front=True, chosen=True),
    Point("c", 3e-3, 1.5),
    Point("ruined", 1e-3, 50.0, front=True),
]


def test_texts_of_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntext")
    (tmp_path / "b.json").write_text('["two", {"text": "three"}]')
    (tmp_path / "c.jsonl").write_text('{"text": "four"}\n\n"five"\n')
    paths = [str(path) for path in sorted(tmp_path.iterdir())]
    assert texts(paths) == ["one\n\ntext", "two", "three", "four", "five"]
    (tmp_path / "d.json").write_text("[1]")
    with pytest.raises(BadData, match="more than texts"):
        texts([str(tmp_path / "d.json")])
    with pytest.raises(BadData, match="cannot be read"):
        texts([str(tmp_path / "absent.txt")])


def test_budgets_in_words() -> None:
    assert budget(["kl=0.05", "top1=0.9,ppl_ratio=1.02"]) == Budget(kl=0.05, top1=0.9, ppl_ratio=1.02)
    for word in ("kl", "klx=3", "kl=low", "max=3"):
        with pytest.raises(BudgetError, match="is no limit"):
            budget([word])


def test_times_of_a_search_as_words() -> None:
    assert [minutes(word) for word in ("20", "20m", "90s", "1h")] == [20, 20, 1.5, 60]
    for word in ("", "m", "soon"):
        with pytest.raises(ValueError, match="could not convert"):
            minutes(word)


def test_the_front_as_text_and_as_a_picture() -> None:
    text = plot(POINTS)
    assert text.count("#") == 2 and "4.08 ms" not in text and "ms" in text
    assert plot([]) == ""
    root = ElementTree.fromstring(svg(POINTS, "a < b"))
    circles = [node for node in root.iter() if node.tag.endswith("circle")]
    assert len(circles) == 3, "what is far outside is not drawn"
    assert any("a{b=1}" in (title.text or "") for circle in circles for title in circle)
    assert Ledger.from_json(Ledger(points=POINTS).to_json()).points == POINTS


def test_a_search_from_the_command(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from irx.pipeline.search import levels
    from irx.pipeline.search.levels import Unit

    units = (Unit("weights", ("quantize-weights{bits=8, skip=none}",)),)
    monkeypatch.setattr(levels.units_of, "__defaults__", (units,))
    (tmp_path / "texts.txt").write_text("the quick brown fox jumps over the lazy dog. " * 20)
    front = tmp_path / "front.svg"
    words = ["compile", str(model_folder), "--target", "torch", "-p", "none", "--data", str(tmp_path / "texts.txt")]
    assert main([*words, "--budget", "kl=0.5", "--search", "5m", "--front", str(front), "--json"]) == 0
    printed = capsys.readouterr()
    ledger = json.loads(printed.out)
    assert [point["chosen"] for point in ledger["points"]].count(True) == 1
    assert "ms a step" in printed.err
    assert front.read_text().startswith("<svg")
    assert main([*words[:-2], "--budget", "kl=0.5"]) == 2
    assert "pass data=" in capsys.readouterr().err

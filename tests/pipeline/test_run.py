"""Running pipelines: what is accepted, what is refused and why, and what the instruments see."""

from __future__ import annotations

from pathlib import Path

import pytest

from irx.errors import PassRefused, VerifyError
from irx.ir.equal import difference
from irx.ir.parser import parse
from irx.ir.printer import print_program
from irx.ledger import KEPT, NO_MATCH, REFUSED, Ledger
from irx.pipeline.instruments import Compare, Dump, Size, Time, Verify, standard_instruments
from irx.pipeline.pipeline import Pipeline
from tests.pipeline.toys import Blur, Break, Flip, Look, Options, Raise, Ruin, context, program


def decisions(ledger: Ledger) -> list[tuple[str, str]]:
    return [(row.name, row.decision) for row in ledger.rows]


def test_rows_tell_what_was_done() -> None:
    result, ledger = Pipeline((Look(), Look("softmax"), Options(), Blur())).run(program(), context())
    look, nothing, options, blur = ledger.rows
    assert (look.decision, look.matches, look.graphs, look.what) == (KEPT, 2, ("forward",), "add seen")
    assert look.places == ("layers.0", "layers.1")
    assert [miss.reason for miss in look.near_misses] == ["no reason"]
    assert (nothing.decision, nothing.reason) == (NO_MATCH, "no softmax here")
    assert options.decision == NO_MATCH
    assert options.reason
    assert (blur.decision, blur.stage, blur.effect) == (KEPT, "fuse", "lossy")
    assert ledger.summary.operations == {"add": 2, "tanh": 1, "neg": 1}
    assert ledger.summary.pipeline == 'look | look{op="softmax"} | options | blur'
    assert len(result.graphs["forward"]) == 4


def test_the_program_given_stays_as_it_was() -> None:
    given = program()
    before = print_program(given)
    Pipeline((Flip(), Raise())).run(given, context())
    assert print_program(given) == before


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (Raise(), "KeyError: 'lost'"),
        (Break(), "verifier rule 7"),
        (Flip(error=1e-3), "its checks measured an error of 0.001, and ROUNDING allows 1e-05"),
    ],
)
def test_a_pass_that_fails_is_refused_and_leaves_no_trace(one: Flip, reason: str) -> None:
    result, ledger = Pipeline((Look(), one), (Verify(),)).run(program(), context())
    assert decisions(ledger) == [("look", KEPT), (one.name, REFUSED)]
    assert reason in ledger.rows[1].reason
    assert difference(result, program()) is None
    with pytest.raises(PassRefused) as caught:
        Pipeline((Look(), one), (Verify(),)).run(program(), context(), strict=True)
    assert reason in str(caught.value)
    assert "step 1" in str(caught.value)


def test_small_errors_and_lossy_ones_are_accepted() -> None:
    _, ledger = Pipeline((Flip(error=1e-7), Blur(error=0.5))).run(program(), context())
    assert decisions(ledger) == [("flip", KEPT), ("blur", KEPT)]
    assert [row.error for row in ledger.rows] == [1e-7, 0.5]


def test_a_crash_is_shown_when_debugging(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = Pipeline((Raise(),))
    pipeline.run(program(), context())
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("IRX_DEBUG", "1")
    pipeline.run(program(), context())
    assert "raise KeyError" in capsys.readouterr().err


def test_a_broken_capture_is_not_blamed_on_a_pass() -> None:
    broken = program()
    broken.sizes.clear()
    with pytest.raises(VerifyError):
        Pipeline((Look(),), (Verify(),)).run(broken, context())


def test_compare_measures_the_whole_program() -> None:
    _, ledger = Pipeline((Look(),), (Compare(),)).run(program(), context())
    assert ledger.summary.error == 0.0
    _, ledger = Pipeline((Blur(),), (Compare(),)).run(program(), context())
    assert ledger.summary.error == pytest.approx(2.0)
    assert decisions(ledger) == [("blur", KEPT)]


def test_compare_finds_the_pass_that_is_wrong() -> None:
    passes = (Look(), Look("tanh"), Flip(), Look("neg"), Look("neg"))
    passes = tuple(sorted(passes, key=lambda one: one.stage))
    result, ledger = Pipeline(passes, (Compare(), Time())).run(program(), context())
    assert [decision for name, decision in decisions(ledger) if name == "flip"] == [REFUSED]
    assert "the whole program differs" in ledger.rows[-1].reason
    assert ledger.summary.error == 0.0
    assert difference(result, program()) is None
    with pytest.raises(PassRefused, match="flip"):
        Pipeline(passes, (Compare(),)).run(program(), context(), strict=True)


def test_compare_finds_several() -> None:
    _, ledger = Pipeline((Look(), Flip(), Flip(), Flip()), (Compare(),)).run(program(), context())
    assert decisions(ledger)[0] == ("look", KEPT)
    assert ledger.summary.error == 0.0


def test_compare_gives_up_aloud() -> None:
    call = '%y = torch.call(%x) {target="aten.foo", results=[f32[4]]}'
    calling = parse(f"graph @forward(%x: f32[4]) -> (y: f32[4]) {{ {call} return %y }}")
    _, ledger = Pipeline((Look(),), (Compare(),)).run(calling, context())
    assert ledger.summary.error is None
    assert ledger.summary.calls == {"aten.foo": 1}
    assert "not compared" in ledger.notes[0]


def test_compare_refuses_what_cannot_be_evaluated() -> None:
    _, ledger = Pipeline((Look(), Ruin()), (Verify(), Compare())).run(program(), context())
    assert decisions(ledger) == [("look", KEPT), ("ruin", REFUSED)]
    assert ledger.summary.error == 0.0


def test_time_is_told_once_a_step() -> None:
    _, ledger = Pipeline((Look(), Raise()), (Verify(), Time())).run(program(), context())
    assert all(row.seconds is not None and row.seconds >= 0 for row in ledger.rows)


def test_dump_writes_numbered_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IRX_DUMP_DIR", str(tmp_path))
    instruments = standard_instruments()
    assert [type(one) for one in instruments] == [Dump, Verify, Size, Time]
    Pipeline((Look(), Break(), Blur()), instruments).run(program(), context())
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "00-look.after.irx",
        "00-look.before.irx",
        "01-break.before.irx",
        "01-break.refused.irx",
        "02-blur.after.irx",
        "02-blur.before.irx",
    ]
    before, after = (parse((tmp_path / f"02-blur.{name}.irx").read_text()) for name in ("before", "after"))
    assert difference(before, program()) is None
    assert "neg" in str(difference(before, after))


def test_an_empty_pipeline_changes_nothing() -> None:
    result, ledger = Pipeline((), standard_instruments()).run(program(), context())
    assert difference(result, program()) is None
    assert ledger.rows == []

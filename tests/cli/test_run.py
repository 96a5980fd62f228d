import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from irx.backends.torch.kernels import kernels
from irx.cli import main
from tests.cli.programs import LANGUAGE_MODEL, NORM, WITH_CALL

Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> str:
        path = tmp_path / "model.irx"
        path.write_text(text)
        return str(path)

    return write


def results(capsys: pytest.CaptureFixture[str], *words: str) -> dict[tuple[str, str], dict[str, object]]:
    assert main(["run", *words, "--target", "torch", "--json"]) == 0
    return {(row["graph"], row["result"]): row for row in json.loads(capsys.readouterr().out)["results"]}


def test_sizes_and_shapes(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    row = results(capsys, write(NORM), "--size", "B=2", "--size", "S=5")["forward", "y"]
    assert row["shape"] == [2, 5, 16]
    assert row["dtype"] == "f32"
    assert float(str(row["max abs"])) > abs(float(str(row["mean"])))
    assert row["ok"] is None
    assert row["error"] is None


def test_the_seed_decides(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(NORM)
    first, again, other = (results(capsys, file, "--seed", seed)["forward", "y"]["mean"] for seed in ("1", "1", "2"))
    assert first == again != other


def test_every_graph_is_compared(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    found = results(capsys, write(LANGUAGE_MODEL), "--check")
    assert found["prefill", "kv0.k"]["shape"] == [3, 2, 5, 4]
    assert {graph for graph, _ in found} == {"forward", "prefill", "decode"}
    assert all(row["ok"] and 0 < float(str(row["error"])) <= 1e-5 for row in found.values())
    assert {name for (_, name), row in found.items() if row["state"]} == {"kv0.k", "kv0.v"}


def test_the_chosen_graphs(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    found = results(capsys, write(LANGUAGE_MODEL), "--graph", "decode", "--size", "B=1")
    assert {graph for graph, _ in found} == {"decode"}
    assert found["decode", "logits"]["shape"] == [1, 1, 32]


def test_calls_of_torch(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert results(capsys, write(WITH_CALL), "--check")["forward", "y"]["ok"]


def test_a_wrong_kernel_is_found(
    write: Write,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    right = kernels()["rms_norm"]
    monkeypatch.setitem(kernels(), "rms_norm", lambda *args, **kwargs: right(*args, **kwargs) + torch.tensor(0.01))
    assert main(["run", write(NORM), "--check", "--target", "torch"]) == 1
    assert "Wrong: @forward y." in capsys.readouterr().out
    assert main(["run", write(NORM), "--check", "--target", "torch", "--tolerance", "0.5"]) == 0
    assert main(["run", write(NORM), "--target", "torch"]) == 0, "nothing is compared without --check"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--size", "Q=3"], "unknown option 'Q'; at --size Q=3; known: B, R, S"),
        (["--size", "B=0"], "B is a whole number from 1 to 8"),
        (["--size", "B"], "B is a whole number from 1 to 8"),
        (["--graph", "decoed"], "did you mean 'decode'?"),
        (["--target", "tourch"], "did you mean 'torch'?"),
        (["-p", "cse{now=1}"], "unknown option 'now'; at pass 'cse'"),
    ],
)
def test_what_a_user_gets_wrong(
    words: list[str],
    said: str,
    write: Write,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["run", write(LANGUAGE_MODEL), *words]) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.out == ""

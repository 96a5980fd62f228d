"""`irx.compile`: kinds of models, targets, pipelines, and arguments that nothing implements yet."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import irx
from irx.backends import find_backend, known_backends
from irx.errors import (
    DeviceNotFound,
    IRXError,
    ModelNotFound,
    NotAModule,
    PassRefused,
    UnboundWeight,
    UnknownPass,
    UnknownTarget,
    UnsupportedArgument,
)
from irx.ir.program import Program
from irx.pipeline.base import Context, Effect, Pass, Report, Stage
from irx.pipeline.index import PassIndex

TEXT = """
weight $w : f32[4, 4]
graph @forward(%x: f32[B, 4]) -> (y: f32[B, 4]) {
  %a = irx.linear(%x, $w)
  %y = irx.silu(%a)
  return %y
}
"""


def program() -> Program:
    made = irx.parse(TEXT)
    made.weights.bind("w", lambda: np.eye(4, dtype=np.float32))
    return made


def test_a_program_is_taken_as_it_is() -> None:
    source = program()
    before = len(source.graphs["forward"])
    compiled = irx.compile(source, target="torch")
    x = torch.randn(3, 4)
    assert torch.allclose(compiled(x), torch.nn.functional.silu(x))
    assert len(source.graphs["forward"]) == before


def test_a_text_file_without_arrays_names_the_weight(tmp_path: Path) -> None:
    (tmp_path / "model.irx").write_text(TEXT)
    with pytest.raises(UnboundWeight, match=r"\$w"):
        irx.compile(tmp_path / "model.irx", target="torch")


@pytest.mark.parametrize("context", [0, 64, 2.5])
def test_a_context_behind_which_there_is_no_room_for_a_step(context: Any) -> None:
    made = program()
    made.meta["max_length"] = 64
    irx.compile(made, target="torch", context=63)
    with pytest.raises(UnsupportedArgument, match="is no number of tokens from 1 to 63"):
        irx.compile(made, target="torch", context=context)


@pytest.mark.parametrize("wrong", [3, None, object()])
def test_what_is_no_model(wrong: Any) -> None:
    with pytest.raises(NotAModule):
        irx.compile(wrong, torch.zeros(1), target="torch")


def test_a_path_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="does not exist"):
        irx.compile(str(tmp_path / "nothing.bin"), target="torch")


@pytest.mark.parametrize("later", [{"search": 3}], ids=lambda d: next(iter(d)))
def test_arguments_of_later_versions_are_errors(later: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedArgument, match=next(iter(later))):
        irx.compile(program(), target="torch", **later)


@pytest.mark.parametrize("target", ["trch", "torch:a1000", "vulkan", "torch:torch"])
def test_unknown_targets(target: str) -> None:
    with pytest.raises(UnknownTarget, match="unknown target"):
        irx.compile(program(), target=target)


def test_a_gpu_that_is_not_here() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(DeviceNotFound):
        irx.compile(program(), target="torch:a100")
    with pytest.raises(DeviceNotFound):
        irx.compile(program(), target="cuda")


@pytest.mark.parametrize("target", ["torch", "cpu", "host", "torch:cpu", "cpu-avx512"])
def test_targets_of_this_machine(target: str) -> None:
    assert torch.equal(irx.compile(program(), target=target)(torch.zeros(2, 4)), torch.zeros(2, 4))


def test_a_misspelled_pass_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownPass, match="dead-nodes"):
        irx.compile(program(), target="torch", pipeline="none | dead-node")


class Broken(Pass):
    """Changes what the program computes, and says it does not."""

    name = "broken"
    stage = Stage.NORMALIZE
    effect = Effect.EXACT

    def run(self, program: Program, ctx: Context) -> Report:
        raise ValueError("broken on purpose")


def test_a_refused_pass_is_told_and_with_strict_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("irx.api.optimizing.passes", lambda: PassIndex.of(Broken))
    compiled = irx.compile(program(), target="torch", pipeline="broken")
    assert [row.name for row in compiled.ledger().refused()] == ["broken"]
    assert compiled(torch.zeros(1, 4)).tolist() == [[0, 0, 0, 0]]
    with pytest.raises(PassRefused, match="broken"):
        irx.compile(program(), target="torch", pipeline="broken", strict=True)


def test_passes_are_listed_however_the_package_was_imported() -> None:
    import irx.passes.normalize.dead_nodes

    assert "insert-cache" in set(irx.passes())
    assert irx.passes().load("dead-nodes").name == "dead-nodes"


def test_backends_are_found_by_their_folder() -> None:
    assert "torch" in known_backends()
    assert find_backend("torch").name == "torch"
    with pytest.raises(UnknownTarget, match="did you mean 'torch'"):
        find_backend("troch")


def test_dtype_casts_the_model() -> None:
    block, x = torch.nn.Linear(4, 4), torch.randn(2, 4)
    compiled = irx.compile(block, x, target="torch", dtype="bf16")
    assert compiled(x.bfloat16()).dtype == torch.bfloat16
    assert block.weight.dtype == torch.float32


def test_sizes_can_be_those_of_the_example() -> None:
    compiled = irx.compile(torch.nn.Linear(4, 4), torch.randn(2, 4), target="torch", dynamic=False)
    assert compiled(torch.randn(2, 4)).shape == (2, 4)
    with pytest.raises(IRXError):
        compiled(torch.randn(3, 4))


def test_a_tokenizer_comes_along(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="the hf extra is not installed")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"one": 0, "two": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    compiled = irx.compile(program(), target="torch", tokenizer=words)
    compiled.save(tmp_path / "model.irx")
    for one in (compiled, irx.load(tmp_path / "model.irx")):
        assert one.tokenizer is not None
        assert one.tokenizer.encode("two one").ids == [1, 0]
    assert irx.compile(program(), target="torch").tokenizer is None
    with pytest.raises(UnsupportedArgument, match="tokenizer=int"):
        irx.compile(program(), target="torch", tokenizer=3)


def test_nothing_of_the_compiler_stays_with_the_weights() -> None:
    """The executable does not keep the captured model alive."""
    block = torch.nn.Linear(4, 4)
    compiled, alive = irx.compile(block, torch.randn(2, 4), target="torch"), weakref.ref(block.weight)
    del block
    gc.collect()
    assert alive() is None
    assert compiled(torch.zeros(1, 4)).shape == (1, 4)


def test_importing_irx_imports_nothing_heavy() -> None:
    code = "import sys, irx; print([m for m in ('torch', 'numpy', 'sympy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"

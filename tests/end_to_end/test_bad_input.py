"""What users get wrong: each mistake is an error of its own class that says what, where and what to do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import irx
from irx import errors
from tests.end_to_end.families import FAMILIES


class Broken(torch.nn.Module):
    """Fails inside a submodule, when the shapes meet."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(9, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.inner(x)
        return result


class LeavingTorch(torch.nn.Module):
    """Runs eagerly, and cannot be traced."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(x.numpy() + 1)


class Branching(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.sum() > 0 else x - 1


@pytest.fixture(scope="module")
def llama() -> Any:
    return irx.compile(FAMILIES["llama"].model(), target="torch", max_batch=4, max_length=32)


def ids(batch: int, length: int) -> torch.Tensor:
    return torch.ones(batch, length, dtype=torch.int64)


def test_what_is_no_module() -> None:
    with pytest.raises(errors.NotAModule, match="Module"):
        irx.compile(42, torch.ones(2, 2))  # type: ignore[arg-type]


def test_a_path_that_is_not_there() -> None:
    with pytest.raises(errors.ModelNotFound, match=re.escape("no/such/model.gguf")):
        irx.compile("no/such/model.gguf")


def test_model_that_fails_names_module_and_line() -> None:
    with pytest.raises(errors.ExampleMismatch, match=r"inner\.1 \(test_bad_input\.py:\d+\)"):
        irx.compile(Broken(), torch.ones(2, 8), target="torch")


def test_export_failure_names_the_line() -> None:
    with pytest.raises(errors.ExportFailed, match=r"test_bad_input\.py:\d+"):
        irx.compile(torch.nn.Sequential(LeavingTorch()), torch.ones(2, 8), target="torch")


def test_data_dependent_control_flow_names_the_line() -> None:
    with pytest.raises(errors.DataDependentControlFlow, match=r"test_bad_input\.py:\d+"):
        irx.compile(Branching(), torch.ones(2, 8), target="torch")


def test_example_that_contradicts_the_model() -> None:
    with pytest.raises((errors.ExampleMismatch, errors.ExportFailed), match="9"):
        irx.compile(torch.nn.Linear(8, 8), torch.ones(2, 9), target="torch")


@pytest.mark.parametrize(
    ("options", "error", "hint"),
    [
        ({"target": "a1000"}, errors.UnknownTarget, "a100"),
        ({"target": "tirton:h100"}, errors.UnknownTarget, "known: torch"),
        ({"pipeline": "default | remove-noop"}, errors.UnknownPass, "remove-noops"),
        ({"pipeline": "defualt"}, errors.UnknownPreset, "default"),
        ({"pipeline": "fold-constants{generate=false}"}, errors.UnknownOption, "generated"),
        ({"budget": 0.02}, errors.BudgetError, r"Budget\("),
        ({"tune": "some"}, errors.UnknownOption, "quick"),
    ],
    ids=str,
)
def test_options_that_do_not_exist(options: dict[str, Any], error: type[Exception], hint: str) -> None:
    with pytest.raises(error, match=hint):
        irx.compile(torch.nn.Linear(8, 8), torch.ones(2, 8), **{"target": "torch", **options})


def test_keyword_that_was_not_captured(llama: Any) -> None:
    with pytest.raises(errors.UnsupportedArgument, match="output_attentions"):
        llama(ids(1, 4), output_attentions=True)
    assert llama(ids(1, 4), use_cache=False, return_dict=True, logits_to_keep=1).logits.shape == (1, 1, 256)


def test_prompt_longer_than_the_limit(llama: Any) -> None:
    with pytest.raises(errors.PromptTooLong, match="max_length"):
        llama.generate(ids(1, 30), max_new_tokens=8)
    with pytest.raises(errors.PromptTooLong, match="33 tokens"):
        llama.session().append(ids(1, 33))


def test_batch_above_the_limit(llama: Any) -> None:
    with pytest.raises(errors.BatchTooLarge, match="max_batch"):
        llama.generate(ids(5, 3), max_new_tokens=1)


def test_empty_prompt(llama: Any) -> None:
    with pytest.raises(errors.EmptyPrompt):
        llama.generate(ids(1, 0), max_new_tokens=1)


@pytest.mark.parametrize(
    "mask", [[[1, 0, 1]], [[0, 1, 0]], [[1, 2, 1]], [[1, 1]]], ids=["hole", "both sides", "two", "short"]
)
def test_masks_that_are_no_padding(llama: Any, mask: list[list[int]]) -> None:
    with pytest.raises(errors.MaskError):
        llama.generate(ids(1, 3), attention_mask=torch.tensor(mask), max_new_tokens=1)


def test_wrong_dtype_rank_and_device(llama: Any) -> None:
    for wrong in (torch.ones(1, 3), torch.ones(3, dtype=torch.int64), ids(1, 3).to("meta")):
        with pytest.raises(errors.InputMismatch):
            llama(wrong)


def test_artifact_truncated_altered_or_of_another_version(llama: Any, tmp_path: Path) -> None:
    place = tmp_path / "model.irx"
    llama.save(place)
    assert irx.load(place)(ids(1, 4))["logits"].shape == (1, 4, 256)
    for name in ("weights.safetensors", "program.irx", "kernels/decode/graph.irx"):
        original = (place / name).read_bytes()
        (place / name).write_bytes(original[:-7])
        with pytest.raises(errors.DamagedArtifact, match=re.escape(Path(name).name)):
            irx.load(place)
        (place / name).write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
        with pytest.raises(errors.DamagedArtifact, match="altered"):
            irx.load(place)
        (place / name).write_bytes(original)
    manifest = place / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 99'))
    with pytest.raises(errors.ArtifactVersionMismatch, match="99"):
        irx.load(place)


def test_saving_over_an_artifact_and_dying_in_between_loses_neither(
    llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "model.irx"
    llama.save(place)
    rename = Path.rename
    for dies_at in (1, 2):
        calls = []

        def dying(self: Path, target: Path, calls: list[Path] = calls, dies_at: int = dies_at) -> Path:
            calls.append(target)
            if len(calls) == dies_at:
                raise KeyboardInterrupt
            return rename(self, target)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", dying)
            with pytest.raises(KeyboardInterrupt):
                llama.save(place)
        assert irx.load(place).generate(ids(1, 3), max_new_tokens=2).shape == (1, 5)
    llama.save(place)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.irx"]

"""Which frontend reads what a user calls a model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irx.errors import BadOption, IRXError, MissingExtra, ModelNotFound, NotAModule
from irx.ir.printer import print_program
from irx.ir.program import Program

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Source:
    """A captured program, the tokenizer that came with it, and why there is none where one was to be expected.

    `digest` is a hash of everything the program and its weights are, empty where that would cost too much.
    """

    program: Program
    tokenizer: Tokenizer | None = None
    note: str = ""
    digest: str = ""


def read(
    model: Any, example: Any = None, *, dtype: str | None = None, activations: str = "f32", **limits: Any
) -> Source:
    """Capture a module, a transformers model, a GGUF file, a model folder, a `.irx` file, or take a program as it is.

    Without a `dtype` a GGUF file, which has weights only, computes in `activations`; others have a dtype of their own.
    `limits` are `dynamic`, `max_batch` and `max_length`, as `torch_export.capture` takes them. Raises NotAModule for
    anything else, ModelNotFound for a path that is none of these, and what the frontend in question raises.
    """
    if isinstance(model, Program):
        return Source(model)
    if isinstance(model, (str, Path)):
        path = Path(model)
        return _read_path(path, example, dtype or activations if path.suffix == ".gguf" else dtype, limits)
    from irx.frontends import hf, torch_export

    frontend = hf if hf.is_model(model) else torch_export
    return Source(frontend.capture(model, example, dtype=dtype, **limits))


def _read_path(path: Path, example: Any, dtype: str | None, limits: dict[str, Any]) -> Source:
    if path.suffix == ".gguf":
        return _read_gguf(path, dtype, limits)
    if (path / "config.json").is_file():
        from irx.frontends import hf

        return Source(hf.capture(path, example, dtype=dtype, **limits), *_folder_tokenizer(path))
    if path.suffix == ".irx" and not path.is_dir():
        from irx.frontends import text

        return Source(text.capture(path))
    if (path / "manifest.json").is_file():
        raise NotAModule(f"{path} is already compiled", fix=f"irx.load({str(path)!r})")
    what = "is neither a .gguf file, nor a folder with config.json, nor a .irx file"
    raise ModelNotFound(f"{path} {what if path.exists() else 'does not exist'}")


def _read_gguf(path: Path, dtype: str | None, limits: dict[str, Any]) -> Source:
    from irx.frontends.gguf.capture import capture
    from irx.frontends.gguf.reader import GgufFile
    from irx.frontends.gguf.tokenizer import build_tokenizer

    if dtype not in (None, "f32", "bf16"):
        raise BadOption(f"dtype={dtype!r} for a GGUF file", fix="its activations are f32 or bf16")
    program, file = capture(path, dtype=dtype or "f32", **limits), GgufFile.open(path)
    digest = hashlib.sha256(f"{file.sha256}\n{print_program(program)}".encode()).hexdigest()
    try:
        return Source(program, build_tokenizer(file).tokenizer, digest=digest)
    except IRXError as error:
        return Source(program, None, str(error), digest)


def _folder_tokenizer(path: Path) -> tuple[Tokenizer | None, str]:
    file = path / "tokenizer.json"
    if not file.is_file():
        return None, f"{path} has no tokenizer.json"
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return None, str(MissingExtra("tokenizers", "hf"))
    return Tokenizer.from_file(str(file)), ""

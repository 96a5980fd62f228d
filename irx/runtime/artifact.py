"""Compiled models on disk: one directory of text, JSON, kernels and memory-mapped weights.

    manifest.json         format, versions, device, and the size and sha256 of every other file
    program.irx           the optimized program with its sizes, relations and metadata
    weights.safetensors   every weight some graph reads, in its own dtype (packed formats as bytes)
    kernels/<graph>/<file>
    ledger.json  tokenizer.json

An artifact is written beside the old one and renamed when it is complete; the old one is kept, as `<name>.previous`,
until the new one is in its place, and is found there if the process died in between. Loading checks every file against
the manifest before anything runs; the hash of the weights is computed in the background meanwhile. Nothing is pickled,
and nothing that was read is ever executed as Python.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from irx.errors import ArtifactVersionMismatch, DamagedArtifact, ModelNotFound
from irx.runtime.weight_file import StoredArray, write_weights

if TYPE_CHECKING:
    import torch

FORMAT = 1
_MANIFEST = "manifest.json"
_PROGRAM = "program.irx"
_WEIGHTS = "weights.safetensors"
_LEDGER = "ledger.json"
_TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Artifact:
    """What an artifact holds: texts as they stand in the files, kernels by graph and file name, weights by name.

    `facts` is plain JSON data about how it was made: target, backends, pipeline, what is known about the model. The
    weights must not be computed with before `verify` has returned.
    """

    facts: dict[str, Any]
    program: str
    ledger: str
    tokenizer: str | None
    kernels: dict[str, dict[str, bytes]]
    weights: Mapping[str, torch.Tensor]
    checking: Future[None]

    def verify(self) -> None:
        """Wait until the weights are checked. Raises DamagedArtifact."""
        self.checking.result()


def save(
    path: str | Path,
    *,
    facts: Mapping[str, Any],
    program: str,
    ledger: str,
    tokenizer: str | None,
    kernels: Mapping[str, Mapping[str, bytes]],
    weights: Sequence[StoredArray],
) -> None:
    """Write an artifact at `path`, replacing one that is there only once the new one is complete.

    `weights` are loaded one at a time, so the whole model is never held. Raises FileExistsError where something that is
    not an artifact stands at `path`.
    """
    place = Path(path)
    if place.exists() and not (place / _MANIFEST).is_file():
        raise FileExistsError(f"{place} exists and is not an IRX artifact; choose another path")
    place.parent.mkdir(parents=True, exist_ok=True)
    for abandoned in _abandoned(place):
        shutil.rmtree(abandoned, ignore_errors=True)
    draft = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    draft.mkdir()
    try:
        write_weights(draft / _WEIGHTS, weights)
        _write_texts(draft, program, ledger, tokenizer, kernels)
        _write_manifest(draft, facts)
        _put_in_place(draft, place)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def load(path: str | Path) -> Artifact:
    """Read an artifact and check all of it but the weights' hash; see `Artifact.verify`. Weights are memory-mapped.

    Raises ModelNotFound, DamagedArtifact, or ArtifactVersionMismatch for one written in another format.
    """
    folder = _find(Path(path))
    manifest = _read_manifest(folder)
    files = manifest["files"]
    _check_sizes(folder, files)
    checking = _in_background(_check_hashes, folder, {_WEIGHTS: files[_WEIGHTS]})
    _check_hashes(folder, {name: known for name, known in files.items() if name != _WEIGHTS})
    kernels: dict[str, dict[str, bytes]] = {}
    for name in files:
        parts = name.split("/")
        if parts[0] == "kernels":
            kernels.setdefault(parts[1], {})[parts[2]] = (folder / name).read_bytes()
    tokenizer = folder / _TOKENIZER
    return Artifact(
        facts=manifest["facts"],
        program=(folder / _PROGRAM).read_text(encoding="utf-8"),
        ledger=(folder / _LEDGER).read_text(encoding="utf-8"),
        tokenizer=tokenizer.read_text(encoding="utf-8") if _TOKENIZER in files else None,
        kernels=kernels,
        weights=_map_weights(folder / _WEIGHTS),
        checking=checking,
    )


def _abandoned(place: Path) -> list[Path]:
    """Drafts of this artifact whose process died; this process has none."""
    drafts = {path: path.name.split(".")[-2] for path in place.parent.glob(f".{place.name}.*.tmp")}
    return [path for path, process in drafts.items() if process == str(os.getpid()) or not _lives(process)]


def _lives(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:  # it belongs to somebody else
        return True
    return True


def _write_texts(
    draft: Path, program: str, ledger: str, tokenizer: str | None, kernels: Mapping[str, Mapping[str, bytes]]
) -> None:
    texts = {_PROGRAM: program, _LEDGER: ledger, _TOKENIZER: tokenizer}
    files = {name: text.encode() for name, text in texts.items() if text is not None}
    files |= {f"kernels/{graph}/{name}": blob for graph, blobs in kernels.items() for name, blob in blobs.items()}
    for name, content in files.items():
        target = draft / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def _write_manifest(draft: Path, facts: Mapping[str, Any]) -> None:
    files = {
        found.relative_to(draft).as_posix(): {"bytes": found.stat().st_size, "sha256": _digest(found)}
        for found in sorted(draft.rglob("*"))
        if found.is_file()
    }
    manifest = {"format": FORMAT, "sha256": signature(facts, files), "facts": dict(facts), "files": files}
    (draft / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for found in (*draft.rglob("*"), draft):
        _flush(found)


def signature(facts: Mapping[str, Any], files: Mapping[str, Any]) -> str:
    """The hash that tells whether the manifest itself was altered."""
    text = json.dumps([facts, files], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _put_in_place(draft: Path, place: Path) -> None:
    previous = _previous(place)
    if place.exists():
        shutil.rmtree(previous, ignore_errors=True)
        place.rename(previous)
    draft.rename(place)
    _flush(place.parent)
    shutil.rmtree(previous, ignore_errors=True)


def _previous(place: Path) -> Path:
    return place.with_name(f"{place.name}.previous")


def _find(place: Path) -> Path:
    """The artifact's folder; the previous one where its replacement was never finished."""
    for folder in (place, _previous(place)):
        if (folder / _MANIFEST).is_file():
            return folder
    if place.is_dir():
        raise DamagedArtifact("the manifest is missing", where=str(place / _MANIFEST), fix="compile and save it again")
    raise ModelNotFound(f"there is no artifact at {place}", fix="name a folder that Executable.save wrote")


def _read_manifest(folder: Path) -> dict[str, Any]:
    place = folder / _MANIFEST
    try:
        manifest = json.loads(place.read_text(encoding="utf-8"))
        version, facts, files = manifest["format"], manifest["facts"], manifest["files"]
        known = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
        signed = manifest["sha256"] == signature(facts, files)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged("the manifest cannot be read", place) from error
    if version != FORMAT:
        raise ArtifactVersionMismatch(
            f"the artifact has format {version}, this version of IRX reads {FORMAT}",
            where=str(folder),
            fix="compile and save it again",
        )
    if not signed:
        raise _damaged("the manifest was altered", place)
    if any(Path(name).is_absolute() or ".." in name.split("/") for name in known):
        raise _damaged("the manifest names files outside the artifact", place)
    if not {_PROGRAM, _WEIGHTS, _LEDGER} <= known.keys():
        raise _damaged("the manifest lacks a file that every artifact has", place)
    return {"facts": facts, "files": known}


def _check_sizes(folder: Path, files: Mapping[str, tuple[int, str]]) -> None:
    for name, (size, _) in files.items():
        found = folder / name
        if not found.is_file():
            raise _damaged("the file is missing", found)
        if found.stat().st_size != size:
            raise _damaged(f"the file has {found.stat().st_size} bytes instead of {size}", found)


def _check_hashes(folder: Path, files: Mapping[str, tuple[int, str]]) -> None:
    for name, (_, expected) in files.items():
        if _digest(folder / name) != expected:
            raise _damaged("the file was altered: its sha256 is not the manifest's", folder / name)


def _in_background(check: Callable[..., None], *args: Any) -> Future[None]:
    """Run a check in a thread of its own; hashing releases the interpreter."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            check(*args)
            future.set_result(None)
        except Exception as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future


def _map_weights(path: Path) -> Mapping[str, torch.Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise _damaged(f"the weights cannot be read: {error}", path) from error


def _damaged(what: str, where: Path) -> DamagedArtifact:
    return DamagedArtifact(what, where=str(where), fix="compile and save it again")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

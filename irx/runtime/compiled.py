"""The parts of a compiled model, whether it was compiled just now or loaded from an artifact."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import torch

from irx.errors import DamagedArtifact
from irx.ir.dims import Range
from irx.ledger import Ledger
from irx.runtime.artifact import Artifact
from irx.runtime.kernel import GraphKernel
from irx.runtime.store import Stored, WeightStore
from irx.runtime.tensors import IR, Packed, to_numpy
from irx.runtime.weight_file import StoredArray

LoadKernel: TypeAlias = Callable[[str, Mapping[str, bytes], str], GraphKernel]
"""`load(backend, files, target)`: the kernel of one graph; handed down by what lies above the runtime."""


@dataclass
class Compiled:
    """Everything an executable is made of.

    `device` is where it runs now, `place` the kind of device that it was compiled for: they differ where there is none.
    `kernels` and `blobs` (their files) are by graph; `backends` names the one that built each. `packed` is the storage
    format of every block-quantized weight, `weights` all constants as they are written to an artifact. `program` gives
    the optimized program's text. `tokenizer` is JSON of the tokenizers package.
    """

    name: str
    target: str
    device: torch.device
    place: str
    pipeline: str
    meta: dict[str, Any]
    sizes: dict[str, Range]
    kernels: dict[str, GraphKernel]
    blobs: dict[str, Mapping[str, bytes]]
    backends: dict[str, str]
    packed: dict[str, str]
    weights: Sequence[StoredArray]
    store: WeightStore
    ledger: Ledger
    program: Callable[[], str]
    tokenizer: str | None = None

    def bind(self) -> None:
        """Give all kernels their weights; what several read or derive exists once."""
        for kernel in self.kernels.values():
            kernel.bind(self.store)

    def facts(self) -> dict[str, Any]:
        """What an artifact's manifest says about it, as plain JSON data."""
        return {
            "name": self.name,
            "target": self.target,
            "device": self.place,
            "pipeline": self.pipeline,
            "backends": self.backends,
            "packed": self.packed,
            "sizes": {name: asdict(limits) for name, limits in self.sizes.items()},
            "meta": self.meta,
        }


def restore(artifact: Artifact, load_kernel: LoadKernel) -> Compiled:
    """The parts of a loaded artifact, kernels bound. Raises DamagedArtifact where its facts contradict its files."""
    facts, kernels = artifact.facts, artifact.kernels
    if kernels.keys() != facts.get("backends", {}).keys():
        raise DamagedArtifact(
            "the artifact's kernels are not those its manifest names", fix="compile and save it again"
        )
    try:
        target, backends, packed = facts["target"], facts["backends"], facts["packed"]
        sizes = {name: Range(**limits) for name, limits in facts["sizes"].items()}
        made = Compiled(
            name=facts["name"],
            target=target,
            device=torch.device(facts["device"]),
            place=facts["device"],
            pipeline=facts["pipeline"],
            meta=facts["meta"],
            sizes=sizes,
            kernels={graph: load_kernel(backend, kernels[graph], target) for graph, backend in backends.items()},
            blobs={graph: kernels[graph] for graph in backends},
            backends=backends,
            packed=packed,
            weights=[_stored(name, tensor) for name, tensor in artifact.weights.items()],
            store=WeightStore(_loader(artifact.weights, packed), torch.device(facts["device"])),
            ledger=Ledger.from_json(artifact.ledger),
            program=lambda: artifact.program,
            tokenizer=artifact.tokenizer,
        )
        made.bind()
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedArtifact(
            f"the artifact's parts do not fit together: {error}", fix="compile and save it again"
        ) from error
    return made


def _loader(weights: Mapping[str, torch.Tensor], packed: Mapping[str, str]) -> Callable[[str], Stored]:
    def load(name: str) -> Stored:
        return Packed(weights[name], packed[name]) if name in packed else weights[name]

    return load


def _stored(name: str, tensor: torch.Tensor) -> StoredArray:
    return StoredArray(name, tuple(tensor.shape), IR[tensor.dtype], lambda: to_numpy(tensor))

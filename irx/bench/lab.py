"""What the rows of a bench share: the models, made when they are first asked for, and IRX's steps on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irx.bench.baselines.models import causal_lm, minilm

if TYPE_CHECKING:
    import torch

    from irx.bench.baselines.language import Step
    from irx.ir.graph import Graph

NAMES = {"f32": "float32", "bf16": "bfloat16"}
QUICK_ROUNDS = 3


@dataclass
class Lab:
    """One run: the language model's file, what to compile for, the threads of all candidates, and how long to measure.

    Executables and modules are kept, because several rows use them. `tell` hears what is being done.
    """

    path: Path
    target: str = "cpu"
    threads: int = 2
    rounds: int = 10
    turn: float = 0.2
    tell: Callable[[str], object] = lambda line: None
    _kept: dict[tuple[str, ...], Any] = field(default_factory=dict)

    def module(self, dtype: str) -> Any:
        """transformers' own language model in `f32` or `bf16`."""
        return self._keep(("module", dtype), lambda: causal_lm(self.path, NAMES[dtype]))

    def encoder(self, dtype: str) -> Any:
        """transformers' own MiniLM in `f32` or `bf16`. Raises Absent."""
        return self._keep(("encoder", dtype), lambda: minilm(NAMES[dtype]))

    def irx(self, source: str, pipeline: str = "default") -> Any:
        """The language model compiled: from the module in `f32` or `bf16`, or from the file itself (`file`)."""
        import irx

        model = str(self.path) if source == "file" else self.module(source)
        return self._keep(("irx", source, pipeline), lambda: irx.compile(model, target=self.target, pipeline=pipeline))

    def irx_with(self, model: str, pipeline: str, **options: Any) -> Any:
        """A model compiled with more options: `file`, its module in `f32` or `bf16`, or a shipped shape by name."""
        import irx

        def make() -> Any:
            more = {"tokenizer": self.tokenizer, **options} if model in NAMES else options
            return irx.compile(self._named(model), target=self.target, pipeline=pipeline, **more)

        return self._keep(("irx with", model, pipeline, *map(repr, sorted(options.items()))), make)

    def made(self, model: str, pipeline: str, data: Any = None) -> Any:
        """A model behind passes that are neither checked nor timed, which takes a fraction; nothing is kept of it.

        For rows that compare results themselves. Models are named as in `irx_with`.
        """
        import irx.api as api

        source, goal = self.source(model), api.aim(self.target)
        program, ledger = api.transform(source.program, goal, pipeline, data)
        return api.build(program, goal, ledger, source, self.tokenizer if model in NAMES else None)

    def source(self, model: str) -> Any:
        """A model as the target has it captured: `file`, its module in `f32` or `bf16`, or a shipped shape by name."""
        from irx.api import aim, floats_of
        from irx.frontends.sources import read

        def make() -> Any:
            floats = floats_of(aim(self.target))
            return read(self._named(model), activations=floats, dynamic=True, max_batch=16, max_length=None)

        return self._keep(("source", model), make)

    def _named(self, model: str) -> Any:
        """What a model's name stands for, as `irx.compile` takes it."""
        from irx.bench.programs import shape

        return self.module(model) if model in NAMES else str(self.path) if model == "file" else shape(model)

    @property
    def tokenizer(self) -> Any:
        """That of the language model."""
        from irx.frontends.sources import read

        return self._keep(("tokenizer",), lambda: read(str(self.path)).tokenizer)

    @property
    def quick(self) -> bool:
        """True for a run that only shows that everything works."""
        return self.rounds <= QUICK_ROUNDS

    def irx_encoder(self, dtype: str, ids: torch.Tensor, mask: torch.Tensor) -> Any:
        """MiniLM compiled. Raises Absent."""
        import irx

        example = {"input_ids": ids[:2], "attention_mask": mask[:2]}
        return self._keep(("irx encoder", dtype), lambda: irx.compile(self.encoder(dtype), example, target=self.target))

    def ids(self, count: int, batch: int = 1) -> torch.Tensor:
        """The same random tokens i64 [batch, count] for every candidate."""
        import torch

        words = self.module("f32").config.vocab_size
        return torch.randint(0, words, (batch, count), generator=torch.Generator().manual_seed(0))

    def _keep(self, key: tuple[str, ...], make: Any) -> Any:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]


def irx_decode(fast: Any, context: torch.Tensor) -> Step:
    """A decode step of an executable after `context` (ids [B, T]); every call does the same step again."""
    session = fast.session(len(context))
    session.append(context)
    token, length = context[:, -1:].clone(), context.shape[1]

    def step() -> torch.Tensor:
        logits: torch.Tensor = session.append(token)
        session.truncate(length)
        return logits

    return step


def irx_prefill(fast: Any, prompt: torch.Tensor) -> Step:
    """The logits of the last of the tokens `prompt` [B, T], from an empty session every time."""
    session = fast.session(len(prompt))

    def step() -> torch.Tensor:
        session.truncate(0)
        logits: torch.Tensor = session.append(prompt)
        return logits

    return step


def moved(fast: Any, graph: str, sizes: dict[str, int]) -> int:
    """Bytes that a call of a graph cannot avoid to move: its weights as stored, the cache, inputs and results."""
    from irx.analysis.roofline import graph_floor
    from irx.target import host_cpu

    return graph_floor(parsed(fast).graphs[graph], host_cpu(), sizes).work.bytes


def parsed(fast: Any) -> Any:
    """The optimized program of an executable, without its weights' values."""
    import irx

    return irx.parse(fast.program)


def graph_of(fast: Any, name: str) -> Graph:
    """A graph of the optimized program."""
    graph: Graph = parsed(fast).graphs[name]
    return graph

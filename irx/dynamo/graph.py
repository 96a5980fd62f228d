"""One compiled graph of Dynamo's, as the function that Dynamo calls in its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from irx.dynamo.frozen import Frozen, Prepared
from irx.dynamo.notes import give_up
from irx.dynamo.sizes import Place, length


class CompiledGraph:
    """Runs the kernel of a graph; the graph itself where the kernel cannot stand for it.

    That is so for an integer argument that is no size, and for good where the kernel fails although the graph does not.
    """

    def __init__(self, module: fx.GraphModule, frozen: Frozen) -> None:
        self._module = module
        self._frozen = frozen
        self._ran = False
        self._given_up = False

    def __call__(self, *args: Any) -> Any:
        """The results of the graph, in order."""
        if self._given_up:
            return self._module(*args)
        prepared = self._frozen.find(args)
        if prepared is None or not self._ran:
            return self._carefully(args)
        return self._run(prepared, args)

    def _carefully(self, args: Sequence[Any]) -> Any:
        """A run that compiles or is the first; where it fails, the graph decides whether that is the caller's fault."""
        try:
            results = self._run(self._frozen.find(args) or self._frozen.prepare(args), args)
        except Exception as error:
            results = self._module(*args)
            give_up(error)
            self._given_up = True
        self._ran = True
        return results

    def _run(self, prepared: Prepared, args: Sequence[Any]) -> Any:
        built, captured = prepared.built, prepared.built.capture
        if not all(place.read(args) in limits for place, limits in captured.ranges.items()):
            return self._module(*args)
        inputs = [length(i.read(args)) if isinstance(i, Place) else args[i] for i in captured.inputs]
        computed = prepared.kernel(*inputs)
        results = built.results.make(computed, args)
        contents = [computed[at].clone() if shared else computed[at] for _, at, shared in built.copied_back]
        for (index, *_), value in zip(built.copied_back, contents, strict=True):
            args[index].copy_(value)
        return results

"""The weights of an executable on its device: loaded when a kernel is bound, shared by all graphs.

Kernels ask for weights by name, and for constants that they computed from weights by a key that says how, so that a
dequantized weight that three graphs read exists once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from irx.errors import UnboundWeight
from irx.runtime.tensors import Packed

Stored: TypeAlias = "Tensor | Packed"


class WeightStore:
    """Weights by name, and constants derived from them; `load(name)` gives a tensor in the host's memory."""

    def __init__(self, load: Callable[[str], Stored], device: torch.device) -> None:
        self.device = device
        self._load = load
        self._weights: dict[str, Stored] = {}
        self._derived: dict[int, Any] = {}
        self._numbers: dict[Hashable, int] = {}
        self._recover: dict[str, Callable[[], Tensor]] = {}
        self._forms: dict[str, str] = {}  # of packed weights, which are bytes in whatever they are made of again

    def read(self, name: str) -> Stored:
        """A weight that is only needed now, to compute others from it.

        A packed one is not kept; a plain one is, as what is made of it is often a view.
        """
        found = self._weights.get(name)
        placed = self._placed(name) if found is None else found
        return placed if isinstance(placed, Packed) else self._weights.setdefault(name, placed)

    def borrow(self, name: str) -> Stored:
        """A weight that is only needed now, and that nothing made of it is a view of; kept only if it is already."""
        found = self._weights.get(name)
        return self._placed(name) if found is None else found

    def recoverable(self, name: str, make: Callable[[], Tensor]) -> None:
        """Say how to make a weight again from what is kept of it in another form: it need not be kept itself."""
        self._recover[name] = make

    def fetch(self, name: str) -> Tensor:
        """A plain weight as the program stores it, to write it to an artifact."""
        if name not in self._weights and name in self._recover:
            return self._recover[name]()
        found = self.keep(name)
        assert isinstance(found, Tensor)
        return found

    def keep(self, name: str) -> Stored:
        """A weight that graphs read in every call."""
        if name not in self._weights:
            self._weights[name] = self._placed(name)
        return self._weights[name]

    def detach(self, names: Iterable[str]) -> None:
        """Let go of where weights come from, which may hold a whole model; weights of these names stay available."""
        for name in names:
            if name not in self._recover:
                self.keep(name)
        self._load = _detached

    def number(self, description: Hashable) -> int:
        """A short name for how a constant is made: equal numbers for equal descriptions."""
        return self._numbers.setdefault(description, len(self._numbers))

    def derived(self, number: int, make: Callable[[], Any]) -> Any:
        """The constant of that number, made when it is asked for the first time."""
        if number not in self._derived:
            self._derived[number] = make()
        return self._derived[number]

    def kept(self, number: int) -> Any:
        """The constant of that number, None where it was never asked for."""
        return self._derived.get(number)

    @property
    def bytes(self) -> int:
        """Bytes of everything that is kept, counting shared memory once."""
        storages = {
            storage.data_ptr(): storage.nbytes()
            for storage in map(_storage, _tensors([*self._weights.values(), *self._derived.values()]))
        }
        return sum(storages.values())

    def parts(self) -> dict[str, int]:
        """Bytes of every weight that is kept, by name, and of all that was derived from them."""
        named = {name: sum(tensor.nbytes for tensor in _tensors([kept])) for name, kept in self._weights.items()}
        return named | {"packed weights": sum(tensor.nbytes for tensor in _tensors([*self._derived.values()]))}

    def _placed(self, name: str) -> Stored:
        again = self._recover.get(name) if self._load is _detached else None
        found = self._load(name) if again is None else again()
        if again is not None and name in self._forms and isinstance(found, Tensor):
            found = Packed(found, self._forms[name])
        if isinstance(found, Packed):
            self._forms[name] = found.form
            return Packed(found.raw.to(self.device), found.form)
        return found.to(self.device)


def _detached(name: str) -> Stored:
    raise UnboundWeight(name)


def _tensors(items: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for item in items:
        if isinstance(item, Packed):
            found.append(item.raw)
        elif isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, tuple):
            found += _tensors(item)
    return found


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()

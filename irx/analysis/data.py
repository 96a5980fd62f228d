"""A user's data as inputs of the graph `forward`, in two parts that share no token: one to calibrate, one to judge.

    found = split(["first text ...", "second text ..."], program, tokenizer)
    found.calibration, found.held_out       # batches: arrays by the names of the graph's inputs

For a language model texts and ids are joined and cut into windows of equal length, of which every second one is held
out; rows of ids that have one length already are taken as they are. For other models every text, and every dict of
inputs, is a batch of its own. Nothing is random: equal data give equal parts and an equal digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from irx.analysis.calibration import FORWARD, Inputs
from irx.analysis.inputs import bind_sizes
from irx.errors import BadData, TokenizerNeeded
from irx.ir.dims import Dim
from irx.ir.graph import Graph, Value
from irx.ir.opdef import Array
from irx.ir.program import Program
from irx.ir.types import TensorType, numpy_dtype

WINDOW = 256  # tokens that are predicted from each other
MOST = 8192  # tokens of each part: more cost time and change no decision
FEWEST = 8  # tokens of a window, below which a prediction says nothing of the model
ROWS = 4  # windows that run together: their logits are what takes the memory
DECODED_ROWS = 8  # of them in decoding, where a step takes hardly longer for many rows


@dataclass(frozen=True)
class Data:
    """Both parts as batches, the names of the inputs that hold ids and mask, and a hash of everything.

    `causal`: every id but the first is predicted. `bytes_per_token` is that of texts, None where ids were given.
    """

    calibration: tuple[Inputs, ...]
    held_out: tuple[Inputs, ...]
    ids: str | None = None
    mask: str | None = None
    causal: bool = False
    bytes_per_token: float | None = None
    digest: str = ""
    most_rows: int = 0
    """That a session takes; 0 where the batches are to stay as they are."""

    def sample(self, tokens: int, fitted: int) -> Data:
        """A part of the calibration data in the place of what is held out, and another one to calibrate with.

        The last batches, of about `tokens`, are judged by; of those before them the first, of about `fitted`, are
        calibrated with. Where ids are not known, all batches; where there is one batch, it serves for both.
        """
        last = max(len(self.calibration) - self._count(self.calibration[::-1], tokens), 1)
        judged = self.calibration[last:] or self.calibration
        others = self.calibration[:last] if judged is not self.calibration else judged
        others = others[: self._count(others, fitted)]
        facts = f"{self.digest} {tokens} {fitted}"
        return replace(self, calibration=others, held_out=judged, digest=_digest([*others, {}, *judged], facts))

    def decoded(self) -> Iterator[Inputs]:
        """What is held out with more rows in a batch, as many as a session takes."""
        name, stack = str(self.ids), list[Inputs]()
        for batch in self.held_out:
            rows = sum(len(one[name]) for one in (*stack, batch))
            if stack and (rows > self.most_rows or np.shape(stack[0][name])[1:] != np.shape(batch[name])[1:]):
                yield {name: np.concatenate([one[name] for one in stack])}
                stack = []
            stack.append(batch)
        yield {name: np.concatenate([one[name] for one in stack])}

    def few(self, share: int, graph: Graph) -> Data:
        """The same with one in `share` of what is held out: batches, or rows of one where there are fewer batches.

        `graph` takes the batches; where its inputs have a fixed number of rows, none are taken apart.
        """
        found = self.held_out[: max(len(self.held_out) // share, 1)]
        rows = {len(array) if array.ndim else 0 for batch in found for array in batch.values()}
        free = all(value.shape and not isinstance(value.shape[0], int) for value in graph.inputs)
        if len(self.held_out) < share and len(rows) == 1 and free:
            most = max(rows.pop() * len(self.held_out) // share, 1)
            found = tuple({name: array[:most] for name, array in batch.items()} for batch in found)
        return replace(self, held_out=found, digest=_digest(found, f"{self.digest} {share}"))

    def _count(self, batches: Sequence[Inputs], tokens: int) -> int:
        """How many of the batches hold about so many tokens; of batches without ids half of them, but for a few."""
        if self.ids is None:
            return max(len(batches) // 2, min(len(batches), 1))
        count, name = 0, self.ids
        sizes = [int(np.size(batch[name])) for batch in batches]
        while count < len(batches) and sum(sizes[:count]) < tokens:
            count += 1
        return count

    def describe(self) -> str:
        """How much the decisions rest on, in words."""
        if self.ids is None:
            return f"quality is measured on {len(self.held_out)} held-out batches"
        sizes = [np.size(batch[self.ids]) for part in (self.held_out, self.calibration) for batch in part]
        held = sum(sizes[: len(self.held_out)])
        return f"quality is measured on {held} held-out tokens; {sum(sizes) - held} others are there to calibrate with"


def split(data: Any, program: Program, tokenizer: Any = None) -> Data:
    """The two parts of `data`: a list of texts, of integer arrays or tensors ([S] or [B, S]), or of dicts of inputs.

    Raises BadData for data that do not fit the program's `forward`, TokenizerNeeded for texts without a tokenizer.
    """
    items = _items(data)
    inputs = _Forward.of(program)
    if isinstance(items[0], Mapping):
        batches = [inputs.batch(item) for item in items]
        return inputs.parted(batches[1::2], batches[::2])
    texts = all(isinstance(item, str) for item in items)
    rows = _encoded(items, tokenizer, special=not inputs.causal) if texts else _rows(items)
    inputs.check(rows)
    size = sum(len(text.encode()) for text in items) / max(sum(map(len, rows)), 1) if texts else None
    if not inputs.causal:
        batches = [inputs.of_ids(row[None, : inputs.longest]) for row in rows]
        return inputs.parted(batches[1::2], batches[::2], size)
    windows = inputs.windows(rows)
    return inputs.parted(inputs.batches(windows[1::2]), inputs.batches(windows[::2]), size)


@dataclass(frozen=True)
class _Forward:
    """The inputs of `forward`, and what is known of them."""

    graph: Graph
    ids: Value | None
    mask: Value | None
    causal: bool
    longest: int
    vocabulary: int | None
    ends: tuple[int, ...]
    most_rows: int

    @staticmethod
    def of(program: Program) -> _Forward:
        if FORWARD not in program.graphs:
            raise BadData(f"the program has no graph @{FORWARD} that data could be run through")
        graph, meta = program.graphs[FORWARD], program.meta
        ids = _by_role(program, "ids")
        causal = bool(meta.get("causal")) and not meta.get("encoder_decoder") and ids is not None
        longest = _largest(ids.shape[-1], program) if ids is not None else None
        batch = _largest(ids.shape[0], program) if ids is not None else None
        ends = tuple(meta.get("eos") or ())[:1] if causal else ()
        vocabulary = meta.get("vocab")
        mask = _by_role(program, "mask")
        return _Forward(
            graph, ids, mask, causal, longest or WINDOW, vocabulary, ends, min(batch or DECODED_ROWS, DECODED_ROWS)
        )

    def check(self, rows: Sequence[Array]) -> None:
        """Raises BadData for ids that the model has no embedding for."""
        largest = max((int(row.max()) for row in rows if row.size), default=0)
        if any(row.size and row.min() < 0 for row in rows):
            raise BadData("data hold negative ids")
        if self.vocabulary is not None and largest >= self.vocabulary:
            raise BadData(f"data hold the id {largest}, but the model knows {self.vocabulary}", fix="use its tokenizer")

    def windows(self, rows: Sequence[Array]) -> list[Array]:
        """Windows of equal length: the rows themselves where they are, else pieces of them joined."""
        assert self.ids is not None
        lengths = {len(row) for row in rows}
        fixed = self.ids.shape[-1]
        if len(rows) > 1 and len(lengths) == 1 and FEWEST <= min(lengths) <= self.longest:
            return _spread(list(rows))
        stream = np.concatenate([piece for row in rows for piece in (row, np.array(self.ends, row.dtype))])
        size = fixed if isinstance(fixed, int) else min(WINDOW, self.longest, len(stream) // 2)
        count = len(stream) // size if size >= FEWEST else 0
        if count < 2:
            raise BadData(f"data hold {len(stream)} tokens, too few for two windows", fix=f"give {2 * WINDOW} or more")
        return _spread(list(stream[: count * size].reshape(count, size)))

    def batches(self, windows: Sequence[Array]) -> list[Inputs]:
        """Windows stacked, a few at a time."""
        assert self.ids is not None
        rows, fixed = min(self.most_rows, ROWS), self.ids.shape[0]
        if isinstance(fixed, int):
            rows, windows = fixed, windows[: len(windows) // fixed * fixed]
        return [self.of_ids(np.stack(windows[i : i + rows])) for i in range(0, len(windows), rows)]

    def of_ids(self, ids: Array) -> Inputs:
        """The inputs for ids that stand for whole texts."""
        if self.ids is None:
            raise BadData("it is not known which input takes ids", fix="give data= as a list of dicts of inputs")
        given = {self.ids.name: ids}
        if self.mask is not None:
            given[self.mask.name] = np.ones(ids.shape)
        return self.batch(given)

    def batch(self, given: Mapping[str, Any]) -> Inputs:
        """Inputs as arrays in the dtypes of the graph. Raises BadData for other names, InputMismatch for sizes."""
        names = [value.name for value in self.graph.inputs]
        if set(given) != set(names):
            what = f"data have the inputs {', '.join(given) or 'none'}, but @{FORWARD} takes {', '.join(names)}"
            raise BadData(what, fix="give data= as a list of dicts with exactly these")
        found = {v.name: _array(given[v.name]).astype(numpy_dtype(v.dtype)) for v in self.graph.inputs}
        bind_sizes(self.graph, found, {})
        return found

    def parted(self, calibration: Sequence[Inputs], held_out: Sequence[Inputs], size: float | None = None) -> Data:
        """The two parts with their digest. Raises BadData where one of them is empty."""
        if not calibration or not held_out:
            raise BadData("data are too few for two parts", fix="give twice as many or more")
        ids, mask = (value.name if value is not None else None for value in (self.ids, self.mask))
        digest = _digest(chain(calibration, [{}], held_out), f"{ids} {mask} {self.causal} {size}")
        return Data(tuple(calibration), tuple(held_out), ids, mask, self.causal, size, digest, self.most_rows)


def _items(data: Any) -> list[Any]:
    if isinstance(data, (str, bytes, Mapping)) or not isinstance(data, Iterable):
        raise BadData(f"data is one {type(data).__name__}", fix="give a list of texts, of ids, or of dicts of inputs")
    items = list(data)
    kinds = {"texts" if isinstance(i, str) else "dicts" if isinstance(i, Mapping) else "arrays" for i in items}
    if len(kinds) != 1:
        what = "data is an empty list" if not items else f"data mix {' and '.join(sorted(kinds))}"
        raise BadData(what, fix="give a list of texts, of ids, or of dicts of inputs")
    return items


def _by_role(program: Program, role: str) -> Value | None:
    """The input with that role; the only integer input of a program that states no roles takes ids."""
    graph, stated = program.graphs[FORWARD], program.meta.get("inputs")
    tensors = [value for value in graph.inputs if isinstance(value.type, TensorType)]
    if stated is not None:
        names = [entry["name"] for entry in stated if entry.get("role") == role]
        found = [value for value in tensors if value.name in names]
    else:
        integers = [value for value in tensors if value.dtype in ("i32", "i64") and value.tensor.rank == 2]
        found = integers if role == "ids" else []
    return found[0] if len(found) == 1 else None


def _largest(dim: Dim, program: Program) -> int | None:
    if isinstance(dim, int):
        return dim
    limits = program.sizes.get(str(dim))
    return limits.high if limits is not None else None


def _encoded(texts: Sequence[str], tokenizer: Any, *, special: bool) -> list[Array]:
    inner = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if inner is None:
        raise TokenizerNeeded(
            "data are texts, and no tokenizer is known", fix="pass tokenizer=, or ids instead of text"
        )
    return [np.array(inner.encode(text, add_special_tokens=special).ids, np.int64) for text in texts]


def _rows(items: Sequence[Any]) -> list[Array]:
    """Arrays [S] and [B, S] as rows."""
    arrays = [_array(item) for item in items]
    for array in arrays:
        if array.dtype.kind not in "iu" or array.ndim not in (1, 2):
            what = f"data hold an array {array.dtype}{list(array.shape)}"
            raise BadData(what, fix="ids are integers of the shape [S] or [B, S]; give other inputs as dicts")
    return [row.astype(np.int64) for array in arrays for row in (array if array.ndim == 2 else array[None])]


def _array(item: Any) -> Array:
    """An array of what may be a tensor on any device."""
    return np.asarray(item.detach().cpu() if hasattr(item, "detach") else item)


def _spread(windows: list[Array]) -> list[Array]:
    """At most as many windows as both parts may hold, taken evenly from all of them."""
    most = 2 * max(MOST // len(windows[0]), 1)
    count = min(len(windows), most)
    return [windows[i * len(windows) // count] for i in range(count)]


def _digest(batches: Iterable[Inputs], facts: str) -> str:
    found = hashlib.sha256(f"{facts}\n".encode())
    for batch in batches:
        found.update(f"{len(batch)} inputs\n".encode())
        for name in sorted(batch):
            array = np.ascontiguousarray(batch[name])
            found.update(f"{name} {array.dtype}{array.shape}\n".encode())
            found.update(array.tobytes())
    return found.hexdigest()

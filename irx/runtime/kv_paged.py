"""States in pages: keys and values lie in pages of so many slots, taken when tokens come and given back when they go.

A `PageStore` has the pages of one attention site, of all rows of a session and of its forks. A `PageTable` says for
each row which page holds its slots [0, page), [page, 2 page) and so on; kernels walk it. So rows of different lengths
take what they need, and a fork takes nothing: it reads the pages of the other, and whoever writes to a page that
others read copies it first. (PagedAttention, Kwon et al. 2023, arXiv:2309.06180.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal
from weakref import WeakSet

import torch
from torch import Tensor

from irx.errors import OutOfPages
from irx.ir.types import KVType
from irx.runtime.arena import zeros
from irx.runtime.kv_planes import DensePlane, Plane, numbered, planes_of

NONE = -1  # where a row has no page


class PageStore:
    """Pages [pages, G, slots of a page, D] of keys and values, and of each how many rows read it."""

    def __init__(self, kv: KVType, device: torch.device) -> None:
        assert kv.page is not None, "the type says how large pages are"
        self.page, self.most = kv.page, kv.pages
        self.keys, self.values = planes_of(kv, 0, device, kv.page)
        self.readers: list[int] = []
        self.free: list[int] = []
        self.tables: WeakSet[PageTable] = WeakSet()

    def side(self, name: Literal["keys", "values"]) -> Plane:
        """The pages of keys, or of values."""
        return self.keys if name == "keys" else self.values

    @property
    def used(self) -> int:
        """Pages that somebody reads."""
        return len(self.readers) - len(self.free)

    @property
    def bytes(self) -> int:
        """Bytes allocated."""
        return self.keys.bytes + self.values.bytes

    def reserve(self, count: int) -> None:
        """Have `count` free pages, a quarter more at a time. Raises OutOfPages before anything changes."""
        missing = count - len(self.free)
        if missing <= 0:
            return
        held = len(self.readers)
        if self.most is not None and held + missing > self.most:
            raise OutOfPages(self.used + count, self.most, self.page)
        size = max(held + missing, held + held // 4)
        size = size if self.most is None else min(size, self.most)
        self.keys, self.values = _with_pages(self.keys, size), _with_pages(self.values, size)
        self.free += range(size - 1, held - 1, -1)
        self.readers += [0] * (size - held)
        for table in self.tables:
            table.follow()

    def take(self) -> int:
        """A free page, for one row."""
        page = self.free.pop()
        self.readers[page] = 1
        return page

    def copy(self, page: int) -> int:
        """A page of its own for one of the rows that read this one."""
        made = self.take()
        for plane in (self.keys, self.values):
            for part in (plane.tensor, *plane.parameters.values()):
                part[made] = part[page]
        self.release(page)
        return made

    def release(self, page: int) -> None:
        """One row less reads a page."""
        self.readers[page] -= 1
        if not self.readers[page]:
            self.free.append(page)


class PageTable:
    """Of each row the pages that hold its tokens, in order; as a tensor i32 [B, columns] for kernels."""

    def __init__(self, store: PageStore, rows: list[list[int]]) -> None:
        self.store, self.rows = store, rows
        device = store.keys.device
        self.tensor = torch.full((len(rows), max(map(len, rows), default=0)), NONE, dtype=torch.int32, device=device)
        self.readers: WeakSet[PagedPlane] = WeakSet()
        for row, pages in enumerate(rows):
            self._enter(row, 0, pages)
        store.tables.add(self)

    @staticmethod
    def of(kv: KVType, batch: int, device: torch.device) -> PageTable:
        """For states of a type, without tokens."""
        return PageTable(PageStore(kv, device), [[] for _ in range(batch)])

    def __del__(self) -> None:
        for page in (page for row in self.rows for page in row):
            self.store.release(page)

    @property
    def columns(self) -> int:
        """Pages that a row may have before the tensor is replaced."""
        return self.tensor.shape[1]

    @property
    def bytes(self) -> int:
        """Bytes allocated: of pages, which forks have together, the part of one of them."""
        return self.store.bytes // max(1, len(self.store.tables)) + self.tensor.numel() * self.tensor.element_size()

    def room(self, lengths: Sequence[int]) -> int:
        """How long the longest row may become while all rows grow alike."""
        page = self.store.page
        return max(lengths) + min(len(row) * page - n for row, n in zip(self.rows, lengths, strict=True))

    def extend(self, before: Sequence[int], after: Sequence[int]) -> None:
        """Pages for rows that grow; those that others read are copied where they are written to. Raises OutOfPages."""
        written = enumerate(zip(before, after, strict=True))
        shared = [place for row, (first, end) in written for place in self._shared(row, first, end)]
        wanted = [max(0, self._count(n) - len(row)) for row, n in zip(self.rows, after, strict=True)]
        self.store.reserve(len(shared) + sum(wanted))
        for row, column in shared:
            self._enter(row, column, [self.store.copy(self.rows[row][column])])
        self._widen(max(map(self._count, after), default=0))
        for row, count in enumerate(wanted):
            if count:
                self._enter(row, len(self.rows[row]), [self.store.take() for _ in range(count)])

    def own(self) -> None:
        """Copy all pages that others read."""
        self.extend((0,) * len(self.rows), [len(row) * self.store.page for row in self.rows])

    def truncate(self, lengths: Sequence[int]) -> None:
        """Give back the pages behind so many tokens of each row."""
        for row, length in enumerate(lengths):
            count = self._count(length)
            if count < len(self.rows[row]):
                for page in self.rows[row][count:]:
                    self.store.release(page)
                del self.rows[row][count:]
                self.tensor[row, count:] = NONE

    def fork(self) -> PageTable:
        """Another table of the same pages."""
        for page in (page for row in self.rows for page in row):
            self.store.readers[page] += 1
        return PageTable(self.store, [list(row) for row in self.rows])

    def follow(self) -> None:
        """The store has moved, or the table."""
        for plane in self.readers:
            plane.follow()

    def _count(self, slots: int) -> int:
        return -(-slots // self.store.page)

    def _shared(self, row: int, before: int, after: int) -> Iterator[tuple[int, int]]:
        """Where pages that others read would be written to."""
        last = min(self._count(after), len(self.rows[row])) if after > before else 0
        for column in range(before // self.store.page, last):
            if self.store.readers[self.rows[row][column]] > 1:
                yield row, column

    def _widen(self, columns: int) -> None:
        if columns > self.columns:
            wider = self.tensor.new_full((len(self.rows), max(columns, 2 * self.columns)), NONE)
            wider[:, : self.columns] = self.tensor
            self.tensor = wider
            self.follow()

    def _enter(self, row: int, column: int, pages: list[int]) -> None:
        self.rows[row][column : column + len(pages)] = pages
        self.tensor[row, column : column + len(pages)] = torch.tensor(pages, dtype=torch.int32)


class PagedPlane(Plane):
    """The keys, or the values, of a state in pages: slots of rows, which lie where its table says."""

    __slots__ = ("__weakref__", "pages", "side", "table")

    def __init__(self, table: PageTable, side: Literal["keys", "values"]) -> None:
        pages = table.store.side(side)
        super().__init__(pages.tensor, pages.channels, pages.arrangement, pages.coding, pages.parameters)
        self.pages, self.table, self.side = pages, table, side
        table.readers.add(self)

    def follow(self) -> None:
        """The pages have moved, or the table."""
        self.pages = self.table.store.side(self.side)
        self.tensor, self.parameters = self.pages.tensor, self.pages.parameters
        self.number = numbered()

    @property
    def capacity(self) -> int:
        """Slots that a row may have before the table is replaced."""
        return self.table.columns * self.table.store.page

    def read(self, first: int, end: int) -> Tensor:
        """The tokens of slots [first, end): [B, G, n, channels], a copy."""
        page = self.table.store.page
        start = first // page
        return self._gathered(start, -(-end // page)).read(first - start * page, end - start * page)

    def write(self, first: int, tokens: Tensor) -> None:
        """Tokens [B, G, n, channels] to the slots from `first` on."""
        slots = torch.arange(first, first + tokens.shape[2], device=self.device)
        self.scatter(torch.arange(len(tokens), device=self.device)[:, None], slots.expand(len(tokens), -1), tokens)

    def scatter(self, rows: Tensor, slots: Tensor, tokens: Tensor) -> None:
        """Tokens [B, G, n, channels] to slots [B, n], the same in all heads; `rows` is [B, 1], counting."""
        heads = torch.arange(self.heads, device=self.device)
        self.put(rows[..., None], heads, slots[..., None], tokens.transpose(1, 2))

    def put(self, rows: Tensor, heads: Tensor, slots: Tensor, tokens: Tensor) -> None:
        """Tokens [..., channels] to one slot each; rows, heads and slots broadcast."""
        page = self.table.store.page
        self.pages.put(self.table.tensor[rows, slots // page].long(), heads, slots % page, tokens)

    def take(self, index: Tensor, slots: int = 0) -> Plane:
        """A plane that is in no pages, of the slots `index` [B, G, K] of every row and head."""
        return self._gathered(0, self.table.columns).take(index, slots)

    def grown(self, slots: int) -> Plane:
        """Raises ValueError: see `PageTable.extend`."""
        raise ValueError("pages are taken one by one")

    def clone(self) -> Plane:
        """Raises ValueError: see `PageTable.fork`."""
        raise ValueError("keys and values share a table")

    def _gathered(self, first: int, end: int) -> Plane:
        """The pages [first, end) of all rows, one behind the other; zeros where a row has none."""
        index = self.table.tensor[:, first:end].long()
        parameters = {name: self._beside(part, index, 0) for name, part in self.parameters.items()}
        tensor = self._beside(self.tensor, index, self.coding.empty)
        if isinstance(self.pages, DensePlane):
            return DensePlane(tensor)
        return Plane(tensor, self.channels, self.arrangement, self.coding, parameters)

    def _beside(self, part: Tensor, index: Tensor, empty: float) -> Tensor:
        if not len(part):
            batch, count = index.shape
            return part.new_full((batch, part.shape[1], count * part.shape[2], *part.shape[3:]), empty)
        found = part[index.clamp_min(0)]
        found[index < 0] = empty
        return found.movedim(1, 2).flatten(2, 3)


def _with_pages(plane: Plane, count: int) -> Plane:
    """A copy with so many pages, new ones empty."""
    parts = {name: _longer(part, count, 0) for name, part in plane.parameters.items()}
    tensor = _longer(plane.tensor, count, plane.coding.empty)
    if isinstance(plane, DensePlane):
        return DensePlane(tensor)
    return Plane(tensor, plane.channels, plane.arrangement, plane.coding, parts)


def _longer(part: Tensor, count: int, empty: float) -> Tensor:
    larger = zeros((count, *part.shape[1:]), part.dtype, part.device)
    larger[: len(part)] = part
    larger[len(part) :] = empty
    return larger

"""Page tables: whose pages are whose after any number of changes, and planes that read through them."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

from irx.ir.types import KVType
from irx.ir.values import parse_type
from irx.runtime.kv import KVState, empty_state, step_of
from irx.runtime.kv_paged import PageTable

CPU = torch.device("cpu")


def kv(text: str = "kv<heads=2, dim=4, dense, f32, page=4>") -> KVType:
    found = parse_type(text)
    assert isinstance(found, KVType)
    return found


def test_pages_have_as_many_readers_as_rows_that_list_them() -> None:
    """Tables that grow, are cut, forked and dropped at random; kernels' tensors say what the lists say."""
    draw = random.Random(0)
    first = PageTable.of(kv(), 2, CPU)
    store, tables = first.store, [first]
    lengths = {id(first): [0, 0]}
    del first
    for _ in range(300):
        table = draw.choice(tables)
        own = lengths[id(table)]
        kind = draw.random()
        if kind < 0.6:
            after = [n + draw.randrange(6) for n in own]
            table.extend(own, after)
            lengths[id(table)] = after
        elif kind < 0.8:
            lengths[id(table)] = [draw.randrange(n + 1) for n in own]
            table.truncate(lengths[id(table)])
        elif kind < 0.9 and len(tables) < 4:
            tables.append(table.fork())
            lengths[id(tables[-1])] = list(own)
        elif len(tables) > 1:
            tables.remove(table)
        del table
        read = Counter(page for one in tables for row in one.rows for page in row)
        assert {page: count for page, count in enumerate(store.readers) if count} == read
        assert sorted(store.free) == [page for page, count in enumerate(store.readers) if not count]
        for table in tables:
            assert [[page for page in row if page >= 0] for row in table.tensor.tolist()] == table.rows
            assert all(-(-n // 4) <= len(row) for n, row in zip(lengths[id(table)], table.rows, strict=True))
        del table


def test_what_is_written_is_read_and_no_page_shows_what_another_row_wrote() -> None:
    state = empty_state(kv(), 2, CPU)
    tokens = torch.randn(2, 2, 7, 4)
    state.admit(step_of((0, 0), [list(range(7))] * 2) or pytest.fail("there are no holes"), 100)
    state.keys.write(0, tokens)
    assert torch.equal(state.keys.read(0, 7), tokens) and torch.equal(state.keys.read(5, 7), tokens[:, :, 5:7])
    assert not state.k[:, :, 7:].any() and not state.v.any()
    state.lengths = (7, 7)
    copy = state.clone()
    copy.truncate((0, 7))
    assert not copy.k[0].any() and torch.equal(copy.keys.read(0, 7)[1], tokens[1])
    index = torch.tensor([6, 0, 2]).expand(2, 2, -1)
    assert torch.equal(state.take(index).k, tokens[:, :, [6, 0, 2]])


def test_states_leave_their_pages_where_tokens_come_in_no_order() -> None:
    state: KVState = empty_state(kv(), 1, CPU, 5)
    tokens = torch.randn(1, 2, 5, 4)
    state.keys.write(0, tokens)
    state.lengths = (5,)
    state.loosen()
    assert state.paged is None and torch.equal(state.k[:, :, :5], tokens)
    assert state.slot_positions()[0, 0].tolist()[:6] == [0, 1, 2, 3, 4, -1]


def test_types_in_pages_are_read_as_they_are_printed() -> None:
    text = "kv<heads=2, dim=4, blocked, bf16, code=token8, page=64, pages=7>"
    assert str(kv(text)) == text
    for wrong in ("page=0", "pages=3", "page=4, pages=0"):
        with pytest.raises(ValueError, match="pages of 1 slot at least"):
            kv(f"kv<heads=2, dim=4, dense, f32, {wrong}>")

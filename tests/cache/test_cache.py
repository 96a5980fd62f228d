import logging
import multiprocessing
import os
import random
import time
from dataclasses import replace
from pathlib import Path

import pytest

from irx.cache import CacheKey, Store, cache_folder, hash_file

KEY = CacheKey("capture", "abc", device="cpu", options=(("dtype", "f32"),), versions=(("torch", "2.13"),))
PARTS = {"program": b"program @x {}\n", "empty": b"", "blob": bytes(range(256)) * 40}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def entry(store: Store) -> Path:
    (path,) = store.folder.glob("*/*.entry")
    return path


def test_saved_parts_load(store: Store) -> None:
    assert store.load(KEY) is None
    store.save(KEY, PARTS)
    assert store.load(KEY) == PARTS
    assert Store(store.folder).load(KEY) == PARTS


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "kernel"},
        {"source": "abd"},
        {"device": "a100"},
        {"options": (("dtype", "bf16"),)},
        {"versions": (("torch", "2.12"),)},
    ],
)
def test_every_field_of_the_key_counts(store: Store, change: dict[str, str]) -> None:
    store.save(KEY, PARTS)
    assert store.load(replace(KEY, **change)) is None


def test_order_of_options_does_not_count() -> None:
    options = (("a", "1"), ("b", "2"))
    assert replace(KEY, options=options).digest == replace(KEY, options=options[::-1]).digest


@pytest.mark.parametrize("where", ["header", "body", "truncated", "longer", "empty"])
def test_damage_is_a_miss_with_a_note(store: Store, where: str, caplog: pytest.LogCaptureFixture) -> None:
    store.save(KEY, PARTS)
    path = entry(store)
    content = path.read_bytes()
    damaged = {
        "header": content.replace(b'"format"', b'"farmat"', 1),
        "body": content[:-1] + b"!",
        "truncated": content[:-7],
        "longer": content + b"x",
        "empty": b"",
    }
    path.write_bytes(damaged[where])
    with caplog.at_level(logging.WARNING):
        assert store.load(KEY) is None
    assert "damaged" in caplog.text
    assert not path.exists()
    assert store.fetch(KEY, lambda: PARTS) == PARTS
    assert store.load(KEY) == PARTS


def test_entries_used_longest_ago_go_first(store: Store) -> None:
    keys = [CacheKey("kernel", str(number)) for number in range(4)]
    for age, key in enumerate(keys[:3]):
        store.save(key, {"data": bytes(1000)})
        path = store._path(key)
        os.utime(path, (1000 + age, 1000 + age))
    store.load(keys[0])  # now the one used last
    store.limit = store.size() + 100
    store.save(keys[3], {"data": bytes(1000)})
    assert [store.load(key) is not None for key in keys] == [True, False, True, True]
    assert store.size() <= store.limit


def test_an_entry_above_the_limit_is_not_kept(tmp_path: Path) -> None:
    store = Store(tmp_path, limit=100)
    assert store.fetch(KEY, lambda: PARTS) == PARTS
    assert store.size() == 0


def test_leftovers_of_killed_writers_go(store: Store) -> None:
    store.save(KEY, PARTS)
    old, young = entry(store).with_name("old.tmp"), entry(store).with_name("young.tmp")
    old.write_bytes(b"half")
    young.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    store.evict()
    assert not old.exists()
    assert young.exists()


def test_a_folder_that_cannot_be_made_costs_only_the_entry(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    store = Store(blocked)
    assert store.fetch(KEY, lambda: PARTS) == PARTS
    assert "building without it" in caplog.text
    store.save(KEY, PARTS)
    assert "cannot be written" in caplog.text


def test_a_build_that_fails_leaves_nothing_and_releases_the_lock(store: Store) -> None:
    def fail() -> dict[str, bytes]:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        store.fetch(KEY, fail)
    assert store.fetch(KEY, lambda: PARTS) == PARTS


def test_a_build_may_fetch_another_entry(store: Store) -> None:
    inner = CacheKey("kernel", "inner")
    assert store.fetch(KEY, lambda: store.fetch(inner, lambda: PARTS)) == PARTS
    assert store.load(inner) == PARTS


def _fetch_in_process(folder: Path, log: Path, start: float) -> None:
    def build() -> dict[str, bytes]:
        with log.open("a") as file:
            file.write("built\n")
        time.sleep(0.1)
        return PARTS

    time.sleep(max(0.0, start - time.time()))
    if Store(folder).fetch(KEY, build) != PARTS:
        raise AssertionError("wrong parts")


def test_of_many_processes_one_builds(store: Store, tmp_path: Path) -> None:
    log = tmp_path / "log"
    context = multiprocessing.get_context("fork")
    start = time.time() + 0.2
    processes = [context.Process(target=_fetch_in_process, args=(store.folder, log, start)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert log.read_text() == "built\n"


def _kernel(number: int) -> bytes:
    """A fake object: its bytes say which it is, and not all have the same length."""
    return f"kernel {number} ".encode() * (50 + 13 * number)


def _compile_all(folder: Path, seed: int, limit: int, ready: Path, fail: Path) -> None:
    """What a compiling process does: fetch many kernels, some of them twice, in an order of its own."""
    numbers = list(range(40)) + list(range(0, 40, 3))
    random.Random(seed).shuffle(numbers)
    ready.touch()
    while len(list(ready.parent.glob("ready*"))) < 2:
        time.sleep(0.001)
    for number in numbers:
        store = Store(folder, limit)
        parts = store.fetch(CacheKey("kernel", str(number)), lambda number=number: {"object": _kernel(number)})
        if parts != {"object": _kernel(number)}:
            fail.write_text(f"kernel {number} is wrong")


@pytest.mark.parametrize("limit", [2**30, 20_000], ids=["all fit", "some are evicted"])
def test_two_processes_compiling_at_once_do_not_corrupt_the_cache(tmp_path: Path, limit: int) -> None:
    folder, fail = tmp_path / "cache", tmp_path / "fail"
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_compile_all, args=(folder, seed, limit, tmp_path / f"ready{seed}", fail))
        for seed in range(2)
    ]
    for process in processes:
        process.start()
    entries = folder / "kernel"
    while any(process.is_alive() for process in processes):  # meanwhile a disk goes bad
        for path in list(entries.glob("*.entry"))[:1]:
            _damage(path)
        time.sleep(0.005)
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert not fail.exists()
    store = Store(folder, limit)
    for number in range(40):
        found = store.fetch(CacheKey("kernel", str(number)), lambda number=number: {"object": _kernel(number)})
        assert found == {"object": _kernel(number)}
    assert store.size() <= limit
    assert list(folder.glob("*/*.tmp")) == []


def _damage(path: Path) -> None:
    try:
        content = path.read_bytes()
        path.write_bytes(content[:-3] + b"!!!")
    except OSError:
        return  # it was evicted in between


def test_many_small_entries_do_not_walk_the_folder_each_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    walks = []
    entries = Store._entries
    monkeypatch.setattr(Store, "_entries", lambda self: walks.append(1) or entries(self))
    for number in range(100):
        store.save(CacheKey("kernel", str(number)), {"object": bytes(100)})
    assert len(walks) == 1
    store.limit = 1000
    store.save(KEY, PARTS)
    assert store.size() <= 1000


def test_the_folder_is_the_users_or_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IRX_CACHE_DIR", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("IRX_CACHE_DIR")
    assert cache_folder().name == "irx"


def test_files_hash_by_content(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"same")
    second.write_bytes(b"same")
    assert hash_file(first) == hash_file(second)
    second.write_bytes(b"other")
    assert hash_file(first) != hash_file(second)

"""The on-disk cache: what was compiled once is found again, by a key that names everything it depends on.

An entry is one file: a line of JSON (format version, then name, size and sha256 of every part), then the parts. It is
written beside its place and renamed, so a reader sees a whole entry or none. What does not match its checksum is
removed and counts as absent. Nothing is unpickled; parts are bytes that their reader has to understand.

The folder is IRX_CACHE_DIR, or the user's cache folder. Above its size limit the entries used longest ago go first.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

from filelock import FileLock
from platformdirs import user_cache_dir

FORMAT = 1
DEFAULT_LIMIT = 4 * 2**30
STALE_SECONDS = 3600  # a temporary file this old belongs to a process that was killed
COUNT_SECONDS = 60  # how long a store trusts its count of the folder's bytes, to which other processes add

_NEVER = float("-inf")

logger = logging.getLogger(__name__)


class _Damaged(Exception):
    """An entry whose bytes are not those that were written."""


@dataclass(frozen=True)
class CacheKey:
    """Everything a cached result depends on; two results may share an entry only if all of it is equal.

    `kind`: what the entry holds, as "capture" or "kernel"; also the name of its folder.
    `source`: the hash of what went in: a model file, a program's text, a kernel's source.
    `device`: the name of the device it was built for, empty where that does not matter.
    `options`: settings that change the result, as (name, value) pairs.
    `versions`: of every package whose change could change the result, as (package, version) pairs.
    """

    kind: str
    source: str
    device: str = ""
    options: tuple[tuple[str, str], ...] = ()
    versions: tuple[tuple[str, str], ...] = ()

    @property
    def digest(self) -> str:
        """sha256 of the fields; the order of options and of versions does not matter."""
        table = {**asdict(self), "options": sorted(self.options), "versions": sorted(self.versions)}
        return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """sha256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """IRX_CACHE_DIR, or the user's cache folder for irx."""
    return Path(os.environ.get("IRX_CACHE_DIR") or user_cache_dir("irx", appauthor=False))


class Store:
    """Entries under one folder, at most `limit` bytes together; safe for many processes at once."""

    def __init__(self, folder: Path | None = None, limit: int = DEFAULT_LIMIT) -> None:
        self.folder = folder or cache_folder()
        self.limit = limit
        self._counted = _NEVER  # when the folder was last walked
        self._bytes = 0  # what was found then, and what this store has written since

    def load(self, key: CacheKey) -> dict[str, bytes] | None:
        """The parts saved under `key`, or None. A damaged entry is removed."""
        path = self._path(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        try:
            parts = _unpack(content)
        except _Damaged as error:
            logger.warning("cache entry %s is damaged (%s); it is removed and will be built again", path, error)
            path.unlink(missing_ok=True)
            return None
        _touch(path)
        return parts

    def save(self, key: CacheKey, parts: Mapping[str, bytes]) -> None:
        """Write an entry, then make room. A folder that cannot be written costs the entry, not the compilation."""
        try:
            content = _pack(parts)
            self._write(self._path(key), content)
            self._bytes += len(content)
            if self._must_count():
                self.evict()
        except OSError as error:
            logger.warning("the cache at %s cannot be written (%s); nothing is kept", self.folder, error)

    def fetch(self, key: CacheKey, build: Callable[[], Mapping[str, bytes]]) -> dict[str, bytes]:
        """The entry of `key`, built and saved first where it is absent. Of many callers at once, one builds."""
        found = self.load(key)
        if found is not None:
            return found
        lock = self._acquire(self._path(key))
        if lock is None:
            return dict(build())
        try:
            found = self.load(key)  # another caller may have built it while this one waited
            if found is None:
                found = dict(build())
                self.save(key, found)
            return found
        finally:
            lock.release()

    def evict(self) -> None:
        """Remove the entries used longest ago until the limit holds, and what killed processes left behind."""
        with self._lock(self.folder / "evict"):
            self._remove_stale()
            entries = sorted(self._entries(), key=lambda entry: entry[1].st_mtime_ns)
            self._bytes, self._counted = sum(status.st_size for _, status in entries), time.monotonic()
            for path, status in entries:
                if self._bytes <= self.limit:
                    return
                path.unlink(missing_ok=True)
                path.with_suffix(".lock").unlink(missing_ok=True)
                self._bytes -= status.st_size

    def size(self) -> int:
        """Bytes of all entries."""
        return sum(status.st_size for _, status in self._entries())

    def _must_count(self) -> bool:
        """True when the limit may be exceeded.

        To walk the folder for each of many small entries would take longer than to write them, so in between what this
        store writes is added up.
        """
        return self._bytes > self.limit or time.monotonic() - self._counted > COUNT_SECONDS

    def _path(self, key: CacheKey) -> Path:
        return self.folder / key.kind / f"{key.digest}.entry"

    def _lock(self, path: Path) -> FileLock:
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path.with_suffix(".lock"))

    def _acquire(self, path: Path) -> FileLock | None:
        try:
            lock = self._lock(path)
            lock.acquire()
        except OSError as error:
            logger.warning("the cache at %s cannot be locked (%s); building without it", self.folder, error)
            return None
        return lock

    def _write(self, path: Path, content: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            try:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                os.replace(file.name, path)
            except OSError:
                os.unlink(file.name)
                raise

    def _entries(self) -> list[tuple[Path, os.stat_result]]:
        found = []
        for path in self.folder.glob("*/*.entry"):
            try:
                found.append((path, path.stat()))
            except FileNotFoundError:
                continue  # another process removed it between the two calls
        return found

    def _remove_stale(self) -> None:
        oldest = time.time() - STALE_SECONDS
        for path in self.folder.glob("*/*.tmp"):
            try:
                if path.stat().st_mtime < oldest:
                    path.unlink(missing_ok=True)
            except FileNotFoundError:
                continue  # its writer renamed it between the two calls


def _pack(parts: Mapping[str, bytes]) -> bytes:
    table = [[name, len(data), hashlib.sha256(data).hexdigest()] for name, data in parts.items()]
    head = json.dumps({"format": FORMAT, "parts": table}).encode() + b"\n"
    return b"".join((head, hashlib.sha256(head).hexdigest().encode(), b"\n", *parts.values()))


def _unpack(content: bytes) -> dict[str, bytes]:
    head, _, rest = content.partition(b"\n")
    checksum, _, body = rest.partition(b"\n")
    if hashlib.sha256(head + b"\n").hexdigest().encode() != checksum:
        raise _Damaged("its header was altered")
    table = json.loads(head)
    if table.get("format") != FORMAT:
        raise _Damaged(f"its format is {table.get('format')}, not {FORMAT}")
    if len(body) != sum(size for _, size, _ in table["parts"]):
        raise _Damaged("it has the wrong length")
    parts, start = {}, 0
    for name, size, checksum_of_part in table["parts"]:
        data = body[start : start + size]
        if hashlib.sha256(data).hexdigest() != checksum_of_part:
            raise _Damaged(f"its part {name!r} was altered")
        parts[name] = data
        start += size
    return parts


def _touch(path: Path) -> None:
    """Note the use, which is what the order of eviction goes by."""
    try:
        os.utime(path)
    except OSError:
        logger.debug("the time of use of %s cannot be noted", path)

import json
import logging
import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest

from irx.errors import BadSchedules
from irx.tuning import Database, Fingerprint, Merged, Row, Schedule, TaskKey, faster, read_document, write_document

HERE = Fingerprint("cpu", "A CPU", 2, ("avx2", "avx512f"))
THERE = Fingerprint("cpu", "Another CPU", 8, ("avx2",))
KEY = TaskKey("gemv", "abc", "rows=1,n=64,k=64", "q4_1")


def row(template: str = "gemv", seconds: float = 1.0, device: Fingerprint = HERE, tile: int = 1) -> Row:
    key = replace(KEY, template=template)
    return Row(device, key, Schedule(tile=tile), seconds, 0.01, 2.0, 12, 1, "2026-01-31", {"irx": "0.1.0"})


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path / "schedules")


def files(database: Database) -> list[Path]:
    return sorted(database.folder.glob("*.jsonl"))


def test_rows_read_back(database: Database) -> None:
    assert database.rows() == []
    database.add(row())
    database.add(row("norm", device=THERE))
    assert database.rows_of(HERE) == Database(database.folder).rows_of(HERE) == [row()]
    assert set(map(str, database.rows())) == {str(row()), str(row("norm", device=THERE))}
    assert len(files(database)) == 2


@pytest.mark.parametrize("field", ["template", "version", "shape", "dtype"])
def test_every_part_of_a_key_counts(database: Database, field: str) -> None:
    database.add(row())
    other = replace(row(), key=replace(KEY, **{field: "other"}))
    database.add(other)
    assert database.rows() == [row(), other]


def test_the_last_row_of_a_kernel_counts(database: Database) -> None:
    database.add(row(seconds=1.0))
    database.add(row(seconds=3.0, tile=2))
    assert database.rows() == [row(seconds=3.0, tile=2)]


DAMAGE = [
    b"not json",
    b"[]",
    b"{}",
    b"3",
    json.dumps({**row().to_json(), "format": 99}).encode(),
    json.dumps({**row().to_json(), "seconds": -1}).encode(),
    json.dumps({**row().to_json(), "schedule": {"tile": [1]}}).encode(),
    json.dumps(row().to_json()).encode()[:-20],
    b"\xff\xfe\x00",
]


@pytest.mark.parametrize("line", DAMAGE)
def test_a_damaged_line_is_left_out_with_a_note(
    database: Database, line: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    database.add(row("first"))
    (file,) = files(database)
    file.write_bytes(file.read_bytes() + line + b"\n")
    database.add(row("second"))
    with caplog.at_level(logging.WARNING):
        assert [found.key.template for found in database.rows()] == ["first", "second"]
    assert "rows that cannot be read are left out: 2" in caplog.text


def test_a_line_that_was_cut_off_does_not_take_the_next_with_it(database: Database) -> None:
    database.add(row("first"))
    (file,) = files(database)
    file.write_bytes(file.read_bytes() + json.dumps(row("cut").to_json()).encode()[:50])
    database.add(row("second"))
    assert [found.key.template for found in database.rows()] == ["first", "second"]


def test_merging_keeps_the_faster_and_drops_nothing(database: Database) -> None:
    database.add(row("here only"))
    database.add(row("faster here", 1.0, tile=1))
    database.add(row("faster there", 2.0, tile=1))
    theirs = [row("faster here", 2.0, tile=2), row("faster there", 1.0, tile=2), row("there only"), row(device=THERE)]
    assert database.merge(theirs) == Merged(added=2, faster=1, left=1)
    found = {(found.key.template, found.device): found for found in database.rows()}
    assert len(found) == 5
    assert found["faster here", HERE].schedule == found["faster there", HERE].schedule.replace("tile", 1)
    assert found["faster there", HERE].schedule == Schedule(tile=2)
    assert database.merge(theirs) == Merged(left=4)


def test_of_rows_given_twice_the_faster_counts() -> None:
    assert list(faster([row(seconds=2.0), row(seconds=1.0, tile=2), row("norm")]).values()) == [
        row(seconds=1.0, tile=2),
        row("norm"),
    ]


def test_documents_read_back(tmp_path: Path) -> None:
    rows = [row(), row("norm"), row(device=THERE), replace(row("bare"), default_seconds=None, schedule=Schedule())]
    path = tmp_path / "rows.json"
    path.write_text(write_document(rows))
    assert faster(read_document(path)) == faster(rows)
    assert write_document(reversed(rows)) == path.read_text()
    assert len(path.read_text().splitlines()) == len(rows) + 2


def test_a_document_without_rows_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(write_document([]))
    assert read_document(path) == []


@pytest.mark.parametrize("text", ["", "no", "[]", "{}", '{"format": 99, "rows": []}', '{"format": 1, "rows": 3}'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(BadSchedules, match=r"rows\.json"):
        read_document(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSchedules, match="there is no"):
        read_document(tmp_path / "rows.json")


def _add_many(folder: Path, name: str) -> None:
    for number in range(25):
        Database(folder).add(row(f"{name}{number}"))


def test_processes_that_add_at_once_lose_nothing(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_add_many, args=(database.folder, name)) for name in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert {found.key.template for found in database.rows()} == {f"{name}{n}" for name in "abc" for n in range(25)}
    assert "left out" not in caplog.text

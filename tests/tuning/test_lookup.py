import json
from dataclasses import replace
from pathlib import Path

import pytest

from irx.target import Device, find_device
from irx.tuning import Database, Fingerprint, Row, Schedule, Schedules, Task, faster, read_document, shipped
from irx.tuning.lookup import LIBRARY
from tests.tuning import toys

DEVICE = replace(find_device("cpu-avx512"), title="This CPU", cores=4)
TASK = toys.task(toys.space())
NEAR = set(DEVICE.features) - {"avx512_vnni"}


def like(features: set[str], cores: int, title: str = "Another CPU", kind: str = "cpu") -> Device:
    return replace(DEVICE, title=title, cores=cores, features=frozenset(features), kind=kind)


def row(device: Device, tile: int, task: Task = TASK, **choices: bool) -> Row:
    choice = Schedule({"tile": tile, **choices})
    return Row(Fingerprint.of(device), task.key, choice, 1e-6, 0.01, 2e-6, 9, 0, "2026-01-31")


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path)


def find(database: Database, library: list[Row], task: Task = TASK) -> tuple[object, str, list[str]]:
    notes: list[str] = []
    schedules = Schedules(DEVICE, database, library, notes.append)
    schedule, origin = schedules.find(task)
    again, _ = schedules.find(task)
    assert again == schedule
    return schedule["tile"], origin.kind, notes


def test_the_order_of_sources(database: Database) -> None:
    near = row(like(NEAR, 4), 2)
    assert find(database, []) == (1, "default", [])
    tile, kind, notes = find(database, [near])
    assert (tile, kind) == (2, "nearest")
    assert notes == [
        "no schedules measured on This CPU (4 cores): those of Another CPU (4 cores) are used; `irx tune` measures here"
    ]
    assert find(database, [near, row(DEVICE, 4)]) == (4, "shipped", [])
    database.add(row(DEVICE, 8))
    assert find(database, [near, row(DEVICE, 4)]) == (8, "measured", [])


def test_rows_that_were_imported_serve_as_nearest(database: Database) -> None:
    database.add(row(like(NEAR, 4), 2))
    assert find(database, [])[:2] == (2, "nearest")


def test_features_count_before_cores(database: Database) -> None:
    features = set(DEVICE.features)
    same, fewer = like(features, 8, "many cores"), like(features - {"avx512_vnni"}, 4, "fewer features")
    assert find(database, [row(fewer, 2), row(same, 8)])[0] == 8
    two, three, far = (like(features, cores, f"{cores} cores") for cores in (2, 3, 8))
    assert find(database, [row(far, 2), row(two, 4), row(three, 8)])[0] == 8


def test_another_kind_of_device_is_never_near(database: Database) -> None:
    assert find(database, [row(like(set(), 4, kind="cuda"), 2)])[1] == "default"


def test_a_device_with_other_vectors_is_never_near(database: Database) -> None:
    assert find(database, [row(like({"avx2", "fma", "f16c"}, 4), 2)])[1] == "default"
    assert find(database, [row(like(set(), 4), 2)])[1] == "default"


@pytest.mark.parametrize(("cores", "kind"), [(1, "default"), (2, "nearest"), (8, "nearest"), (9, "default")])
def test_a_device_with_many_more_or_fewer_cores_is_never_near(cores: int, kind: str, database: Database) -> None:
    assert find(database, [row(like(NEAR, cores), 2)])[1] == kind


@pytest.mark.parametrize("part", ["template", "version", "shape", "dtype"])
def test_another_kernel_is_never_meant(database: Database, part: str) -> None:
    database.add(row(DEVICE, 8))
    assert find(database, [], replace(TASK, key=replace(TASK.key, **{part: "other"})))[1] == "default"


def test_a_row_from_before_a_new_knob_or_value_still_counts(database: Database) -> None:
    database.add(row(DEVICE, 8))  # says nothing of `slow`
    grown = replace(TASK, space=toys.space(1, 2, 4, 8, 16, 32))
    schedule, origin = Schedules(DEVICE, database, []).find(grown)
    assert schedule == toys.schedule(8)
    assert origin.kind == "measured"


def test_a_row_whose_value_is_gone_is_passed_over(database: Database) -> None:
    database.add(row(DEVICE, 16))
    assert find(database, [row(DEVICE, 4)])[:2] == (4, "shipped")
    assert find(database, [row(like(NEAR, 4), 32), row(like(NEAR - {"fma"}, 4, "third"), 2)])[0] == 2


def test_an_origin_says_where_and_when(database: Database) -> None:
    database.add(row(DEVICE, 8))
    assert str(Schedules(DEVICE, database, []).find(TASK)[1]) == "measured, 2026-01-31, 1 us"
    assert str(Schedules(like(NEAR, 4), database, []).find(TASK)[1]).startswith("nearest on This CPU (4 cores), ")
    assert str(Schedules(DEVICE, Database(database.folder / "none"), []).find(TASK)[1]) == "default, not tuned"


def test_a_measured_device_is_the_same_device(database: Database) -> None:
    database.add(row(DEVICE, 8))
    measured = replace(DEVICE, bandwidth_gb_s=1.0, name="renamed", sources=("measured",))
    assert Schedules(measured, database, []).find(TASK)[1].kind == "measured"


@pytest.mark.parametrize("path", sorted(LIBRARY.glob("*.json")), ids=lambda path: path.stem)
def test_shipped_schedules_are_whole(path: Path) -> None:
    """Every row reads, and none is there twice."""
    rows = read_document(path)
    assert len(faster(rows)) == len(rows) == len(json.loads(path.read_text())["rows"])
    assert all(row in shipped() for row in rows)


def test_what_was_modelled_gives_way_to_what_was_measured(database: Database) -> None:
    modelled = replace(row(DEVICE, 4), seconds=1e-9, modelled=True)
    near = row(like(NEAR, 4), 2)
    assert find(database, [modelled, near]) == (4, "modelled", [])
    assert faster([modelled, row(DEVICE, 8)])[modelled.place].schedule["tile"] == 8
    assert faster([row(DEVICE, 8), modelled])[modelled.place].schedule["tile"] == 8
    database.add(row(DEVICE, 8))
    assert find(database, [modelled]) == (8, "measured", [])


def test_what_was_modelled_for_another_device_is_not_lent(database: Database) -> None:
    assert find(database, [replace(row(like(NEAR, 4), 2), modelled=True)])[:2] == (1, "default")


def test_a_modelled_row_reads_back_as_one() -> None:
    for modelled in (True, False):
        made = replace(row(DEVICE, 4), modelled=modelled)
        assert Row.from_json(json.loads(json.dumps(made.to_json()))) == made
    assert "modelled" not in row(DEVICE, 4).to_json()

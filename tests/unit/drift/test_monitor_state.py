"""What a monitor keeps: for itself alone, whole or not at all."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from drift.monitor_state import States, part_of
from drift.profile import DriftProfile
from governance.errors import (
    ConfigurationError,
    ConflictError,
    MalformedRequestError,
    RefusedError,
    TamperedError,
)
from tests.unit.drift.monitor_world import (
    PROFILE,
    Notes,
    World,
    block_of,
    store_state,
    stored_state,
)
from tests.unit.drift.reference import small_profile

# -- who may use a state


def test_a_profile_of_another_model_is_refused(world: World) -> None:
    other = small_profile(5000, 100)
    document = json.loads(other.to_json())
    document["model"] = "loans"
    wrong = DriftProfile.from_json(json.dumps(document))
    with pytest.raises(RefusedError, match="belongs to the model 'loans'"):
        world.monitor(profile=wrong)


def test_a_tampered_profile_is_refused(world: World) -> None:
    document = json.loads(PROFILE.to_json())
    document["rules"]["alert_esr"] = "1000000.0"
    changed = DriftProfile.from_json(json.dumps(document))
    with pytest.raises(TamperedError, match="was signed"):
        world.monitor(profile=changed)


def test_a_state_belongs_to_one_monitor_and_one_profile(world: World) -> None:
    monitor = world.monitor()
    monitor.save()
    with pytest.raises(ConflictError, match="another process"):
        world.monitor()
    monitor.close()
    world.profile = small_profile(5000, 100)
    with pytest.raises(TamperedError, match="was made with the profile"):
        world.monitor()
    world.profile = PROFILE
    with pytest.raises(ConfigurationError, match="windows of 500 rows"):
        world.monitor(rows=100)


def test_a_state_that_was_cut_short_is_refused(world: World) -> None:
    monitor = world.monitor()
    monitor.close()
    folder = world.path / "state"
    whole = stored_state(folder)
    store_state(folder, whole[:-10])
    with pytest.raises(MalformedRequestError, match="no state of a monitor"):
        world.monitor()
    document = json.loads(whole)
    for change in ({"counts": 3}, {"level": "bad"}, {"reports": ["a"]}, {"cutter": "{}"}):
        store_state(folder, json.dumps({**document, **change}))
        with pytest.raises(MalformedRequestError):
            world.monitor()
    store_state(folder, json.dumps({"format": document["format"], "profile": document["profile"]}))
    with pytest.raises(MalformedRequestError, match="cannot be read"):
        world.monitor()
    database_of(folder, "fraud/7/").unlink()
    world.monitor().close()


def test_a_report_is_published_only_once_it_is_saved(world: World) -> None:
    seen: list[list[int]] = []

    class Looks(Notes):
        def publish(self, report: Any) -> None:
            # A crash now leaves this: the database without what is not committed.
            copy = shutil.copytree(world.path / "state", world.path / f"copy-{len(seen)}")
            state = json.loads(stored_state(copy))
            seen.append([report.verdict.index, *state["reports"]])

    world.sinks = {"looks": Looks()}
    for i in range(6):
        world.blocks.write(block_of(i))
    world.run(world.monitor())
    assert [one[0] for one in seen] == [0, 1, 2]
    assert all(one[0] in one[1:] for one in seen)


_FAILS = "INSERT OR ROLLBACK INTO states VALUES (?, NULL)"
"""Refused, and the whole transaction is rolled back, as SQLite does by itself on a full disk."""


def database_of(folder: Path, subject: str) -> Path:
    return folder / f"{part_of(subject):02d}.sqlite"


def neighbours() -> tuple[str, str]:
    """Two subjects whose states are in one database."""
    names = (f"loans/{version}/" for version in range(1, 1000))
    return "fraud/7/", next(name for name in names if part_of(name) == part_of("fraud/7/"))


def test_what_is_no_database_is_refused_and_left_alone(world: World) -> None:
    world.monitor().close()
    place = database_of(world.path / "state", "fraud/7/")
    place.write_bytes(b"no database" * 1000)
    with pytest.raises(MalformedRequestError, match="no database of states"):
        world.monitor()
    assert place.read_bytes().startswith(b"no database")


def test_a_database_belongs_to_one_process(world: World) -> None:
    """SQLite's lock; another connection stands for another process, which it treats alike."""
    monitor = world.monitor()
    subject, neighbour = neighbours()
    file = database_of(world.path / "state", subject)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        sqlite3.connect(file, timeout=0).execute("SELECT * FROM states")
    with pytest.raises(ConflictError, match="another process has the states"):
        States(world.path / "state").of(neighbour, PROFILE)
    monitor.close()
    States(world.path / "state").of(neighbour, PROFILE).close()


def test_subjects_share_a_database_and_commit_together(tmp_path: Path) -> None:
    states, (a, b) = States(tmp_path), neighbours()
    one, other = states.of(a, PROFILE), states.of(b, PROFILE)
    one.prepare({"reports": []})
    other.prepare({"reports": [3]})
    crashed = States(shutil.copytree(tmp_path, tmp_path / "crashed")).of(a, PROFILE)
    assert crashed.load() is None  # prepared is not committed
    crashed.close()
    assert one.database is other.database
    one.database.commit()
    one.close()
    other.close()
    again = States(tmp_path)
    assert (again.of(a, PROFILE).load() or {})["reports"] == []
    assert (again.of(b, PROFILE).load() or {})["reports"] == [3]


def test_a_state_that_fails_leaves_nothing_half_written(tmp_path: Path) -> None:
    """A report that the database does not take: its subject's state is not there either."""
    states, (a, b) = States(tmp_path), neighbours()
    one, other = states.of(a, PROFILE), states.of(b, PROFILE)
    other.prepare({"reports": []})
    with pytest.raises(sqlite3.ProgrammingError):
        one.database.change(
            [
                ("INSERT OR REPLACE INTO states VALUES (?, ?)", [(a, "{}")]),
                ("INSERT INTO reports VALUES (?, ?, ?, ?)", [("too few",)]),
            ]
        )
    other.database.commit()
    assert one.load() is None
    assert other.load() is not None


def test_where_the_disk_is_full_nothing_counts_and_it_goes_on_later(tmp_path: Path) -> None:
    one = States(tmp_path).of("fraud/7/", PROFILE)
    one.prepare({"reports": []})
    one.database.commit()
    ((pages,),) = one.database.query("PRAGMA page_count")
    one.database.query(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(OSError, match="full"):
        one.prepare({"reports": [1], "more": "x" * 100_000})
    one.database.commit()
    assert (one.load() or {})["reports"] == []
    one.database.query(f"PRAGMA max_page_count = {pages + 1000}")
    one.prepare({"reports": [1], "more": "x" * 100_000})
    one.database.commit()
    assert (one.load() or {})["reports"] == [1]


def test_what_sqlite_gives_up_is_never_taken_for_committed(tmp_path: Path) -> None:
    """Where a write fails, SQLite may roll everything back: others' states as well."""
    states, (a, b) = States(tmp_path), neighbours()
    one, other = states.of(a, PROFILE), states.of(b, PROFILE)
    one.prepare({"reports": []})
    with pytest.raises(sqlite3.IntegrityError):
        other.database.change([(_FAILS, [(b,)])])
    other.prepare({"reports": []})  # a new transaction, without the first
    with pytest.raises(OSError, match="could not be written"):
        one.database.commit()
    assert one.load() is None
    other.prepare({"reports": []})
    other.database.commit()
    assert other.load() is not None

"""`walsync salvage`: a new log, what is lost, and an application that goes on with it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from sqlalchemy import create_engine, select

import walsync
from tests.support.processes import run_python
from tests.unit.cli.logs import SEGMENT_BYTES, Note, commit, invoke, invoke_json, make_log, segment_files, sessions
from walsync.cli.output import EXIT_DAMAGED, EXIT_OK, EXIT_TARGET, EXIT_USAGE
from walsync.wal import read_log


@pytest.fixture
def log(tmp_path: Path, sqlite_url: str) -> Path:
    directory = tmp_path / "log"
    make_log(directory, sqlite_url, applied=3, waiting=6)
    return directory


def damage(directory: Path, entry_id: int) -> Path:
    (path,) = [file for file in segment_files(directory) if b"note %d" % entry_id in file.read_bytes()]
    data = bytearray(path.read_bytes())
    data[data.index(b"note %d" % entry_id)] ^= 1
    path.write_bytes(data)
    return path


def numbers(url: str) -> list[int]:
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            return sorted(connection.execute(select(Note.number)).scalars())
    finally:
        engine.dispose()


def test_a_whole_log_loses_nothing(log: Path, tmp_path: Path) -> None:
    result = invoke("salvage", log, tmp_path / "new")
    assert result.exit_code == EXIT_OK, result.output
    assert "6 entries, from 4 to 9" in result.output
    assert "Nothing is lost" in result.output


def test_what_is_lost_is_named_with_file_and_offset_and_the_damaged_log_is_not_touched(
    log: Path, tmp_path: Path
) -> None:
    path = damage(log, 6)
    before = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in log.iterdir()}
    result = invoke("salvage", log, tmp_path / "new")
    assert result.exit_code == EXIT_DAMAGED
    assert "Lost: entry 6" in result.output
    assert f"{path}, offset " in result.output
    assert "--through 5" in result.output
    assert {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in log.iterdir()} == before
    assert [entry.id for entry in read_log(tmp_path / "new")] == [4, 5, 7, 8, 9]


def test_json_has_the_report(log: Path, tmp_path: Path) -> None:
    path = damage(log, 6)
    document = invoke_json("salvage", log, tmp_path / "new", expect=EXIT_DAMAGED)
    assert document["complete"] is False
    assert (document["entries"], document["first_id"], document["last_id"]) == (5, 4, 9)
    assert (document["checkpointed_id"], document["next_id"]) == (3, 10)
    [lost] = document["lost"]
    assert (lost["first_id"], lost["last_id"], lost["certain"]) == (6, 6, True)
    assert lost["where"][0]["file"] == str(path)
    assert document["target"] is None


def test_an_application_goes_on_with_the_new_log(log: Path, tmp_path: Path, sqlite_url: str) -> None:
    """Exactly once: what the target has is not applied again, what is lost is passed over, new entries get new ids."""
    damage(log, 6)
    invoke("salvage", log, tmp_path / "new")
    factory = sessions(sqlite_url)
    with walsync.attach(factory, tmp_path / "new", log=walsync.LogConfig(segment_bytes=SEGMENT_BYTES)) as journal:
        journal.wait_applied(timeout=20)
        commit(factory, range(10, 11))
        assert journal.log.last_id == 10
        journal.wait_applied(timeout=20)
    factory.kw["bind"].dispose()
    assert numbers(sqlite_url) == [1, 2, 3, 4, 5, 7, 8, 9, 10]


def test_a_lost_end_is_passed_over_as_well(log: Path, tmp_path: Path, sqlite_url: str) -> None:
    damage(log, 9)
    document = invoke_json("salvage", log, tmp_path / "new", expect=EXIT_DAMAGED)
    assert document["next_id"] == 10
    factory = sessions(sqlite_url)
    with walsync.attach(factory, tmp_path / "new") as journal:
        journal.wait_applied(timeout=20)
        commit(factory, range(20, 21))
        assert journal.log.last_id == 10
        journal.wait_applied(timeout=20)
    factory.kw["bind"].dispose()
    assert numbers(sqlite_url) == [*range(1, 9), 20]


def test_the_target_says_what_is_really_missing(log: Path, tmp_path: Path, sqlite_url: str) -> None:
    """A lost entry that the target has is not lost."""
    copy = tmp_path / "copy"
    shutil.copytree(log, copy)
    damage(copy, 6)
    document = invoke_json("salvage", copy, tmp_path / "one", "--target", sqlite_url, expect=EXIT_DAMAGED)
    assert document["target"] == {"applied_id": 3, "gap": None}
    factory = sessions(sqlite_url)
    with walsync.attach(factory, log) as journal:
        journal.wait_applied(timeout=20)
    factory.kw["bind"].dispose()
    result = invoke("salvage", copy, tmp_path / "two", "--target", sqlite_url)
    assert "The target has all of them" in result.output


def test_ids_that_the_target_knows_are_not_given_again(log: Path, tmp_path: Path, sqlite_url: str) -> None:
    """The newest segment is gone, and the target had applied it: a log that began again there would lose commits."""
    copy = tmp_path / "copy"
    shutil.copytree(log, copy)
    factory = sessions(sqlite_url)
    with walsync.attach(factory, log) as journal:
        commit(factory, range(10, 15))
        journal.wait_applied(timeout=20)
    document = invoke_json("salvage", copy, tmp_path / "new", "--target", sqlite_url)
    assert document["next_id"] == 15
    with walsync.attach(factory := sessions(sqlite_url), tmp_path / "new") as journal:
        commit(factory, range(50, 51))
        journal.wait_applied(timeout=20)
    factory.kw["bind"].dispose()
    assert 50 in numbers(sqlite_url)


def test_a_target_that_does_not_answer_stops_it_before_anything_is_written(log: Path, tmp_path: Path) -> None:
    result = invoke("salvage", log, tmp_path / "new", "--target", f"sqlite:///{tmp_path}/nothing.db")
    assert result.exit_code == EXIT_TARGET
    assert not (tmp_path / "new").exists()


def test_an_end_before_the_loss(log: Path, tmp_path: Path) -> None:
    damage(log, 6)
    document = invoke_json("salvage", log, tmp_path / "new", "--through", "5", expect=EXIT_DAMAGED)
    assert [entry.id for entry in read_log(tmp_path / "new")] == [4, 5]
    assert document["left_out"] == [7, 9]
    assert document["next_id"] == 6


@pytest.mark.parametrize("kind", ["missing", "no log", "not empty", "in use", "itself"])
def test_what_cannot_begin_says_why(log: Path, tmp_path: Path, kind: str) -> None:
    source, new = log, tmp_path / "new"
    if kind == "missing":
        source = tmp_path / "nothing"
    elif kind == "no log":
        source = tmp_path / "empty"
        source.mkdir()
    elif kind == "not empty":
        new.mkdir()
        (new / "letter.txt").write_text("Dear reader,")
    elif kind == "itself":
        new = log
    if kind == "in use":
        with walsync.WriteAheadLog.recover(log):
            result = invoke("salvage", source, new)
    else:
        result = invoke("salvage", source, new)
    assert result.exit_code == EXIT_USAGE
    assert result.stdout == ""
    assert result.stderr.lstrip().startswith("Error: ")


def test_random_bytes_instead_of_a_log_are_damage_and_no_traceback(log: Path, tmp_path: Path) -> None:
    for path in log.iterdir():
        path.write_bytes(bytes((7 * index + 3) % 251 for index in range(path.stat().st_size)))
    done = run_python("-m", "walsync.cli", "salvage", log, tmp_path / "new", expect=EXIT_DAMAGED)
    assert "--uuid" in done.stderr or "uuid" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "new").exists()

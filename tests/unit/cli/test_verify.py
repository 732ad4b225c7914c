"""`walsync verify`: every frame is read; damage has a file, an offset and an exit code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import walsync
from tests.support.processes import run_python
from tests.unit.cli.logs import invoke, invoke_json, make_log, segment_files
from walsync.cli.output import EXIT_DAMAGED, EXIT_OK, EXIT_USAGE
from walsync.wal import EntryId, read_log
from walsync.wal.checkpoint_slots import CHECKPOINT_FILE, SLOT_BYTES, newest_slot


@pytest.fixture
def log(tmp_path: Path, sqlite_url: str) -> Path:
    directory = tmp_path / "log"
    make_log(directory, sqlite_url, applied=3, waiting=2)
    return directory


def damage(directory: Path, entry_id: int) -> tuple[Path, int]:
    """Changes one byte in an entry that others follow; its file, and the byte's offset."""
    found = next(entry for entry in read_log(directory, released=True) if entry.id == entry_id)
    marker = f"note {entry_id}".encode()
    path = directory / found.segment.name
    data = bytearray(path.read_bytes())
    offset = data.index(marker)
    data[offset] ^= 0x01
    path.write_bytes(data)
    return path, offset


def test_a_whole_log_is_healthy(log: Path) -> None:
    result = invoke("verify", log)
    assert result.exit_code == EXIT_OK
    assert "Healthy" in result.output
    assert "1 to 5" in result.output


def test_json_has_the_figures_and_nothing_else_is_on_standard_output(log: Path) -> None:
    document = invoke_json("verify", log)
    assert document["healthy"] is True
    assert (document["first_id"], document["last_id"], document["entries"]) == (1, 5, 5)
    assert document["checkpointed_id"] == 3
    assert document["damage"] == []
    assert re.fullmatch(r"[0-9a-f-]{36}", document["uuid"])


def test_one_changed_byte_is_found_with_its_file_and_offset(log: Path) -> None:
    path, offset = damage(log, 2)
    result = invoke("verify", log)
    assert result.exit_code == EXIT_DAMAGED
    assert str(path) in result.output
    named = int(re.search(r"offset (\d+)", result.output)[1])  # type: ignore[index]
    assert 0 <= offset - named < 1000, "the offset is that of the frame which holds the byte"

    document = invoke_json("verify", log, expect=EXIT_DAMAGED)
    assert document["healthy"] is False
    assert str(path) in document["damage"][0]


def lose_the_end(log: Path) -> None:
    """Zeros from the middle of the last entry on: what closing the log wrote behind it is gone as well."""
    (path,) = [file for file in segment_files(log) if b"note 5" in file.read_bytes()]
    data = bytearray(path.read_bytes())
    end = data.rindex(b"note 5")
    data[end:] = bytes(len(data) - end)
    path.write_bytes(data)


def test_a_torn_tail_is_normal_where_nothing_says_that_it_was_durable(log: Path) -> None:
    lose_the_end(log)
    path = log / CHECKPOINT_FILE
    slot, _ = newest_slot(path.read_bytes(), str(path))
    assert slot is not None
    slot = slot._replace(promise=0, promised_id=0)
    data = bytearray(path.read_bytes())
    data[slot.offset : slot.offset + SLOT_BYTES] = slot.pack()
    path.write_bytes(data)
    result = invoke("verify", log)
    assert result.exit_code == EXIT_OK, result.output
    assert "1 to 4" in result.output


def test_the_end_of_a_log_that_was_closed_is_missed(log: Path) -> None:
    lose_the_end(log)
    result = invoke("verify", log)
    assert result.exit_code == EXIT_DAMAGED
    assert "1 to 4" in result.output
    assert "up to entry 5" in result.output


@pytest.mark.parametrize("kind", ["missing", "a file", "empty", "something else"])
def test_what_is_not_a_log_is_named_and_left_alone(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "place"
    if kind == "a file":
        place.write_text("Dear reader,")
    elif kind != "missing":
        place.mkdir()
    if kind == "something else":
        (place / "letter.txt").write_text("Dear reader,")
    before = sorted(tmp_path.rglob("*"))

    for command in ("verify", "status"):
        result = invoke(command, place)
        assert result.exit_code == EXIT_USAGE
        assert result.stdout == ""
        assert result.stderr.lstrip().startswith("Error: ")
        assert str(place) in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_random_bytes_instead_of_a_segment_are_damage_and_no_traceback(log: Path) -> None:
    for path in segment_files(log):
        path.write_bytes(bytes((7 * index + 3) % 251 for index in range(path.stat().st_size)))
    done = run_python("-m", "walsync.cli", "verify", log, expect=EXIT_DAMAGED)
    assert "Damaged" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_log_in_use_can_be_verified_and_goes_on(tmp_path: Path) -> None:
    with walsync.WriteAheadLog.recover(tmp_path / "log") as log:
        for number in range(1, 101):
            log.append(b"entry %d" % number)
            if number % 25 == 0:
                document = invoke_json("verify", tmp_path / "log")
                assert document["last_id"] == number
        assert log.durable_id == EntryId(100)

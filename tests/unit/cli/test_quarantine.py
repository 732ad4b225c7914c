"""`walsync quarantine` on a log that has one, also while the application has it open."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, select, text, update
from typer.testing import CliRunner

import walsync
from tests.support.waiting import wait_until
from tests.unit.cli.logs import Note, invoke, invoke_json, sessions
from walsync.cli.app import app

WAIT_S = 20.0


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def journal(directory: Path, sqlite_url: str) -> Iterator[walsync.Journal]:
    """Note 2 is in the target already, so entry 2 is refused; entry 3 changes it, and entry 4 does not."""
    factory = sessions(sqlite_url)
    with factory() as session:
        session.add(Note(number=2, text="somebody else's"))
        session.commit()
    config = walsync.CheckpointConfig(on_reject="quarantine", batch_delay_s=0.0)
    with walsync.attach(factory, directory, checkpoint=config) as journal:
        for number in (1, 2):
            with factory() as session:
                session.add(Note(number=number, text=f"note {number}"))
                session.commit()
        with factory() as session:
            session.execute(update(Note).where(Note.number == 2).values(text="changed"))
            session.commit()
        journal.wait_applied(timeout=WAIT_S)
        yield journal
    factory.kw["bind"].dispose()


def remove_the_cause(url: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM notes WHERE number = 2"))
    engine.dispose()


def notes(url: str) -> list[tuple[int, str]]:
    engine = create_engine(url)
    with engine.connect() as connection:
        found = [(row.number, row.text) for row in connection.execute(select(Note.number, Note.text))]
    engine.dispose()
    return sorted(found)


def test_list_show_and_status_while_the_application_runs(
    journal: walsync.Journal, directory: Path, sqlite_url: str
) -> None:
    assert journal.stats().quarantined_entries == 2
    result = invoke("quarantine", "list", directory)
    assert result.exit_code == 0
    assert "Entry 2, rejected, 1 change of notes" in result.stdout
    assert "UNIQUE constraint failed" in result.stdout
    assert "Entry 3, depends" in result.stdout
    listed = invoke_json("quarantine", "list", directory)
    assert [(entry["entry_id"], entry["kind"], entry["depends_on"]) for entry in listed["entries"]] == [
        (2, "rejected", []),
        (3, "depends", [2]),
    ]
    shown = invoke("quarantine", "show", directory, "2")
    assert "insert notes, 1 row" in shown.stdout
    assert "text='note 2'" in shown.stdout
    document = invoke_json("quarantine", "show", directory, "2")
    assert document["changes"][0]["rows"][0]["values"] == {"number": 2, "text": "note 2"}
    assert "quarantine 2 entries" in invoke("status", directory).stdout
    assert invoke_json("status", directory)["quarantined_entries"] == 2


def test_retry_from_outside_is_noticed_by_the_application(
    journal: walsync.Journal, directory: Path, sqlite_url: str
) -> None:
    refused = invoke_json("quarantine", "retry", directory, "--target", sqlite_url, expect=4)
    assert (list(refused["refused"]), list(refused["waiting"])) == (["2"], ["3"])
    remove_the_cause(sqlite_url)
    waiting = invoke("quarantine", "retry", directory, "3", "--target", sqlite_url)
    assert waiting.exit_code == 4
    assert "Entry 3 not tried: it touches rows that entry 2 touches" in waiting.stdout
    done = invoke("quarantine", "retry", directory, "--target", sqlite_url)
    assert (done.exit_code, done.stdout) == (0, "Applied: 2 entries.\n")
    assert notes(sqlite_url) == [(1, "note 1"), (2, "changed")]
    wait_until(lambda: journal.stats().quarantined_entries == 0)
    assert invoke("quarantine", "list", directory).stdout == "Nothing is in the quarantine.\n"


def test_discard_asks_first(journal: walsync.Journal, directory: Path) -> None:
    def answer(words: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["quarantine", "discard", str(directory), "2"], input=words)
        return result.exit_code, result.output

    code, output = answer("n\n")
    assert (code, "nothing was discarded" in output) == (2, True)
    assert "will never be applied: 2" in output
    code, output = answer("y\n")
    assert code == 0
    assert "Still in the quarantine because of it: 3" in output
    listed = invoke_json("quarantine", "list", directory, "--discarded")
    assert [entry["entry_id"] for entry in listed["entries"]] == [2]
    assert invoke_json("quarantine", "discard", directory, "3", "--yes") == {
        "directory": str(directory),
        "discarded": [3],
        "dependents": {"3": []},
    }
    assert journal.quarantine.ids() == []


def test_what_cannot_be_done_says_why(journal: walsync.Journal, directory: Path, tmp_path: Path) -> None:
    assert invoke("quarantine", "list", tmp_path / "none").exit_code == 2
    (tmp_path / "empty").mkdir()
    nothing = invoke("quarantine", "list", tmp_path / "empty")
    assert (nothing.exit_code, "there is no log in" in nothing.stderr) == (2, True)
    missing = invoke("quarantine", "show", directory, "77")
    assert (missing.exit_code, "entry 77 is not in" in missing.stderr) == (2, True)
    assert invoke("quarantine", "discard", directory, "77", "--yes").exit_code == 2
    away = "postgresql+psycopg://nobody@127.0.0.1:1/none"
    unreachable = invoke("quarantine", "retry", directory, "--target", away, "--timeout", "0")
    assert (unreachable.exit_code, "stays in the quarantine" in unreachable.stderr) == (3, False)
    assert "cannot be retried" in unreachable.stderr
    assert journal.quarantine.ids() == [2, 3]


def test_damage_is_named_and_the_rest_is_listed(journal: walsync.Journal, directory: Path) -> None:
    path = directory / "quarantine" / f"{2:020d}.entry"
    path.write_bytes(path.read_bytes()[:-1])
    listed = invoke("quarantine", "list", directory)
    assert listed.exit_code == 0, "headers are whole"
    shown = invoke("quarantine", "show", directory, "2")
    assert (shown.exit_code, f"{path.name}, offset" in shown.stderr) == (1, True)
    path.write_bytes(b"")
    document = invoke_json("quarantine", "list", directory, expect=1)
    assert [entry["entry_id"] for entry in document["entries"]] == [3]
    assert path.name in document["damage"][0]


def test_a_commit_that_is_in_the_quarantine_is_not_taken_for_applied(journal: walsync.Journal) -> None:
    journal.wait_applied(walsync.EntryId(1), WAIT_S)
    with pytest.raises(walsync.EntryRejectedError, match="entry 3 is not in the target but in the quarantine"):
        journal.wait_applied(walsync.EntryId(3), WAIT_S)


def test_show_prints_json_that_is_whole(journal: walsync.Journal, directory: Path) -> None:
    result = invoke("quarantine", "show", directory, "3", "--json")
    assert json.loads(result.stdout)["changes"]


def test_salvage_takes_the_quarantine_along(journal: walsync.Journal, directory: Path, tmp_path: Path) -> None:
    journal.quarantine.discard([3])
    journal.close()
    assert "The quarantine is copied: 2 files." in invoke("salvage", directory, tmp_path / "new").stdout
    listed = invoke_json("quarantine", "list", tmp_path / "new")
    assert [entry["entry_id"] for entry in listed["entries"]] == [2]
    assert invoke("quarantine", "show", tmp_path / "new", "2").exit_code == 0
    assert len(invoke_json("quarantine", "list", tmp_path / "new", "--discarded")["entries"]) == 1

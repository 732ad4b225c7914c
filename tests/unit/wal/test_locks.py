"""The directory's lock, forks, and what a file system must be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.support.waiting import wait_until
from tests.unit.wal.logs import SEGMENT_BYTES, all_of
from walsync.exceptions import ConfigurationError, LogClosedError, LogError
from walsync.wal import EntryId, FileStorage, LogConfig, WriteAheadLog, read_log, verify_log
from walsync.wal.lock import FileLock
from walsync.wal.storage import file as file_module
from walsync.wal.storage.file import file_system_type, sync_function

CONFIG = LogConfig(segment_bytes=SEGMENT_BYTES)
ALONE = LogConfig(segment_bytes=SEGMENT_BYTES, shared=False)
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")


def test_a_lock_is_free_when_its_holder_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from walsync.wal import WriteAheadLog\n"
        "log = WriteAheadLog.recover(sys.argv[1]); log.append(b'kept'); print('ready', flush=True); time.sleep(600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "log")], env=environment, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    with WriteAheadLog.recover(tmp_path / "log", config=CONFIG) as log:
        assert all_of(log) == {1: [b"kept"]}


@pytest.mark.parametrize("first_shares", [True, False])
def test_opening_waits_for_the_lock_as_long_as_it_is_told(tmp_path: Path, first_shares: bool) -> None:
    first = WriteAheadLog.recover(tmp_path / "log", config=LogConfig(segment_bytes=SEGMENT_BYTES, shared=first_shares))
    first.append(b"x")
    opened: list[WriteAheadLog] = []
    patient = LogConfig(segment_bytes=SEGMENT_BYTES, lock_timeout_s=30.0, shared=not first_shares)
    thread = threading.Thread(target=lambda: opened.append(WriteAheadLog.recover(tmp_path / "log", config=patient)))
    thread.start()
    first.close()
    thread.join(30)
    assert all_of(opened[0]) == {1: [b"x"]}
    opened[0].close()


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_is_refused_and_holds_no_lock(tmp_path: Path) -> None:
    log = WriteAheadLog.recover(tmp_path / "log", config=ALONE)
    log.append(b"before the fork")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        answers = []
        for call in (lambda: log.append(b"x"), log.begin_entry, log.entries, lambda: log.wait_durable(EntryId(5), 1.0)):
            try:
                call()
                answers.append("no error")
            except LogClosedError as error:
                answers.append("refused" if "forked child" in str(error) else str(error))
        log.close()
        os.write(writing, ",".join(answers).encode())
        os.close(writing)
        signal.pause()
    try:
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            assert pipe.read() == b"refused,refused,refused,refused"
        assert log.append(b"after the fork") == 2
        log.close()
        # The child lives, and holds nothing.
        with WriteAheadLog.recover(tmp_path / "log", config=CONFIG) as again:
            assert all_of(again) == {1: [b"before the fork"], 2: [b"after the fork"]}
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@needs_fork
def test_a_fork_while_others_commit_leaves_a_child_that_does_not_hang(tmp_path: Path) -> None:
    code = """
import os, sys, threading
from walsync.wal import LogConfig, WriteAheadLog
from walsync.exceptions import LogClosedError
log = WriteAheadLog.recover(sys.argv[1], config=LogConfig(segment_bytes=32768, shared=False))
stop = threading.Event()
def work():
    while not stop.is_set():
        log.append(b"x" * 100)
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for _ in range(15):
    child = os.fork()
    if child == 0:
        try:
            log.append(b"y")
        except LogClosedError:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
for thread in threads: thread.join()
log.close()
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "log")]
    subprocess.run(command, env=environment, timeout=60, check=True)
    assert verify_log(tmp_path / "log").ok


def test_the_lock_file_is_never_removed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    lock = FileLock.acquire(str(path), 0.0)
    assert lock is not None
    inode = path.stat().st_ino
    lock.release()
    lock.release()
    assert path.stat().st_ino == inode


MOUNTS = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 0:5 / /mnt/share rw shared:2 - nfs4 server:/export rw
24 22 0:6 / /mnt/with\040space rw - cifs //server/share rw
25 23 8:2 / /mnt/share/local rw shared:3 - xfs /dev/sdb1 rw
26 22 0:7 / /home rw master:4 propagate_from:2 - fuse.sshfs host: rw
this line is nonsense
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/wal", "ext4"),
        ("/mnt/share", "nfs4"),
        ("/mnt/share/wal", "nfs4"),
        ("/mnt/shared", "ext4"),
        ("/mnt/share/local/wal", "xfs"),
        ("/mnt/with space/wal", "cifs"),
        ("/home/me/wal", "fuse.sshfs"),
    ],
)
def test_the_file_systems_type_is_told_from_the_mounts(path: str, kind: str) -> None:
    assert file_system_type(path, MOUNTS) == kind


def test_a_network_file_system_is_refused_unless_it_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_module, "file_system_type", lambda path, mounts: "nfs4")
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(ConfigurationError, match=r"network file system \(nfs4\)"):
        WriteAheadLog.recover(tmp_path / "log", config=CONFIG)
    assert not (tmp_path / "log").exists()
    allowed = LogConfig(segment_bytes=SEGMENT_BYTES, network_file_systems=True)
    WriteAheadLog.recover(tmp_path / "log", config=allowed).close()


def test_a_platform_without_a_sync_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delattr(os, "fdatasync", raising=False)
    assert sync_function() is os.fsync
    monkeypatch.delattr(os, "fsync")
    with pytest.raises(ConfigurationError, match="neither fdatasync nor fsync"):
        sync_function()


def test_a_new_directory_is_durable_in_its_parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(file_module, "_sync_directory", synced.append)
    FileStorage(tmp_path / "a" / "b").prepare()
    assert synced == [str(tmp_path), str(tmp_path / "a")]
    FileStorage(tmp_path / "a" / "b").prepare()
    assert len(synced) == 2


def test_a_directory_that_cannot_be_made_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(LogError, match=r"cannot make the log directory .*file/log"):
        WriteAheadLog.recover(tmp_path / "file" / "log", config=CONFIG)


def test_a_log_that_does_not_exist_can_be_neither_read_nor_verified(tmp_path: Path) -> None:
    for call in (lambda: verify_log(tmp_path / "none"), lambda: list(read_log(tmp_path / "none"))):
        with pytest.raises(LogError, match="no log in"):
            call()
    assert not (tmp_path / "none").exists()


def test_a_log_in_use_can_be_read_and_verified_without_its_lock(tmp_path: Path) -> None:
    with WriteAheadLog.recover(tmp_path / "log", config=CONFIG) as log:
        for index in range(30):
            log.append(b"%d" % index * 1000)
        assert [entry.id for entry in read_log(tmp_path / "log")] == list(range(1, 31))
        report = verify_log(tmp_path / "log")
        assert (report.ok, report.entries, report.first_id, report.last_id) == (True, 30, 1, 30)
        assert report.uuid == log.uuid
        log.checkpoint(EntryId(25))
        wait_until(lambda: [entry.id for entry in read_log(tmp_path / "log")][-5:] == [26, 27, 28, 29, 30])

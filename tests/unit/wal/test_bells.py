"""Processes that wait for a word that they share are woken where the system can do that, and look again in any case."""

from __future__ import annotations

import platform
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.support.processes import run_python
from walsync.wal.storage import bells as bells_module
from walsync.wal.storage.bells import FutexBells, PausingBells, SleepingBells, bells_for
from walsync.wal.storage.protocol import SharedWords
from walsync.wal.storage.shared import FileShare

LONG_S = 20.0

has_futexes = pytest.mark.skipif(
    not sys.platform.startswith("linux") or platform.machine() not in bells_module._FUTEX_CALL,
    reason="futexes are Linux's",
)


@pytest.fixture
def words(tmp_path: Path) -> SharedWords:
    return FileShare(str(tmp_path)).make_words("words", 16)


@has_futexes
def test_a_waiting_thread_is_woken(words: SharedWords) -> None:
    bells = bells_for(words)
    assert isinstance(bells, FutexBells)
    assert bells.wakes
    waiting, took = threading.Event(), []

    def wait() -> None:
        seen = words[3]
        waiting.set()
        began = time.monotonic()
        bells.wait(3, seen, LONG_S)
        took.append(time.monotonic() - began)

    thread = threading.Thread(target=wait)
    thread.start()
    assert waiting.wait(LONG_S)
    # Whether it sleeps already or is about to: the word was another one before.
    words[3] = 1
    bells.ring(3)
    thread.join(LONG_S)
    assert len(took) == 1
    assert took[0] < LONG_S / 2


@has_futexes
def test_a_process_wakes_another(tmp_path: Path, words: SharedWords) -> None:
    ringer = """
import sys, time
from walsync.wal.storage.bells import bells_for
from walsync.wal.storage.shared import FileShare
words = FileShare(sys.argv[1]).map_words("words", 16)
while not words[0]:
    time.sleep(0.001)
words[5] = 7
bells_for(words).ring(5)
"""
    bells = bells_for(words)
    woken = []

    def wait() -> None:
        words[0] = 1
        began = time.monotonic()
        bells.wait(5, 0, LONG_S)
        woken.append((words[5], time.monotonic() - began < LONG_S / 2))

    thread = threading.Thread(target=wait)
    thread.start()
    run_python("-c", ringer, str(tmp_path))
    thread.join(LONG_S)
    assert woken == [(7, True)]


@has_futexes
def test_who_saw_an_older_word_does_not_wait(words: SharedWords) -> None:
    bells = bells_for(words)
    words[2] = 5
    began = time.monotonic()
    bells.wait(2, 4, LONG_S)
    assert time.monotonic() - began < LONG_S / 2


@pytest.mark.parametrize("kind", ["best", "pausing"])
def test_a_wait_ends_by_itself(words: SharedWords, kind: str) -> None:
    bells = bells_for(words) if kind == "best" else PausingBells()
    began = time.monotonic()
    bells.wait(1, words[1], 0.05)
    assert time.monotonic() - began >= 0.045
    bells.ring(1)


def test_without_the_call_everybody_pauses(words: SharedWords, monkeypatch: pytest.MonkeyPatch) -> None:
    # A number that no call of the system has.
    monkeypatch.setattr(bells_module, "_FUTEX_CALL", {platform.machine(): 9999})
    assert isinstance(bells_for(words), PausingBells)
    monkeypatch.setattr(bells_module, "_FUTEX_CALL", {})
    assert isinstance(bells_for(words), PausingBells)


def test_without_ctypes_everybody_pauses(words: SharedWords, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ctypes", None)
    assert isinstance(bells_for(words), PausingBells)


def test_where_sleeping_is_somebody_elses_a_wait_is_theirs_and_a_bell_wakes_others_all_the_same(
    words: SharedWords, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As gevent and eventlet put it in the place of Python's own."""
    others, slept = bells_for(words), []
    monkeypatch.setattr(time, "sleep", lambda seconds: slept.append(seconds))
    bells = bells_for(words)
    assert isinstance(bells, SleepingBells)
    assert not bells.wakes
    bells.wait(1, words[1], LONG_S)
    assert slept == [LONG_S]
    if not others.wakes:
        return
    woken = threading.Thread(target=others.wait, args=(3, words[3], LONG_S))
    woken.start()
    while woken.is_alive():
        words[3] += 1
        bells.ring(3)
        woken.join(0.01)

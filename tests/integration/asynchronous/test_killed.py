"""A process of asynchronous sessions is killed: what it was told is committed is replayed, each exactly once."""

from __future__ import annotations

from collections import Counter

from tests.integration.asynchronous import crash_child
from tests.integration.asynchronous.application import Application
from tests.support.processes import REPOSITORY, start_python


async def test_what_was_acknowledged_before_a_kill_is_replayed(app: Application) -> None:
    module = crash_child.__file__
    with start_python(module, app.url, app.directory, cwd=REPOSITORY, env={"PYTHONPATH": str(REPOSITORY)}) as child:
        assert child.stdout is not None
        acknowledged = [child.stdout.readline().strip() for _ in range(60)]
        child.kill()
        rest, errors = child.communicate()
    assert all(acknowledged), errors
    # A line that was cut off names nothing.
    acknowledged += [line.strip() for line in rest.splitlines(keepends=True) if line.endswith("\n")]
    async with app.attached() as running:
        await running.journal.await_applied(timeout=30)
        found = Counter(await running.in_target())
    assert set(acknowledged) <= set(found)
    assert set(found.values()) == {1}
    assert len(found) - len(acknowledged) <= 8, "at most one that was not acknowledged for each task"

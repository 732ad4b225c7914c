"""The page on session events says of every event of SQLAlchemy's what it means, and of none that does not exist."""

from __future__ import annotations

import re

from tests.integration.session.event_recorder import MAPPER_EVENTS, SESSION_EVENTS
from tests.support.processes import REPOSITORY

PAGE = REPOSITORY / "docs" / "reference" / "session-events.md"


def test_the_page_has_a_row_for_every_event() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(set(rows)) == sorted(rows)
    assert set(rows) == {*SESSION_EVENTS, *MAPPER_EVENTS}

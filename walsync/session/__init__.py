"""Attaching the log to an application's sessions.

- `attach`: `attach()`, the entrance; checks what it is given and puts the parts together.
- `asynchronous`: what `attach()` makes of asynchronous sessions and engines.
- `bridge`: the threads in which asynchronous sessions wait.
- `journal`: `Journal`, what `attach()` returns: waiting, statistics, closing.
- `committing`: from a transaction's buffered changes to an entry of the log.
- `routing`: which Engine a session uses for what; the hooks on its class.
- `state`: what is known of one session's current transaction.
- `reads`: the target's Engine as sessions see it: the barrier before reads, and the guarded COMMIT.
- `upgrade`: from a buffered transaction to a direct one.
- `relations`: what the target's catalogue says of tables that change others, and of what is no table.
- `rebuild`: which tables the entries write that a log held when it was opened.
- `scope`: which tables are journaled.
- `stats`: the figures.
"""

from walsync.session.attach import attach
from walsync.session.config import SessionConfig
from walsync.session.journal import Journal
from walsync.session.routing import direct
from walsync.session.stats import JournalStats

__all__ = ["Journal", "JournalStats", "SessionConfig", "attach", "direct"]

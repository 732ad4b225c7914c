"""The quarantine: entries that the target refuses, and those that depend on them, kept until somebody decides.

- `record`: the bytes of one file. `store`: the directory, and every change to it.
- `held`: what the entries touch, and which later ones touch the same.
- `gate`: how the applier keeps entries back, and puts them aside.
- `retry`: `Quarantine`, what users see: looking, trying again, discarding.

An entry leaves by a retry that the target takes. Its place in the order is lost to entries that touch other rows, and
kept before all that touch the same. The watermark is past it by then, so what makes a retry exactly-once is a
*receipt*: a row of the watermark's table, written in the transaction that applies the entry, and removed when its file
is. Whatever crashes in between, the receipt says that the entry is in.
"""

from walsync.checkpoint.quarantine.gate import Gate
from walsync.checkpoint.quarantine.record import QuarantinedEntry
from walsync.checkpoint.quarantine.retry import Quarantine, QuarantineRetry
from walsync.checkpoint.quarantine.store import DIRECTORY, QuarantineStore

__all__ = ["DIRECTORY", "Gate", "Quarantine", "QuarantineRetry", "QuarantineStore", "QuarantinedEntry"]

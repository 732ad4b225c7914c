"""What the target's catalogue says that no statement shows: what is no table, and which tables change with others.

A read waits for the entries that write its tables. That is not enough where it reads a view, which is a name for
anything; or a table that changes when another one does: by a foreign key that cascades, by a trigger, as a part of a
partitioned table. So before a read is let go while entries wait, the names that it reads are looked up here, and turned
into all the tables whose entries it must wait for, or into "all of them" where that cannot be told.

- `model`: `Relations`, the facts of one moment, and what follows from them.
- `queries`: the facts, asked of the databases that are known.
- `asking`: `TargetRelations`, which asks for them, and keeps them for a while.
"""

from walsync.session.relations.asking import TargetRelations
from walsync.session.relations.model import Facts, Relations

__all__ = ["Facts", "Relations", "TargetRelations"]

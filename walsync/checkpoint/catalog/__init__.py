"""What the target says about its tables, kept for a while.

Changes inside of a batch may be moved past each other only where that changes nothing, and what it could change stands
in the target's catalogue: keys, unique constraints, foreign keys and what they do, triggers, sequences. So the target
is asked, once for each table and then again every `CheckpointConfig.catalog_max_age_s` seconds, after each refusal and
after a pause.

`facts` (the data, and how values are compared), one module for each database that is known, `closure` (what foreign
keys act on). A database that is not known has no facts, and its changes are applied in order.
"""

from walsync.checkpoint.catalog.catalog import Catalog, Facts
from walsync.checkpoint.catalog.facts import UNKNOWN, Reference, TableFacts, UniqueSet

__all__ = ["UNKNOWN", "Catalog", "Facts", "Reference", "TableFacts", "UniqueSet"]

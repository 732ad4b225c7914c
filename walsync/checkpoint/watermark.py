"""The watermark: the last applied entry, kept in the target itself, in the table ``walsync_checkpoint``.

It is what makes application exactly-once. The checkpointer moves it by compare-and-set as the first statement of each
batch's own transaction: entries and watermark are committed together or not at all, and a second applier that starts
from the same place waits for the row's lock and then finds that it has been overtaken (*fenced*). After any failure,
and above all after a COMMIT whose answer was lost, the watermark is read again and says what is in.

One row per log, keyed by the log's uuid, so that several logs can feed one target.

An entry that leaves the quarantine lies behind the watermark, so it has a row of its own for a moment, its *receipt*:
written in the transaction that applies it, and removed when its file is (see `walsync.checkpoint.quarantine`). A
receipt that is there says that its entry is in.

Invariants: the row of a log never moves backwards; it is never moved outside of a batch's transaction; this module
never commits.
"""

from __future__ import annotations

import uuid
from typing import Final

from sqlalchemy import BigInteger, Column, DateTime, MetaData, String, Table, delete, func, insert, select, update
from sqlalchemy.engine import Connection, Engine

from walsync.exceptions import WatermarkGapError
from walsync.journal import create_if_missing

__all__ = ["TABLE_NAME", "Watermark", "resume_after", "watermark_table"]

TABLE_NAME: Final = "walsync_checkpoint"

_ORIGIN_LENGTH: Final = 255


def watermark_table(schema: str | None = None) -> Table:
    """The table as SQLAlchemy sees it, in a MetaData of its own (so that no `create_all` of the application meets it).

    `log_uuid`: the log, 36 characters. `last_entry_id`: the last entry that is in. For the operator: `applied_at`, the
    target's time of the last move, and `origin`, the process that made it.
    """
    return Table(
        TABLE_NAME,
        MetaData(),
        Column("log_uuid", String(36), primary_key=True),
        Column("last_entry_id", BigInteger, nullable=False),
        Column("applied_at", DateTime(timezone=True), nullable=False),
        Column("origin", String(_ORIGIN_LENGTH), nullable=False),
        schema=schema,
        # The row must be rolled back with the batch: never an engine without transactions.
        mysql_engine="InnoDB",
        mariadb_engine="InnoDB",
    )


def resume_after(
    watermark: int | None, checkpointed_id: int, last_id: int, *, log: str, where: str = TABLE_NAME
) -> int | None:
    """After which entry the application goes on; None when the row is to be inserted with 0. Pure.

    Every case, in this order (W the watermark, C the log's last released entry, L its last entry):

    ==========================  ==============================================================================
    no row, C = 0               a new target, and every entry is still in the log: insert 0, apply all
    no row, C > 0               gap: entries 1 to C are released and, as far as the target knows, not applied
    W < C                       gap: the target is older than the log, entries W + 1 to C are released
    W > L                       gap: the log is older than the target, or another log with the same identity
    C <= W <= L                 go on after W
    ==========================  ==============================================================================

    Raises `WatermarkGapError`; `log` names the log in its message.
    """
    if watermark is None:
        if checkpointed_id == 0:
            return None
        raise WatermarkGapError(
            f"the target has no watermark for {log} (no row in {where}), but the log has already released its entries "
            f"up to {checkpointed_id}: the target was replaced, or the row was deleted. Nothing is applied. Restore "
            f"the target that has the row; or, if its data is known to hold entries 1 to {checkpointed_id}, insert "
            f"the row with last_entry_id = {checkpointed_id}; or start a new log directory for the new target."
        )
    if watermark < checkpointed_id:
        raise WatermarkGapError(
            f"the target's watermark for {log} is {watermark}, but the log has already released its entries up to "
            f"{checkpointed_id}: the target was restored from an older backup, and entries {watermark + 1} to "
            f"{checkpointed_id} are missing from it. Nothing is applied. Restore a backup that is at least as new as "
            f"entry {checkpointed_id}; or bring the data in by other means and set last_entry_id in {where} to "
            f"{checkpointed_id}."
        )
    if watermark > last_id:
        raise WatermarkGapError(
            f"the target's watermark for {log} is {watermark}, but the log ends at entry {last_id}: the log directory "
            "was replaced by an older copy, or lost its end. Nothing is applied, or new entries would be taken for "
            f"applied ones. Bring back the newest log directory; or start a new one, and look whether the entries of "
            f"this one up to {watermark} are in the target (they should be)."
        )
    return watermark


class Watermark:
    """Reads and moves one log's row. Holds no connection and no state; thread-safe. Never commits."""

    def __init__(self, log_uuid: uuid.UUID, origin: str, schema: str | None = None) -> None:
        self.table = watermark_table(schema)
        self._key = str(log_uuid)
        self._origin = origin[:_ORIGIN_LENGTH]
        row = self.table.c
        # Made once: SQLAlchemy compiles each a single time.
        self._select = select(row.last_entry_id).where(row.log_uuid == self._key)

    @property
    def where(self) -> str:
        """The row's place, for messages."""
        return f"{self.table.fullname}, log_uuid {self._key}"

    def ensure_table(self, engine: Engine) -> None:
        """Creates the table if it is missing, in a transaction of its own."""
        create_if_missing(engine, self.table)

    def read(self, connection: Connection) -> int | None:
        """The last applied entry; None if the log has no row."""
        value = connection.execute(self._select).scalar_one_or_none()
        return None if value is None else int(value)

    def insert(self, connection: Connection, last_entry_id: int = 0) -> None:
        """Makes the log's row, at 0. Raises the driver's IntegrityError if another applier was faster."""
        connection.execute(
            insert(self.table).values(
                log_uuid=self._key,
                last_entry_id=last_entry_id,
                applied_at=func.current_timestamp(),
                origin=self._origin,
            )
        )

    def advance(self, connection: Connection, expected: int, through: int) -> bool:
        """Compare-and-set from `expected` to `through`; False if the row is elsewhere: another applier was faster.

        Must be the first statement of the batch's transaction. Takes the row's lock until its end.
        """
        row = self.table.c
        result = connection.execute(
            update(self.table)
            .where(row.log_uuid == self._key, row.last_entry_id == expected)
            .values(last_entry_id=through, applied_at=func.current_timestamp(), origin=self._origin)
        )
        return result.rowcount == 1

    def receipt(self, entry_id: int) -> Watermark:
        """The row that says that this entry of the log was applied by itself."""
        return Watermark(
            uuid.uuid5(uuid.UUID(self._key), f"quarantine:{entry_id}"),
            f"{self._receipts}{self._origin}",
            self.table.schema,
        )

    @property
    def _receipts(self) -> str:
        """What the origin of this log's receipts begins with."""
        return f"receipt of {self._key}: "

    def receipts(self, connection: Connection) -> list[int]:
        """The entries of this log that have a receipt."""
        row = self.table.c
        found = connection.execute(
            select(row.log_uuid, row.last_entry_id).where(row.origin.like(f"{self._receipts}%"))
        ).all()
        return sorted(int(entry_id) for key, entry_id in found if key == self.receipt(int(entry_id))._key)

    def remove(self, connection: Connection) -> None:
        """Removes the row: of a receipt whose entry can never be met again."""
        connection.execute(delete(self.table).where(self.table.c.log_uuid == self._key))

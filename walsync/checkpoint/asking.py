"""Asking the target whether it fits the log, for somebody who cannot wait for as long as a driver may block."""

from __future__ import annotations

import logging
import threading
from typing import Final

from walsync.checkpoint.failures import classify, describe_error
from walsync.checkpoint.transaction import Target
from walsync.wal import WriteAheadLog

__all__ = ["ask_watermark"]

_logger: Final = logging.getLogger("walsync.checkpoint")


def ask_watermark(target: Target, log: WriteAheadLog, timeout_s: float) -> bool:
    """See `SQLAlchemyCheckpointer.check_watermark`."""
    outcome: list[BaseException | None] = []

    def ask() -> None:
        try:
            # Known to everybody before an applier gets there: what is in need not be waited for.
            log.control.note_applied(target.synchronise(log))
            outcome.append(None)
        except BaseException as error:  # noqa: BLE001  Handed to the caller below, which decides.
            outcome.append(error)

    # In a thread of its own, because a driver's connect may block far longer than a caller can wait.
    asking = threading.Thread(target=ask, name="walsync-check-watermark", daemon=True)
    asking.start()
    asking.join(timeout_s)
    if not outcome:
        _logger.warning("the target did not answer within %g s", timeout_s)
        return False
    error = outcome[0]
    if error is None:
        return True
    if classify(error, target.dialect_name) is None:
        raise error
    _logger.warning("the target cannot be asked for the watermark now: %s", describe_error(error))
    return False

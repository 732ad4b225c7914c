"""The two checksums a log may use. Which one is fixed when the log is created and named in every file of it.

Never chooses by what is installed: a log made with one kind is read with that kind or not at all.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

from crc32c import crc32c

from walsync.exceptions import LogVersionError

__all__ = ["CRC32", "CRC32C", "KINDS", "ChecksumFunction", "checksum_function"]

CRC32C = 1
CRC32 = 2

KINDS = {"crc32c": CRC32C, "crc32": CRC32}

ChecksumFunction = Callable[..., int]
"""`(data, start=0) -> int`: the checksum of `data`, going on from that of what came before it."""


def checksum_function(kind: int) -> ChecksumFunction:
    """The function for a kind found in a file. Raises `LogVersionError` for a kind this version does not know."""
    if kind == CRC32C:
        return crc32c
    if kind == CRC32:
        return zlib.crc32
    raise LogVersionError(
        f"the log uses checksum kind {kind}, which this version of walsync does not know; use a newer one"
    )

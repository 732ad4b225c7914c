"""Keeps the processors awake while something is measured. Linux, as root.

A processor with nothing to do sleeps, and one that has slept takes tens of microseconds to go on: how deep it sleeps is
the machine's matter, and changes from one moment to the next. Who holds `/dev/cpu_dma_latency` open with a latency of 0
in it forbids that (the kernel's documentation, "PM Quality Of Service Interface").
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["processors_awake"]

_DEVICE = "/dev/cpu_dma_latency"


@contextmanager
def processors_awake() -> Iterator[None]:
    """Inside of it no processor sleeps. Raises `SystemExit` where that cannot be had."""
    try:
        held = os.open(_DEVICE, os.O_WRONLY)
    except OSError as error:
        raise SystemExit(f"the processors cannot be kept awake ({error}); that takes Linux, and root") from error
    try:
        os.write(held, bytes(4))
        yield
    finally:
        os.close(held)

"""The gate: parts of the engine on which the promises rest, taken out one at a time. The suite must notice each.

Owns the mutations. Each replaces a piece of the source text of one function, which must be there exactly once: when
the engine changes, a mutation cannot lose its meaning without an error.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from walsync.wal import appender, checkpoint_file, opening, recovery, scanner, segments

__all__ = ["MUTATIONS", "Mutation", "mutated"]


@dataclass(frozen=True)
class Mutation:
    """In `function` of `owner`, `text` becomes `replacement`."""

    name: str
    owner: type | ModuleType
    function: str
    text: str
    replacement: str


MUTATIONS = [
    Mutation(
        "position and chain",
        scanner.Scanner,
        "_scan_block",
        "if frame_position != position or frame_chain != chain:",
        "if False:",
    ),
    Mutation(
        "RECOVERY frame",
        appender.Appender,
        "write_boundary",
        "if kind == RECOVERY:",
        "if kind == RECOVERY:\n        return\n    if False:",
    ),
    Mutation(
        "promise check",
        recovery.LogWalk,
        "_following",
        "if decision is Decision.DAMAGE:",
        "if False:",
    ),
    Mutation(
        "directory fsync",
        segments,
        "make_slot_file",
        "storage.sync_directory()",
        "pass",
    ),
    Mutation(
        "fsync of the checkpoint slot",
        checkpoint_file.CheckpointFile,
        "write",
        "self._file.sync()",
        "pass",
    ),
    Mutation(
        "epoch check",
        scanner.Scanner,
        "_scan_block",
        "if frame_epoch != epoch:",
        "if False:",
    ),
    Mutation(
        "sync of the segments that an entry has filled",
        appender.Appender,
        "sync",
        "file.sync()",
        "pass",
    ),
    Mutation(
        "promise of the checkpoint slot",
        recovery.LogWalk,
        "_promise_past_stop",
        "if self.checkpoint.promise > stop:",
        "if False:",
    ),
    Mutation(
        "kept tail written again",
        opening._Opener,
        "open",
        "self._rewrite_tail(position)",
        "pass",
    ),
    Mutation(
        "checkpoint slot written again",
        opening._Opener,
        "open",
        "self._settle_checkpoint()",
        "pass",
    ),
]


@contextlib.contextmanager
def mutated(mutation: Mutation) -> Iterator[None]:
    """The engine without this part, until the block ends."""
    original: Callable[..., Any] = inspect.getattr_static(mutation.owner, mutation.function)
    source = textwrap.dedent(inspect.getsource(original))
    if source.count(mutation.text) != 1:
        raise AssertionError(
            f"{mutation.text!r} is {source.count(mutation.text)} times in {original.__qualname__}: the engine has "
            "changed; change the mutation with it"
        )
    indented = textwrap.indent(source.replace(mutation.text, mutation.replacement), "    ")
    found: dict[str, Any] = {}
    module = sys.modules[original.__module__]
    code = compile(f"from __future__ import annotations\nclass Mutated:\n{indented}", inspect.getfile(original), "exec")
    exec(code, vars(module), found)
    setattr(mutation.owner, mutation.function, vars(found["Mutated"])[mutation.function])
    try:
        yield
    finally:
        setattr(mutation.owner, mutation.function, original)

"""Commits from many tasks without an end, says what was acknowledged, and is killed. Applies nothing."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import walsync
from tests.integration.asynchronous.application import PAUSED, Application


async def main(url: str, directory: str) -> None:
    async with Application(url, Path(directory)).attached(checkpoint=PAUSED, keys=walsync.KeyConfig()) as running:

        async def work(task: int) -> None:
            for number in range(1_000_000):
                await running.add(f"{task}.{number}")
                sys.stdout.write(f"{task}.{number}\n")
                sys.stdout.flush()

        await asyncio.gather(*map(work, range(8)))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

"""The command line: `walsync demo`, `apply`, `status`, `verify`, `inspect` and `salvage`.

One module per command, `app` that puts them together, `output` for what they share. Importing this package imports
none of that: typer and rich come with the extra `cli`, and who has not installed it is told so instead of shown a
traceback. Nothing here is imported by the rest of walsync.
"""

from __future__ import annotations

import sys

__all__ = ["main"]

_PACKAGES_OF_THE_EXTRA = ("typer", "rich", "click")


def main() -> None:
    """Runs the command line with the arguments of this process, and exits with the command's code."""
    try:
        from walsync.cli.app import app
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _PACKAGES_OF_THE_EXTRA:
            raise
        sys.stderr.write(
            f"The walsync command needs the package {error.name!r}, which is not installed. "
            "Install it with: pip install 'sqlalchemy-walsync[cli]'\n"
        )
        sys.exit(2)
    app()

"""Lets `python -m walsync` stand for the command `walsync`."""

from walsync.cli import main

if __name__ == "__main__":
    main()

"""Puts the commands together. A new command is a module of its own and one line here."""

from __future__ import annotations

import typer

from walsync.cli.apply import apply
from walsync.cli.demo import demo
from walsync.cli.inspect import inspect
from walsync.cli.quarantine import app as quarantine
from walsync.cli.salvage import salvage
from walsync.cli.status import status
from walsync.cli.verify import verify

__all__ = ["app"]

app = typer.Typer(
    name="walsync",
    help="A durable write buffer for SQLAlchemy: look at a log, check it, and see what it does.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo)
app.command()(apply)
app.command()(status)
app.command()(verify)
app.command()(inspect)
app.command()(salvage)
app.add_typer(quarantine, name="quarantine")

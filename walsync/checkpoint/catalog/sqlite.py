"""The facts of SQLite's tables, from its schema table and its pragmas."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.engine import Connection

from walsync.changes import TableName
from walsync.checkpoint.catalog.closure import acted_on
from walsync.checkpoint.catalog.facts import (
    Fold,
    Reference,
    TableFacts,
    UniqueSet,
    fold_ascii_text,
    fold_bytes,
    fold_integer,
    fold_text_or_hex,
    fold_unknown,
)

__all__ = ["read_facts"]

_ACTING: Final = ("CASCADE", "SET NULL", "SET DEFAULT")

# A default that is a number, a string, or the current time: the same whatever the order of the rows.
_PLAIN_DEFAULT: Final = re.compile(
    r"\(*\s*([-+]?[0-9.eE]+|x?'(?:[^']|'')*'|\"[^\"]*\"|null|true|false|current_(?:time|date|timestamp))\s*\)*",
    re.IGNORECASE,
)

_CONFLICT_CLAUSE: Final = re.compile(r"\bon\s+conflict\b", re.IGNORECASE)


def read_facts(connection: Connection, tables: Collection[TableName]) -> dict[TableName, TableFacts | None]:
    """The facts of these tables; None for one that is not there."""
    found: dict[TableName, TableFacts | None] = {}
    for schema in {table.schema for table in tables}:
        names = [table for table in tables if table.schema == schema]
        found.update(_read_schema(connection, schema, names))
    return found


def _read_schema(
    connection: Connection, schema: str | None, tables: list[TableName]
) -> dict[TableName, TableFacts | None]:
    # Tables without a schema are looked for among the temporary ones first, by SQLite too.
    place = (schema or "main").lower()
    quoted = '"' + (schema or "main").replace('"', '""') + '"'
    objects = connection.execute(text(f"SELECT type, name, tbl_name, sql FROM {quoted}.sqlite_master")).all()
    hidden = set()
    if schema is None:
        hidden = {name.lower() for (name,) in connection.execute(text("SELECT tbl_name FROM sqlite_temp_master"))}
    sql = {name.lower(): source or "" for kind, name, _, source in objects if kind == "table"}
    triggers = {table.lower() for kind, _, table, _ in objects if kind == "trigger"}
    references: dict[str, list[Reference]] = {}
    rows = connection.execute(
        text(
            'SELECT m.name, f.id, f."table", f."from", f."to", f.on_update, f.on_delete '
            f"FROM {quoted}.sqlite_master AS m JOIN pragma_foreign_key_list(m.name, :place) AS f "
            "WHERE m.type = 'table' ORDER BY m.name, f.id, f.seq"
        ),
        {"place": schema or "main"},
    ).all()
    grouped: dict[tuple[str, int], list[Any]] = {}
    for row in rows:
        grouped.setdefault((row[0].lower(), row[1]), []).append(row)

    def columns_of(name: str) -> list[Any]:
        asked = {"name": name, "place": schema or "main"}
        return list(
            connection.execute(
                text("SELECT name, type, dflt_value, pk, hidden FROM pragma_table_xinfo(:name, :place)"), asked
            )
        )

    for (child, _), parts in grouped.items():
        parent = parts[0][2].lower()
        targets = [part[4] for part in parts]
        if any(target is None for target in targets):
            # The primary key of the parent is meant.
            key = sorted((row[3], row[0]) for row in columns_of(parent) if row[3])
            targets = [name for _, name in key]
        references.setdefault(child, []).append(
            Reference(
                tuple(part[3].lower() for part in parts),
                (place, parent),
                tuple(target.lower() for target in targets),
                parts[0][5].upper() in _ACTING or parts[0][6].upper() in _ACTING,
            )
        )
    acting = [
        ((place, child), reference.parent) for child, own in references.items() for reference in own if reference.acts
    ]
    found: dict[TableName, TableFacts | None] = {}
    for table in tables:
        name = table.name.lower()
        identity = (place, name)
        if name in hidden:
            found[table] = TableFacts(identity, "there is a temporary table, or a trigger on one, of this name")
        elif name not in sql:
            views = {row[1].lower() for row in objects if row[0] == "view"}
            found[table] = TableFacts(identity, "it is a view") if name in views else None
        elif name in triggers:
            found[table] = TableFacts(identity, "it has a trigger")
        elif sql[name].lstrip()[:14].upper() == "CREATE VIRTUAL":
            found[table] = TableFacts(identity, "it is a virtual table")
        elif _CONFLICT_CLAUSE.search(sql[name]):
            found[table] = TableFacts(identity, "a constraint of it has an ON CONFLICT clause")
        else:
            found[table] = _read_table(
                connection,
                schema or "main",
                table.name,
                identity,
                columns_of(table.name),
                tuple(references.get(name, ())),
                acted_on(identity, acting),
                sql[name],
            )
    return found


def _read_table(
    connection: Connection,
    schema: str,
    name: str,
    identity: tuple[str, str],
    columns: list[Any],
    references: tuple[Reference, ...],
    acted: tuple[Any, ...],
    source: str,
) -> TableFacts:
    types = {row[0].lower(): (row[1] or "").upper() for row in columns}
    generated = {row[0].lower() for row in columns if row[4] in (2, 3)}
    key = tuple(column.lower() for _, column in sorted((row[3], row[0]) for row in columns if row[3]))
    for column, _, default, _, hidden in columns:
        if default is not None and hidden == 0 and not _PLAIN_DEFAULT.fullmatch(default):
            return TableFacts(identity, f"the default of its column {column} is an expression")
    drawn = []
    if len(key) == 1 and types[key[0]] == "INTEGER" and "WITHOUT ROWID" not in source.upper():
        drawn.append((key[0], "rowid"))
    folds = {column: _fold(type_) for column, type_ in types.items()}
    unique = []
    indexes = connection.execute(
        text('SELECT name, "unique", partial FROM pragma_index_list(:name, :place)'), {"name": name, "place": schema}
    ).all()
    for index, is_unique, partial in indexes:
        if not is_unique:
            continue
        parts = connection.execute(
            text("SELECT name, coll, cid FROM pragma_index_xinfo(:index, :place) WHERE key = 1 ORDER BY seqno"),
            {"index": index, "place": schema},
        ).all()
        if partial or any(part[2] == -2 or part[0] is None or part[0].lower() in generated for part in parts):
            unique.append(UniqueSet((), known=False))
            continue
        unique.append(UniqueSet(tuple(part[0].lower() for part in parts)))
        for column, collation, _ in parts:
            if collation == "NOCASE" and folds[column.lower()] is fold_text_or_hex:
                folds[column.lower()] = fold_ascii_text
            elif collation not in ("BINARY", "RTRIM", "NOCASE"):
                folds[column.lower()] = fold_unknown
    if key and not any(found.columns == key for found in unique):
        # The alias of the rowid has no index of its own.
        unique.append(UniqueSet(key))
    return TableFacts.known(identity, key, unique, references, drawn, acted, folds, folds_case=True)


def _fold(type_: str) -> Fold:
    """By the column's affinity, which decides how SQLite compares: https://www.sqlite.org/datatype3.html, 3.1.

    Times are text to SQLite, in a form that each application chooses, and it may well leave something out.
    """
    if "INT" in type_:
        return fold_integer
    if "CHAR" in type_ or "CLOB" in type_ or "TEXT" in type_:
        return fold_text_or_hex
    if "BLOB" in type_:
        return fold_bytes
    return fold_unknown

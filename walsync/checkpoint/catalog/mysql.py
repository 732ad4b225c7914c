"""The facts of the tables of MariaDB and MySQL, from information_schema."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, Final

from sqlalchemy import bindparam, text
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
    fold_date,
    fold_integer,
    fold_naive_datetime,
    fold_text_or_hex,
    fold_unknown,
    fold_uuid,
)

__all__ = ["read_facts"]

_SESSION: Final = text("SELECT DATABASE(), @@SESSION.sql_mode")

# A user sees the triggers of those tables alone on which it has the privilege TRIGGER.
_PRIVILEGES: Final = text(
    """
    SELECT NULL, NULL FROM information_schema.user_privileges WHERE privilege_type = 'TRIGGER'
    UNION SELECT table_schema, NULL FROM information_schema.schema_privileges WHERE privilege_type = 'TRIGGER'
    UNION SELECT table_schema, table_name FROM information_schema.table_privileges WHERE privilege_type = 'TRIGGER'
    """
)

_TABLES: Final = text(
    """
    SELECT t.table_schema, t.table_name, t.table_type, t.engine, EXISTS (
      SELECT 1 FROM information_schema.triggers g
      WHERE g.event_object_schema = t.table_schema AND g.event_object_table = t.table_name)
    FROM information_schema.tables t WHERE t.table_schema IN :schemas AND t.table_name IN :names
    """
).bindparams(bindparam("schemas", expanding=True), bindparam("names", expanding=True))

_COLUMNS: Final = text(
    """
    SELECT table_schema, table_name, column_name, data_type, collation_name, datetime_precision, extra, column_default
    FROM information_schema.columns WHERE table_schema IN :schemas AND table_name IN :names
    """
).bindparams(bindparam("schemas", expanding=True), bindparam("names", expanding=True))

_UNIQUE: Final = text(
    """
    SELECT table_schema, table_name, index_name, column_name, sub_part
    FROM information_schema.statistics
    WHERE table_schema IN :schemas AND table_name IN :names AND non_unique = 0
    ORDER BY table_schema, table_name, index_name, seq_in_index
    """
).bindparams(bindparam("schemas", expanding=True), bindparam("names", expanding=True))

# All of the schemas: what acts on what has to be followed over tables that no entry names.
_REFERENCES: Final = text(
    """
    SELECT k.table_schema, k.table_name, k.constraint_name, k.column_name, k.referenced_table_schema,
      k.referenced_table_name, k.referenced_column_name, r.delete_rule, r.update_rule
    FROM information_schema.key_column_usage k
    JOIN information_schema.referential_constraints r
      ON r.constraint_schema = k.constraint_schema AND r.constraint_name = k.constraint_name
      AND r.table_name = k.table_name
    WHERE k.table_schema IN :schemas AND k.referenced_table_name IS NOT NULL
    ORDER BY k.table_schema, k.table_name, k.constraint_name, k.ordinal_position
    """
).bindparams(bindparam("schemas", expanding=True))

_RESTRICTING: Final = ("NO ACTION", "RESTRICT")

# A default that is a constant, the current time, or a UUID is the same whatever the order of the rows. What looks like
# another call may be anything; a string that looks like one is taken for it, at the cost of speed.
_CALL: Final = re.compile(r"[a-z_0-9`.]+\s*\(", re.IGNORECASE)
_PLAIN_CALL: Final = re.compile(
    r"(?:current_timestamp|now|uuid|uuid_v4|curdate|curtime|sysdate)\s*\(\d?\)", re.IGNORECASE
)

# Collations in which two words of plain ASCII are equal if they differ in capitals alone.
_PLAIN_COLLATION: Final = re.compile(
    r"[a-z0-9]+_(?:general_ci|general_nopad_ci|unicode_ci|unicode_nopad_ci|unicode_520_ci|unicode_520_nopad_ci"
    r"|uca1400_(?:nopad_)?a[is]_c[is]|0900_a[is]_c[is]|swedish_ci|general_mysql500_ci)"
)
_ANY_UCA: Final = re.compile(r"uca1400_(?:nopad_)?a[is]_c[is]")

_INTEGERS: Final = ("tinyint", "smallint", "mediumint", "int", "bigint")
_TEXTS: Final = ("char", "varchar", "tinytext", "text", "mediumtext", "longtext")
_BYTES: Final = ("binary", "varbinary", "tinyblob", "blob", "mediumblob", "longblob")


def read_facts(connection: Connection, tables: Collection[TableName]) -> dict[TableName, TableFacts | None]:
    """The facts of these tables; None for one that is not there. Six statements, whatever their number."""
    default_schema, mode = connection.execute(_SESSION).one()
    found: dict[TableName, TableFacts | None] = dict.fromkeys(tables)
    schemas = sorted({table.schema or default_schema for table in tables if table.schema or default_schema})
    if not schemas:
        return found
    if "STRICT_" not in (mode or ""):
        # The server changes values that do not fit: what is written cannot be told from what is recorded.
        return {table: TableFacts(table, "the server's sql_mode is not strict") for table in tables}
    asked = {"schemas": schemas, "names": sorted({table.name for table in tables})}
    privileges = {(schema, name) for schema, name in connection.execute(_PRIVILEGES)}
    relations = {_identity(row[0], row[1]): row for row in connection.execute(_TABLES, asked)}
    columns: dict[tuple[str, str], list[Any]] = {}
    for row in connection.execute(_COLUMNS, asked):
        columns.setdefault(_identity(row[0], row[1]), []).append(row)
    indexes: dict[tuple[str, str], dict[str, list[Any]]] = {}
    for row in connection.execute(_UNIQUE, asked):
        indexes.setdefault(_identity(row[0], row[1]), {}).setdefault(row[2], []).append(row)
    references = _references(connection, schemas)
    acting = [(child, key.parent) for child, keys in references.items() for key in keys if key.acts]
    for table in tables:
        schema = table.schema or default_schema
        identity = _identity(schema, table.name)
        relation = relations.get(identity)
        if relation is None:
            continue
        if relation[2] != "BASE TABLE" or (relation[3] or "").upper() != "INNODB":
            found[table] = TableFacts(identity, "it is not a plain table of InnoDB")
        elif not privileges.intersection({(None, None), (schema, None), (schema, table.name)}):
            found[table] = TableFacts(identity, "this user may not see its triggers (the privilege TRIGGER is missing)")
        elif relation[4]:
            found[table] = TableFacts(identity, "it has a trigger")
        else:
            found[table] = _table(
                identity,
                columns.get(identity, []),
                indexes.get(identity, {}),
                tuple(references.get(identity, ())),
                acted_on(identity, acting),
                {key.parent_columns for keys in references.values() for key in keys if key.parent == identity},
            )
    return found


def _identity(schema: str, name: str) -> tuple[str, str]:
    # Whether names of tables differ by capitals depends on the server's file system.
    return schema.lower(), name.lower()


def _references(connection: Connection, schemas: list[str]) -> dict[tuple[str, str], list[Reference]]:
    grouped: dict[tuple[str, str, str], list[Any]] = {}
    for row in connection.execute(_REFERENCES, {"schemas": schemas}):
        grouped.setdefault((row[0], row[1], row[2]), []).append(row)
    found: dict[tuple[str, str], list[Reference]] = {}
    for (schema, name, _), parts in grouped.items():
        first = parts[0]
        found.setdefault(_identity(schema, name), []).append(
            Reference(
                tuple(part[3].lower() for part in parts),
                _identity(first[4], first[5]),
                tuple(part[6].lower() for part in parts),
                first[7] not in _RESTRICTING or first[8] not in _RESTRICTING,
            )
        )
    return found


def _table(
    identity: tuple[str, str],
    columns: list[Any],
    indexes: dict[str, list[Any]],
    references: tuple[Reference, ...],
    acted: tuple[Any, ...],
    referred: set[tuple[str, ...]],
) -> TableFacts:
    folds: dict[str, Fold] = {}
    drawn: list[tuple[str, str]] = []
    generated = set()
    for _, _, name, type_, collation, precision, extra, default in columns:
        column, extra = name.lower(), (extra or "").lower()
        folds[column] = _fold(type_.lower(), collation, precision)
        if "auto_increment" in extra:
            drawn.append((column, f"auto_increment of {'.'.join(identity)}"))
        if "generated" in extra and "default_generated" not in extra:
            generated.add(column)
        elif default is not None and _CALL.search(_PLAIN_CALL.sub("", default)):
            return TableFacts(identity, f"the default of its column {name} is an expression")
    key: tuple[str, ...] = ()
    unique = []
    for index, parts in indexes.items():
        names = [part[3].lower() for part in parts if part[3] is not None]
        if len(names) < len(parts) or generated.intersection(names) or any(part[4] is not None for part in parts):
            unique.append(UniqueSet((), known=False))
        else:
            unique.append(UniqueSet(tuple(names)))
        if index == "PRIMARY":
            key = tuple(names)
    # A foreign key may point to columns that are not unique; that they are taken for it costs nothing but speed.
    unique.extend(UniqueSet(names) for names in sorted(referred) if UniqueSet(names) not in unique)
    return TableFacts.known(identity, key, unique, references, drawn, acted, folds, folds_case=True)


def _fold(type_: str, collation: str | None, precision: int | None) -> Fold:
    if type_ in _INTEGERS:
        return fold_integer
    if type_ in _TEXTS:
        if collation is not None and collation.endswith("_bin"):
            return fold_text_or_hex
        if collation is not None and (_PLAIN_COLLATION.fullmatch(collation) or _ANY_UCA.fullmatch(collation)):
            return fold_ascii_text
        return fold_unknown
    if type_ in _BYTES:
        return fold_bytes
    if type_ == "uuid":
        return fold_uuid
    if type_ == "date":
        return fold_date
    if type_ == "datetime" and precision == 6:
        return fold_naive_datetime
    return fold_unknown

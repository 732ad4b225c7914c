"""The facts of PostgreSQL's tables, from the system catalogue. Tables are told apart by their oid."""

from __future__ import annotations

import json
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
    fold_bytes,
    fold_date,
    fold_integer,
    fold_naive_datetime,
    fold_text,
    fold_unknown,
    fold_uuid,
    fold_zoned_datetime,
)

__all__ = ["read_facts"]

# The names come as one JSON document: every driver can pass a string.
_TABLES: Final = text(
    """
    SELECT asked.ordinality, c.oid, c.relkind::text, c.relrowsecurity, c.relhasrules,
      EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal),
      c.relispartition OR EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = c.oid)
        OR (c.relkind = 'r' AND EXISTS (SELECT FROM pg_inherits i WHERE i.inhparent = c.oid)),
      EXISTS (SELECT FROM pg_constraint x WHERE x.conrelid = c.oid AND x.contype = 'x'),
      c.relkind = 'p' AND EXISTS (
        SELECT FROM pg_partition_tree(c.oid) p WHERE p.relid <> c.oid AND (
          EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = p.relid AND NOT t.tgisinternal)
          OR EXISTS (SELECT FROM pg_constraint x WHERE x.contype IN ('f', 'x') AND x.conparentid = 0
                     AND p.relid IN (x.conrelid, x.confrelid))
          OR EXISTS (SELECT FROM pg_index i WHERE i.indrelid = p.relid AND i.indisunique
                     AND NOT EXISTS (SELECT FROM pg_inherits h WHERE h.inhrelid = i.indexrelid))))
    FROM json_array_elements_text(CAST(:names AS json)) WITH ORDINALITY AS asked(name, ordinality)
    JOIN pg_class c ON c.oid = to_regclass(asked.name)
    """
)

_COLUMNS: Final = text(
    """
    SELECT a.attrelid, a.attname, t.typname, t.typtype::text, t.typnamespace = 'pg_catalog'::regnamespace, a.atttypmod,
      coalesce((SELECT l.collisdeterministic FROM pg_collation l WHERE l.oid = a.attcollation), true),
      a.attidentity::text, a.attgenerated::text, pg_get_expr(d.adbin, d.adrelid)
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
    LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE a.attrelid IN :oids AND a.attnum > 0 AND NOT a.attisdropped
    """
).bindparams(bindparam("oids", expanding=True))

_UNIQUE: Final = text(
    """
    SELECT i.indrelid, i.indisprimary, i.indpred IS NULL AND i.indexprs IS NULL,
      ARRAY(SELECT a.attname::text FROM unnest(i.indkey) WITH ORDINALITY AS k(attnum, place)
            JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
            WHERE k.place <= i.indnkeyatts ORDER BY k.place)
    FROM pg_index i WHERE i.indrelid IN :oids AND i.indisunique
    """
).bindparams(bindparam("oids", expanding=True))

# All of the database: what acts on what has to be followed over tables that no entry names. Those of partitions repeat
# those of their parents.
_REFERENCES: Final = text(
    """
    SELECT c.conrelid, c.confrelid, c.confdeltype::text, c.confupdtype::text,
      ARRAY(SELECT a.attname::text FROM unnest(c.conkey) WITH ORDINALITY AS k(attnum, place)
            JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.attnum ORDER BY k.place),
      ARRAY(SELECT a.attname::text FROM unnest(c.confkey) WITH ORDINALITY AS k(attnum, place)
            JOIN pg_attribute a ON a.attrelid = c.confrelid AND a.attnum = k.attnum ORDER BY k.place)
    FROM pg_constraint c WHERE c.contype = 'f' AND c.conparentid = 0
    """
)

_RESTRICTING: Final = ("a", "r")

_SEQUENCE: Final = re.compile(r"nextval\('(.*)'::regclass\)")

# A constant, or a function whose value does not depend on the order of the rows.
_NOW: Final = (
    r"(?:CURRENT_TIMESTAMP(?:\(\d\))?|LOCALTIMESTAMP(?:\(\d\))?|CURRENT_DATE|CURRENT_TIME(?:\(\d\))?"
    r"|(?:now|statement_timestamp|transaction_timestamp|clock_timestamp)\(\))"
)
_PLAIN_DEFAULT: Final = re.compile(
    r"(?:[-+]?[0-9.eE]+|\([-+]?[0-9.eE]+\)|'(?:[^']|'')*'|NULL|true|false|CURRENT_USER|SESSION_USER"
    r"|gen_random_uuid\(\)|uuid_generate_v4\(\)"
    rf"|{_NOW}|\({_NOW} AT TIME ZONE '[^']*'(?:::text)?\)|timezone\('[^']*'(?:::text)?, {_NOW}\))"
    r"(?:::[a-z0-9_ \"\[\](),.]+)?",
    re.IGNORECASE,
)

_FOLDS: Final[dict[str, Fold]] = {
    "int2": fold_integer,
    "int4": fold_integer,
    "int8": fold_integer,
    "bool": fold_integer,
    "text": fold_text,
    "varchar": fold_text,
    "bpchar": fold_text,
    "name": fold_text,
    "uuid": fold_uuid,
    "date": fold_date,
    "bytea": fold_bytes,
    "timestamp": fold_naive_datetime,
    "timestamptz": fold_zoned_datetime,
}


def read_facts(connection: Connection, tables: Collection[TableName]) -> dict[TableName, TableFacts | None]:
    """The facts of these tables; None for one that is not there. Four statements, whatever their number."""
    asked = list(tables)
    quote = connection.dialect.identifier_preparer.quote_identifier
    names = [quote(t.name) if t.schema is None else f"{quote(t.schema)}.{quote(t.name)}" for t in asked]
    found: dict[TableName, TableFacts | None] = dict.fromkeys(asked)
    relations = connection.execute(_TABLES, {"names": json.dumps(names)}).all()
    oids = sorted({row[1] for row in relations})
    if not oids:
        return found
    columns: dict[int, list[Any]] = {}
    for row in connection.execute(_COLUMNS, {"oids": oids}):
        columns.setdefault(row[0], []).append(row)
    indexes: dict[int, list[Any]] = {}
    for row in connection.execute(_UNIQUE, {"oids": oids}):
        indexes.setdefault(row[0], []).append(row)
    references: dict[int, list[Reference]] = {}
    for child, parent, on_delete, on_update, own, others in connection.execute(_REFERENCES):
        acts = on_delete not in _RESTRICTING or on_update not in _RESTRICTING
        references.setdefault(child, []).append(Reference(tuple(own), parent, tuple(others), acts))
    acting = [(child, key.parent) for child, keys in references.items() for key in keys if key.acts]
    for place, oid, kind, row_security, rules, triggers, inherits, excludes, own_partitions in relations:
        reason = None
        if kind not in ("r", "p"):
            reason = "it is not a plain table"
        elif row_security:
            reason = "it has row-level security"
        elif rules:
            reason = "it has rules"
        elif triggers:
            reason = "it has a trigger"
        elif inherits:
            reason = "it is a partition, or inherits"
        elif excludes:
            reason = "it has an exclusion constraint"
        elif own_partitions:
            reason = "a partition of it has a trigger, a foreign key or a unique index of its own"
        facts = TableFacts(oid, reason)
        if reason is None:
            facts = _table(
                oid, columns[oid], indexes.get(oid, []), tuple(references.get(oid, ())), acted_on(oid, acting)
            )
        found[asked[place - 1]] = facts
    return found


def _table(
    oid: int, columns: list[Any], indexes: list[Any], references: tuple[Reference, ...], acted: tuple[Any, ...]
) -> TableFacts:
    folds: dict[str, Fold] = {}
    drawn: list[tuple[str, str]] = []
    generated = set()
    for _, name, type_, kind, native, modifier, deterministic, identity, is_generated, default in columns:
        folds[name] = _fold(type_, kind, native, modifier, deterministic)
        if is_generated:
            generated.add(name)
        elif identity:
            drawn.append((name, f"identity of {oid}.{name}"))
        elif default is not None:
            sequence = _SEQUENCE.fullmatch(default)
            if sequence is not None:
                drawn.append((name, sequence.group(1)))
            elif not _PLAIN_DEFAULT.fullmatch(default):
                return TableFacts(oid, f"the default of its column {name} is an expression")
    key: tuple[str, ...] = ()
    unique = []
    for _, is_primary, plain, names in indexes:
        if plain and not generated.intersection(names):
            unique.append(UniqueSet(tuple(names)))
        else:
            unique.append(UniqueSet((), known=False))
        if is_primary:
            key = tuple(names)
    return TableFacts.known(oid, key, unique, references, drawn, acted, folds, folds_case=False)


def _fold(type_: str, kind: str, native: bool, modifier: int, deterministic: bool) -> Fold:
    if kind == "e":
        return fold_text
    if kind != "b" or not native or not deterministic:
        return fold_unknown
    if type_ in ("timestamp", "timestamptz") and modifier not in (-1, 6):
        # Rounded by the server.
        return fold_unknown
    return _FOLDS.get(type_, fold_unknown)

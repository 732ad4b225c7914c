"""The facts of all relations of a database: a few statements for each kind, whatever the number of tables.

What a user may not see is taken for the worst where it could matter: on MariaDB and MySQL a table whose triggers are
hidden from the user counts as one that has some.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from sqlalchemy import text
from sqlalchemy.engine import Connection

from walsync.session.relations.model import Facts

__all__ = ["READERS"]

# ---------------------------------------------------------------------------------------------------- SQLite


def _sqlite(connection: Connection) -> Facts:
    plain: list[str] = []
    other: list[str] = []
    active: list[str] = []
    acting: list[tuple[str, str]] = []
    schemas = [row[1] for row in connection.execute(text("PRAGMA database_list"))]
    for schema in schemas:
        quoted = '"' + schema.replace('"', '""') + '"'
        master = "sqlite_temp_master" if schema == "temp" else f"{quoted}.sqlite_master"
        for kind, name, table, sql in connection.execute(text(f"SELECT type, name, tbl_name, sql FROM {master}")):
            if kind == "trigger":
                active.append(table)
            elif kind == "view" or (kind == "table" and _VIRTUAL.match(sql or "")):
                other.append(name)
            elif kind == "table":
                plain.append(name)
        keys = connection.execute(
            text(
                'SELECT m.name, f."table", f.on_update, f.on_delete '
                f"FROM {master} AS m JOIN pragma_foreign_key_list(m.name, :place) AS f WHERE m.type = 'table'"
            ),
            {"place": schema},
        )
        acting += [(child, parent) for child, parent, *actions in keys if _ACTING.intersection(map(str.upper, actions))]
    return Facts(plain, other, [*active, *other], acting)


_VIRTUAL: Final = re.compile(r"\s*CREATE\s+VIRTUAL\b", re.IGNORECASE)

_ACTING: Final = frozenset(("CASCADE", "SET NULL", "SET DEFAULT"))

# ------------------------------------------------------------------------------------------------ PostgreSQL

_PG_RELATIONS: Final = text(
    """
    SELECT c.relname::text, c.relkind IN ('r', 'p') AND NOT c.relhasrules AND NOT c.relrowsecurity,
      c.relkind NOT IN ('r', 'p') OR c.relhasrules
        OR EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')
      AND n.nspname <> 'pg_catalog' AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_toast'
    """
)

# Those of partitions, too: a key of the whole table has one for each of its parts.
_PG_REFERENCES: Final = text(
    """
    SELECT DISTINCT child.relname::text, parent.relname::text
    FROM pg_constraint c JOIN pg_class child ON child.oid = c.conrelid JOIN pg_class parent ON parent.oid = c.confrelid
    WHERE c.contype = 'f' AND (c.confdeltype NOT IN ('a', 'r') OR c.confupdtype NOT IN ('a', 'r'))
    """
)

_PG_PARTS: Final = text(
    """
    SELECT part.relname::text, whole.relname::text
    FROM pg_inherits i JOIN pg_class part ON part.oid = i.inhrelid JOIN pg_class whole ON whole.oid = i.inhparent
    WHERE part.relkind IN ('r', 'p', 'f')
    """
)


def _postgresql(connection: Connection) -> Facts:
    relations = connection.execute(_PG_RELATIONS).all()
    return Facts(
        plain=[name for name, is_plain, _ in relations if is_plain],
        other=[name for name, is_plain, _ in relations if not is_plain],
        active=[name for name, _, is_active in relations if is_active],
        acting=[(child, parent) for child, parent in connection.execute(_PG_REFERENCES)],
        parts=[(part, whole) for part, whole in connection.execute(_PG_PARTS)],
    )


# ----------------------------------------------------------------------------------------- MariaDB and MySQL

_OWN_SCHEMAS: Final = "('information_schema', 'performance_schema', 'mysql', 'sys')"

_MY_RELATIONS: Final = text(
    f"""
    SELECT table_schema, table_name, table_type, engine FROM information_schema.tables
    WHERE LOWER(table_schema) NOT IN {_OWN_SCHEMAS}
    """
)

_MY_TRIGGERS: Final = text("SELECT DISTINCT event_object_table FROM information_schema.triggers")

# A user sees the triggers of those tables alone on which it has this privilege.
_MY_PRIVILEGES: Final = text(
    """
    SELECT '%', '%' FROM information_schema.user_privileges WHERE privilege_type = 'TRIGGER'
    UNION SELECT table_schema, '%' FROM information_schema.schema_privileges WHERE privilege_type = 'TRIGGER'
    UNION SELECT table_schema, table_name FROM information_schema.table_privileges WHERE privilege_type = 'TRIGGER'
    """
)

_MY_REFERENCES: Final = text(
    """
    SELECT DISTINCT table_name, referenced_table_name FROM information_schema.referential_constraints
    WHERE delete_rule NOT IN ('RESTRICT', 'NO ACTION') OR update_rule NOT IN ('RESTRICT', 'NO ACTION')
    """
)

_MY_TYPES: Final = ("BASE TABLE", "SYSTEM VERSIONED")

# Others, as MERGE, FEDERATED, CONNECT or SPIDER, show what is somewhere else.
_MY_ENGINES: Final = ("innodb", "aria", "myisam", "rocksdb", "tokudb", "memory", "ndbcluster", "columnstore")


def _mysql(connection: Connection) -> Facts:
    relations = connection.execute(_MY_RELATIONS).all()
    privileges = connection.execute(_MY_PRIVILEGES).all()
    plain = []
    other = []
    active = [name for (name,) in connection.execute(_MY_TRIGGERS)]
    anywhere = ("%", "%") in {(schema, name) for schema, name in privileges}
    patterns = [(_pattern(schema), None if name == "%" else name.lower()) for schema, name in privileges]
    for schema, name, kind, engine in relations:
        if kind not in _MY_TYPES or (engine or "").lower() not in _MY_ENGINES:
            other.append(name)
        else:
            plain.append(name)
            if not anywhere and not any(
                place.fullmatch(schema) and table in (None, name.lower()) for place, table in patterns
            ):
                active.append(name)
    references = [(child, parent) for child, parent in connection.execute(_MY_REFERENCES)]
    return Facts(plain, other, [*active, *other], references)


def _pattern(schema: str) -> re.Pattern[str]:
    """A schema's name as privileges have it: with the wildcards % and _, and a backslash before what is none."""
    parts = re.findall(r"\\.|.", schema, re.DOTALL)
    wild = {"%": ".*", "_": "."}
    return re.compile("".join(wild.get(part) or re.escape(part[-1]) for part in parts), re.IGNORECASE | re.DOTALL)


READERS: Final[dict[str, Callable[[Connection], Facts]]] = {
    "sqlite": _sqlite,
    "postgresql": _postgresql,
    "mysql": _mysql,
    "mariadb": _mysql,
}
"""By the name of the dialect. Of other databases nothing is known."""

"""A table as Snowflake has it: columns, key, and what its documents look like.

Names of the catalog are taken as SQL takes names without quotes: in capitals. `shape` is one text of all that a
document depends on; when it changes (a column, a type, the key, the method, the table made anew) the table is copied
again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sophia import sql
from sophia.capture.snowflake.connection import Session, quoted
from sophia.capture.snowflake.documents import small
from sophia.catalog.models import SnowflakeTable
from sophia.documents import Key
from sophia.errors import SourceError

Q = sql.load("snowflake")
TIMESTAMPS = ("TIMESTAMP_NTZ", "TIMESTAMP_LTZ", "TIMESTAMP_TZ")
NUMBERS = ("NUMBER", "FLOAT")
# Keys of these types are found again by what a document says of them.
_EXACT = ("NUMBER", "TEXT", "BOOLEAN", "DATE", "BINARY")


@dataclass(frozen=True, slots=True)
class Binding:
    """One table to capture into one collection. An empty key means the table's primary key."""

    table: str
    collection: str
    key: tuple[str, ...]
    options: SnowflakeTable


@dataclass(frozen=True, slots=True)
class Table:
    """A table that can be captured.

    Attributes:
        types: Snowflake's type of each column, in the table's order.
        key_columns: as Snowflake names them; `key_fields` as documents do.
    """

    binding: Binding
    database: str
    schema: str
    name: str
    types: Mapping[str, str]
    key_columns: tuple[str, ...]
    cursor: str | None
    shape: str

    @property
    def collection(self) -> str:
        return self.binding.collection

    @property
    def qualified(self) -> str:
        """`SCHEMA.TABLE`, for people."""
        return f"{self.schema}.{self.name}"

    @property
    def key_fields(self) -> tuple[str, ...]:
        return tuple(small(name) for name in self.key_columns)

    @property
    def names(self) -> dict[str, str]:
        """Identifiers to put into a statement: table, columns, keys."""
        return {
            "table": quoted(self.database, self.schema, self.name),
            "columns": self.listed(self.types),
            "keys": self.listed(self.key_columns),
        }

    @property
    def exact_key(self) -> bool:
        """Whether a row that is not found by its key is really gone: nanoseconds and doubles leave doubt."""
        return all(self.types[name] in _EXACT for name in self.key_columns)

    @staticmethod
    def listed(columns: Sequence[str] | Mapping[str, str]) -> str:
        return ", ".join(quoted(name) for name in columns)

    def where_keys(self, keys: Sequence[Key]) -> tuple[str, dict[str, Any]]:
        """A condition on rows of these keys, and its values."""
        values: dict[str, Any] = {}
        rows = []
        for number, key in enumerate(keys):
            parts: list[str] = []
            for column, value in zip(self.key_columns, json.loads(key), strict=True):
                name = f"k{number}_{len(parts)}"
                values[name] = value
                parts.append(_expression(self.types[column], name))
            rows.append(f"({', '.join(parts)})")
        return f"({self.listed(self.key_columns)}) IN ({', '.join(rows)})", values

    def where_after(self, last: Sequence[str]) -> tuple[str, dict[str, Any]]:
        """A condition on rows behind this key, in the order of the keys, and its values."""
        values: dict[str, Any] = {f"a{number}": json.loads(text) for number, text in enumerate(last)}
        alternatives = []
        for number, column in enumerate(self.key_columns):
            equal = [
                f"{quoted(c)} = {_expression(self.types[c], f'a{n}')}" for n, c in enumerate(self.key_columns[:number])
            ]
            above = f"{quoted(column)} > {_expression(self.types[column], f'a{number}')}"
            alternatives.append("(" + " AND ".join([*equal, above]) + ")")
        return "WHERE " + " OR ".join(alternatives), values


def _expression(kind: str, name: str) -> str:
    """A key value of a document, as Snowflake reads it."""
    match kind:
        case "BINARY":
            return f"TO_BINARY(%({name})s, 'BASE64')"
        case "DATE":
            return f"%({name})s::TIMESTAMP_NTZ::DATE"
        case "TIME":
            return f"%({name})s::TIMESTAMP_NTZ::TIME"
        case "TIMESTAMP_NTZ" | "TIMESTAMP_LTZ" | "TIMESTAMP_TZ":
            return f"%({name})s::{kind}"
        case _:
            return f"%({name})s"


def inspect(session: Session, binding: Binding) -> Table:
    """Look at a table.

    Raises:
        SourceError: it does not exist, may not be read, or has no key or cursor as the catalog says.
    """
    schema, _, name = binding.table.upper().partition(".")
    about = f"table {schema}.{name}"
    given = {"schema": schema, "table": name}
    database = quoted(session.database)
    columns = session.rows(about, Q["columns"].format(database=database), given)
    if not columns:
        raise SourceError(
            f"{about} does not exist in {session.database}, or the role may not see it; create it, or GRANT USAGE ON "
            f"SCHEMA {schema} and GRANT SELECT ON TABLE {schema}.{name} to the role of the URL"
        )
    types = {str(row["column_name"]): str(row["data_type"]).upper() for row in columns}
    by_field: dict[str, str] = {}
    for column in types:
        if small(column) in by_field:
            raise SourceError(f"{about}: columns {by_field[small(column)]!r} and {column!r} differ only by their case")
        by_field[small(column)] = column
    key = tuple(_find(about, field, by_field) for field in binding.key)
    if not key:
        shown = session.rows(about, Q["primary_key"].format(table=quoted(session.database, schema, name)))
        key = tuple(str(row["column_name"]) for row in sorted(shown, key=lambda row: int(row["key_sequence"])))
    if not key:
        raise SourceError(f"{about} has no primary key; name its key in the catalog: key: [column]")
    options = binding.options
    cursor = None
    if options.method == "cursor":
        cursor = _find(about, options.cursor or "", by_field)
        if types[cursor] not in (*TIMESTAMPS, "DATE", *NUMBERS):
            raise SourceError(
                f"{about}: cursor column {cursor!r} is {types[cursor]}; it must be a timestamp or a number"
            )
    elif columns[0]["table_type"] not in ("BASE TABLE", "TABLE", None):
        raise SourceError(f"{about} is no table but {columns[0]['table_type']}; capture it with `method: cursor`")
    described = ", ".join(
        f"{row['column_name']} {row['data_type']}({row['numeric_precision']},{row['numeric_scale']})" for row in columns
    )
    shape = f"{options.method} {cursor or ''} key {', '.join(key)} made {columns[0]['created']}: {described}"
    return Table(binding, session.database, schema, name, types, key, cursor, shape)


def _find(about: str, field: str, by_field: Mapping[str, str]) -> str:
    """The column that the catalog means, whatever its case."""
    for candidate in (field, small(field), small(field.upper())):
        if candidate in by_field:
            return by_field[candidate]
    raise SourceError(f"{about} has no column {field!r}; it has {', '.join(by_field.values())}")

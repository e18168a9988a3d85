"""Rows of the PostgreSQL behind an Estuary capture, read by key: to read again, and to verify.

Invariants: a row is found by comparing keys in the column's own type, never by their JSON text, of which there may be
several for one value; it is given back under the key that was asked for; its values have the same JSON forms as the
documents. A key that its column's type cannot read belongs to no row. A row that is there and cannot be read, or that
row security would hide, is never taken for one that is gone.

The server must be the primary that Estuary captures from: a replica that lags would answer with older rows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import psycopg
from psycopg import sql as composed
from psycopg.rows import TupleRow

from sophia import sql
from sophia.capture.snapshot import read_rows
from sophia.capture.source import columns, inspect_server
from sophia.capture.values import SESSION_OPTIONS
from sophia.catalog import Catalog
from sophia.catalog.models import Collection
from sophia.database.connect import connect
from sophia.documents import Key
from sophia.errors import ConfigurationError, DocumentError, SourceError, TemporaryError
from sophia.estuary.source.tables import describe_table
from sophia.settings import Settings

Connection = psycopg.Connection[TupleRow]
Q = sql.load("estuary_rows")
# A table that is being altered is not waited for without end: others are read meanwhile, and the process can stop.
_OPTIONS = f"{SESSION_OPTIONS} -c lock_timeout=5s"
_NUMBER = "sophia_number"
_INT4 = 23


def source_url(catalog: Catalog, collection: Collection, settings: Settings) -> str | None:
    """The DSN of the PostgreSQL behind a collection that Estuary feeds, or None if nobody gave one."""
    name = collection.source.for_profile(settings.profile)
    if name is None or collection.table is None:
        return None
    source = catalog.source(name)
    return settings.secret(source.url_env) if source.kind == "estuary" and source.url_env is not None else None


def require_source_url(catalog: Catalog, collection: Collection, settings: Settings) -> str:
    """The same.

    Raises:
        ConfigurationError: there is none; what to set is named.
    """
    url = source_url(catalog, collection, settings)
    if url is not None:
        return url
    name = collection.source.for_profile(settings.profile)
    source = catalog.source(name) if name is not None else None
    if source is None or source.kind != "estuary":
        raise ConfigurationError(f"collection {collection.name!r} is not fed by Estuary in this profile")
    if collection.table is None:
        raise ConfigurationError(f"collection {collection.name!r} names no table, so its rows cannot be read")
    if source.url_env is None:
        raise ConfigurationError(
            f"source {source.name!r} does not say where its rows are: give it `url_env` in sources.yaml, the name of a "
            "variable with the DSN of the PostgreSQL that Estuary captures"
        )
    raise ConfigurationError(
        f"{source.url_env} is not set; it is the DSN of the PostgreSQL behind source {source.name!r}"
    )


class SourceRows:
    """One table of the source, on a connection of its own. A context manager.

    Args:
        table: `schema.name`.
        key_fields: the collection's key columns; the table's own key if empty.

    Attributes:
        unreadable: keys whose rows could not be read, by why; `read` left them out.

    Raises:
        SourceError: the table does not exist, or has other columns than the key.
        TemporaryError: the server does not answer.
    """

    def __init__(self, url: str, table: str, key_fields: Sequence[str]) -> None:
        self.unreadable: dict[Key, str] = {}
        self._connection = connect(url, "sophia-estuary-rows", options=_OPTIONS)
        try:
            inspect_server(self._connection)
            self._table = describe_table(self._connection, table)
            self.key_fields = tuple(key_fields) or self._table.key_fields
            self._columns = columns(self._connection, self._table.oid)
            types = self._connection.execute(Q["key_types"], {"oid": self._table.oid}).fetchall()
        except BaseException:
            self._connection.close()
            raise
        self._types = {name: (schema, kind) for name, schema, kind in types}
        absent = [name for name in self.key_fields if name not in self._types]
        if absent or not self.key_fields:
            self._connection.close()
            raise SourceError(f"{table}: has no key column {absent[0]!r}" if absent else f"{table}: has no primary key")

    def __enter__(self) -> SourceRows:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def read(self, keys: Sequence[Key]) -> dict[Key, dict[str, Any]]:
        """The rows of these keys as they are committed now; a key without a row is absent, or in `unreadable`.

        Raises:
            SourceError: row security hides rows from the DSN's role.
            TemporaryError: the table is locked.
            psycopg.Error: the rows cannot be read.
        """
        if not keys:
            return {}
        try:
            return self._read(keys)
        except psycopg.errors.InsufficientPrivilege as error:
            raise SourceError(
                f"{self._table.qualified}: its rows may not be read, or row security hides some; let the role of the "
                "DSN SELECT them and give it BYPASSRLS"
            ) from error
        except psycopg.errors.LockNotAvailable as error:
            raise TemporaryError(f"{self._table.qualified}: is locked, perhaps by an ALTER TABLE; try later") from error
        except (psycopg.DataError, DocumentError) as error:
            if len(keys) > 1:
                half = len(keys) // 2
                return self.read(keys[:half]) | self.read(keys[half:])
            if isinstance(error, DocumentError):
                self.unreadable[keys[0]] = str(error)
            elif self._fits(keys[0]):
                self.unreadable[keys[0]] = f"SQLSTATE {error.sqlstate}"
            return {}

    def _fits(self, key: Key) -> bool:
        """Whether a key is of its columns' types."""
        values = self._key_values(key)
        if values is None:
            return False
        try:
            self._connection.execute(composed.SQL("SELECT ") + composed.SQL(", ").join(self._literals(values)))
        except psycopg.DataError:
            return False
        return True

    def _read(self, keys: Sequence[Key]) -> dict[Key, dict[str, Any]]:
        wanted = [(number, values) for number, key in enumerate(keys) if (values := self._key_values(key)) is not None]
        if not wanted:
            return {}
        names = [composed.Identifier(f"sophia_key_{n}") for n in range(len(self.key_fields))]
        rows = composed.SQL(", ").join(
            composed.SQL("({}, {})").format(composed.Literal(number), composed.SQL(", ").join(self._literals(values)))
            for number, values in wanted
        )
        matches = composed.SQL(" AND ").join(
            composed.SQL("{} = {}").format(composed.Identifier(field), name)
            for field, name in zip(self.key_fields, names, strict=True)
        )
        join = composed.SQL(" JOIN (VALUES {}) AS sophia_wanted ({}, {}) ON {}").format(
            rows, composed.Identifier(_NUMBER), composed.SQL(", ").join(names), matches
        )
        described = [*self._columns, (_NUMBER, _INT4)]
        found: dict[Key, dict[str, Any]] = {}
        for row in read_rows(self._connection, self._table.schema, self._table.name, described, join):
            key = keys[row.pop(_NUMBER)]
            row.pop("_meta", None)
            # The key as the documents write it.
            row.update(zip(self.key_fields, json.loads(key), strict=True))
            found[key] = row
        return found

    def _key_values(self, key: Key) -> list[Any] | None:
        values = json.loads(key)
        return values if len(values) == len(self.key_fields) else None

    def _literals(self, values: Sequence[Any]) -> list[composed.Composed]:
        literals = []
        for field, value in zip(self.key_fields, values, strict=True):
            schema, kind = self._types[field]
            # Of all types only bytea has a JSON text that PostgreSQL does not read back.
            form = "decode({}, 'base64')" if kind == "bytea" else "{}"
            text = composed.Literal(value if isinstance(value, str | bool) else json.dumps(value))
            cast = composed.SQL("CAST(" + form + " AS {})")
            literals.append(cast.format(text, composed.Identifier(schema, kind)))
        return literals

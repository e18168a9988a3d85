"""Loads a file of rows into a table: CSV, JSON lines or Parquet, read by pyarrow, all rows or none."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql as composed
from psycopg.rows import TupleRow

from sophia.errors import ConfigurationError

Connection = psycopg.Connection[TupleRow]
BATCH_ROWS = 2_000
_TYPES = {
    "bool": "boolean",
    "int8": "smallint",
    "int16": "smallint",
    "int32": "integer",
    "uint8": "smallint",
    "uint16": "integer",
    "uint32": "bigint",
    "int64": "bigint",
    "uint64": "numeric",
    "halffloat": "real",
    "float": "real",
    "double": "double precision",
    "string": "text",
    "large_string": "text",
    "binary": "bytea",
    "date32[day]": "date",
    "null": "text",
}


@dataclass(frozen=True, slots=True)
class Loaded:
    """What `load_file` did."""

    rows: int
    created: bool


def load_file(
    connection: Connection,
    path: Path,
    table: str,
    *,
    key: str | None = None,
    progress: Callable[[int, int | None], None] = lambda rows, total: None,
) -> Loaded:
    """Load a file in one transaction; a table that does not exist is made, with `key` (or `id`) as primary key.

    A row whose key is there already replaces it.

    Raises:
        ConfigurationError: the file, its format, its encoding, the table's name or a row is not usable. Nothing was
            loaded then.
    """
    schema, name = _split(table)
    try:
        batches, columns, total = _open(path)
    except FileNotFoundError:
        raise ConfigurationError(f"{path}: does not exist") from None
    except Exception as error:
        raise ConfigurationError(f"{path}: cannot be read: {_first_line(error)}") from error
    target = composed.Identifier(schema, name)
    rows = 0
    try:
        with connection.transaction():
            created, primary = _prepare(connection, schema, name, columns, key, path)
            stage = composed.Identifier("load_stage")
            names = composed.SQL(", ").join(composed.Identifier(column) for column, _ in columns)
            connection.execute(
                composed.SQL("CREATE TEMPORARY TABLE {} ON COMMIT DROP AS SELECT {} FROM {} WITH NO DATA").format(
                    stage, names, target
                )
            )
            with connection.cursor().copy(composed.SQL("COPY {} ({}) FROM STDIN").format(stage, names)) as copy:
                for batch in batches:
                    for row in batch:
                        copy.write_row([_value(value) for value in row])
                        rows += 1
                    progress(rows, total)
            updates = composed.SQL(", ").join(
                composed.SQL("{0} = EXCLUDED.{0}").format(composed.Identifier(column))
                for column, _ in columns
                if column not in primary
            )
            conflict = composed.SQL(", ").join(composed.Identifier(column) for column in primary)
            action = (
                composed.SQL("DO UPDATE SET {}").format(updates)
                if len(columns) > len(primary)
                else composed.SQL("DO NOTHING")
            )
            connection.execute(
                composed.SQL("INSERT INTO {} ({}) SELECT {} FROM {} ON CONFLICT ({}) {}").format(
                    target, names, names, stage, conflict, action
                )
            )
    except (psycopg.DataError, psycopg.IntegrityError, psycopg.ProgrammingError) as error:
        raise ConfigurationError(f"{path}: not loaded into {table}: {_first_line(error)}") from error
    except Exception as error:
        # pyarrow reads lazily: a broken row shows up here.
        if type(error).__module__.startswith("pyarrow") or isinstance(error, UnicodeDecodeError):
            raise ConfigurationError(f"{path}: row {rows + 1} or later cannot be read: {_first_line(error)}") from error
        raise
    return Loaded(rows, created)


def _split(table: str) -> tuple[str, str]:
    schema, _, name = table.rpartition(".")
    if not name.isidentifier() or (schema and not schema.isidentifier()):
        raise ConfigurationError(f"table {table!r} is no table name; give schema.name")
    if schema in ("sophia", "indexes", "pg_catalog", "information_schema"):
        raise ConfigurationError(f"schema {schema!r} is the platform's own; load into another")
    return schema or "public", name


def _open(path: Path) -> tuple[Iterator[Iterator[tuple[Any, ...]]], list[tuple[str, str]], int | None]:
    """(batches of rows, columns with their PostgreSQL types, number of rows if known)."""
    suffix = path.suffix.lower()
    if not path.exists():
        raise FileNotFoundError(path)
    total: int | None = None
    if suffix == ".parquet":
        from pyarrow import parquet

        file = parquet.ParquetFile(path)
        total = file.metadata.num_rows
        schema, batches = file.schema_arrow, file.iter_batches(BATCH_ROWS)
    elif suffix == ".csv":
        from pyarrow import csv

        reader = csv.open_csv(path, parse_options=csv.ParseOptions(newlines_in_values=True))
        schema, batches = reader.schema, iter(reader)
        for field in schema:
            # CSV holds text; pyarrow takes a column for bytes when its first rows are not UTF-8.
            if str(field.type) == "binary":
                raise ConfigurationError(f"column {field.name!r} is not valid UTF-8; save the file as UTF-8")
    elif suffix in (".jsonl", ".ndjson"):
        from pyarrow import json as arrow_json

        # Read whole: a column that first shows up in the last line is a column all the same.
        whole = arrow_json.read_json(path)
        total = whole.num_rows
        schema, batches = whole.schema, iter(whole.to_batches(BATCH_ROWS))
    else:
        raise ConfigurationError(f"{path}: {suffix or 'no suffix'} is not loaded; give .csv, .jsonl or .parquet")
    columns = [(field.name, _type(str(field.type))) for field in schema]
    if not columns:
        raise ConfigurationError(f"{path}: has no columns")
    return (_rows(batch) for batch in batches), columns, total


def _rows(batch: Any) -> Iterator[tuple[Any, ...]]:
    return zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _type(arrow: str) -> str:
    if arrow in _TYPES:
        return _TYPES[arrow]
    if arrow.startswith("timestamp"):
        return "timestamptz"
    if arrow.startswith("decimal"):
        return "numeric"
    if arrow.startswith(("struct", "list", "map", "large_list")):
        return "jsonb"
    return "text"


def _prepare(
    connection: Connection, schema: str, name: str, columns: list[tuple[str, str]], key: str | None, path: Path
) -> tuple[bool, list[str]]:
    """Make the table if it does not exist. Returns (whether it was made, its primary key)."""
    from sophia.capture.source import inspect_table
    from sophia.errors import SourceError

    found = connection.execute("SELECT to_regclass(%s)", [f'"{schema}"."{name}"']).fetchone()
    if found is not None and found[0] is not None:
        try:
            return False, list(inspect_table(connection, f'"{schema}"."{name}"').key_fields)
        except SourceError as error:
            raise ConfigurationError(str(error)) from error
    primary = key or "id"
    if primary not in [column for column, _ in columns]:
        raise ConfigurationError(f"{path}: has no column {primary!r} for the primary key; name another with --key")
    parts = [composed.SQL("{} {}").format(composed.Identifier(c), composed.SQL(t)) for c, t in columns]
    connection.execute(
        composed.SQL("CREATE TABLE {} ({}, PRIMARY KEY ({}))").format(
            composed.Identifier(schema, name), composed.SQL(", ").join(parts), composed.Identifier(primary)
        )
    )
    return True, [primary]


def _value(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float | bool | datetime | date | time | Decimal):
        return value
    if isinstance(value, bytes):
        return value
    return json.dumps(value, default=_plain, ensure_ascii=False)


def _plain(value: Any) -> Any:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

"""A table of the PostgreSQL behind an Estuary capture, with the key that its collection has."""

from __future__ import annotations

import psycopg
from psycopg.rows import TupleRow

from sophia import sql
from sophia.capture.source import SourceTable
from sophia.errors import SourceError


def describe_table(connection: psycopg.Connection[TupleRow], name: str) -> SourceTable:
    """A table with its key: the primary key, else that of its replica identity, else none.

    Raises:
        SourceError: it does not exist.
    """
    row = connection.execute(sql.load("source")["table"], {"table": name}).fetchone()
    if row is None:
        raise SourceError(f"{name}: does not exist in the source; create it or name another table")
    oid, kind, identity, schema, table, primary, identity_index, *_ = row
    return SourceTable(oid, schema, table, identity, tuple(primary or identity_index), partitioned=kind == "p")

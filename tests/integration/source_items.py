"""The table `items` of a source, and what the inbox should hold of it."""

from __future__ import annotations

import contextlib
from typing import Any

import psycopg
from psycopg.rows import TupleRow

from sophia.documents import parse_lsn
from tests.integration.conftest import current
from tests.waiting import WAIT_SECONDS, until

Connection = psycopg.Connection[TupleRow]
BIG = "".join(chr(33 + (i * i * 7 + i) % 90) for i in range(20_000))


def make_items(connection: Connection) -> None:
    """A table `items` of three rows."""
    connection.execute("CREATE TABLE items (id int PRIMARY KEY, body text)")
    connection.execute("INSERT INTO items SELECT n, 'row ' || n FROM generate_series(1, 3) n")


def truth(connection: Connection, table: str = "items") -> dict[str, Any]:
    """What the inbox should hold of a table keyed by `id`."""
    return dict(
        connection.execute(f"SELECT jsonb_build_array(id)::text, to_jsonb(t) FROM {table} t ORDER BY 1").fetchall()
    )


def level(connection: Connection, table: str = "items", seconds: float = WAIT_SECONDS) -> None:
    """Wait until the collection equals its table."""
    expected: dict[str, Any] = {}
    found: dict[str, Any] = {}

    def equal() -> bool:
        nonlocal expected, found
        expected, found = truth(connection, table), current(connection, table)
        return expected == found

    with contextlib.suppress(AssertionError):
        until(equal, f"collection {table}", seconds)
    assert found == expected


def confirmed(connection: Connection) -> tuple[int, int]:
    """Positions that the inbox has stored and that the slot has confirmed."""
    # The slot first: it is in no snapshot, and may move on while what is stored is read.
    slot = connection.execute(
        "SELECT confirmed_flush_lsn::text FROM pg_replication_slots JOIN sophia.captures ON slot = slot_name"
    ).fetchone()
    stored = connection.execute("SELECT confirmed_lsn::text FROM sophia.captures").fetchone()
    assert slot is not None
    assert stored is not None
    return parse_lsn(stored[0]), parse_lsn(slot[0])


def generation(connection: Connection, name: str = "items") -> int:
    row = connection.execute("SELECT generation FROM sophia.collections WHERE name = %s", [name]).fetchone()
    assert row is not None
    return int(row[0])


def wal_position(connection: Connection) -> int:
    row = connection.execute("SELECT pg_current_wal_lsn()::text").fetchone()
    assert row is not None
    return parse_lsn(row[0])


def snapshots(connection: Connection) -> list[Any]:
    """When and at which position each table's snapshot was completed."""
    return connection.execute(
        "SELECT collection_id, consistent_point, completed_at FROM sophia.captured_tables ORDER BY 1"
    ).fetchall()

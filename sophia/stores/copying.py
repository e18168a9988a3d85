"""Rows in the binary form of `COPY … FROM STDIN (FORMAT BINARY)`, made by hand.

A first load writes every document once. As arrays of a statement its values are taken apart and put together several
times over; like this each becomes the bytes that PostgreSQL stores once, and the server enters rows by the page. Most
functions return a field: its length in four bytes, then its value as the type's `recv` function reads it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

import psycopg
from psycopg import sql as composed
from psycopg.rows import TupleRow

from sophia import sql
from sophia.documents import Clock

Connection = psycopg.Connection[TupleRow]
Q = sql.load("copying")
NULL = b"\xff\xff\xff\xff"
TRUE, FALSE = b"\0\0\0\1\1", b"\0\0\0\1\0"
_HEAD = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_END = b"\xff\xff"
# Written to the connection at a time.
_PIECE = 1 << 18
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_OID_BIGINT, _OID_BYTEA = 20, 17
_size = struct.Struct(">i").pack
_short = struct.Struct(">h").pack
_int = struct.Struct(">ii").pack
_bigint = struct.Struct(">iq").pack
_lsn = struct.Struct(">iQ").pack
_span = struct.Struct(">ibiiii").pack
_clock = struct.Struct(">iiiiiiiqiqiq").pack
_array = struct.Struct(">iiiii").pack
_EMPTY_BYTEAS = struct.Struct(">iiii").pack(12, 0, 0, _OID_BYTEA)
_EMPTY_SPAN = b"\0\0\0\1\1"


def copy(
    connection: Connection, statement: composed.SQL | composed.Composed, fields: int, rows: Iterable[bytes]
) -> None:
    """Enter rows, each its fields one behind the other, in the caller's transaction.

    Args:
        statement: `COPY … FROM STDIN (FORMAT BINARY)` of so many columns.

    Raises:
        psycopg.errors.UniqueViolation: a row is there already.
    """
    count = _short(fields)
    piece = bytearray(_HEAD)
    with connection.cursor() as cursor, cursor.copy(statement) as sink:
        for row in rows:
            piece += count
            piece += row
            if len(piece) >= _PIECE:
                sink.write(bytes(piece))
                piece.clear()
        sink.write(bytes(piece + _END))


def now(connection: Connection) -> bytes:
    """The server's clock as a `timestamptz`: of all rows of a copy, since a default that calls it for each row would
    have them entered one by one."""
    (now,) = connection.execute(Q["now"], prepare=True)
    return timestamp(now[0])


def field(value: bytes) -> bytes:
    """Bytes as they are: of `bytea`, `uuid`, or text in UTF-8."""
    return _size(len(value)) + value


def text(value: str) -> bytes:
    """A `text`."""
    return field(value.encode())


def integer(value: int) -> bytes:
    """An `integer`."""
    return _int(4, value)


def bigint(value: int | None) -> bytes:
    """A `bigint`."""
    return NULL if value is None else _bigint(8, value)


def lsn(value: int | None) -> bytes:
    """A `pg_lsn`, which has no sign."""
    return NULL if value is None else _lsn(8, value)


def timestamp(value: datetime | None) -> bytes:
    """A `timestamptz`."""
    return NULL if value is None else _bigint(8, (value - _EPOCH) // _MICROSECOND)


def span(start: int, stop: int) -> bytes:
    """An `int4range` that holds `start` and not `stop`."""
    return _span(17, 2, 4, start, 4, stop) if start < stop else _EMPTY_SPAN


def clock(value: Clock) -> bytes:
    """A clock's `bigint[]`."""
    return _clock(56, 1, 0, _OID_BIGINT, 3, 1, 8, value[0], 8, value[1], 8, value[2])


def byteas(values: Sequence[bytes]) -> bytes:
    """A `bytea[]`."""
    if not values:
        return _EMPTY_BYTEAS
    body = _array(1, 0, _OID_BYTEA, len(values), 1) + b"".join(map(field, values))
    return field(body)

"""Decoder of PostgreSQL's logical replication messages (pgoutput, protocol version 1). Bytes in, values out.

No sockets and no state: `decode` turns one payload into one message. Source: PostgreSQL documentation,
"Logical Replication Message Formats".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


class _Unchanged:
    """The type of `UNCHANGED`."""

    def __repr__(self) -> str:
        return "UNCHANGED"


# A TOASTed column that the update did not touch: PostgreSQL does not send its value.
UNCHANGED = _Unchanged()
Value = bytes | None | _Unchanged
Tuple = list[Value]


@dataclass(frozen=True, slots=True)
class Begin:
    final_lsn: int
    committed_at: datetime
    xid: int


@dataclass(frozen=True, slots=True)
class Commit:
    lsn: int
    end_lsn: int


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    type_oid: int
    is_key: bool


@dataclass(frozen=True, slots=True)
class Relation:
    oid: int
    schema: str
    table: str
    replica_identity: str
    columns: tuple[Column, ...]


@dataclass(frozen=True, slots=True)
class Insert:
    oid: int
    new: Tuple


@dataclass(frozen=True, slots=True)
class Update:
    """`old` holds the whole old row ('O', REPLICA IDENTITY FULL) or only its key columns ('K')."""

    oid: int
    old_kind: str | None
    old: Tuple | None
    new: Tuple


@dataclass(frozen=True, slots=True)
class Delete:
    oid: int
    old_kind: str
    old: Tuple


@dataclass(frozen=True, slots=True)
class Truncate:
    oids: tuple[int, ...]


Message = Begin | Commit | Relation | Insert | Update | Delete | Truncate


def decode(payload: bytes) -> Message | None:
    """One message, or None for the kinds that carry no change (origin, type, logical message).

    Raises:
        ValueError: a kind that protocol version 1 does not have.
    """
    kind = payload[:1]
    match kind:
        case b"I":
            oid = int.from_bytes(payload[1:5], "big")
            new, _ = _tuple(payload, 6)
            return Insert(oid, new)
        case b"U":
            return _update(payload)
        case b"D":
            oid = int.from_bytes(payload[1:5], "big")
            old, _ = _tuple(payload, 6)
            return Delete(oid, chr(payload[5]), old)
        case b"B":
            lsn, micros, xid = struct.unpack_from(">QqI", payload, 1)
            return Begin(lsn, _EPOCH + timedelta(microseconds=micros), xid)
        case b"C":
            _flags, lsn, end_lsn, _micros = struct.unpack_from(">BQQq", payload, 1)
            return Commit(lsn, end_lsn)
        case b"R":
            return _relation(payload)
        case b"T":
            count, _options = struct.unpack_from(">IB", payload, 1)
            return Truncate(struct.unpack_from(f">{count}I", payload, 6))
        case b"O" | b"Y" | b"M":
            return None
        case _:
            raise ValueError(f"unknown replication message {kind!r}")


def _update(payload: bytes) -> Update:
    oid = int.from_bytes(payload[1:5], "big")
    marker = chr(payload[5])
    if marker == "N":
        new, _ = _tuple(payload, 6)
        return Update(oid, None, None, new)
    old, offset = _tuple(payload, 6)
    new, _ = _tuple(payload, offset + 1)
    return Update(oid, marker, old, new)


def _tuple(payload: bytes, offset: int) -> tuple[Tuple, int]:
    count = int.from_bytes(payload[offset : offset + 2], "big")
    offset += 2
    values: Tuple = []
    for _ in range(count):
        kind = payload[offset]
        offset += 1
        if kind == 0x74:  # t: text
            length = int.from_bytes(payload[offset : offset + 4], "big")
            offset += 4
            values.append(payload[offset : offset + length])
            offset += length
        elif kind == 0x6E:  # n: null
            values.append(None)
        elif kind == 0x75:  # u: unchanged TOAST
            values.append(UNCHANGED)
        else:
            raise ValueError(f"unknown column kind {chr(kind)!r}")
    return values, offset


def _relation(payload: bytes) -> Relation:
    oid = int.from_bytes(payload[1:5], "big")
    schema, offset = _string(payload, 5)
    table, offset = _string(payload, offset)
    identity = chr(payload[offset])
    count = int.from_bytes(payload[offset + 1 : offset + 3], "big")
    offset += 3
    columns = []
    for _ in range(count):
        flags = payload[offset]
        name, offset = _string(payload, offset + 1)
        type_oid = int.from_bytes(payload[offset : offset + 4], "big")
        offset += 8
        columns.append(Column(name, type_oid, bool(flags & 1)))
    # An empty schema name means pg_catalog.
    return Relation(oid, schema or "pg_catalog", table, identity, tuple(columns))


def _string(payload: bytes, offset: int) -> tuple[str, int]:
    end = payload.index(0, offset)
    return payload[offset:end].decode(), end + 1

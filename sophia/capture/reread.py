"""Reads rows again from their source: those of which the inbox lacks columns, and those that a person asks for.

A row is read from the snapshot that a temporary slot exports, and bears that slot's consistent point as its clock. So
it ranks exactly between what had committed when it was read and what committed later, wherever the stream is by then.
A row that is not there any more becomes a delete at that clock.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence

import psycopg
from psycopg import sql as composed
from psycopg.postgres import types
from psycopg.rows import TupleRow

from sophia import inbox, sql
from sophia.capture.assembler import CapturedTable
from sophia.capture.replication import ReplicationConnection
from sophia.capture.snapshot import read_rows, row_change
from sophia.capture.source import columns
from sophia.capture.values import SESSION_OPTIONS
from sophia.database.connect import connect
from sophia.documents import Change, Clock, Key, Origin
from sophia.errors import DocumentError
from sophia.failpoints import failpoint

logger = logging.getLogger("sophia.capture")
Connection = psycopg.Connection[TupleRow]
Q = sql.load("inbox")
# Rows of one snapshot; the others follow with the next look.
MOST_ROWS = 500
_BYTEA = types["bytea"].oid


def incomplete_keys(own: Connection, collection: str) -> list[Key]:
    """Keys of a collection whose document lacks columns, or that a person wants to be read again."""
    return [Key(row[0]) for row in own.execute(Q["incomplete"], {"name": collection, "limit": MOST_ROWS})]


def reread(
    url: str, own: Connection, tables: Mapping[int, CapturedTable], slot: str, wanted: Mapping[str, Sequence[Key]]
) -> int:
    """Read the wanted keys of each collection again and accept them. Returns how many.

    Args:
        slot: name for the temporary slot.
    """
    count = 0
    with ReplicationConnection(url, "sophia-capture-reread", SESSION_OPTIONS) as replication:
        point, snapshot = replication.create_slot(slot, temporary=True)
        with connect(url, "sophia-capture-reread", autocommit=False, options=SESSION_OPTIONS) as source:
            source.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            source.execute(composed.SQL("SET TRANSACTION SNAPSHOT {}").format(composed.Literal(snapshot)))
            for table in tables.values():
                keys = wanted.get(table.collection, ())
                if keys:
                    clock = Clock(table.generation, point, 0)
                    changes = _readable(source, table, keys, clock)
                    with own.transaction():
                        inbox.accept(own, table.collection, changes)
                        inbox.resolve(own, table.collection, [change.key for change in changes], clock)
                        failpoint("capture.reread.before_commit")
                    failpoint("capture.reread.after_commit")
                    count += len(changes)
                    logger.info("read %d rows of %s again", len(changes), table.qualified)
            source.rollback()
    return count


def _readable(source: Connection, table: CapturedTable, keys: Sequence[Key], clock: Clock) -> list[Change]:
    """`_read` without the rows that cannot be read: these stay incomplete, and hold up no others."""
    try:
        return _read(source, table, keys, clock)
    except DocumentError as error:
        if len(keys) == 1:
            logger.warning("a row of %s cannot be read again: %s", table.qualified, error)
            return []
        half = len(keys) // 2
        return [change for some in (keys[:half], keys[half:]) for change in _readable(source, table, some, clock)]


def _read(source: Connection, table: CapturedTable, keys: Sequence[Key], clock: Clock) -> list[Change]:
    described = columns(source, table.oid)
    type_of = dict(described)
    # Of all types only bytea has a JSON text that PostgreSQL does not read back.
    forms = [composed.SQL("decode({}, 'base64')" if type_of[name] == _BYTEA else "{}") for name in table.key_fields]
    names = composed.SQL(", ").join(composed.Identifier(name) for name in table.key_fields)
    values = composed.SQL(", ").join(
        composed.SQL("({})").format(
            composed.SQL(", ").join(
                form.format(composed.Literal(value)) for form, value in zip(forms, json.loads(key), strict=True)
            )
        )
        for key in keys
    )
    where = composed.SQL(" WHERE ({}) IN ({})").format(names, values)
    found: dict[Key, Change] = {}
    for row in read_rows(source, table.schema, table.table, described, where):
        change = row_change(table.key_fields, row, clock, snapshot=False)
        found[change.key] = change
    gone = [Change(key, "d", clock, None, origin=Origin(clock.position)) for key in keys if key not in found]
    return [*found.values(), *gone]

"""Compares all keys of a table with what is stored: finds deleted rows, and rows that the cursor did not show.

One statement reads keys and cursor (or whole rows) of one state of the table, in batches; the keys go to a temporary
table in Sophia's database, so memory stays bounded. A row that is not stored, or with another cursor, is read and
taken. Then what is stored and was not in the table is deleted, in slices by key. Nothing that was stored after the
statement began is deleted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Event
from typing import Any

from sophia import inbox, sql
from sophia.capture.snowflake.connection import Rows, Session, quoted
from sophia.capture.snowflake.documents import Reader, small
from sophia.capture.snowflake.rows import Row, Taker, as_json, read
from sophia.capture.snowflake.state import Connection, Positions
from sophia.capture.snowflake.table import Table
from sophia.documents import Key, key_of
from sophia.errors import DocumentError
from sophia.failpoints import failpoint

Q = sql.load("snowflake_state")
S = sql.load("snowflake")
SLICE = 2_000
# Rows that are read by their keys in one statement.
MOST_KEYS = 500


@dataclass(slots=True)
class Compared:
    """What a comparison found."""

    taken: int = 0
    deleted: int = 0


def compare(session: Session, positions: Positions, table: Table, taker: Taker, stop: Event) -> Compared | None:
    """Compare a table. None if it was broken off, since `stop` was set."""
    own, about, done = positions.own, f"table {table.qualified}", Compared()
    row = own.execute(Q["position"], {"collection": table.collection}).fetchone()
    assert row is not None  # noqa: S101 - the collection was made before
    collection_id, position = row
    for name in ("make_seen", "drop_seen_index", "clear_seen"):
        own.execute(Q[name])
    whole = table.binding.options.compare == "rows"
    wanted = list(table.types) if whole else [*dict.fromkeys([*table.key_columns, str(table.cursor)])]
    columns = ", ".join(quoted(name) for name in wanted)
    rows = session.query(about, S["compare"].format(columns=columns, table=table.names["table"]))
    differing: list[Key] = []
    for batch in rows:
        if stop.is_set():
            return None
        if whole:
            found, faults = read(table, rows, batch)
            with own.transaction():
                positions.fence()
                done.taken += taker.take(found, faults)
                _note(own, [row.key for row in found])
                failpoint("snowflake.compare.before_commit")
        else:
            keys, cursors = _keys(table, rows, batch)
            _note(own, keys)
            values = {
                "collection_id": collection_id,
                "keys": keys,
                "cursors": cursors,
                "field": small(str(table.cursor)),
            }
            differing += [Key(key) for (key,) in own.execute(Q["differing"], values)]
    own.execute(Q["index_seen"])
    own.execute(Q["analyze_seen"])
    for first in range(0, len(differing), MOST_KEYS):
        if stop.is_set():
            return None
        found, faults = rows_by_key(session, table, differing[first : first + MOST_KEYS])
        with own.transaction():
            positions.fence()
            done.taken += taker.take(found, faults)
            failpoint("snowflake.compare.before_commit")
    done.deleted = _delete_unseen(positions, taker, collection_id, position, stop)
    own.execute(Q["clear_seen"])
    return None if stop.is_set() else done


def rows_by_key(session: Session, table: Table, keys: Sequence[Key], at: str = "") -> tuple[list[Row], list[str]]:
    """Rows of these keys as they are now; a key that is not among them is gone.

    Args:
        at: a time travel clause, or nothing.
    """
    condition, values = table.where_keys(keys)
    names = table.names | {"wanted": condition, "table": table.names["table"] + at}
    rows = session.query(f"table {table.qualified}", S["read_keys"].format(**names), values)
    found: list[Row] = []
    faults: list[str] = []
    for batch in rows:
        more, fresh_faults = read(table, rows, batch)
        found += more
        faults += fresh_faults
    return found, faults


def reread(
    session: Session, positions: Positions, table: Table, taker: Taker, keys: Sequence[Key], at: str = ""
) -> None:
    """Read rows of these keys again and take them; those that are gone are deleted, where the key leaves no doubt."""
    found, faults = rows_by_key(session, table, keys, at)
    there = {row.key for row in found}
    with positions.own.transaction():
        positions.fence()
        taker.take(found, faults)
        gone = [key for key in keys if key not in there] if table.exact_key else []
        taker.delete(gone)
        read_whole = [row.key for row in found if row.fault is None]
        # Whatever was at fault with these rows before, is void.
        inbox.resolve(positions.own, table.collection, [*read_whole, *gone], taker.newest)
        failpoint("snowflake.reread.before_commit")
    failpoint("snowflake.reread.after_commit")


def _keys(table: Table, rows: Rows, batch: Sequence[Sequence[Any]]) -> tuple[list[Key], list[str]]:
    """Keys and cursors, as JSON, of a batch. A row without a key is left to the next look that reads it whole."""
    reader = Reader(rows.columns)
    keys, cursors = [], []
    for values in batch:
        try:
            row = reader.row(values)
            keys.append(key_of({small(name): value for name, value in row.items()}, table.key_fields))
        except DocumentError:
            continue
        cursors.append(as_json(row[str(table.cursor)]))
    return keys, cursors


def _note(own: Connection, keys: Sequence[Key]) -> None:
    with own.cursor() as cursor, cursor.copy(Q["copy_seen"]) as copy:
        for key in keys:
            copy.write_row([key])


def _delete_unseen(positions: Positions, taker: Taker, collection_id: int, position: int, stop: Event) -> int:
    own, after, deleted = positions.own, "", 0
    while not stop.is_set():
        with own.transaction():
            positions.fence()
            values = {"collection_id": collection_id, "position": position, "after": after, "limit": SLICE}
            keys = [Key(row[0]) for row in own.execute(Q["unseen"], values)]
            if not keys:
                break
            deleted += taker.delete(keys)
            after = keys[-1]
            failpoint("snowflake.compare.deleted")
    return deleted

"""The inbox: durable intake of change documents, in one transaction.

Invariants, each with a test:

* Appending to the log, the fence per key and the merged current document commit together, with the source's
  position. So a capture may acknowledge that position once `accept` returned, and not before.
* Per key the higher clock wins; an equal clock is a duplicate; what lies below the collection's floor is void.
* Positions of one collection become visible in their order: the collection's row lock is held until commit.
* A document without all its columns is merged top level into what is stored; if the base was never seen, its
  missing columns are remembered and the key is not indexed until the row was read again.

The indexer reads what this module writes; see `sophia.indexing.indexer`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import psycopg
from psycopg.rows import TupleRow

from sophia import sql
from sophia.documents import Change, Clock, Key, Origin, bucket_of, format_lsn

Connection = psycopg.Connection[TupleRow]
Q = sql.load("inbox")
# In `missing`: nothing of the row can be trusted until it was read from the source again.
WHOLE_ROW = "*"


@dataclass(frozen=True, slots=True)
class Floor:
    """A control event: everything of the collection older than `clock` is void (TRUNCATE)."""

    clock: Clock
    origin: Origin = field(default_factory=Origin)


@dataclass(frozen=True, slots=True)
class Accepted:
    """What `accept` did: `changed` keys got a newer document; the other changes were duplicates or stale."""

    received: int
    changed: int


@dataclass(slots=True)
class _Pending:
    """The outcome of a batch for one key, before it meets the stored document."""

    change: Change
    body: dict[str, Any] | None
    missing: tuple[str, ...]


def ensure_collection(connection: Connection, name: str, key_fields: Sequence[str] = ()) -> int:
    """The id of a collection, created if it is new. Its key fields are set when given."""
    row = connection.execute(Q["ensure_collection"], {"name": name, "key_fields": list(key_fields)}).fetchone()
    assert row is not None  # noqa: S101 - RETURNING on an upsert always yields a row
    return int(row[0])


def accept(
    connection: Connection,
    collection: str,
    events: Iterable[Change | Floor],
    *,
    notify: bool = True,
) -> Accepted:
    """Take changes of one collection, in their order, in the caller's transaction.

    The caller commits; it adds its own position to the same transaction. Changes below the collection's floor or
    not above the stored clock of their key have no effect, so any batch may be given again, cut differently.

    Raises:
        LookupError: the collection does not exist (`ensure_collection` makes it).
    """
    row = connection.execute(Q["lock_collection"], {"name": collection}, prepare=True).fetchone()
    if row is None:
        raise LookupError(f"collection {collection!r} does not exist")
    collection_id, _generation, floor, position = row
    floor = Clock(*floor)

    received = changed = 0
    batch: list[Change] = []
    for event in events:
        received += 1
        if isinstance(event, Floor):
            # What came before the TRUNCATE goes in first, so that the sweep sees it.
            changed_now, position = _write(connection, collection_id, position, floor, batch)
            batch = []
            floor = max(floor, event.clock)
            swept = _apply_floor(connection, collection_id, event.clock, event.origin)
            position += swept
            changed += changed_now + swept
        else:
            batch.append(event)
    changed_now, _ = _write(connection, collection_id, position, floor, batch)
    changed += changed_now
    if notify and changed:
        connection.execute(Q["notify"], {"name": collection}, prepare=True)
    return Accepted(received, changed)


def raise_floor(connection: Connection, collection: str, clock: Clock) -> None:
    """Begin a new generation or snapshot: from now on only documents at or above `clock` count.

    The documents below stay until `sweep`, so that search goes on while the new snapshot comes in.
    """
    row = connection.execute(Q["lock_collection"], {"name": collection}).fetchone()
    if row is None:
        raise LookupError(f"collection {collection!r} does not exist")
    connection.execute(
        Q["raise_floor"],
        {"collection_id": row[0], "floor": list(clock), "generation": clock.generation},
    )


def sweep(connection: Connection, collection: str) -> int:
    """After a snapshot: delete every document that it did not bring (older than the floor). Returns how many."""
    row = connection.execute(Q["lock_collection"], {"name": collection}).fetchone()
    if row is None:
        raise LookupError(f"collection {collection!r} does not exist")
    swept = _apply_floor(connection, row[0], Clock(*row[2]), Origin(), bulk=True)
    if swept:
        connection.execute(Q["notify"], {"name": collection})
    return swept


def park(
    connection: Connection,
    collection: str,
    key: str | None,
    *,
    stage: str,
    reason: str,
    clock: Clock | None = None,
    version_id: int | None = None,
) -> None:
    """Record that a document could not be taken (`stage` capture or inbox) or indexed (`index`), once a key.

    The reason may name columns and sizes; it never quotes document text.
    """
    connection.execute(
        Q["dead_letter"],
        {
            "collection": collection,
            "key": key,
            "version_id": version_id,
            "stage": stage,
            "reason": reason,
            "clock": list(clock) if clock else None,
        },
    )


def resolve(connection: Connection, collection: str, keys: Sequence[Key]) -> None:
    """Drop the dead letters of keys whose rows were taken whole; those of an index go when it has taken them."""
    connection.execute(Q["resolve_taken"], {"collection": collection, "keys": list(keys)})


def request_reread(connection: Connection, collection: str | None = None) -> int:
    """Ask for the rows of all dead letters (of one collection) to be read again. Returns how many keys."""
    return connection.execute(Q["request_reread"], {"collection": collection}).rowcount


def _apply_floor(
    connection: Connection, collection_id: int, clock: Clock, origin: Origin, *, bulk: bool = False
) -> int:
    connection.execute(
        Q["raise_floor"],
        {"collection_id": collection_id, "floor": list(clock), "generation": clock.generation},
    )
    row = connection.execute(
        Q["sweep"],
        {
            "collection_id": collection_id,
            "floor": list(clock),
            "lsn": _lsn(origin.lsn),
            "time": origin.committed_at,
            "bulk": bulk,
        },
    ).fetchone()
    swept = int(row[0]) if row else 0
    _advance(connection, collection_id, swept, bulk=bulk, lsn=origin.lsn, time=origin.committed_at)
    return swept


def _write(
    connection: Connection, collection_id: int, position: int, floor: Clock, batch: Sequence[Change]
) -> tuple[int, int]:
    """Merge, fence and store one batch. Returns (keys changed, new position)."""
    changes = [part for change in batch if change.clock >= floor for part in _split(change)]
    if not changes:
        return 0, position
    pending = _merge(changes, _fetch_bases(connection, collection_id, changes))
    params = _columns([entry.change for entry in pending.values()])
    written = 0
    if pending:
        cursor = connection.execute(
            Q["upsert"],
            params
            | {
                "collection_id": collection_id,
                "position": position,
                "buckets": [bucket_of(key) for key in pending],
                "deleted": [entry.body is None for entry in pending.values()],
                "bulk": [entry.change.bulk for entry in pending.values()],
                "missing": [_text_array(entry.missing) for entry in pending.values()],
                "bodies": [_dump(entry.body) for entry in pending.values()],
            },
            prepare=True,
        )
        written = cursor.rowcount
        connection.execute(
            Q["append"],
            _columns(changes) | {"collection_id": collection_id, "ops": [c.op for c in changes]},
            prepare=True,
        )
    newest = max(changes, key=lambda change: change.clock)
    _advance(
        connection,
        collection_id,
        len(pending),
        bulk=any(entry.change.bulk for entry in pending.values()),
        lsn=newest.origin.lsn,
        time=newest.origin.committed_at,
    )
    return written, position + len(pending)


def _split(change: Change) -> list[Change]:
    """A change of the key is a delete of the old key and an upsert of the new one, at the same clock."""
    if change.before_key is None:
        return [change]
    old = replace(change, key=change.before_key, op="d", body=None, before_key=None, missing=(), complete=True)
    return [old, change]


def _fetch_bases(
    connection: Connection, collection_id: int, changes: Sequence[Change]
) -> dict[Key, tuple[Clock, dict[str, Any] | None, tuple[str, ...]]]:
    """Stored documents that partial changes are merged into: (clock, body or None if deleted, missing)."""
    keys = {change.key for change in changes if not change.complete}
    keys |= {change.before_key for change in changes if change.before_key is not None and not change.complete}
    if not keys:
        return {}
    rows = connection.execute(Q["bases"], {"collection_id": collection_id, "keys": list(keys)}).fetchall()
    return {
        Key(key): (Clock(*clock), None if deleted else body, tuple(missing))
        for key, clock, deleted, body, missing in rows
    }


def _merge(
    changes: Sequence[Change], bases: dict[Key, tuple[Clock, dict[str, Any] | None, tuple[str, ...]]]
) -> dict[Key, _Pending]:
    """Fold a batch to one outcome a key, in order. Partial changes meet only what is older than they are.

    A change that is not above the stored clock is skipped here already: folding it into a later partial change
    of the same batch would bring back values that the store has outgrown.
    """
    pending: dict[Key, _Pending] = {}
    # What a moved row's old key held, before the delete half of the move cleared it.
    moved: dict[Key, tuple[dict[str, Any] | None, tuple[str, ...]]] = {}
    for change in changes:
        stored = bases.get(change.key)
        if stored is not None and change.clock <= stored[0]:
            continue
        previous = pending.get(change.key)
        if previous is not None and change.clock <= previous.change.clock:
            continue
        if previous is not None:
            base_body, base_missing = previous.body, previous.missing
        elif stored is not None:
            base_body, base_missing = stored[1], stored[2]
        else:
            base_body, base_missing = None, ()
        if change.op == "d":
            moved[change.key] = (base_body, base_missing)
            pending[change.key] = _Pending(change, None, ())
            continue
        body = dict(change.body or {})
        missing: tuple[str, ...] = ()
        if not change.complete:
            if change.before_key is not None:
                base_body, base_missing = moved.get(change.before_key, (None, ()))
            if base_body is None or WHOLE_ROW in change.missing:
                missing = change.missing
                body = (base_body or {}) | body
            else:
                missing = tuple(name for name in base_missing if name not in body)
                body = base_body | body
        pending[change.key] = _Pending(change, body, missing)
    return pending


def _columns(changes: Sequence[Change]) -> dict[str, list[Any]]:
    return {
        "keys": [change.key for change in changes],
        "clocks": [change.clock.literal for change in changes],
        "lsns": [_lsn(change.origin.lsn) for change in changes],
        "txids": [change.origin.txid for change in changes],
        "times": [change.origin.committed_at for change in changes],
    }


def _advance(
    connection: Connection, collection_id: int, count: int, *, bulk: bool, lsn: int | None, time: datetime | None
) -> None:
    connection.execute(
        Q["advance"],
        {"collection_id": collection_id, "count": count, "bulk": bulk, "lsn": _lsn(lsn), "time": time},
        prepare=True,
    )


def _dump(body: dict[str, Any] | None) -> str | None:
    return None if body is None else json.dumps(body, ensure_ascii=False)


def _text_array(values: Sequence[str]) -> str:
    return "{" + ",".join('"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' for value in values) + "}"


def _lsn(value: int | None) -> str | None:
    return None if value is None else format_lsn(value)

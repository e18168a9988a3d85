"""The inbox: durable intake of change documents, in one transaction.

Invariants, each with a test:

* Appending to the log, the fence per key and the merged current document commit together, with the source's
  position. So a capture may acknowledge that position once `accept` returned, and not before.
* Per key the higher clock wins; an equal clock is a duplicate; what lies below the collection's floor is void.
* Positions of one collection become visible in their order: the collection's row lock is held until commit.
* A document without all its columns is merged top level into what is stored; if the base was never seen, its
  missing columns are remembered and the key is not indexed until the row was read again.
* What was erased stays erased: a delivery of an erased key at or below the erasure's clock is void.

The log (`sophia.inbox`) records changes. The documents of a snapshot are not in it: `captured_tables` records those.

Nothing between `lock` and the end of `take` waits for the server, unless a key of the collection was erased, or the key
of a partial document occurs more than once or has changed. So in psycopg's pipeline mode a transaction costs two waits:
one for the locks, one for the rest with the commit.

The indexer reads what this module writes; see `sophia.indexing.indexer`.
"""

from __future__ import annotations

import json
import operator
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
from psycopg.rows import TupleRow

from sophia import sql
from sophia.documents import Change, Clock, Key, Origin, bucket_of, format_lsn, key_hash

Connection = psycopg.Connection[TupleRow]
Cursor = psycopg.Cursor[TupleRow]
Q = sql.load("inbox")
# An entry of a btree index has at most 2.7 kB, and every table that names a document has the key in one.
LONGEST_KEY_BYTES = 2_000
_encode = json.JSONEncoder(ensure_ascii=False).encode
# In `missing`: nothing of the row can be trusted until it was read from the source again.
WHOLE_ROW = "*"
# A row's columns, or the text of a JSON object in which the last of equal names counts; None if it is deleted.
Body = dict[str, Any] | str | None
# Clock, body and missing columns of a stored document.
Base = tuple[Clock, Body, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Floor:
    """A control event: everything of the collection older than `clock` is void (TRUNCATE).

    More tombstones than `bulk_above` take the bulk lane.
    """

    clock: Clock
    origin: Origin = field(default_factory=Origin)
    bulk_above: int = 1_000


@dataclass(frozen=True, slots=True)
class Accepted:
    """What `accept` did: `changed` keys got a newer document; the other changes were duplicates or stale."""

    received: int
    changed: int


@dataclass(frozen=True, slots=True)
class Locked:
    """A collection whose row lock this transaction holds. `erasures` counts its erased keys."""

    name: str
    id: int
    generation: int
    floor: Clock
    erasures: int
    key_fields: tuple[str, ...]


@dataclass(slots=True)
class _Pending:
    """The outcome of a batch for one key, before it meets the stored document."""

    change: Change
    body: Body
    missing: tuple[str, ...]


def ensure_collection(connection: Connection, name: str, key_fields: Sequence[str] = ()) -> int:
    """The id of a collection, created if it is new. Its key fields are set when given."""
    row = connection.execute(Q["ensure_collection"], {"name": name, "key_fields": list(key_fields)}).fetchone()
    assert row is not None  # noqa: S101 - RETURNING on an upsert always yields a row
    return int(row[0])


def lock(connection: Connection, names: Sequence[str]) -> dict[str, Locked]:
    """Lock collections until the transaction ends, always in the same order.

    Raises:
        LookupError: one does not exist (`ensure_collection` makes it).
    """
    rows = connection.execute(Q["lock_collections"], {"names": list(names)}, prepare=True).fetchall()
    locked = {
        name: Locked(name, number, generation, Clock(*floor), erasures, tuple(key_fields))
        for name, number, generation, floor, erasures, key_fields in rows
    }
    for name in names:
        if name not in locked:
            raise LookupError(f"collection {name!r} does not exist")
    return locked


def accept(connection: Connection, collection: str, events: Iterable[Change | Floor]) -> Accepted:
    """Take changes of one collection, in their order, in the caller's transaction.

    The caller commits; it adds its own position to the same transaction. Changes below the collection's floor or
    not above the stored clock of their key have no effect, so any batch may be given again, cut differently.

    Raises:
        LookupError: the collection does not exist (`ensure_collection` makes it).
    """
    events = list(events)
    outcomes = take(connection, lock(connection, [collection])[collection], events)
    return Accepted(len(events), sum(row[0] for cursor in outcomes if (row := cursor.fetchone())))


def take(connection: Connection, collection: Locked, events: Iterable[Change | Floor]) -> list[Cursor]:
    """`accept` for a collection that is locked already. Each cursor yields a number of changed keys, if one asks."""
    outcomes: list[Cursor] = []
    floor = collection.floor
    batch: list[Change] = []
    for event in events:
        if isinstance(event, Floor):
            # What came before the TRUNCATE goes in first, so that the sweep sees it.
            outcomes += _write(connection, collection, floor, batch)
            batch = []
            floor = max(floor, event.clock)
            outcomes.append(_sweep(connection, collection, event.clock, event.origin, event.bulk_above))
        else:
            batch.append(event)
    return outcomes + _write(connection, collection, floor, batch)


def raise_floor(connection: Connection, collection: str, clock: Clock) -> None:
    """Begin a new generation or snapshot: from now on only documents at or above `clock` count.

    The documents below stay until `sweep`, so that search goes on while the new snapshot comes in.
    """
    locked = lock(connection, [collection])[collection]
    connection.execute(
        Q["raise_floor"],
        {"collection_id": locked.id, "floor": list(clock), "generation": clock.generation},
    )


def sweep(connection: Connection, collection: str) -> int:
    """After a snapshot: delete every document that it did not bring (older than the floor). Returns how many."""
    locked = lock(connection, [collection])[collection]
    row = _sweep(connection, locked, locked.floor, Origin(), bulk_above=0).fetchone()
    return int(row[0]) if row else 0


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

    Nothing is recorded at a `clock` that the stored document, or what is recorded of the key, has outgrown. The
    reason may name columns and sizes; it never quotes document text.
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


def resolve(connection: Connection, collection: str, keys: Sequence[Key], clock: Clock) -> None:
    """Drop the dead letters, up to `clock`, of keys whose rows were taken whole at `clock`.

    Those of an index go when it has taken them.
    """
    connection.execute(Q["resolve_taken"], {"collection": collection, "keys": list(keys), "clock": list(clock)})


def resolve_outgrown(connection: Connection, collection: str) -> None:
    """Drop the dead letters of keys whose documents were since replaced by newer whole ones."""
    connection.execute(Q["resolve_outgrown"], {"collection": collection})


def resolve_table(connection: Connection, collection: str, clock: Clock) -> None:
    """Drop the dead letters that speak of the collection's table, not of a key, and are older than `clock`."""
    connection.execute(Q["resolve_table"], {"collection": collection, "clock": list(clock)})


def request_reread(connection: Connection, collection: str | None = None) -> int:
    """Ask for the rows of all dead letters (of one collection) to be read again. Returns how many keys."""
    return connection.execute(Q["request_reread"], {"collection": collection}).rowcount


def _sweep(connection: Connection, collection: Locked, clock: Clock, origin: Origin, bulk_above: int) -> Cursor:
    """Raise the floor to `clock`, and delete what lies below."""
    return connection.execute(
        Q["sweep"],
        {
            "collection_id": collection.id,
            "name": collection.name,
            "floor": list(clock),
            "generation": clock.generation,
            "lsn": _lsn(origin.lsn),
            "time": origin.committed_at,
            "bulk_above": bulk_above,
        },
    )


def _write(connection: Connection, collection: Locked, floor: Clock, batch: Sequence[Change]) -> list[Cursor]:
    """Merge, fence and store one batch."""
    changes = [part for change in batch if change.clock >= floor for part in _split(change)]
    changes = _storable(connection, collection, changes)
    if collection.erasures:
        changes = _without_erased(connection, collection, changes)
    if not changes:
        return []
    counts = Counter([change.key for change in changes]) if any(not change.complete for change in changes) else {}
    # What occurs once is merged by the database, without being read first.
    alone: list[Change] = []
    others = changes
    if counts:
        others = []
        for change in changes:
            (alone if counts[change.key] == 1 and _mergeable(change) else others).append(change)
    pending = _merge(others, _fetch_bases(connection, collection.id, others))
    return [
        *_store(connection, collection, list(pending.values()), others, merge=False),
        *_store(connection, collection, [_Pending(c, _body(c), c.missing) for c in alone], alone, merge=True),
    ]


def _store(
    connection: Connection, collection: Locked, entries: Sequence[_Pending], changes: Sequence[Change], *, merge: bool
) -> list[Cursor]:
    """Store one outcome a key, and log the changes that led there."""
    if not entries:
        return []
    taken = [entry.change for entry in entries]
    logged = [change for change in changes if not change.snapshot]
    newest = max(changes, key=lambda change: change.clock).origin
    params = {
        "collection_id": collection.id,
        "name": collection.name,
        "count": len(entries),
        "merge": merge,
        "raw": any(change.text is not None for change in changes),
        "any_bulk": any(change.bulk for change in taken),
        "newest_lsn": _lsn(newest.lsn),
        "newest_time": newest.committed_at,
        "buckets": _plain(bucket_of(change.key) for change in taken),
        "deleted": _plain(entry.body is None for entry in entries),
        "bulk": _plain(change.bulk for change in taken),
        "missing": _texts(_texts(entry.missing) for entry in entries),
        "bodies": _texts(_text(entry.body) for entry in entries),
        "log_ops": _plain(change.op for change in logged),
    }
    columns = _columns(taken)
    # Mostly each change is the outcome of its key, and its columns need not be written twice.
    same = len(logged) == len(taken) and all(map(operator.is_, logged, taken))
    params |= columns | {f"log_{name}": text for name, text in (columns if same else _columns(logged)).items()}
    return [connection.execute(Q["take"], params, prepare=True)]


def _storable(connection: Connection, collection: Locked, changes: list[Change]) -> list[Change]:
    """Without the changes whose key no index can hold; these are parked, under no key for the same reason."""
    # A character has at most 4 bytes, so nearly every key is short at first sight.
    if all(len(change.key) <= LONGEST_KEY_BYTES // 4 for change in changes):
        return changes
    storable = []
    for change in changes:
        size = len(change.key.encode())
        if size <= LONGEST_KEY_BYTES:
            storable.append(change)
        elif change.op != "d":
            reason = (
                f"the key with SHA-256 {key_hash(change.key).hex()} has {size:,} bytes; at most {LONGEST_KEY_BYTES:,} "
                "can be indexed: key the collection by a shorter column"
            )
            park(connection, collection.name, None, stage="inbox", reason=reason, clock=change.clock)
    return storable


def erased_clocks(connection: Connection, collection: Locked, keys: Iterable[Key]) -> dict[Key, Clock]:
    """Up to which clock the deliveries of keys are void, of those that were erased."""
    if not collection.erasures:
        return {}
    by_hash = {key_hash(key): key for key in keys}
    params = {"collection_id": collection.id, "hashes": list(by_hash)}
    return {by_hash[bytes(digest)]: Clock(*clock) for digest, clock in connection.execute(Q["erased"], params)}


def _without_erased(connection: Connection, collection: Locked, changes: list[Change]) -> list[Change]:
    """Without the changes that the erasure of their key has voided."""
    erased = erased_clocks(connection, collection, (change.key for change in changes))
    return [c for c in changes if (clock := erased.get(c.key)) is None or c.clock > clock]


def _split(change: Change) -> list[Change]:
    """A change of the key is a delete of the old key and an upsert of the new one, at the same clock."""
    if change.before_key is None:
        return [change]
    old = replace(change, key=change.before_key, op="d", body=None, before_key=None, missing=(), complete=True)
    return [old, change]


def _fetch_bases(connection: Connection, collection_id: int, changes: Sequence[Change]) -> dict[Key, Base]:
    """Stored documents that partial changes are merged into."""
    keys = {change.key for change in changes if not change.complete}
    keys |= {change.before_key for change in changes if change.before_key is not None and not change.complete}
    if not keys:
        return {}
    rows = connection.execute(Q["bases"], {"collection_id": collection_id, "keys": list(keys)}).fetchall()
    return {
        Key(key): (Clock(*clock), None if deleted else body, tuple(missing))
        for key, clock, deleted, body, missing in rows
    }


def _merge(changes: Sequence[Change], bases: dict[Key, Base]) -> dict[Key, _Pending]:
    """Fold a batch to one outcome a key, in order. Partial changes meet only what is older than they are.

    A change that is not above the stored clock is skipped here already: folding it into a later partial change
    of the same batch would bring back values that the store has outgrown.
    """
    pending: dict[Key, _Pending] = {}
    # What a moved row's old key held, before the delete half of the move cleared it.
    moved: dict[Key, tuple[Body, tuple[str, ...]]] = {}
    for change in changes:
        stored = bases.get(change.key)
        if stored is not None and change.clock <= stored[0]:
            continue
        previous = pending.get(change.key)
        if previous is not None and change.clock <= previous.change.clock:
            continue
        base: Body = None
        base_missing: tuple[str, ...] = ()
        if previous is not None:
            base, base_missing = previous.body, previous.missing
        elif stored is not None:
            base, base_missing = stored[1], stored[2]
        if change.op == "d":
            moved[change.key] = (base, base_missing)
            pending[change.key] = _Pending(change, None, ())
            continue
        body = _body(change)
        missing = change.missing
        if not change.complete:
            if change.before_key is not None:
                base, base_missing = moved.get(change.before_key, (None, ()))
            if base is not None:
                body = _joined(base, body)
                if WHOLE_ROW not in change.missing:
                    missing = tuple(name for name in base_missing if _lacks(change, name))
        pending[change.key] = _Pending(change, body, missing)
    return pending


def _mergeable(change: Change) -> bool:
    """Whether the database can merge a change by itself."""
    return not change.complete and change.op != "d" and change.before_key is None and WHOLE_ROW not in change.missing


def _body(change: Change) -> dict[str, Any] | str:
    """What a change that is no delete brings."""
    return change.text if change.text is not None else dict(change.body or {})


def _lacks(change: Change, name: str) -> bool:
    """Whether a column that was missing is so after the change."""
    if name == WHOLE_ROW or change.text is not None:
        return name == WHOLE_ROW or name in change.missing
    return name not in (change.body or {})


def _joined(base: dict[str, Any] | str, body: dict[str, Any] | str) -> dict[str, Any] | str:
    """The columns of both, those of `body` first in rank. Texts are joined as they are, so that no digit is lost."""
    if not body:
        return base
    if isinstance(body, dict):
        return (json.loads(base) if isinstance(base, str) else base) | body
    text = base if isinstance(base, str) else _encode(base)
    return body if text == "{}" else f"{text[:-1]},{body[1:]}"


def _text(body: Body) -> str | None:
    return body if body is None or isinstance(body, str) else _encode(body)


def _columns(changes: Sequence[Change]) -> dict[str, str]:
    return {
        "keys": _texts(change.key for change in changes),
        "clocks": _plain(change.clock.literal for change in changes),
        "lsns": _plain(_lsn(change.origin.lsn) for change in changes),
        "txids": _plain(change.origin.txid for change in changes),
        "times": _plain(change.origin.committed_at for change in changes),
    }


def _plain(values: Iterable[object]) -> str:
    """An array's text, of values whose own text has neither quotes nor backslashes. One text is cheap to send."""
    return "{" + ",".join(["NULL" if value is None else f'"{value}"' for value in values]) + "}"


def _texts(values: Iterable[str | None]) -> str:
    """An array's text, of any texts."""
    return (
        "{"
        + ",".join(
            [
                "NULL" if value is None else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
                for value in values
            ]
        )
        + "}"
    )


def _lsn(value: int | None) -> str | None:
    return None if value is None else format_lsn(value)

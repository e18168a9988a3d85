"""The comparison: current documents, the ledger, and what the store really holds, in one snapshot.

Verification, repair and the continuous scan all ask this one question, of all keys of a range of buckets or of some
keys. The store is read itself, its hashes computed from what is there, so that rows which were edited, added or deleted
behind Sophia's back show. Not compared are the columns that only say where a row came from: log position, transaction,
times and run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from decimal import Decimal
from typing import Any, LiteralString

import psycopg
from psycopg import sql as composed
from psycopg.rows import TupleRow

from sophia import sql
from sophia.documents import BUCKETS, Clock, Key
from sophia.indexing.versions import IndexVersion
from sophia.stores import Scope, Store, StoredDocument

Connection = psycopg.Connection[TupleRow]
Q = sql.load("compare")
EXTERNAL = sql.load("external")


@dataclass(slots=True)
class Difference:
    """Keys of a scope where index and documents differ, by kind.

    Attributes:
        missing: current documents (or chunks of them) that the store lacks.
        stale: the store has an older document.
        extra: the store holds what is no current document.
        doubled: a chunk is there more than once.
        altered: the store's text, vector, metadata, id or clock is not what was written.
        parked: the document cannot be indexed; see the dead letters.
        pending: those of `missing` and `stale` that a lane has still to take, or that are being written to a store
            outside of the database: they are late, not wrong.
        compared: number of keys that were looked at.
    """

    missing: list[Key] = field(default_factory=list)
    stale: list[Key] = field(default_factory=list)
    extra: list[Key] = field(default_factory=list)
    doubled: list[Key] = field(default_factory=list)
    altered: list[Key] = field(default_factory=list)
    parked: list[Key] = field(default_factory=list)
    pending: list[Key] = field(default_factory=list)
    compared: int = 0

    @property
    def empty(self) -> bool:
        """Whether index and documents agree (a parked document is a known gap, not a difference)."""
        return not (self.missing or self.stale or self.extra or self.doubled or self.altered)

    def keys(self) -> dict[str, list[Key]]:
        """The keys by kind."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "compared"}

    def counts(self) -> dict[str, int]:
        """Number of keys by kind."""
        return {name: len(keys) for name, keys in self.keys().items()}

    def wrong(self) -> list[Key]:
        """What a repair must write again: all that differs, except what a lane will take anyway."""
        pending = set(self.pending)
        found = self.extra + self.doubled + self.altered + self.missing + self.stale
        return [key for key in dict.fromkeys(found) if key not in pending]

    def add(self, other: Difference) -> None:
        """Take over what was found in another scope."""
        for name, keys in self.keys().items():
            keys += getattr(other, name)
        self.compared += other.compared


class Slices:
    """Cuts a range of buckets into slices of about `target` keys each, by what the slice before held.

    Args:
        first, last: the range, both included.
        width: buckets of the first slice. Small: what a bucket holds is not known yet.
    """

    def __init__(self, first: int, last: int, target: int, width: int = 16) -> None:
        self._next = first
        self._last = last
        self._target = target
        self.width = width

    def __iter__(self) -> Iterator[Scope]:
        while self._next <= self._last:
            end = min(self._next + self.width - 1, self._last)
            yield Scope(self._next, end)
            self._next = end + 1

    def held(self, keys: int) -> None:
        """Say how many keys the slice held. The next is at most four times as wide."""
        wanted = self.width * self._target // max(1, keys)
        self.width = max(1, min(wanted, self.width * 4, BUCKETS))


def compare(connection: Connection, version: IndexVersion, store: Store, scope: Scope) -> Difference:
    """Compare documents, ledger and what the store really holds, in one snapshot. `scope` holds it in memory.

    A store outside of the database is part of no snapshot. It is read behind it, and what was written in between, as
    the ledger shows, is on its way and not wrong.

    Raises:
        TemporaryError: the store is away.
    """
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        if store.transactional:
            return compare_here(connection, version, store, scope)
        found, expected, marks = _expect(connection, version, scope)
    _look(found, expected, version, store.inventory(connection, version, scope))
    _excuse_moved(connection, version, found, marks)
    return found


def compare_here(connection: Connection, version: IndexVersion, store: Store, scope: Scope) -> Difference:
    """`compare` in the caller's transaction, which must be REPEATABLE READ; of a store in this database."""
    found, expected, _ = _expect(connection, version, scope)
    _look(found, expected, version, store.inventory(connection, version, scope))
    return found


def _expect(
    connection: Connection, version: IndexVersion, scope: Scope
) -> tuple[Difference, dict[Key, _Expected], dict[Key, datetime]]:
    """How the ledger differs from the documents, what the store must hold, and when each ledger row was written."""
    found = Difference()
    expected: dict[Key, _Expected] = {}
    marks: dict[Key, datetime] = {}
    index = version.index
    text: LiteralString = Q["compared"]
    part: LiteralString = Q["in_buckets" if scope.keys is None else "in_keys"]
    rows = connection.execute(
        composed.SQL(text).format(scope=composed.SQL(part)),
        {
            "version_id": version.id,
            "collection_id": version.collection_id,
            "fields": list(index.metadata),
            "buckets_per_shard": BUCKETS // index.shards,
        }
        | scope.parameters,
        prepare=False,
    )
    for key, state, deleted, contents, vectors, clock, document_clock, gone, metadata, settled, written in rows:
        found.compared += 1
        key = Key(key)
        if written is not None:
            marks[key] = written
        if state == "pending":
            # Somebody is writing it, or has died over it; the indexer sees to that.
            found.stale.append(key)
            found.pending.append(key)
            continue
        if clock is not None and not deleted:
            hashes = tuple(map(bytes, contents)), tuple(map(bytes, vectors))
            expected[key] = _Expected(*hashes, metadata, Clock(*clock))
        if clock is None:
            found.missing.append(key)
        elif document_clock is None:
            # The tombstone of a document was pruned; only a live entry is wrong then.
            if not deleted:
                found.extra.append(key)
            continue
        elif clock < document_clock or (clock == document_clock and deleted != gone):
            found.stale.append(key)
        elif state == "parked":
            found.parked.append(key)
            continue
        else:
            continue
        if not settled:
            found.pending.append(key)
    return found, expected, marks


def _look(
    found: Difference,
    expected: dict[Key, _Expected],
    version: IndexVersion,
    inventory: Iterable[StoredDocument],
) -> None:
    """How the store differs from what it must hold."""
    known = {*found.extra, *found.stale}
    for document in inventory:
        want = expected.pop(document.key, None)
        if document.key in known:
            continue
        if want is None:
            found.extra.append(document.key)
        elif len(document.content_hashes) < len(want.contents):
            found.missing.append(document.key)
        elif len(document.content_hashes) > len(want.contents):
            # More rows than the ledger wrote: a chunk twice, or chunks that were added.
            doubled = set(document.content_hashes) == set(want.contents)
            (found.doubled if doubled else found.extra).append(document.key)
        elif not want.is_met_by(document, version):
            found.altered.append(document.key)
    # What the ledger says is there and the store did not show.
    found.missing += [key for key, want in expected.items() if want.contents and key not in known]


def _excuse_moved(
    connection: Connection, version: IndexVersion, found: Difference, marks: Mapping[Key, datetime]
) -> None:
    """What was written since the snapshot is on its way: whoever writes moves the ledger before and after."""
    wrong = found.wrong()
    if not wrong:
        return
    rows = connection.execute(EXTERNAL["marks"], {"version_id": version.id, "keys": wrong})
    now = {Key(key): written for key, written in rows}
    moved = {key for key in wrong if now.get(key) != marks.get(key)}
    for kind, keys in found.keys().items():
        if kind != "pending":
            keys[:] = [key for key in keys if key not in moved]
    found.stale += moved
    found.pending += moved


@dataclass(frozen=True, slots=True)
class _Expected:
    """What the store must hold of a key."""

    contents: tuple[bytes, ...]
    vectors: tuple[bytes, ...]
    metadata: str
    clock: Clock

    def is_met_by(self, document: StoredDocument, version: IndexVersion) -> bool:
        return (
            document.content_hashes == document.read_hashes == self.contents
            and document.vector_hashes == self.vectors
            and document.oldest == document.newest == self.clock
            and document.ids == tuple(version.chunk_id(document.key, n) for n in range(len(self.contents)))
            and all(_same_json(metadata, self.metadata) for metadata in document.metadata)
        )


def _same_json(one: str, other: str) -> bool:
    """Whether two JSON texts say the same. A fraction went through a float on its way to the store: 1.10 became 1.1,
    and of a large one an integer was left."""
    return one == other or _canonical(one) == _canonical(other)


def _canonical(text: str) -> Any:
    return json.loads(text, parse_int=_number, parse_float=lambda digits: _number(repr(float(digits))))


def _number(digits: str) -> tuple[Decimal]:
    """Equal for equal numbers, and for nothing else: Python's `true` is 1."""
    return (Decimal(digits),)

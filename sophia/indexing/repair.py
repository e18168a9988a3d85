"""The bulk lane: compare a shard of an index with the current documents and mend what differs.

The first load, a re-embedding, a drift repair and the indexer's background work are all this: whatever the ledger
does not have at the document's clock is written; with `deep`, what the store really holds is read too and compared
with the ledger, hash by hash, so that rows that were edited, added or deleted behind Sophia's back are found.
Only what differs is embedded. A shard may be repaired at any time, beside the live lane and beside other repairs:
every write is conditional on the clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import psycopg
from psycopg.rows import TupleRow

from sophia import sql
from sophia.catalog import Catalog
from sophia.catalog.models import Index
from sophia.documents import Clock, Key, bucket_range
from sophia.embedding import Embedder
from sophia.errors import TemporaryError
from sophia.indexing.leases import Lease
from sophia.indexing.versions import IndexVersion, ensure_version
from sophia.indexing.writer import Figures, Row, Writer
from sophia.settings import Profile, Settings
from sophia.stores import Store, store_of

Connection = psycopg.Connection[TupleRow]
Q = sql.load("indexing")
# Renewed with every batch; longer than any batch takes.
LEASE_SECONDS = 120.0
Between = Callable[[], None]


@dataclass(slots=True)
class Difference:
    """Keys of a range of buckets where index and documents differ, by kind.

    Attributes:
        missing: current documents (or chunks of them) that the store lacks.
        stale: the store has an older document.
        extra: the store holds what is no current document.
        doubled: a chunk is there more than once.
        altered: the store's text or vector is not what was written.
        parked: the document cannot be indexed; see the dead letters.
    """

    missing: list[Key] = field(default_factory=list)
    stale: list[Key] = field(default_factory=list)
    extra: list[Key] = field(default_factory=list)
    doubled: list[Key] = field(default_factory=list)
    altered: list[Key] = field(default_factory=list)
    parked: list[Key] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Whether index and documents agree (a parked document is a known gap, not a difference)."""
        return not (self.missing or self.stale or self.extra or self.doubled or self.altered)

    def counts(self) -> dict[str, int]:
        """Number of keys by kind."""
        return {name: len(getattr(self, name)) for name in self.__slots__}


def compare(connection: Connection, version: IndexVersion, store: Store, first: int, last: int) -> Difference:
    """Compare documents, ledger and what the store really holds, in one snapshot, for a range of buckets."""
    found = Difference()
    params = {
        "version_id": version.id,
        "collection_id": version.collection_id,
        "first": first,
        "last": last,
    }
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        found.missing = [Key(row[0]) for row in connection.execute(Q["absent"], params)]
        expected: dict[Key, tuple[tuple[bytes, ...], tuple[bytes, ...]]] = {}
        clocks: dict[Key, Clock] = {}
        for key, state, deleted, contents, vectors, clock, document_clock, _gone in connection.execute(
            Q["expected"], params
        ):
            key = Key(key)
            if not deleted:
                expected[key] = (tuple(map(bytes, contents)), tuple(map(bytes, vectors)))
                clocks[key] = Clock(*clock)
            if document_clock is None:
                # The tombstone of a document was pruned; only a live entry is wrong then.
                if not deleted:
                    found.extra.append(key)
            elif clock < document_clock:
                found.stale.append(key)
            elif state == "parked":
                found.parked.append(key)
        known = set(found.extra) | set(found.stale)
        for document in store.inventory(connection, version, first, last):
            want = expected.pop(document.key, None)
            if document.key in known:
                continue
            if want is None:
                found.extra.append(document.key)
            elif len(document.content_hashes) < len(want[0]):
                found.missing.append(document.key)
            elif len(document.content_hashes) > len(want[0]):
                # More rows than the ledger wrote: a chunk twice, or chunks that were added.
                doubled = set(document.content_hashes) == set(want[0])
                (found.doubled if doubled else found.extra).append(document.key)
            elif (
                (document.read_hashes, document.vector_hashes) != want
                or document.content_hashes != want[0]
                or not document.oldest == document.newest == clocks[document.key]
            ):
                found.altered.append(document.key)
        # What the ledger says is there and the store did not show.
        found.missing += [key for key, want in expected.items() if want[0] and key not in known]
    return found


def repair_shard(
    connection: Connection,
    writer: Writer,
    shard: int,
    *,
    batch: int,
    deep: bool = False,
    between: Between = lambda: None,
    progress: Callable[[Figures], None] = lambda so_far: None,
) -> Figures:
    """Repair one shard of a version and record that it was compared. Returns what it cost.

    Args:
        deep: read the store itself, too.
        between: called between forward passes and batches; the indexer does its live work there.
        progress: called after each batch with the sum so far.

    Raises:
        TemporaryError: another run is repairing this shard.
    """
    version = writer.version
    lease = Lease.try_take(connection, f"repair/{version.id}/{shard}", LEASE_SECONDS)
    if lease is None:
        raise TemporaryError(f"shard {shard} of {version.label} is being repaired by another run; try again later")
    figures = Figures()
    try:
        for step in repair_steps(connection, writer, shard, lease, batch=batch, deep=deep, between=between):
            figures.add(step)
            progress(figures)
            lease.renew(connection)
            between()
    finally:
        if not connection.closed:
            lease.release(connection)
    return figures


def repair_steps(
    connection: Connection,
    writer: Writer,
    shard: int,
    lease: Lease,
    *,
    batch: int,
    deep: bool,
    between: Between,
) -> Iterator[Figures]:
    """`repair_shard` in steps of one batch each."""
    version = writer.version
    first, last = bucket_range(shard, version.index.shards)
    params = {"version_id": version.id, "collection_id": version.collection_id}
    row = connection.execute(Q["collection_position"], params).fetchone()
    position = int(row[0]) if row else 0
    while True:
        rows = connection.execute(
            Q["outdated"], params | {"first": first, "last": last, "limit": batch}, prepare=True
        ).fetchall()
        if not rows:
            break
        yield writer.apply(connection, [Row.read(row) for row in rows], lease=lease, between=between)
    if deep:
        found = compare(connection, version, writer.store, first, last)
        wrong = found.extra + found.doubled + found.altered + found.missing
        for keys in _sliced(wrong, batch):
            rows = connection.execute(Q["by_keys"], params | {"keys": keys}).fetchall()
            yield writer.apply(connection, [Row.read(row) for row in rows], lease=lease, repair=True, between=between)
            # Conditional on the ledger, so a key that came back meanwhile stays.
            with connection.transaction():
                connection.execute(Q["orphaned"], params | {"keys": keys})
                writer.store.discard(connection, version, keys)
    connection.execute(Q["shard_done"], params | {"shard": shard, "position": position})


@dataclass(frozen=True, slots=True)
class Session:
    """A repair run's version and writer."""

    version: IndexVersion
    writer: Writer

    @classmethod
    def open(
        cls,
        connection: Connection,
        catalog: Catalog,
        index: Index,
        profile: Profile,
        embedder_of: Callable[[IndexVersion], Embedder],
        settings: Settings,
        *,
        run: str,
    ) -> Session:
        """The version of the index as the catalog has it now, its store made ready, and a writer for `run`."""
        version = ensure_version(connection, catalog, index, profile)
        store = store_of(version.store)
        store.ensure(connection, version)
        size = settings.indexer.max_text_bytes
        return cls(version, Writer(version, store, embedder_of(version), size, run=run, lane="bulk"))

    def position(self, connection: Connection) -> int:
        """The collection's position now."""
        row = connection.execute(Q["collection_position"], {"collection_id": self.version.collection_id}).fetchone()
        return int(row[0]) if row else 0


def repair_version(
    connection: Connection,
    session: Session,
    shards: Sequence[int],
    *,
    batch: int,
    deep: bool,
    progress: Callable[[str], None] = lambda line: None,
) -> Figures:
    """Repair several shards, saying how far it is after each; then let the store finish its first load.

    Raises:
        TemporaryError: another run is repairing one of the shards.
    """
    figures = Figures()
    version = session.version
    for number, shard in enumerate(shards, start=1):
        part = repair_shard(connection, session.writer, shard, batch=batch, deep=deep)
        figures.add(part)
        progress(
            f"{version.label}: shard {number}/{len(shards)}, {figures.documents} documents written, "
            f"{figures.embedded} texts embedded"
        )
    finish_load(connection, session.writer)
    return figures


def finish_load(connection: Connection, writer: Writer) -> None:
    """Once every shard was compared at least once, let the store build its nearest-neighbour index."""
    row = connection.execute(Q["shards_pending"], {"version_id": writer.version.id}).fetchone()
    if row and row[0] == 0:
        writer.store.finish(connection, writer.version)


def _sliced(keys: Iterable[Key], size: int) -> Iterator[list[Key]]:
    items = list(keys)
    for start in range(0, len(items), size):
        yield items[start : start + size]

"""The bulk lane: compare a shard of an index with the current documents and mend what differs.

The first load, a re-embedding, a drift repair and the indexer's background work are all this: whatever the ledger
does not have at the document's clock is written; with `deep`, what the store really holds is read too and compared
with the ledger, hash by hash, so that rows that were edited, added or deleted behind Sophia's back are found.
Only what differs is embedded. A shard may be repaired at any time, beside the live lane and beside other repairs:
every write is conditional on the clock. A shard is worked through in order of the buckets, each page behind the one
before, so that the time grows with the documents and not with their square.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import psycopg
from psycopg.rows import TupleRow

from sophia import sql
from sophia.catalog import Catalog
from sophia.catalog.models import Index
from sophia.documents import BUCKETS, Key, bucket_range
from sophia.embedding import Embedder
from sophia.embedding.base import nothing
from sophia.errors import BusyError
from sophia.failpoints import failpoint
from sophia.indexing.backends import admit
from sophia.indexing.batch import Figures, Row
from sophia.indexing.beginning import begin_version
from sophia.indexing.compare import Slices, compare
from sophia.indexing.leases import Lease, Leases
from sophia.indexing.publication import settle
from sophia.indexing.versions import IndexVersion
from sophia.indexing.watch import RepairProgress, RepairWatch
from sophia.indexing.writer import Writer
from sophia.settings import Profile, Settings
from sophia.stores import Stores

Connection = psycopg.Connection[TupleRow]
Q = sql.load("indexing")
# Renewed with every batch; longer than any batch takes.
LEASE_SECONDS = 120.0
# Keys of one comparison: some 20 ms, after which live work is looked at again.
SLICE_KEYS = 500
# Documents that are looked through for outdated ones at a time, at first; then as many as this time allows.
FIRST_LOOK = 5_000
LOOK_SECONDS = 0.05
Between = Callable[[], None]


def neighbours(version: IndexVersion, shards: Iterable[int], position: int, most: int) -> list[range]:
    """Shards, in their order, as runs of neighbours that hold about `most` documents at most: `repair_shard` takes each
    at once, so that the batches of a small collection are no smaller than those of a large one.

    Args:
        position: the collection's. It has at most as many documents as changes.
    """
    together = max(1, most * version.index.shards // max(1, position)) if version.store == "pgvector" else 1
    runs: list[range] = []
    for shard in shards:
        if runs and runs[-1].stop == shard and len(runs[-1]) < together:
            runs[-1] = range(runs[-1].start, shard + 1)
        else:
            runs.append(range(shard, shard + 1))
    return runs


def repair_shard(
    connection: Connection,
    writer: Writer,
    shard: int,
    *,
    last: int | None = None,
    batch: int,
    size: Callable[[], int] | None = None,
    deep: bool = False,
    between: Between = lambda: None,
    progress: Callable[[Figures], None] = lambda so_far: None,
) -> Figures:
    """Repair one shard of a version and record that it was compared. Returns what it cost.

    Args:
        last: repair all shards from `shard` to this one, as if they were one.
        batch: most documents of a transaction.
        size: asked before each batch how many of these it may hold; all if not given.
        deep: read the store itself, too.
        between: called between forward passes and batches; the indexer does its live work there.
        progress: called after each batch with the sum so far.

    Raises:
        BusyError: another process is repairing this shard, or one of these.
        FencedError: another process took the shard over while this one was silent.
    """
    version = writer.version
    shards = range(shard, (shard if last is None else last) + 1)
    lease = Leases.try_take_all(connection, [f"repair/{version.id}/{number}" for number in shards], LEASE_SECONDS)
    if lease is None:
        raise BusyError(f"shard {shard} of {version.label} is being repaired by another run; try again later")
    figures = Figures()
    try:
        for step in repair_steps(
            connection, writer, shards, lease, size=size or (lambda: batch), deep=deep, between=between
        ):
            lease.renew(connection)
            if step is not None:
                figures.add(step)
                progress(figures)
            between()
    finally:
        if not connection.closed:
            lease.release(connection)
    return figures


def repair_steps(
    connection: Connection,
    writer: Writer,
    shards: range,
    lease: Lease,
    *,
    size: Callable[[], int],
    deep: bool,
    between: Between,
) -> Iterator[Figures | None]:
    """`repair_shard` in short steps: the figures of a batch that was written, or None where nothing differed."""
    version = writer.version
    first, _ = bucket_range(shards[0], version.index.shards)
    _, last = bucket_range(shards[-1], version.index.shards)
    row = connection.execute(Q["collection_position"], {"collection_id": version.collection_id}).fetchone()
    position = int(row[0]) if row else 0
    for rows in _outdated(connection, version, first, last, size, position):
        if rows:
            failpoint("repair.batch")
            yield writer.apply(connection, rows, lease=lease, between=between)
        else:
            yield None
    if deep:
        slices = Slices(first, last, SLICE_KEYS)
        for scope in slices:
            found = compare(connection, version, writer.store, scope)
            slices.held(found.compared)
            yield None
            yield from mend(connection, writer, found.wrong(), lease, batch=size(), between=between)
    failpoint("repair.before_done")
    with connection.transaction():
        # A version that was retired and begun anew meanwhile has another shard of this number, which is empty.
        lease.check(connection)()
        params = {"version_id": version.id, "first": shards[0], "last": shards[-1], "position": position}
        connection.execute(Q["shards_done"], params)


def _outdated(
    connection: Connection, version: IndexVersion, first: int, last: int, size: Callable[[], int], position: int
) -> Iterator[list[Row]]:
    """Pages of what the ledger does not have, of at most `size()` documents; the caller writes one before the next."""
    params = {"version_id": version.id, "collection_id": version.collection_id}
    # A collection has at most as many documents as changes.
    width = max(1, BUCKETS * FIRST_LOOK // max(1, position))
    while first <= last:
        end = min(first + width - 1, last)
        limit = size()
        began = time.perf_counter()
        # Not prepared: a plan from when the tables were empty would read the whole ledger for every page.
        page = connection.execute(
            Q["outdated"], params | {"first": first, "last": end, "limit": limit}, prepare=False
        ).fetchall()
        seconds = time.perf_counter() - began
        rows = [Row.read(row) for row in page]
        yield rows
        if len(rows) == limit:
            # What was written is not outdated any more, so the rest of this bucket comes with the next page.
            width = 2 * (rows[-1].bucket - first + 1)
            first = rows[-1].bucket
        else:
            first = end + 1
            # An index that is level is passed over in wide slices.
            width = max(1, width * 2 if seconds < LOOK_SECONDS / 2 else width // 2 if seconds > LOOK_SECONDS else width)


def mend(
    connection: Connection,
    writer: Writer,
    keys: Sequence[Key],
    lease: Lease,
    *,
    batch: int,
    between: Between = lambda: None,
) -> Iterator[Figures]:
    """Write these keys again as their documents say, and remove what no document stands for; in steps of a batch.

    Vectors that are what the ledger says are kept: a repair of text or metadata embeds nothing.

    Raises:
        FencedError: the lease was taken over.
    """
    version = writer.version
    params = {"version_id": version.id, "collection_id": version.collection_id}
    for start in range(0, len(keys), batch):
        part = list(keys[start : start + batch])
        rows = connection.execute(Q["by_keys"], params | {"keys": part}).fetchall()
        yield writer.apply(connection, [Row.read(row) for row in rows], lease=lease, repair=True, between=between)
        writer.discard(connection, part, lease)
        failpoint("repair.mended")


def left_pending(connection: Connection, writer: Writer, limit: int) -> list[Key]:
    """Keys that a writer of a store outside of the database began, and did not end although its time is over."""
    rows = connection.execute(
        sql.load("external")["left_pending"],
        {"version_id": writer.version.id, "seconds": writer.external.lease_seconds, "limit": limit},
    )
    return [Key(row[0]) for row in rows]


@dataclass(frozen=True, slots=True)
class Session:
    """A repair run's version, its writer, and what embeds for it."""

    version: IndexVersion
    writer: Writer
    embedder: Embedder

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
        stores: Stores | None = None,
    ) -> Session:
        """The version of the index as the catalog has it now, its store made ready, and a writer for `run`.

        Args:
            stores: where versions live; those of the settings if not given.

        Raises:
            ConfigurationError: the index has no store in this profile, or the embedder does not agree with what wrote
                the version before.
        """
        stores = stores or Stores(settings)
        # Of this store only: what a former one still has is no reason to wait for it.
        settle(connection, stores, name=index.name, kind=index.store.for_profile(profile))
        version, store = begin_version(connection, catalog, index, profile, stores)
        embedder = embedder_of(version)
        admit(connection, version, embedder, run)
        size = settings.indexer.max_text_bytes
        writer = Writer(version, store, embedder, size, run=run, lane="bulk")
        # Nothing else waits for this run: it outlasts what a dead writer left.
        writer.external.patience = writer.external.lease_seconds
        return cls(version, writer, embedder)

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
    progress: Callable[[RepairProgress], None] | None = None,
) -> Figures:
    """Repair several shards; then let the store finish its first load. Returns what it cost.

    Args:
        progress: called after each shard, in between after each batch and forward pass, and while the store builds
            its index.

    Raises:
        BusyError: another run is repairing one of the shards.
    """
    whole = Figures()
    watch = RepairWatch(connection, session.version, shards, session.embedder, progress) if progress else None
    for together in neighbours(session.version, shards, session.position(connection), batch):
        part = repair_shard(
            connection,
            session.writer,
            together[0],
            last=together[-1],
            batch=batch,
            deep=deep,
            between=watch.tell if watch else nothing,
            progress=partial(watch.note, whole) if watch else _unheard,
        )
        whole.add(part)
        if watch:
            watch.shards_ended(len(together))
    with watch.building() if watch else nullcontext():
        finish_load(connection, session.writer)
    return whole


def _unheard(so_far: Figures) -> None:
    """Nobody wants to know how far a repair is."""


def finish_load(connection: Connection, writer: Writer) -> None:
    """Once every shard was compared at least once, let the store build its nearest-neighbour index."""
    row = connection.execute(Q["shards_pending"], {"version_id": writer.version.id}).fetchone()
    if row and row[0] == 0:
        writer.store.finish(connection, writer.version)

"""What a person or a sensor wants to know: how far each index is, how it lags, and where one vector came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg.rows import TupleRow, class_row, dict_row

from sophia import sql
from sophia.documents import parse_key
from sophia.errors import SophiaError, TemporaryError
from sophia.indexing.versions import IndexVersion, serving_version
from sophia.stores import IN_DATABASE, Stores

Connection = psycopg.Connection[TupleRow]
Q = sql.load("status")
# A backlog beyond this is shown as this: counting it all would take longer than anybody wants to wait.
BACKLOG_LIMIT = 100_000
# Counting bulk documents looks into the table itself, whose size nobody bounds.
COUNT_SECONDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexProgress:
    """How far a version of an index is: all that is known without counting documents.

    Attributes:
        position, collection_position: how far the live lane is, and how far it can go.
        backlog: live documents that wait for the indexer, at most `BACKLOG_LIMIT`.
        shards_behind: shards that the bulk lane has still to compare.
        lag_p50_ms, lag_p95_ms: source commit to searchable over the last 500 live batches; None before the first.
        source_lsn, source_time: up to here the source's changes are in the inbox.
        verified, verified_lsn: up to this position the changes were compared with what the store holds.
        scanned: share of the present deep scan that is done, 0 to 1.
        scan_seconds, scan_ended_at: of the last whole deep scan; None before the first.
        drift_found, drift_repaired: documents that the verification found to differ, and mended, since the version is.
        fresh: about how many chunks its nearest-neighbour graph does not have yet; None where every write enters it.
    """

    version_id: int
    index: str
    version: int
    state: str
    store: str
    model: str
    dimension: int
    fingerprint: str
    position: int
    collection: str
    collection_position: int
    source_lsn: str | None
    source_time: datetime | None
    backlog: int
    shards: int
    shards_behind: int
    lag_p50_ms: float | None
    lag_p95_ms: float | None
    last_applied_at: datetime | None
    indexer_running: bool
    verified: int
    verified_lsn: str | None
    scanned: float
    scan_seconds: float | None
    scan_ended_at: datetime | None
    drift_found: int
    drift_repaired: int
    fresh: int | None

    @property
    def level(self) -> bool:
        """Whether everything that the inbox holds is in the store."""
        return self.backlog == 0 and self.shards_behind == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexStatus(IndexProgress):
    """One version of an index, with what it holds.

    Attributes:
        documents: current documents of the collection.
        indexed: of these, what the ledger says the store holds.
        chunks: vectors.
        parked: documents that cannot be indexed.
        pending: documents of which nobody knows yet whether a store outside of the database has them.
    """

    documents: int
    indexed: int
    chunks: int
    parked: int
    pending: int

    def to_json(self) -> dict[str, Any]:
        """For `--json` and the console."""
        return asdict(self) | {"level": self.level}


@dataclass(frozen=True, slots=True)
class CaptureStatus:
    """A capture: `complete` of its `tables` have had their snapshot.

    `running`, and `retained_bytes` of log that the server keeps for the slot, are None if the slot is elsewhere.
    """

    source: str
    slot: str
    confirmed_lsn: str | None
    updated_at: datetime
    tables: int
    complete: int
    running: bool | None = None
    retained_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionProgress:
    """How far the inbox is with a collection."""

    name: str
    generation: int
    position: int
    source_lsn: str | None
    source_time: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionStatus(CollectionProgress):
    """The same with what it holds, counted.

    Attributes:
        dead_letters: what could not be taken or indexed.
        parked: of these the deliveries of Estuary that are kept as they came.
        rereads: rows that wait to be read from the source again.
    """

    documents: int
    dead_letters: int
    parked: int
    rereads: int

    def to_json(self, complete: Mapping[str, datetime | None]) -> dict[str, Any]:
        """For `--json` and the console; with Estuary's watermark of the collections that it feeds."""
        fed = {"watermark": complete[self.name]} if self.name in complete else {}
        return asdict(self) | fed


def collection_progress(connection: Connection) -> list[CollectionProgress]:
    """Every collection that the inbox knows; costs nothing worth mentioning."""
    with connection.cursor(row_factory=class_row(CollectionProgress)) as cursor:
        return cursor.execute(Q["collection_progress"]).fetchall()


def collection_status(connection: Connection, names: Sequence[str] | None = None) -> list[CollectionStatus]:
    """Every collection that the inbox knows, or those of `names`; counts their documents."""
    with connection.cursor(row_factory=class_row(CollectionStatus)) as cursor:
        return cursor.execute(Q["collections"], {"names": None if names is None else list(names)}).fetchall()


def touched_shards(connection: Connection, version: IndexVersion, after: int, upto: int) -> list[int]:
    """Shards of a version that got live documents at positions after … upto."""
    rows = connection.execute(
        Q["touched_shards"],
        {"collection_id": version.collection_id, "shards": version.index.shards, "after": after, "upto": upto},
    ).fetchall()
    return [int(row[0]) for row in rows]


def index_progress(connection: Connection) -> list[IndexProgress]:
    """Every version that is fed; the cost does not grow with the documents."""
    with connection.cursor(row_factory=class_row(IndexProgress)) as cursor:
        return cursor.execute(Q["progress"], {"most": BACKLOG_LIMIT}).fetchall()


def index_status(connection: Connection, versions: Sequence[int] | None = None) -> list[IndexStatus]:
    """Every version that is fed, or those of these ids; counts their documents, so it is for people, not for loops."""
    wanted = [p for p in index_progress(connection) if versions is None or p.version_id in versions]
    rows = connection.execute(Q["contents"], {"ids": [p.version_id for p in wanted]}).fetchall()
    names = ("documents", "indexed", "chunks", "parked", "pending")
    counted = {row[0]: dict(zip(names, row[1:], strict=True)) for row in rows}
    return [IndexStatus(**asdict(p), **counted[p.version_id]) for p in wanted]


def shards_waiting(connection: Connection, version_id: int, shards: int, least: int) -> dict[int, int]:
    """Shards of a version with the bulk documents that wait for them; none where fewer than `least` came at all.

    Raises:
        TemporaryError: it would take longer than `COUNT_SECONDS`.
    """
    wanted = {"version_id": version_id, "shards": shards, "least": least, "most": BACKLOG_LIMIT}
    try:
        with connection.transaction():
            connection.execute("SELECT set_config('statement_timeout', %s, true)", [f"{COUNT_SECONDS}s"])
            return dict(connection.execute(Q["shards_waiting"], wanted).fetchall())
    except psycopg.errors.QueryCanceled as error:
        raise TemporaryError(f"counting what waits takes longer than {COUNT_SECONDS} s; it is tried again") from error


def capture_status(connection: Connection) -> list[CaptureStatus]:
    """Every capture that has ever run."""
    with connection.cursor(row_factory=class_row(CaptureStatus)) as cursor:
        return cursor.execute(Q["captures"]).fetchall()


def lag_history(connection: Connection, index: str, limit: int = 300) -> list[tuple[int, datetime, float, int]]:
    """(batch, applied at, lag in ms, documents) of the newest live batches, oldest first."""
    rows = connection.execute(Q["lag_history"], {"index": index, "limit": limit}).fetchall()
    return [(row[0], row[1], float(row[2]), row[3]) for row in reversed(rows)]


def dead_letters(connection: Connection, limit: int) -> list[dict[str, Any]]:
    """Parked documents, the latest first."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(Q["dead_letters"], {"limit": limit}).fetchall()


def dead_letter_count(connection: Connection) -> int:
    """How many documents are parked."""
    row = connection.execute(Q["dead_letter_count"]).fetchone()
    return int(row[0]) if row else 0


def field_values(connection: Connection, version: IndexVersion, limit: int = 50) -> dict[str, list[str]]:
    """The frequent values of each metadata field, as JSON text, from a sample of the collection's documents."""
    values: dict[str, list[str]] = {field: [] for field in version.index.metadata}
    rows = connection.execute(
        Q["field_values"], {"collection_id": version.collection_id, "fields": list(values), "limit": limit}
    ).fetchall()
    for field, value in rows:
        values[field].append(value)
    return values


def why(connection: Connection, index: str, key_text: str, *, stores: Stores = IN_DATABASE) -> dict[str, Any]:
    """Where a key's vectors came from: row, log position, commit time, hashes, model, backend, code, image, run.

    `chunks` has each stored chunk's span, hash, origin and run; `history` the key's last changes.

    Raises:
        SophiaError: no such index, or the key was never seen.
    """
    version = serving_version(connection, index)
    key = parse_key(key_text)
    with connection.cursor(row_factory=dict_row) as cursor:
        found = cursor.execute(Q["why"], {"index": index, "key": key}).fetchone()
        if found is None:
            raise SophiaError(f"index {index!r} has never seen key {key}; keys look like 42 or '[\"a\", 2]'")
        history = cursor.execute(Q["history"], {"collection": found["collection"], "key": key}).fetchall()
    chunks = [asdict(chunk) for chunk in stores.of(version).chunks_of(connection, version, key)]
    return dict(found) | {"chunks": chunks, "history": history}

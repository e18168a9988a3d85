"""What a person or a sensor wants to know: how far each index is, how it lags, and where one vector came from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg.rows import TupleRow, class_row, dict_row

from sophia import sql
from sophia.documents import parse_key
from sophia.errors import SophiaError
from sophia.indexing.versions import IndexVersion, serving_version

Connection = psycopg.Connection[TupleRow]
Q = sql.load("status")


@dataclass(frozen=True, slots=True)
class IndexStatus:
    """One version of an index.

    Attributes:
        documents: current documents of the collection.
        indexed: of these, what the ledger says the store holds.
        backlog: live documents that wait for the indexer.
        shards_behind: shards that the bulk lane has still to compare.
        lag_p50_ms, lag_p95_ms: source commit to searchable over the last 500 live batches; None before the first.
        source_lsn, source_time: up to here the source's changes are in the inbox.
    """

    index: str
    version: int
    state: str
    store: str
    model: str
    dimension: int
    fingerprint: str
    collection: str
    source_lsn: str | None
    source_time: datetime | None
    documents: int
    indexed: int
    chunks: int
    parked: int
    backlog: int
    shards: int
    shards_behind: int
    lag_p50_ms: float | None
    lag_p95_ms: float | None
    last_applied_at: datetime | None
    indexer_running: bool

    @property
    def level(self) -> bool:
        """Whether everything that the inbox holds is in the store."""
        return self.backlog == 0 and self.shards_behind == 0

    def to_json(self) -> dict[str, Any]:
        """For `--json` and the console."""
        return asdict(self) | {"level": self.level}


@dataclass(frozen=True, slots=True)
class CaptureStatus:
    """A capture: `complete` of its `tables` have had their snapshot; `running` is None if its slot is elsewhere."""

    source: str
    slot: str
    confirmed_lsn: str | None
    updated_at: datetime
    tables: int
    complete: int
    running: bool | None = None


@dataclass(frozen=True, slots=True)
class CollectionStatus:
    """How far the inbox is with a collection."""

    name: str
    generation: int
    position: int
    source_lsn: str | None
    source_time: datetime | None
    documents: int
    dead_letters: int


def collection_status(connection: Connection) -> list[CollectionStatus]:
    """Every collection that the inbox knows."""
    with connection.cursor(row_factory=class_row(CollectionStatus)) as cursor:
        return cursor.execute(Q["collections"]).fetchall()


def touched_shards(connection: Connection, version: IndexVersion, after: int, upto: int) -> list[int]:
    """Shards of a version that got live documents at positions after … upto."""
    rows = connection.execute(
        Q["touched_shards"],
        {"collection_id": version.collection_id, "shards": version.index.shards, "after": after, "upto": upto},
    ).fetchall()
    return [int(row[0]) for row in rows]


def index_status(connection: Connection) -> list[IndexStatus]:
    """Every version that is fed."""
    with connection.cursor(row_factory=class_row(IndexStatus)) as cursor:
        return cursor.execute(Q["versions"]).fetchall()


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


def why(connection: Connection, index: str, key_text: str) -> dict[str, Any]:
    """Where a key's vectors came from: row, log position, commit time, hashes, model, run, and its last changes.

    Raises:
        SophiaError: no such index, or the key was never seen.
    """
    serving_version(connection, index)
    key = parse_key(key_text)
    with connection.cursor(row_factory=dict_row) as cursor:
        found = cursor.execute(Q["why"], {"index": index, "key": key}).fetchone()
        if found is None:
            raise SophiaError(f"index {index!r} has never seen key {key}; keys look like 42 or '[\"a\", 2]'")
        history = cursor.execute(Q["history"], {"collection": found["collection"], "key": key}).fetchall()
    return dict(found) | {"history": history}

"""What a batch leaves in the database beside the store: ledger columns, dead letters, the record of the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import psycopg
from psycopg.rows import TupleRow

from sophia import inbox, sql
from sophia.documents import Key
from sophia.indexing.batch import Figures
from sophia.indexing.versions import IndexVersion
from sophia.stores import DocumentWrite
from sophia.stores.base import PREPARED_ROWS

Connection = psycopg.Connection[TupleRow]
Cursor = psycopg.Cursor[TupleRow]
Q = sql.load("indexing")
# Keys named in the record of a batch, for the feed; a batch may hold many more.
FEED_KEYS = 20


def ledger_columns(version: IndexVersion, writes: Sequence[DocumentWrite], run: str, repair: bool) -> dict[str, Any]:
    """The parameters that put writes into the ledger."""
    return {
        "version_id": version.id,
        "run": run,
        "repair": repair,
        "keys": [w.key for w in writes],
        "buckets": [w.bucket for w in writes],
        "clocks": [w.clock.literal for w in writes],
        "deleted": [w.deleted for w in writes],
        "content_hashes": [_byte_array([c.content_hash for c in w.chunks]) for w in writes],
        "vector_hashes": [_byte_array([c.vector_hash for c in w.chunks]) for w in writes],
    }


def write_dead_letters(
    connection: Connection, version: IndexVersion, writes: Sequence[DocumentWrite], faults: Mapping[Key, str]
) -> None:
    """Park the documents of `faults` with their reasons, and strike out those that are in order now."""
    connection.execute(
        sql.load("inbox")["resolve_dead_letters"],
        {
            "collection_id": version.collection_id,
            "keys": [w.key for w in writes if w.key not in faults],
            "version_id": version.id,
        },
        prepare=len(writes) <= PREPARED_ROWS,
    )
    clocks = {w.key: w.clock for w in writes}
    for key, reason in faults.items():
        inbox.park(
            connection, version.collection, key, stage="index", reason=reason, clock=clocks[key], version_id=version.id
        )


def record_batch(
    connection: Connection,
    version: IndexVersion,
    writes: Sequence[DocumentWrite],
    figures: Figures,
    *,
    lane: str,
    run: str,
    prepared: float,
) -> Cursor:
    """Note the batch, which took `prepared` seconds before this transaction, and notify the feed.

    The answer holds the lag in milliseconds, or null.
    """
    oldest: datetime | None = None
    if lane == "live":
        oldest = min((w.origin.committed_at for w in writes if w.origin.committed_at), default=None)
    return connection.execute(
        Q["batch"],
        {
            "version_id": version.id,
            "index": version.index_name,
            "version": version.number,
            "lane": lane,
            "run": run,
            "documents": figures.documents,
            "embedded": figures.embedded,
            "reused": figures.reused,
            "deleted": figures.deleted,
            "tokens": figures.tokens,
            "embed_ms": figures.embed_seconds * 1000,
            "prepared_ms": prepared * 1000,
            "oldest": oldest,
            "keys": [("-" if w.deleted else "") + w.key for w in writes[:FEED_KEYS]],
        },
        prepare=True,
    )


def note_lag(figures: Figures, recorded: Cursor | None) -> None:
    """Take the lag from the answer of `record_batch`, once its transaction has ended."""
    row = recorded.fetchone() if recorded is not None else None
    if row is not None and row[0] is not None:
        figures.lag_ms.append(float(row[0]))


def _byte_array(values: Sequence[bytes]) -> str:
    return "{" + ",".join(f'"\\\\x{value.hex()}"' for value in values) + "}"

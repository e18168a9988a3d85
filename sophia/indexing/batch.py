"""What a writer is given, documents beside their ledger entries, and what it says afterwards: the cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from psycopg.rows import TupleRow

from sophia.documents import Clock, Key, Origin, parse_lsn


@dataclass(frozen=True, slots=True)
class Row:
    """A current document and what the ledger holds of it."""

    key: Key
    bucket: int
    position: int
    clock: Clock
    deleted: bool
    missing: tuple[str, ...]
    body: dict[str, Any] | None
    origin: Origin
    ledger_clock: Clock | None
    ledger_hashes: tuple[bytes, ...]
    ledger_vectors: tuple[bytes, ...]
    ledger_state: str | None

    @classmethod
    def read(cls, row: TupleRow) -> Row:
        """From a row of the queries `live`, `outdated` and `by_keys`."""
        key, bucket, position, clock, deleted, missing, body, lsn, txid, committed_at, *ledger = row
        ledger_clock, _deleted, content_hashes, vector_hashes, state = ledger
        return cls(
            Key(key),
            bucket,
            position,
            Clock(*clock),
            deleted,
            tuple(missing),
            body,
            Origin(parse_lsn(lsn) if lsn else None, txid, committed_at),
            Clock(*ledger_clock) if ledger_clock else None,
            tuple(bytes(h) for h in content_hashes or ()),
            tuple(bytes(h) for h in vector_hashes or ()),
            state,
        )


@dataclass(slots=True)
class Figures:
    """What writing cost, summed over batches. `lag_ms` holds commit-to-applied times of live batches.

    `embedded` and `reused` count texts: of equal ones one, and none of those that bring their vector. `chunks` are all
    that the documents have.
    """

    documents: int = 0
    chunks: int = 0
    embedded: int = 0
    reused: int = 0
    deleted: int = 0
    parked: int = 0
    tokens: int = 0
    embed_seconds: float = 0.0
    store_seconds: float = 0.0
    lag_ms: list[float] = field(default_factory=list)

    def add(self, other: Figures) -> None:
        """Sum another batch into this one."""
        self.documents += other.documents
        self.chunks += other.chunks
        self.embedded += other.embedded
        self.reused += other.reused
        self.deleted += other.deleted
        self.parked += other.parked
        self.tokens += other.tokens
        self.embed_seconds += other.embed_seconds
        self.store_seconds += other.store_seconds
        self.lag_ms += other.lag_ms

"""What a vector store must do. Every store passes the same contract suite.

A store holds the chunks of index versions under ids that the version decides. There are two kinds:

* a `transactional` store lives in Sophia's own database. `write` is called in the transaction that has put the
  documents' clocks into the ledger, and a row whose ledger clock is another than the write's is not touched;
* any other store is written between two transactions, by whoever holds the leases of the keys' shards: the first says
  `pending` in the ledger, then `write` is called without a transaction, the second says `applied`. Such a write is
  given only what the ledger took, may be repeated, and must have ended, one way or the other, `write_seconds` after it
  was called: the leases outlive that.

Reads see what was committed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

import numpy as np
import orjson
import psycopg
from psycopg.rows import TupleRow

from sophia.documents import BUCKETS, Clock, Key, Origin
from sophia.embedding.base import Vectors
from sophia.indexing.text import HASH_BYTES
from sophia.indexing.versions import IndexVersion

Connection = psycopg.Connection[TupleRow]
# A statement of a larger batch is planned each time: the plan of a prepared one may stem from when the tables were
# empty, and then reads all of a table that has become large. For a few rows planning would cost more than it saves.
PREPARED_ROWS = 16
# From so many new documents on, copying costs less than a statement with arrays.
COPIED_DOCUMENTS = 8


@dataclass(frozen=True, slots=True)
class ChunkWrite:
    """A chunk to store. `vector` is None when the store holds it under this id already and only the rest changes."""

    id: UUID
    number: int
    start: int
    end: int
    content: str
    content_hash: bytes
    vector_hash: bytes
    vector: Vectors | None


@dataclass(frozen=True, slots=True)
class DocumentWrite:
    """All chunks of a document at a clock; none for a delete. Surplus chunks of the key go away with it.

    `held` is how many chunks of the key, numbered from 0, a store that is not transactional may hold so far. `live`:
    somebody waits for it, so a store may put off what a search can do without. `first`: nobody does, and the ledger
    takes the key for the first time, in the transaction of this write.
    """

    key: Key
    bucket: int
    clock: Clock
    chunks: tuple[ChunkWrite, ...]
    metadata: Mapping[str, Any]
    origin: Origin
    deleted: bool = False
    parked: bool = False
    held: int = 0
    live: bool = False
    first: bool = False

    @property
    def metadata_json(self) -> str:
        """`metadata` as JSON."""
        try:
            text = orjson.dumps(dict(self.metadata))
        except TypeError:
            # An integer of more than 64 bits.
            return json.dumps(dict(self.metadata), ensure_ascii=False)
        # A tenth of the time; but a number too large for a float would become a null of it.
        return text.decode() if b"null" not in text else json.dumps(dict(self.metadata), ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Scope:
    """Which keys to look at: those of the buckets `first` to `last`, or, if `keys` is given, these."""

    first: int = 0
    last: int = BUCKETS - 1
    keys: tuple[Key, ...] | None = None

    @property
    def parameters(self) -> dict[str, Any]:
        """For a query that selects by it."""
        return {"first": self.first, "last": self.last} if self.keys is None else {"keys": list(self.keys)}


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """What the store really holds of a key, in chunk order. `read_hashes` were computed from the stored text.

    All chunks of a key bear one clock, so `oldest` and `newest` are equal unless someone else wrote; the same is true
    of `metadata`, whose different texts (JSON) are listed.
    """

    key: Key
    ids: tuple[UUID, ...]
    content_hashes: tuple[bytes, ...]
    read_hashes: tuple[bytes, ...]
    vector_hashes: tuple[bytes, ...]
    metadata: tuple[str, ...]
    oldest: Clock
    newest: Clock


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """A stored chunk with its vector."""

    key: Key
    content: str
    metadata: dict[str, Any]
    vector: Vectors


@dataclass(frozen=True, slots=True)
class ChunkOrigin:
    """What led to a stored chunk: `start` and `end` are its span in the rendered text, in characters."""

    chunk: int
    start: int
    end: int
    content_hash: str
    clock: list[int]
    lsn: str | None
    txid: int | None
    committed_at: datetime | None
    run: str
    indexed_at: datetime


@dataclass(frozen=True, slots=True)
class Query:
    """A search: `filters` compare metadata fields for equality; `text` is used by hybrid search.

    `exact` reads every chunk instead of a nearest-neighbour index.
    """

    vector: Vectors
    text: str
    k: int = 10
    filters: Mapping[str, Any] = field(default_factory=dict)
    hybrid: bool = False
    exact: bool = False


@dataclass(frozen=True, slots=True)
class Hit:
    """One result. `score` is the cosine similarity, or the fused reciprocal rank of a hybrid search."""

    key: str
    chunk: int
    score: float
    content: str
    metadata: dict[str, Any]
    lsn: str | None
    committed_at: datetime | None
    indexed_at: datetime


def vector_hash(vector: Vectors) -> bytes:
    """The first 16 bytes of SHA-256 over the vector as PostgreSQL sends it: dimension, zero, big-endian float32."""
    head = len(vector).to_bytes(2, "big") + b"\0\0"
    return hashlib.sha256(head + np.asarray(vector, dtype=">f4").tobytes()).digest()[:HASH_BYTES]


def packed(vectors: Sequence[Vectors]) -> list[bytes]:
    """Vectors of one dimension as PostgreSQL sends them, by numpy in one go."""
    if not vectors:
        return []
    values = np.stack(vectors)
    count, dimension = values.shape
    rows = np.zeros(count, dtype=[("dimension", ">u2"), ("unused", ">u2"), ("values", ">f4", (dimension,))])
    rows["dimension"] = dimension
    rows["values"] = values
    data, size = rows.tobytes(), rows.itemsize
    return [data[start : start + size] for start in range(0, len(data), size)]


def vector_hashes(vectors: Sequence[Vectors]) -> list[bytes]:
    """`vector_hash` of each of many vectors of one dimension."""
    return [hashlib.sha256(vector).digest()[:HASH_BYTES] for vector in packed(vectors)]


class Store(Protocol):
    """A vector store.

    Every method may raise TemporaryError while the store is away; what it did until then may be repeated. It raises
    UnreachableError where the store was not reached at all, so that nobody waits for a request that was never taken,
    and FencedError where the version's place is gone, since it ended under its reader or writer.
    """

    @property
    def transactional(self) -> bool:
        """Whether writes are part of the caller's transaction."""
        ...

    @property
    def write_seconds(self) -> float:
        """Longest time of a call of `write`, from its begin to the last effect in the store; 0 if transactional."""
        ...

    def ensure(self, connection: Connection, version: IndexVersion) -> None:
        """Make the version's table, class or namespace; nothing if it is there."""
        ...

    def finish(self, connection: Connection, version: IndexVersion) -> None:
        """After the first whole load: build what is better built once than kept up (the nearest-neighbour index)."""
        ...

    def publish(self, connection: Connection, version: IndexVersion) -> None:
        """Point the index's public name at this version: in the caller's transaction, or, of a store that is not
        transactional, by a call that may be repeated, after that transaction."""
        ...

    def drop(self, connection: Connection, version: IndexVersion) -> None:
        """Remove everything of a version, in the caller's transaction as far as the store has any."""
        ...

    def holders(self, connection: Connection, version: IndexVersion) -> str:
        """Who keeps a switch or an end of this version waiting, for people; empty if nobody does."""
        ...

    def erase(self, connection: Connection, version: IndexVersion, keys: Sequence[str]) -> int:
        """Remove everything of these keys, whatever the ledger says, in the caller's transaction. Returns chunks."""
        ...

    def reclaim(self, connection: Connection, version: IndexVersion, *, rewrite: bool) -> list[str]:
        """After an erasure: make what was removed unreadable in the store itself. Returns what was worked on.

        `rewrite` also clears what lies in the free space of its files, and may lock readers out for that time.
        """
        ...

    def approximate(self, connection: Connection, version: IndexVersion) -> bool:
        """Whether searches go through a nearest-neighbour index, so that they may miss something."""
        ...

    def sample(self, connection: Connection, version: IndexVersion, size: int, seed: str) -> list[StoredChunk]:
        """Up to `size` stored chunks, spread evenly over the ids; the same ones for the same seed."""
        ...

    def chunks_of(self, connection: Connection, version: IndexVersion, key: str) -> list[ChunkOrigin]:
        """Where each stored chunk of a key came from, in chunk order."""
        ...

    def write(
        self,
        connection: Connection,
        version: IndexVersion,
        writes: Sequence[DocumentWrite],
        run: str,
        *,
        replace: bool = False,
    ) -> dict[Key, str]:
        """Store a batch; a transactional store does so in the caller's transaction, if the ledger has the clocks.

        `replace` removes everything of the keys first, whatever it is: repair trusts nothing that is there.

        Returns:
            The documents that the store refuses for what they are (a property too large), with the reason. Nothing of
            these is in the store any more.

        Raises:
            TemporaryError: the store is away, or has taken a part only and did not take the rest when asked again.
        """
        ...

    def discard(self, connection: Connection, version: IndexVersion, keys: Sequence[str]) -> None:
        """Remove what is stored of these keys where the ledger does not hold them as live."""
        ...

    def vectors(self, connection: Connection, version: IndexVersion, hashes: Sequence[bytes]) -> dict[bytes, Vectors]:
        """Vectors that the version holds for these content hashes, and that the ledger vouches for, for reuse.

        A store that cannot look them up yields none.
        """
        ...

    def sound_vectors(self, connection: Connection, version: IndexVersion, keys: Sequence[str]) -> dict[bytes, Vectors]:
        """Vectors of these keys, by the hash of the text they were computed from, that are what the ledger says."""
        ...

    def inventory(self, connection: Connection, version: IndexVersion, scope: Scope) -> Iterator[StoredDocument]:
        """What is really there of a scope, hashes computed from the stored data."""
        ...

    def counts(self, connection: Connection, version: IndexVersion) -> tuple[int, int]:
        """(documents, chunks) that the store holds."""
        ...

    def search(self, connection: Connection, version: IndexVersion, query: Query) -> list[Hit]:
        """The best `k` chunks, best first."""
        ...

    def close(self) -> None:
        """End the connections that the store has of its own. Nothing is asked of it afterwards."""
        ...

"""A store outside of the database that lives in memory: the double for faults of the two-phase path.

It honours `sophia.stores.base.Store` as Weaviate and Pinecone do: it knows nothing of the database but the ledger, has
no transactions, and answers after a while, in part, late or not at all, as a test wants it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as changed
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import UUID

import numpy as np

from sophia.documents import Clock, Key, format_lsn
from sophia.embedding.base import Vectors
from sophia.errors import FencedError, TemporaryError, UnreachableError
from sophia.indexing.text import content_hash
from sophia.indexing.versions import IndexVersion
from sophia.stores.base import (
    ChunkOrigin,
    ChunkWrite,
    Connection,
    DocumentWrite,
    Hit,
    Query,
    Scope,
    StoredChunk,
    StoredDocument,
    vector_hash,
)
from sophia.stores.ledger import ledger_sample, live_ids, vector_hashes

# A document with this in its text is refused for what it is.
UNACCEPTABLE = "unacceptable"


@dataclass(frozen=True)
class Object:
    """What the store holds under an id."""

    key: Key
    bucket: int
    chunk: int
    span: tuple[int, int]
    content: str
    content_hash: bytes
    vector: Vectors
    metadata: str
    clock: Clock
    lsn: str | None
    txid: int | None
    committed_at: datetime | None
    run: str
    indexed_at: datetime


@dataclass
class MemoryStore:
    """Implements `Store`.

    Attributes:
        objects: by name of the version's place and id.
        names: public names, and the place that each stands for.
        down: nobody is at the door.
        fail_after: the next write stops behind so many documents; None for a whole one.
        late: the next write gives up waiting; what it sent takes effect when `land` is called.
        before: called with each write before anything of it happens.
        writes: the batches that came, as (keys, replace).
    """

    write_seconds: float = 1.0
    transactional: bool = False
    objects: dict[str, dict[UUID, Object]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    down: bool = False
    fail_after: int | None = None
    late: bool = False
    before: Callable[[Sequence[DocumentWrite]], None] = lambda writes: None
    writes: list[tuple[list[Key], bool]] = field(default_factory=list)
    _landing: list[Callable[[], None]] = field(default_factory=list)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    # ---- faults ----------------------------------------------------------------------------------------------

    def land(self) -> None:
        """What was sent and not waited for takes effect now."""
        while self._landing:
            self._landing.pop(0)()

    def _answer(self) -> None:
        if self.down:
            raise UnreachableError("the memory store is down")

    # ---- places ----------------------------------------------------------------------------------------------

    def ensure(self, connection: Connection, version: IndexVersion) -> None:
        self._answer()
        self.objects.setdefault(version.store_name, {})

    def finish(self, connection: Connection, version: IndexVersion) -> None:
        self._answer()

    def publish(self, connection: Connection, version: IndexVersion) -> None:
        self._answer()
        self.names[str(version.index.class_name)] = version.store_name

    def drop(self, connection: Connection, version: IndexVersion) -> None:
        self._answer()
        self.objects.pop(version.store_name, None)

    def holders(self, connection: Connection, version: IndexVersion) -> str:
        return ""

    def close(self) -> None:
        """Nothing is open."""

    def approximate(self, connection: Connection, version: IndexVersion) -> bool:
        return False

    def reclaim(self, connection: Connection, version: IndexVersion, *, rewrite: bool) -> list[str]:
        return []

    def _place(self, version: IndexVersion) -> dict[UUID, Object]:
        self._answer()
        if version.store_name not in self.objects:
            raise FencedError(f"{version.label} has no place in the memory store")
        return self.objects[version.store_name]

    # ---- writing ---------------------------------------------------------------------------------------------

    def write(
        self,
        connection: Connection,
        version: IndexVersion,
        writes: Sequence[DocumentWrite],
        run: str,
        *,
        replace: bool = False,
    ) -> dict[Key, str]:
        self.before(writes)
        place = self._place(version)
        self.writes.append(([write.key for write in writes], replace))
        refused: dict[Key, str] = {}
        if self.late:
            self.late = False
            self._landing += [partial(self._put, place, version, write, run, replace, refused) for write in writes]
            raise TemporaryError("the memory store did not answer in time")
        for number, write in enumerate(writes):
            if number == self.fail_after:
                self.fail_after = None
                raise TemporaryError("the memory store took a part of the batch")
            self._put(place, version, write, run, replace, refused)
        self.fail_after = None
        return refused

    def _put(
        self,
        place: dict[UUID, Object],
        version: IndexVersion,
        write: DocumentWrite,
        run: str,
        replace: bool,
        refused: dict[Key, str],
    ) -> None:
        with self._lock:
            unacceptable = any(UNACCEPTABLE in chunk.content for chunk in write.chunks)
            if replace or unacceptable:
                self._remove(place, write.key)
            if unacceptable:
                refused[write.key] = "the memory store does not take such a text"
                return
            for number in range(len(write.chunks), write.held):
                place.pop(version.chunk_id(write.key, number), None)
            for chunk in write.chunks:
                self._put_chunk(place, write, chunk, run)

    @staticmethod
    def _put_chunk(place: dict[UUID, Object], write: DocumentWrite, chunk: ChunkWrite, run: str) -> None:
        vector = chunk.vector
        if vector is None:
            if chunk.id not in place:
                return
            vector = place[chunk.id].vector
        place[chunk.id] = Object(
            write.key,
            write.bucket,
            chunk.number,
            (chunk.start, chunk.end),
            chunk.content,
            chunk.content_hash,
            np.array(vector, dtype=np.float32),
            json.dumps(dict(write.metadata), ensure_ascii=False),
            write.clock,
            format_lsn(write.origin.lsn) if write.origin.lsn is not None else None,
            write.origin.txid,
            write.origin.committed_at,
            run,
            datetime.now(UTC),
        )

    @staticmethod
    def _remove(place: dict[UUID, Object], key: str) -> int:
        found = [identity for identity, stored in place.items() if stored.key == key]
        for identity in found:
            del place[identity]
        return len(found)

    def discard(self, connection: Connection, version: IndexVersion, keys: Sequence[str]) -> None:
        live = live_ids(connection, version, keys)
        place = self._place(version)
        with self._lock:
            for key in keys:
                if Key(key) not in live:
                    self._remove(place, key)

    def erase(self, connection: Connection, version: IndexVersion, keys: Sequence[str]) -> int:
        place = self._place(version)
        with self._lock:
            return sum(self._remove(place, key) for key in keys)

    # ---- reading ---------------------------------------------------------------------------------------------

    def _stored(self, version: IndexVersion) -> list[tuple[UUID, Object]]:
        place = self._place(version)
        with self._lock:
            return sorted(place.items(), key=lambda item: (item[1].key, item[1].chunk))

    def vectors(self, connection: Connection, version: IndexVersion, hashes: Sequence[bytes]) -> dict[bytes, Vectors]:
        wanted = set(hashes)
        found = [stored for _, stored in self._stored(version) if stored.content_hash in wanted]
        noted = vector_hashes(connection, version, [stored.key for stored in found])
        return {
            stored.content_hash: stored.vector
            for stored in found
            if noted.get((stored.key, stored.chunk)) == (stored.content_hash, vector_hash(stored.vector))
        }

    def sound_vectors(self, connection: Connection, version: IndexVersion, keys: Sequence[str]) -> dict[bytes, Vectors]:
        noted = vector_hashes(connection, version, keys)
        sound = {}
        for _, stored in self._stored(version):
            content, vector = noted.get((stored.key, stored.chunk), (b"", b""))
            if vector == vector_hash(stored.vector):
                sound[content] = stored.vector
        return sound

    def inventory(self, connection: Connection, version: IndexVersion, scope: Scope) -> Iterator[StoredDocument]:
        found: dict[Key, list[tuple[UUID, Object]]] = {}
        for identity, stored in self._stored(version):
            wanted = scope.first <= stored.bucket <= scope.last if scope.keys is None else stored.key in scope.keys
            if wanted:
                found.setdefault(stored.key, []).append((identity, stored))
        for key, chunks in found.items():
            yield StoredDocument(
                key,
                tuple(identity for identity, _ in chunks),
                tuple(stored.content_hash for _, stored in chunks),
                tuple(content_hash(stored.content) for _, stored in chunks),
                tuple(vector_hash(stored.vector) for _, stored in chunks),
                tuple({stored.metadata for _, stored in chunks}),
                min(stored.clock for _, stored in chunks),
                max(stored.clock for _, stored in chunks),
            )

    def counts(self, connection: Connection, version: IndexVersion) -> tuple[int, int]:
        found = self._stored(version)
        return len({stored.key for _, stored in found}), len(found)

    def sample(self, connection: Connection, version: IndexVersion, size: int, seed: str) -> list[StoredChunk]:
        place = self._place(version)
        chosen = [version.chunk_id(key, chunk) for key, chunk in ledger_sample(connection, version, size, seed)]
        found = [place[identity] for identity in chosen if identity in place]
        return [StoredChunk(s.key, s.content, json.loads(s.metadata), s.vector) for s in found]

    def chunks_of(self, connection: Connection, version: IndexVersion, key: str) -> list[ChunkOrigin]:
        return [
            ChunkOrigin(
                s.chunk,
                *s.span,
                s.content_hash.hex(),
                list(s.clock),
                s.lsn,
                s.txid,
                s.committed_at,
                s.run,
                s.indexed_at,
            )
            for _, s in self._stored(version)
            if s.key == key
        ]

    def search(self, connection: Connection, version: IndexVersion, query: Query) -> list[Hit]:
        passing = [(identity, s) for identity, s in self._stored(version) if _passes(s, query)]
        near = sorted(passing, key=lambda item: -float(np.dot(item[1].vector, query.vector)))
        scores = {identity: float(np.dot(s.vector, query.vector)) for identity, s in passing}
        if query.hybrid:
            words = set(query.text.lower().split())
            said = sorted(passing, key=lambda item: -len(words & set(item[1].content.lower().split())))
            scores = {identity: 0.0 for identity, _ in passing}
            for order in (near, [item for item in said if words & set(item[1].content.lower().split())]):
                for rank, (identity, _) in enumerate(order, 1):
                    scores[identity] += 1 / (60 + rank)
        best = sorted(passing, key=lambda item: -scores[item[0]])[: query.k]
        return [
            Hit(
                s.key,
                s.chunk,
                scores[identity],
                s.content,
                json.loads(s.metadata),
                s.lsn,
                s.committed_at,
                s.indexed_at,
            )
            for identity, s in best
        ]

    # ---- behind Sophia's back --------------------------------------------------------------------------------

    def edit(self, version: IndexVersion, identity: UUID, **fields: Any) -> None:
        """Change fields of an object."""
        place = self.objects[version.store_name]
        place[identity] = changed(place[identity], **fields)


def _passes(stored: Object, query: Query) -> bool:
    metadata = json.loads(stored.metadata)
    return all(metadata.get(name) == value for name, value in query.filters.items())

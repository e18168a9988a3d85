"""Pinecone: an index outside of Sophia's database, dense vectors only.

The catalog's `class_name` is the Pinecone index, and each version is a namespace in it: which namespace serves is
resolved in PostgreSQL at every search, so nothing is switched in Pinecone. Invariants:

* what goes is deleted by ids: those that the ledger says the store may hold, those that a look at the store itself
  found, and never by a filter on metadata, which may be edited;
* every write may be repeated, and has ended `write_seconds` after its begin;
* a document that Pinecone will never take is refused before anything of it is sent, or as soon as Pinecone says so;
  nothing of it stays;
* a comparison waits until Pinecone shows all that was written before it began: its reads follow its writes by seconds
  at times. A search does not wait.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from sophia import sql
from sophia.documents import Key, bucket_of
from sophia.embedding.base import Vectors
from sophia.errors import ConfigurationError, FencedError, TemporaryError
from sophia.indexing.versions import IndexVersion
from sophia.settings import Settings
from sophia.stores import pinecone_records as records
from sophia.stores.base import (
    ChunkOrigin,
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
from sophia.stores.pinecone_control import PineconeControl
from sophia.stores.pinecone_http import OVERRUN_SECONDS, Deadline, NoNamespaceError, PineconeHttp
from sophia.stores.pinecone_read import PineconeReader, index_of
from sophia.stores.pinecone_search import matches
from sophia.stores.pinecone_writes import Upload, remove

Q = sql.load("pinecone")
# For what a request that was cut off may still do at Pinecone.
LATE_SECONDS = 10.0


class PineconeStore:
    """The store `pinecone`; see `Store` for the contract. Connects when first asked; safe to use from several threads.

    Raises:
        ConfigurationError: from any method: no API key, no such index, or the key may not.
    """

    transactional = False

    def __init__(self, settings: Settings) -> None:
        self._write_seconds = settings.pinecone.write_seconds
        self._control = PineconeControl(settings)
        self._http = PineconeHttp(settings, self._control)
        self._reader = PineconeReader(self._http, settings.pinecone)

    @property
    def write_seconds(self) -> float:
        """Longest time of a write: its deadline, the end of the attempt under way, and what Pinecone does late."""
        return self._write_seconds + OVERRUN_SECONDS + LATE_SECONDS

    def close(self) -> None:
        """End the connections; they open again when asked."""
        self._http.close()
        self._control.close()

    def ensure(self, connection: Connection, version: IndexVersion) -> None:
        """Check the Pinecone index, or make it where the settings allow. A namespace begins with its first write."""
        taken = [name for name in version.index.metadata if name == records.CONTENT or name.startswith(records.OWN)]
        if taken:
            raise ConfigurationError(
                f"index {version.index_name!r}: Sophia keeps something else in Pinecone's metadata field {taken[0]!r}; "
                "take that column out of metadata in the catalog, or capture it under another name"
            )
        self._control.require(index_of(version), version.dimension)

    def finish(self, connection: Connection, version: IndexVersion) -> None:
        """Nothing: Pinecone builds its index while it takes records."""

    def publish(self, connection: Connection, version: IndexVersion) -> None:
        """Nothing: the version that serves is looked up in PostgreSQL, and its namespace with it."""

    def drop(self, connection: Connection, version: IndexVersion) -> None:
        """Delete the version's namespace; nothing if there is none."""
        try:
            self._http.delete(index_of(version), f"/namespaces/{version.store_name}", Deadline(self._write_seconds))
        except NoNamespaceError:
            return

    def holders(self, connection: Connection, version: IndexVersion) -> str:
        """Nobody: Pinecone knows no sessions."""
        return ""

    def erase(self, connection: Connection, version: IndexVersion, keys: Sequence[str]) -> int:
        """Delete everything of these keys, and see that it is gone.

        Raises:
            TemporaryError: something of it is still there; the erasure may be repeated.
        """
        reader = self._reader
        # Of all that is sent, also of the wait before it: the leases of the keys' shards last no longer.
        deadline = Deadline(self._write_seconds)
        if not reader.caught_up(version, deadline):
            return 0
        ids = reader.everything(connection, version, keys, deadline, listed=True)
        there = reader.fetch(version, sorted(ids), deadline)
        remove(self._http, index_of(version), version.store_name, ids, deadline)
        if reader.caught_up(version):
            left = reader.fetch(version, sorted(ids), reader.deadline())
            if left:
                raise TemporaryError(
                    f"Pinecone still shows {len(left)} of {len(ids)} records that were deleted from {version.label}; "
                    "erase again"
                )
        reader.forget_strays(version, keys)
        return len(there)

    def reclaim(self, connection: Connection, version: IndexVersion, *, rewrite: bool) -> list[str]:
        """Nothing: Pinecone's own storage is out of reach; what is deleted cannot be read any more."""
        return []

    def approximate(self, connection: Connection, version: IndexVersion) -> bool:
        """Always: Pinecone has no exact search."""
        return True

    def sample(self, connection: Connection, version: IndexVersion, size: int, seed: str) -> list[StoredChunk]:
        """Chunks that the ledger vouches for, spread evenly over the keys."""
        chosen = ledger_sample(connection, version, size, seed)
        ids = [records.record_id(bucket_of(key), version.chunk_id(key, number)) for key, number in chosen]
        found = self._reader.fetch(version, ids, self._reader.deadline())
        return [records.as_chunk(found[name]) for name in ids if name in found]

    def chunks_of(self, connection: Connection, version: IndexVersion, key: str) -> list[ChunkOrigin]:
        """Where each stored chunk of a key came from; see `Store.chunks_of`."""
        deadline = self._reader.deadline()
        ids = self._reader.everything(connection, version, [key], deadline)
        there = [record for record in self._reader.fetch(version, sorted(ids), deadline).values() if record.key == key]
        return [records.as_origin(record) for record in sorted(there, key=lambda record: record.number)]

    def write(
        self,
        connection: Connection,
        version: IndexVersion,
        writes: Sequence[DocumentWrite],
        run: str,
        *,
        replace: bool = False,
    ) -> dict[Key, str]:
        """Store a batch, between two transactions; see `Store.write`."""
        deadline = Deadline(self._write_seconds)
        upload = Upload(self._http, index_of(version), version.store_name, deadline)
        kept = self._reader.kept_vectors(version, writes, deadline)
        at = datetime.now(UTC)
        for write in writes:
            upload.add(write, kept, run, at)
        held = {
            records.record_id(write.bucket, version.chunk_id(write.key, number))
            for write in writes
            for number in range(write.held)
        }
        keys = [write.key for write in writes]
        if replace:
            held |= self._reader.everything(connection, version, keys, deadline)
        refused = upload.send()
        remove(self._http, index_of(version), version.store_name, (held | upload.begun) - upload.stored, deadline)
        if replace:
            self._reader.forget_strays(version, keys)
        return refused

    def discard(self, connection: Connection, version: IndexVersion, keys: Sequence[str]) -> None:
        """Delete what is there of keys that the ledger does not hold as live."""
        live = live_ids(connection, version, keys)
        dead = [key for key in keys if key not in live]
        deadline = Deadline(self._write_seconds)
        ids = self._reader.everything(connection, version, dead, deadline)
        remove(self._http, index_of(version), version.store_name, ids, deadline)
        self._reader.forget_strays(version, dead)

    def vectors(self, connection: Connection, version: IndexVersion, hashes: Sequence[bytes]) -> dict[bytes, Vectors]:
        """None: Pinecone finds records by id, not by the hash of a text. The embedding cache serves instead."""
        return {}

    def sound_vectors(self, connection: Connection, version: IndexVersion, keys: Sequence[str]) -> dict[bytes, Vectors]:
        """Vectors of live chunks whose hash is the ledger's; see `Store.sound_vectors`."""
        noted = vector_hashes(connection, version, keys)
        ids = {
            records.record_id(bucket_of(key), chunk): noted[key, number]
            for key, chunks in live_ids(connection, version, keys).items()
            for number, chunk in enumerate(chunks)
            if (key, number) in noted
        }
        sound: dict[bytes, Vectors] = {}
        for name, record in self._reader.fetch(version, sorted(ids), self._reader.deadline()).items():
            content_hash, wanted = ids[name]
            if vector_hash(record.vector) == wanted:
                sound[content_hash] = record.vector
        return sound

    def inventory(self, connection: Connection, version: IndexVersion, scope: Scope) -> Iterator[StoredDocument]:
        """What is really there, once Pinecone shows all that was written before; see `Store.inventory`."""
        if self._reader.caught_up(version):
            yield from self._reader.documents(connection, version, scope)
        else:
            self._require_place(connection, version)

    def counts(self, connection: Connection, version: IndexVersion) -> tuple[int, int]:
        """(documents, chunks): the chunks by Pinecone's own statistics, which follow by seconds; the documents by the
        ledger, since Pinecone counts only records."""
        body = self._http.post(index_of(version), "/describe_index_stats", {}, self._reader.deadline()).body
        there = (body.get("namespaces") or {}).get(version.store_name) or {}
        row = connection.execute(Q["documents"], {"version_id": version.id}).fetchone()
        return (int(row[0]) if row else 0, int(there.get("vectorCount") or 0))

    def search(self, connection: Connection, version: IndexVersion, query: Query) -> list[Hit]:
        """Nearest chunks by cosine; see `Store.search`.

        Raises:
            ConfigurationError: a hybrid search, which needs words; the index holds dense vectors only.
        """
        if query.hybrid:
            raise ConfigurationError(
                f"index {version.index_name!r} lives in Pinecone, which holds its vectors and no words: search it "
                "without hybrid, or put the index into pgvector or Weaviate"
            )
        found = matches(self._http, version, query, self._reader)
        if not found:
            self._require_place(connection, version)
        return [records.as_hit(record, score) for record, score in found]

    @staticmethod
    def _require_place(connection: Connection, version: IndexVersion) -> None:
        """Tell a version without records from one that was retired: Pinecone makes no difference.

        Raises:
            FencedError: it was retired.
        """
        row = connection.execute(Q["ended"], {"version_id": version.id}).fetchone()
        if row is not None and row[0]:
            raise FencedError(f"{version.label} has no namespace any more; it was retired")

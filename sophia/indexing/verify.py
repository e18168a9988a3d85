"""The proof: an index equals its source's current documents at a log position, or what differs.

Keys, hashes and clocks are compared exactly, by reading the store itself; of the vectors a sample is computed anew
from the documents and compared by cosine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import psycopg
from psycopg.rows import TupleRow

from sophia import sql
from sophia.documents import Key, bucket_range
from sophia.embedding import Embedder
from sophia.embedding.cache import uncached
from sophia.indexing.batch import Row
from sophia.indexing.compare import Difference, compare
from sophia.indexing.text import Chunk, Texts
from sophia.indexing.vectors import embed_chunks
from sophia.indexing.versions import IndexVersion
from sophia.stores import Scope, Store

Connection = psycopg.Connection[TupleRow]
Q = sql.load("indexing")
COMPARE = sql.load("compare")
SAMPLE = 32
AGREEMENT = 0.999


@dataclass(frozen=True, slots=True)
class Proof:
    """The outcome of `verify`.

    Attributes:
        lsn: the source position that the compared documents stand for.
        documents, chunks: what the store holds in all.
        sampled: vectors that were computed anew and compared.
        refused: texts of the sample that cannot be embedded any more, so that their vectors could not be compared.
        cosine_min: smallest cosine of the sample, None when there was nothing to sample.
    """

    label: str
    lsn: str | None
    documents: int
    chunks: int
    difference: Difference
    sampled: int
    refused: int
    cosine_min: float | None

    @property
    def holds(self) -> bool:
        """Whether index and source agree, and at least one vector of the sample, if there is any, could be compared."""
        if self.cosine_min is None:
            return self.difference.empty and not self.refused
        return self.difference.empty and self.cosine_min >= AGREEMENT

    def listed(self, most: int) -> dict[str, list[str]]:
        """The keys that differ by kind, at most so many of each."""
        return {kind: [str(key) for key in keys[:most]] for kind, keys in self.difference.keys().items() if keys}

    def sentence(self) -> str:
        """In one line, for people."""
        counts = self.difference.counts()
        kinds = ("missing", "extra", "stale", "doubled", "altered")
        words = ", ".join(f"{kind} {counts[kind]}" for kind in kinds)
        parked = f", parked {counts['parked']}" if counts["parked"] else ""
        pending = f" ({counts['pending']} of these are on their way)" if counts["pending"] else ""
        cosine = f", sampled cosine >= {self.cosine_min:.6f} of {self.sampled}" if self.cosine_min is not None else ""
        refused = f", {self.refused} sampled texts cannot be embedded any more" if self.refused else ""
        verb = "equals" if self.holds else "DIFFERS from"
        return (
            f"{self.label} {verb} its source at LSN {self.lsn or 'unknown'}: {words}{pending}{parked}{cosine}{refused}"
        )


def verify(
    connection: Connection,
    version: IndexVersion,
    store: Store,
    embedder: Embedder | None,
    *,
    sample: int = SAMPLE,
    seed: str = "",
    shards: range | None = None,
) -> Proof:
    """Compare all shards, or only `shards`; with an embedder, also `sample` documents' vectors against fresh ones.

    Changes that arrive meanwhile do not count as differences of what the inbox already held in full: each shard is
    compared in one snapshot, and documents on their way through the live lane show as stale until applied.
    """
    row = connection.execute(
        "SELECT source_lsn::text FROM sophia.collections WHERE id = %s", [version.collection_id]
    ).fetchone()
    whole = Difference()
    total = version.index.shards
    compared = range(total) if shards is None else shards
    for shard in compared:
        whole.add(compare(connection, version, store, Scope(*bucket_range(shard, total))))
    documents, chunks = store.counts(connection, version)
    buckets = (bucket_range(compared[0], total)[0], bucket_range(compared[-1], total)[1])
    cosines, refused = (
        _sample(connection, version, store, embedder, buckets, sample, seed) if embedder is not None else ([], 0)
    )
    part_of = f" (shards {compared[0]:x} to {compared[-1]:x})" if len(compared) < total else ""
    return Proof(
        label=version.label + part_of,
        lsn=row[0] if row else None,
        documents=documents,
        chunks=chunks,
        difference=whole,
        sampled=len(cosines),
        refused=refused,
        cosine_min=min(cosines) if cosines else None,
    )


def _sample(
    connection: Connection,
    version: IndexVersion,
    store: Store,
    embedder: Embedder,
    buckets: tuple[int, int],
    size: int,
    seed: str,
) -> tuple[list[float], int]:
    """Cosines of stored and fresh vectors of one chunk of each sampled document, and how many texts are refused."""
    params = {
        "version_id": version.id,
        "collection_id": version.collection_id,
        "first": buckets[0],
        "last": buckets[1],
        "limit": size,
        "seed": seed,
    }
    keys = [row[0] for row in connection.execute(COMPARE["sample_keys"], params)]
    rows = connection.execute(
        Q["by_keys"], {"version_id": version.id, "collection_id": version.collection_id, "keys": keys}
    ).fetchall()
    # Without a limit on the size: what was indexed passed it already.
    texts = Texts.of(version, embedder.tokenizer, 1 << 40)
    wanted: dict[Key, Chunk] = {}
    for raw in rows:
        document = Row.read(raw)
        if document.body is not None and document.ledger_clock == document.clock:
            chunks = texts.chunks(document.body)
            if chunks:
                wanted[document.key] = chunks[0]
    # A text may stand in two documents, and with vectors of its own in each.
    stored = {
        key: found[chunk.content_hash]
        for key, chunk in wanted.items()
        if chunk.content_hash in (found := store.sound_vectors(connection, version, [key]))
    }
    ready = {key: chunk.vector for key, chunk in wanted.items() if chunk.vector is not None}
    common = {wanted[key].content_hash: wanted[key].content for key in stored if key not in ready}
    # Computed, not remembered.
    fresh = embed_chunks(uncached(embedder), common) if common else None
    computed = fresh.vectors if fresh is not None else {}
    cosines = []
    for key, vector in stored.items():
        other = ready.get(key, computed.get(wanted[key].content_hash))
        if other is not None:
            cosines.append(float(np.dot(vector, other)))
    return cosines, len(fresh.refused) if fresh is not None else 0

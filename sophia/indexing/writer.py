"""Applies documents to one index version. The live lane, the bulk lane and repair all write through here.

Invariants:

* Only text whose hash is new is embedded: unchanged chunks keep their vector, equal texts elsewhere in the version
  lend theirs, and equal texts of a batch are embedded once.
* Embedding happens outside any transaction; how the batch then becomes ledger and store is told in
  `sophia.indexing.transaction` and, for stores outside of the database, in `sophia.indexing.external`.
* A document that cannot be indexed, for example because a text of it cannot be embedded, is parked: the reason goes to
  the dead letters, the ledger says `parked`, and the store holds nothing of it, so that no search returns its former
  text as current. It is tried again when the row changes or was read again.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psycopg
from psycopg.rows import TupleRow

from sophia import sql
from sophia.documents import Key
from sophia.embedding import Embedder, Vectors
from sophia.errors import DocumentError
from sophia.failpoints import failpoint
from sophia.indexing.batch import Figures, Row
from sophia.indexing.external import Batch, ExternalWrites, MovedError
from sophia.indexing.leases import Lease
from sophia.indexing.pace import Pace
from sophia.indexing.text import Chunk, Texts
from sophia.indexing.transaction import TransactionalWrites
from sophia.indexing.vectors import embed_chunks
from sophia.indexing.versions import IndexVersion
from sophia.stores import ChunkWrite, DocumentWrite, Store
from sophia.stores.base import vector_hash, vector_hashes

logger = logging.getLogger("sophia.indexing")
Connection = psycopg.Connection[TupleRow]
Q = sql.load("indexing")
# What a transaction may take when nothing more urgent waits for it.
TRANSACTION_SECONDS = 0.2


class Writer:
    """Writes documents of one version.

    Args:
        run: who writes: `live`, or a Dagster run id; kept with every row.
        lane: `live` or `bulk`, for the record of batches.
        observe: called with what each batch cost, after its commit.
    """

    def __init__(
        self,
        version: IndexVersion,
        store: Store,
        embedder: Embedder,
        max_text_bytes: int,
        *,
        run: str,
        lane: str,
        observe: Callable[[Figures], None] = lambda figures: None,
    ) -> None:
        self.version = version
        self.store = store
        self._embedder = embedder
        self._run = run
        self._lane = lane
        self._observe = observe
        index = version.index
        self._metadata = index.metadata
        # Of the transactions alone, without the embedding before them.
        self.pace = Pace()
        self._inside = TransactionalWrites(version, run=run, lane=lane)
        self.external = ExternalWrites(version, store, run=run, lane=lane)
        self.transaction_seconds = TRANSACTION_SECONDS
        self._texts = Texts.of(version, embedder.tokenizer, max_text_bytes)

    def apply(
        self,
        connection: Connection,
        rows: Sequence[Row],
        *,
        lease: Lease | None = None,
        position: int | None = None,
        repair: bool = False,
        between: Callable[[], None] = lambda: None,
    ) -> Figures:
        """Bring the store to these documents. Returns what it cost.

        Args:
            connection: in autocommit mode; one transaction is made here.
            position: the lane's new position, advanced in the same transaction.
            repair: write rows again whose clock the ledger has already.
            between: called between two forward passes of a long embedding.

        Raises:
            FencedError: the lease was taken over; nothing of this batch was written.
        """
        began = time.perf_counter()
        todo = [row for row in rows if repair or _lacks(row)]
        if not self.store.transactional:
            return self._apply_outside(connection, todo, lease, position, repair, between, began)
        while True:
            figures = Figures()
            chunked, faults = self._chunk(todo)
            writes = self._plan(connection, todo, chunked, faults, repair, figures, between)
            failpoint("writer.embedded")
            try:
                batch = Batch(todo, writes, faults, repair, repair, position, began)
                self._inside.commit(connection, self.store, batch, figures, lease)
            except MovedError:
                todo = self._read_again(connection, todo)
            else:
                self.pace.took(len(writes), figures.store_seconds, self.transaction_seconds)
                failpoint("writer.after_commit")
                if figures.documents:
                    self._observe(figures)
                return figures

    def _apply_outside(
        self,
        connection: Connection,
        todo: Sequence[Row],
        lease: Lease | None,
        position: int | None,
        repair: bool,
        between: Callable[[], None],
        began: float,
    ) -> Figures:
        """`apply` in a store outside of the database. What a writer left pending is written anew before the rest."""
        whole = Figures()
        while True:
            left = [row for row in todo if row.ledger_state == "pending" and not repair]
            rest = [row for row in todo if row.ledger_state != "pending" or repair]
            try:
                if left:
                    whole.add(self._write_outside(connection, left, lease, None, False, True, between, began))
                if rest or position is not None:
                    whole.add(self._write_outside(connection, rest, lease, position, repair, repair, between, began))
            except MovedError:
                todo = self._read_again(connection, todo)
            else:
                return whole

    def _write_outside(
        self,
        connection: Connection,
        rows: Sequence[Row],
        lease: Lease | None,
        position: int | None,
        repair: bool,
        replace: bool,
        between: Callable[[], None],
        began: float,
    ) -> Figures:
        figures = Figures()
        chunked, faults = self._chunk(rows)
        writes = self._plan(connection, rows, chunked, faults, replace, figures, between)
        failpoint("writer.embedded")
        batch = Batch(rows, writes, faults, repair, replace, position, began)
        self.external.commit(connection, batch, figures, lease)
        self.pace.took(len(rows), figures.store_seconds, self.transaction_seconds)
        if figures.documents:
            self._observe(figures)
        return figures

    def discard(self, connection: Connection, keys: Sequence[Key], lease: Lease) -> None:
        """Remove what is stored of these keys without being a live entry of the ledger, and entries without document.

        Raises:
            FencedError: the lease was taken over.
        """
        if not self.store.transactional:
            self.external.discard(connection, keys, lease)
            return
        params = {"version_id": self.version.id, "collection_id": self.version.collection_id, "keys": list(keys)}
        # Conditional on the ledger, so a key that came back meanwhile stays.
        with connection.transaction():
            lease.check(connection)()
            connection.execute(Q["orphaned"], params)
            self.store.discard(connection, self.version, keys)

    def _read_again(self, connection: Connection, rows: Sequence[Row]) -> list[Row]:
        params = {"version_id": self.version.id, "collection_id": self.version.collection_id}
        found = connection.execute(Q["by_keys"], params | {"keys": [row.key for row in rows]}).fetchall()
        again = [Row.read(row) for row in found]
        return [row for row in again if _lacks(row)]

    def _chunk(self, rows: Sequence[Row]) -> tuple[dict[Key, list[Chunk]], dict[Key, str]]:
        """Chunks of each live document, and the reasons of those that cannot be indexed."""
        chunked: dict[Key, list[Chunk]] = {}
        faults: dict[Key, str] = {}
        for row in rows:
            if row.deleted:
                chunked[row.key] = []
                continue
            try:
                if row.missing:
                    raise DocumentError(
                        f"columns {', '.join(row.missing)} were never received; "
                        "the row must be read again from its source"
                    )
                _require_json({name: (row.body or {}).get(name) for name in self._metadata})
                chunked[row.key] = self._texts.chunks(row.body or {})
            except DocumentError as error:
                faults[row.key] = str(error)
                chunked[row.key] = []
        return chunked, faults

    def _plan(
        self,
        connection: Connection,
        rows: Sequence[Row],
        chunked: dict[Key, list[Chunk]],
        faults: dict[Key, str],
        repair: bool,
        figures: Figures,
        between: Callable[[], None],
    ) -> list[DocumentWrite]:
        """Decide for every chunk: keep, reuse or embed. Documents with a text that cannot be embedded join `faults`."""
        kept: set[tuple[Key, int]] = set()
        wanted: dict[bytes, str] = {}
        for row in rows:
            for number, chunk in enumerate(chunked[row.key]):
                known = number < len(row.ledger_hashes) and row.ledger_hashes[number] == chunk.content_hash
                if chunk.vector is not None:
                    # The same text may come with another vector.
                    known = known and row.ledger_vectors[number] == vector_hash(chunk.vector)
                if known and not repair:
                    kept.add((row.key, number))
                elif chunk.vector is None:
                    wanted[chunk.content_hash] = chunk.content
        if repair:
            # A repair trusts a vector only by the ledger's hash of it.
            sound = self.store.sound_vectors(connection, self.version, [row.key for row in rows])
            vectors = {content_hash: sound[content_hash] for content_hash in wanted if content_hash in sound}
        else:
            vectors = self.store.vectors(connection, self.version, list(wanted))
        figures.reused = len(kept) + len(vectors)
        fresh = {content_hash: text for content_hash, text in wanted.items() if content_hash not in vectors}
        if fresh:
            made = embed_chunks(self._embedder, fresh, between)
            figures.embed_seconds = made.seconds
            figures.embedded = len(made.vectors)
            figures.tokens = made.tokens
            vectors |= made.vectors
            if made.refused:
                _park_refused(chunked, faults, made.refused)
        figures.deleted = sum(row.deleted for row in rows)
        figures.chunks = sum(map(len, chunked.values()))
        hashes = dict(zip(vectors, vector_hashes(list(vectors.values())), strict=True))
        return [
            self._write(row, chunked[row.key], kept, vectors, hashes, parked=row.key in faults, repair=repair)
            for row in rows
        ]

    def _write(
        self,
        row: Row,
        chunks: Sequence[Chunk],
        kept: set[tuple[Key, int]],
        vectors: Mapping[bytes, Vectors],
        hashes: Mapping[bytes, bytes],
        *,
        parked: bool,
        repair: bool,
    ) -> DocumentWrite:
        body = row.body or {}
        writes = []
        for number, chunk in enumerate(chunks):
            if (row.key, number) in kept:
                vector, own_hash = None, row.ledger_vectors[number]
            elif chunk.vector is not None:
                vector, own_hash = chunk.vector, vector_hash(chunk.vector)
            else:
                vector, own_hash = vectors[chunk.content_hash], hashes[chunk.content_hash]
            writes.append(
                ChunkWrite(
                    id=self.version.chunk_id(row.key, number),
                    number=number,
                    start=chunk.start,
                    end=chunk.end,
                    content=chunk.content,
                    content_hash=chunk.content_hash,
                    vector_hash=own_hash,
                    vector=vector,
                )
            )
        return DocumentWrite(
            key=row.key,
            bucket=row.bucket,
            clock=row.clock,
            chunks=tuple(writes),
            metadata={name: body.get(name) for name in self._metadata},
            origin=row.origin,
            deleted=row.deleted,
            parked=parked,
            live=self._lane == "live",
            # The live lane has its own place in a store.
            first=row.ledger_clock is None and not repair and self._lane != "live",
        )


def _lacks(row: Row) -> bool:
    """Whether the ledger does not have the document, or has it as begun and not as done."""
    clock = row.ledger_clock
    return clock is None or clock < row.clock or (row.ledger_state == "pending" and clock == row.clock)


def _require_json(metadata: Mapping[str, Any]) -> None:
    """Refuse what Python has read as infinite: a fraction beyond the range of a float. JSON has no word for it."""
    for name, value in metadata.items():
        if isinstance(value, float | dict | list):
            try:
                json.dumps(value, allow_nan=False)
            except ValueError as error:
                raise DocumentError(f"column {name!r} holds a number that is too large for a float") from error


def _park_refused(chunked: dict[Key, list[Chunk]], faults: dict[Key, str], refused: Mapping[bytes, str]) -> None:
    """Take the chunks from documents of which one is refused, and note why."""
    for key, chunks in chunked.items():
        for chunk in chunks:
            if chunk.content_hash in refused:
                reason = refused[chunk.content_hash]
                faults[key] = f"its text from character {chunk.start} to {chunk.end} cannot be embedded: {reason}"
                chunked[key] = []
                break

"""pgvector in Sophia's own database: vectors commit in the same transaction as the ledger and its fence.

A version is the table `indexes.<name>_v<n>`; the view `indexes.<name>` is the public name and reads the version that
serves. Cosine distance, HNSW, iterative scans for filters; hybrid search fuses vector and full-text ranks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, LiteralString

import numpy as np
from pgvector.psycopg import register_vector
from psycopg import sql as composed

from sophia import sql
from sophia.documents import Clock, Key, format_lsn
from sophia.embedding.base import Vectors
from sophia.indexing.versions import IndexVersion
from sophia.stores.base import ChunkWrite, Connection, DocumentWrite, Hit, Query, StoredDocument

Q = sql.load("pgvector")
SCHEMA = "indexes"
# pgvector's default of 40 misses texts that are far from all others: a row about oranges among 8,000 on Python was
# nobody's close neighbour in the graph and was not found below 200, which costs a millisecond more.
LEAST_EFFORT = 200
# Candidates of each side of a hybrid search: enough for the ranks that matter after fusion.
HYBRID_CANDIDATES = 100


@lru_cache(maxsize=256)
def _static(query: str, store_name: str) -> composed.Composed:
    """A query whose only variable is the version's table: composed once, since every batch needs it."""
    text: LiteralString = Q[query]
    return composed.SQL(text).format(table=composed.Identifier(SCHEMA, store_name))


def _query(query: str, version: IndexVersion, **parts: composed.Composable) -> composed.Composed:
    if not parts:
        return _static(query, version.store_name)
    text: LiteralString = Q[query]
    return composed.SQL(text).format(table=composed.Identifier(SCHEMA, version.store_name), **parts)


class PgvectorStore:
    """The store `pgvector`; see `Store` for the contract."""

    def ensure(self, connection: Connection, version: IndexVersion) -> None:
        """Make the version's table and, if it serves, the public view."""
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('sophia.store', 0))")
            connection.execute(_query("create_table", version, dimension=composed.Literal(version.dimension)))
            for kind in ("hash", "bucket", "text"):
                name = composed.Identifier(f"{version.store_name}_{kind}")
                connection.execute(_query(f"create_{kind}_index", version, name=name))
            view = connection.execute("SELECT to_regclass(%s)", [f"{SCHEMA}.{version.index_name}"]).fetchone()
            if version.state == "serving" and (view is None or view[0] is None):
                self.publish(connection, version)

    def finish(self, connection: Connection, version: IndexVersion) -> None:
        """Build the HNSW index, without blocking writers. The connection must be in autocommit mode."""
        name = f"{version.store_name}_hnsw"
        invalid = connection.execute(Q["drop_invalid_index"], {"name": f"{SCHEMA}.{name}"}).fetchone()
        if invalid is not None:
            connection.execute(composed.SQL("DROP INDEX CONCURRENTLY {}").format(composed.Identifier(SCHEMA, name)))
        connection.execute(_query("create_vector_index", version, name=composed.Identifier(name)))

    def publish(self, connection: Connection, version: IndexVersion) -> None:
        """Replace the public view, in the caller's transaction."""
        view = composed.Identifier(SCHEMA, version.index_name)
        connection.execute(composed.SQL("DROP VIEW IF EXISTS {}").format(view))
        connection.execute(_query("publish", version, view=view, model=composed.Literal(version.model.name)))

    def drop(self, connection: Connection, version: IndexVersion) -> None:
        """Drop the version's table. Its view must read another version by now."""
        connection.execute(
            composed.SQL("DROP TABLE IF EXISTS {}").format(composed.Identifier(SCHEMA, version.store_name))
        )

    def write(
        self,
        connection: Connection,
        version: IndexVersion,
        writes: Sequence[DocumentWrite],
        run: str,
        *,
        replace: bool = False,
    ) -> None:
        """Store a batch; see `Store.write`."""
        _know_vectors(connection)
        connection.execute(
            _query("delete_surplus", version),
            {
                "version_id": version.id,
                "keys": [w.key for w in writes],
                "clocks": [w.clock.literal for w in writes],
                "counts": [0 if replace else len(w.chunks) for w in writes],
            },
            prepare=True,
        )
        pairs = [(write, chunk) for write in writes for chunk in write.chunks]
        fresh = [(w, c) for w, c in pairs if c.vector is not None]
        kept = [(w, c) for w, c in pairs if c.vector is None]
        if fresh:
            connection.execute(
                _query("upsert", version),
                _shared(version, fresh, run)
                | {
                    "buckets": [w.bucket for w, _ in fresh],
                    "chunks": [c.number for _, c in fresh],
                    "contents": [c.content for _, c in fresh],
                    "hashes": [c.content_hash for _, c in fresh],
                    "vectors": [np.asarray(c.vector, dtype=np.float32) for _, c in fresh],
                },
                prepare=True,
            )
        if kept:
            connection.execute(_query("refresh", version), _shared(version, kept, run), prepare=True)

    def discard(self, connection: Connection, version: IndexVersion, keys: Sequence[str]) -> None:
        """Remove what the ledger does not hold as live; see `Store.discard`."""
        connection.execute(_query("discard", version), {"version_id": version.id, "keys": list(keys)})

    def vectors(self, connection: Connection, version: IndexVersion, hashes: Sequence[bytes]) -> dict[bytes, Vectors]:
        """Vectors by content hash; see `Store.vectors`."""
        if not hashes:
            return {}
        _know_vectors(connection)
        rows = connection.execute(_query("vectors", version), {"hashes": list(hashes)}, prepare=True).fetchall()
        return {bytes(key): _array(vector) for key, vector in rows}

    def inventory(
        self, connection: Connection, version: IndexVersion, first_bucket: int, last_bucket: int
    ) -> Iterator[StoredDocument]:
        """What is really there, hashes computed by the server; see `Store.inventory`."""
        cursor = connection.execute(_query("inventory", version), {"first": first_bucket, "last": last_bucket})
        for key, declared, read, vectors, oldest, newest in cursor:
            yield StoredDocument(
                Key(key),
                tuple(bytes(h) for h in declared),
                tuple(bytes(h) for h in read),
                tuple(bytes(h) for h in vectors),
                Clock(*oldest),
                Clock(*newest),
            )

    def counts(self, connection: Connection, version: IndexVersion) -> tuple[int, int]:
        """(documents, chunks) in the table."""
        row = connection.execute(_query("counts", version)).fetchone()
        return (int(row[0]), int(row[1])) if row else (0, 0)

    def search(self, connection: Connection, version: IndexVersion, query: Query) -> list[Hit]:
        """Nearest chunks by cosine, or fused with full text; see `Store.search`."""
        _know_vectors(connection)
        filters = composed.SQL(" AND ").join(
            composed.SQL("metadata -> {}::text = {}::jsonb").format(
                composed.Placeholder(f"field{number}"), composed.Placeholder(f"value{number}")
            )
            for number in range(len(query.filters))
        )
        params: dict[str, Any] = {"vector": np.asarray(query.vector, dtype=np.float32), "k": query.k}
        for number, (name, value) in enumerate(query.filters.items()):
            params |= {f"field{number}": name, f"value{number}": json.dumps(value)}
        if query.hybrid:
            params |= {"text": query.text, "candidates": max(HYBRID_CANDIDATES, query.k)}
        with connection.transaction():
            # Iterative scans find enough rows behind a filter.
            effort = max(LEAST_EFFORT, min(1000, query.k * 4))
            connection.execute("SELECT set_config('hnsw.ef_search', %s, true)", [str(effort)], prepare=True)
            connection.execute("SELECT set_config('hnsw.iterative_scan', 'strict_order', true)", prepare=True)
            # With this effort the planner would rather read some thousand rows whole: 50 ms instead of 2.
            connection.execute("SELECT set_config('enable_seqscan', 'off', true)", prepare=True)
            rows = connection.execute(
                _query(
                    "hybrid" if query.hybrid else "search",
                    version,
                    filters=filters if query.filters else composed.SQL("true"),
                ),
                params,
            ).fetchall()
        return [Hit(*row) for row in rows]


def _know_vectors(connection: Connection) -> None:
    """Teach a connection the vector type, once: finding it out costs a query."""
    if connection.adapters.types.get("vector") is None:
        register_vector(connection)


def _shared(version: IndexVersion, pairs: Sequence[tuple[DocumentWrite, ChunkWrite]], run: str) -> dict[str, Any]:
    return {
        "version_id": version.id,
        "run": run,
        "ids": [c.id for _, c in pairs],
        "keys": [w.key for w, _ in pairs],
        "starts": [c.start for _, c in pairs],
        "stops": [c.end for _, c in pairs],
        "metadata": [json.dumps(dict(w.metadata), ensure_ascii=False) for w, _ in pairs],
        "clocks": [w.clock.literal for w, _ in pairs],
        "lsns": [format_lsn(w.origin.lsn) if w.origin.lsn is not None else None for w, _ in pairs],
        "txids": [w.origin.txid for w, _ in pairs],
        "times": [w.origin.committed_at for w, _ in pairs],
    }


def _array(vector: Any) -> Vectors:
    """pgvector yields numpy arrays, or its own Vector type in newer releases."""
    return np.asarray(vector.to_numpy() if hasattr(vector, "to_numpy") else vector, dtype=np.float32)

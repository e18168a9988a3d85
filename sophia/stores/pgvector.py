"""pgvector in Sophia's own database: vectors commit in the same transaction as the ledger and its fence.

A version is the table `indexes.<name>_v<n>`; the view `indexes.<name>` is the public name and reads the version that
serves. Cosine distance, HNSW, iterative scans for filters; hybrid search fuses vector and full-text ranks. What the
live lane wrote last is in a table of its own, which the version's table comprises (`sophia.stores.pgvector_fresh`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from random import Random
from typing import Any, LiteralString
from uuid import UUID

import numpy as np
import psycopg
from pgvector.psycopg import register_vector
from psycopg import sql as composed

from sophia import sql
from sophia.catalog.models import GraphKind
from sophia.database.vacuum import vacuum
from sophia.documents import Clock, Key, format_lsn
from sophia.embedding.base import Vectors
from sophia.errors import ConfigurationError
from sophia.indexing.versions import IndexVersion
from sophia.stores import pgvector_fresh, pgvector_graph, pgvector_load, views
from sophia.stores.base import (
    COPIED_DOCUMENTS,
    PREPARED_ROWS,
    ChunkOrigin,
    ChunkWrite,
    Connection,
    DocumentWrite,
    Hit,
    Query,
    Scope,
    StoredChunk,
    StoredDocument,
)
from sophia.stores.binary import VectorArray, register_vector_array
from sophia.stores.pgvector_graph import SCHEMA, Effort, near

Q = sql.load("pgvector")
# Rows that a filter passes up to which reading all of them beats the graph.
FEW_ROWS = 20_000
# Candidates of each side of a hybrid search: enough for the ranks that matter after fusion.
HYBRID_CANDIDATES = 100


@lru_cache(maxsize=256)
def _static(query: str, store_name: str) -> composed.Composed:
    """A query whose only variable is the version's table: composed once, since every batch needs it."""
    text: LiteralString = Q[query]
    return composed.SQL(text).format(**pgvector_fresh.tables(store_name))


def _query(query: str, version: IndexVersion, **parts: composed.Composable) -> composed.Composed:
    if not parts:
        return _static(query, version.store_name)
    text: LiteralString = Q[query]
    return composed.SQL(text).format(**pgvector_fresh.tables(version.store_name), **parts)


@lru_cache(maxsize=256)
def _upsert(store_name: str, fresh: bool) -> composed.Composed:
    """The statement that writes to the fresh rows, or to the version's own table."""
    text: LiteralString = Q["upsert"]
    own, recent = pgvector_fresh.tables(store_name).values()
    target, other = (recent, own) if fresh else (own, recent)
    return composed.SQL(text).format(target=target, other=other)


class PgvectorStore:
    """The store `pgvector`; see `Store` for the contract."""

    transactional = True
    write_seconds = 0.0

    def ensure(self, connection: Connection, version: IndexVersion) -> None:
        """Make the version's table and, if it serves, the public view."""
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(hashtextextended('sophia.store', 0))")
            found = connection.execute("SELECT to_regclass(%s)", [f"{SCHEMA}.{version.store_name}"]).fetchone()
            if found is None or found[0] is None:
                # Only then: even IF NOT EXISTS locks the table, against which an index that is being built deadlocks.
                connection.execute(_query("create_table", version, dimension=composed.Literal(version.dimension)))
                for kind in ("hash", "bucket"):
                    name = composed.Identifier(f"{version.store_name}_{kind}")
                    connection.execute(_query(f"create_{kind}_index", version, name=name))
            pgvector_fresh.ensure(connection, version)
            if version.state == "serving" and not views.is_current(connection, version):
                self.publish(connection, version)

    def finish(self, connection: Connection, version: IndexVersion) -> None:
        """Build the indexes of filters, full text and vectors; see `sophia.stores.pgvector_graph`."""
        pgvector_graph.build(connection, version)

    def publish(self, connection: Connection, version: IndexVersion) -> None:
        """Replace the public view, in the caller's transaction; see `sophia.stores.views`."""
        views.publish(connection, version)

    def drop(self, connection: Connection, version: IndexVersion) -> None:
        """Drop the version's table, in the caller's transaction, and the view if it reads no other version by now."""
        table = composed.Identifier(SCHEMA, version.store_name)
        fresh = pgvector_fresh.table(version.store_name)
        try:
            with connection.transaction():
                views.withdraw(connection, version)
                connection.execute(composed.SQL("DROP TABLE IF EXISTS {}, {}").format(fresh, table))
        except psycopg.errors.DependentObjectsStillExist as error:
            raise ConfigurationError(
                f"the table {SCHEMA}.{version.store_name} cannot be dropped: {error.diag.message_detail}; "
                "let these read the view of the index instead"
            ) from error

    def holders(self, connection: Connection, version: IndexVersion) -> str:
        """The sessions that read the public view or the version's table."""
        fresh = pgvector_fresh.name(version.store_name)
        return views.holders(connection, version.index_name, version.store_name, fresh)

    def write(
        self,
        connection: Connection,
        version: IndexVersion,
        writes: Sequence[DocumentWrite],
        run: str,
        *,
        replace: bool = False,
    ) -> dict[Key, str]:
        """Store a batch; see `Store.write`. Refuses none: what it cannot take fails the transaction."""
        if len(writes) >= COPIED_DOCUMENTS and all(write.first for write in writes):
            pgvector_load.enter(connection, version, writes, run)
            return {}
        _know_vectors(connection)
        prepare = len(writes) <= PREPARED_ROWS
        connection.execute(
            _query("delete_surplus", version),
            {
                "version_id": version.id,
                "keys": [w.key for w in writes],
                "clocks": [w.clock.literal for w in writes],
                "counts": [0 if replace else len(w.chunks) for w in writes],
            },
            prepare=prepare,
        )
        pairs = [(write, chunk) for write in writes for chunk in write.chunks]
        new = [(w, c) for w, c in pairs if c.vector is not None]
        kept = [(w, c) for w, c in pairs if c.vector is None]
        if new:
            connection.execute(
                _upsert(version.store_name, all(write.live for write, _ in new)),
                _shared(version, new, run)
                | {
                    "buckets": [w.bucket for w, _ in new],
                    "chunks": [c.number for _, c in new],
                    "contents": [c.content for _, c in new],
                    "hashes": [c.content_hash for _, c in new],
                    "vectors": VectorArray([c.vector for _, c in new if c.vector is not None]),
                },
                prepare=prepare,
            )
        if kept:
            live = {"live": all(write.live for write, _ in kept)}
            connection.execute(_query("refresh", version), _shared(version, kept, run) | live, prepare=prepare)
        return {}

    def discard(self, connection: Connection, version: IndexVersion, keys: Sequence[str]) -> None:
        """Remove what the ledger does not hold as live; see `Store.discard`."""
        connection.execute(_query("discard", version), {"version_id": version.id, "keys": list(keys)})

    def vectors(self, connection: Connection, version: IndexVersion, hashes: Sequence[bytes]) -> dict[bytes, Vectors]:
        """Vectors by content hash; see `Store.vectors`."""
        if not hashes:
            return {}
        _know_vectors(connection)
        with pgvector_fresh.unless_retired(version):
            rows = connection.execute(
                _query("vectors", version),
                {"version_id": version.id, "hashes": list(hashes)},
                prepare=len(hashes) <= PREPARED_ROWS,
                binary=True,
            ).fetchall()
        return {bytes(key): _array(vector) for key, vector in rows}

    def sound_vectors(self, connection: Connection, version: IndexVersion, keys: Sequence[str]) -> dict[bytes, Vectors]:
        """Vectors whose hash is the ledger's; see `Store.sound_vectors`."""
        _know_vectors(connection)
        with pgvector_fresh.unless_retired(version):
            rows = connection.execute(_query("sound_vectors", version), {"version_id": version.id, "keys": list(keys)})
        return {bytes(key): _array(vector) for key, vector in rows}

    def inventory(self, connection: Connection, version: IndexVersion, scope: Scope) -> Iterator[StoredDocument]:
        """What is really there, hashes computed by the server; see `Store.inventory`."""
        query = _query("inventory" if scope.keys is None else "inventory_of_keys", version)
        with pgvector_fresh.unless_retired(version):
            rows = connection.execute(query, scope.parameters, prepare=False)
        for key, ids, declared, read, vectors, metadata, oldest, newest in rows:
            yield StoredDocument(
                Key(key),
                tuple(ids),
                tuple(bytes(h) for h in declared),
                tuple(bytes(h) for h in read),
                tuple(bytes(h) for h in vectors),
                tuple(metadata),
                Clock(*oldest),
                Clock(*newest),
            )

    def counts(self, connection: Connection, version: IndexVersion) -> tuple[int, int]:
        """(documents, chunks) in the table."""
        row = connection.execute(_query("counts", version)).fetchone()
        return (int(row[0]), int(row[1])) if row else (0, 0)

    def approximate(self, connection: Connection, version: IndexVersion) -> bool:
        """Whether the HNSW index is there and valid."""
        return pgvector_graph.is_whole(connection, version, version.index.graph)

    def sample(self, connection: Connection, version: IndexVersion, size: int, seed: str) -> list[StoredChunk]:
        """Chunks next to random ids: ids are hashes, so that is an even choice, and costs a look-up each."""
        _know_vectors(connection)
        random = Random(f"{seed}/{version.fingerprint}")  # noqa: S311
        ids = [UUID(int=random.getrandbits(128)) for _ in range(size)]
        rows = connection.execute(_query("sample", version), {"ids": ids}).fetchall()
        return [StoredChunk(Key(key), content, metadata, _array(vector)) for _, key, content, metadata, vector in rows]

    def chunks_of(self, connection: Connection, version: IndexVersion, key: str) -> list[ChunkOrigin]:
        """Where each stored chunk of a key came from; see `Store.chunks_of`."""
        return [ChunkOrigin(*row) for row in connection.execute(_query("chunks_of", version), {"key": key})]

    def erase(self, connection: Connection, version: IndexVersion, keys: Sequence[str]) -> int:
        """Delete all rows of these keys; nothing where the version has no table any more."""
        if not self._exists(connection, version.store_name):
            return 0
        return connection.execute(_query("erase", version), {"keys": list(keys)}).rowcount

    def reclaim(self, connection: Connection, version: IndexVersion, *, rewrite: bool) -> list[str]:
        """Vacuum the version's table, and build its full-text index anew: that never forgets a word by itself."""
        if not self._exists(connection, version.store_name):
            return []
        name = f"{SCHEMA}.{version.store_name}"
        for table in (version.store_name, pgvector_fresh.name(version.store_name)):
            if self._exists(connection, table):
                vacuum(connection, SCHEMA, table, rewrite=rewrite)
        words = f"{version.store_name}_text"
        if not rewrite and self._exists(connection, words):
            connection.execute(composed.SQL("REINDEX INDEX CONCURRENTLY {}").format(composed.Identifier(SCHEMA, words)))
        return [name]

    def _exists(self, connection: Connection, relation: str) -> bool:
        row = connection.execute("SELECT to_regclass(%s)", [f'{SCHEMA}."{relation}"']).fetchone()
        return row is not None and row[0] is not None

    def search(self, connection: Connection, version: IndexVersion, query: Query) -> list[Hit]:
        """Nearest chunks by cosine, or fused with full text; see `Store.search`."""
        with pgvector_fresh.unless_retired(version):
            return self._search(connection, version, query)

    def _search(self, connection: Connection, version: IndexVersion, query: Query) -> list[Hit]:
        _know_vectors(connection)
        filters, params = _filters(query, "filter")
        graph = self._graph(connection, version)
        effort = Effort.of(graph, query.k)
        params |= {"vector": np.asarray(query.vector, dtype=np.float32), "k": query.k, "candidates": effort.candidates}
        if query.hybrid:
            params |= {"text": query.text, "candidates": max(HYBRID_CANDIDATES, effort.candidates)}
        few = bool(query.filters) and not query.exact and self._matches_few(connection, version, query)
        if query.exact:
            avoided = ["enable_indexscan", "enable_bitmapscan"]
        elif few:
            # Behind a filter that passes little, the graph is walked for long and in vain: at 1 % of a million rows it
            # finds six of ten neighbours in 110 ms. All that pass are read and sorted instead: ten of ten in 14 ms.
            avoided = ["enable_indexscan"]
        else:
            # With this effort the planner would rather read some thousand rows whole: 50 ms instead of 2.
            avoided = ["enable_seqscan"]
        kind = "hybrid" if query.hybrid else "search_all" if query.exact or few else "search"
        # A plan with a part that was to be avoided seems so dear to older servers that they would compile it first.
        avoided.append("jit")
        with connection.pipeline(), connection.transaction():
            connection.execute(
                Q["plan"], {"effort": str(effort.visited), "off": avoided, "iterative": "strict_order"}, prepare=True
            )
            # Not prepared: a plan for any value of a filter knows neither its index nor how much it passes.
            parts = {"filters": filters} | ({} if kind == "search_all" else {"near": near(version, graph)})
            cursor = connection.execute(_query(kind, version, **parts), params, prepare=False)
        rows = cursor.fetchall()
        return [Hit(*row) for row in rows]

    @staticmethod
    def _graph(connection: Connection, version: IndexVersion) -> GraphKind:
        """The graph that a search may ask. Before one of less than the vectors is built, all vectors are read."""
        kind = version.index.graph
        return kind if kind == "full" or pgvector_graph.is_whole(connection, version, kind) else "full"

    def close(self) -> None:
        """Nothing: the connections are the callers'."""

    @staticmethod
    def _matches_few(connection: Connection, version: IndexVersion, query: Query) -> bool:
        filters, params = _filters(query, "estimate_filter")
        row = connection.execute(_query("matches", version, filters=filters), params, prepare=False).fetchone()
        return row is not None and row[0][0]["Plan"]["Plan Rows"] <= FEW_ROWS


def _filters(query: Query, kind: str) -> tuple[composed.Composable, dict[str, Any]]:
    """The condition of a query's filters and its parameters. The field's hash is what is indexed: any value fits."""
    if not query.filters:
        return composed.SQL("true"), {}
    text: LiteralString = Q[kind]
    conditions = [
        composed.SQL(text).format(field=composed.Literal(name), value=composed.Placeholder(f"value{number}"))
        for number, name in enumerate(query.filters)
    ]
    values = {f"value{number}": json.dumps(value) for number, value in enumerate(query.filters.values())}
    return composed.SQL(" AND ").join(conditions), values


def _know_vectors(connection: Connection) -> None:
    """Teach a connection the vector type, once: finding it out costs a query."""
    if connection.adapters.types.get("vector") is None:
        register_vector(connection)
        register_vector_array(connection)


def _shared(version: IndexVersion, pairs: Sequence[tuple[DocumentWrite, ChunkWrite]], run: str) -> dict[str, Any]:
    return {
        "version_id": version.id,
        "run": run,
        "ids": [c.id for _, c in pairs],
        "keys": [w.key for w, _ in pairs],
        "starts": [c.start for _, c in pairs],
        "stops": [c.end for _, c in pairs],
        "metadata": [w.metadata_json for w, _ in pairs],
        "clocks": [w.clock.literal for w, _ in pairs],
        "lsns": [format_lsn(w.origin.lsn) if w.origin.lsn is not None else None for w, _ in pairs],
        "txids": [w.origin.txid for w, _ in pairs],
        "times": [w.origin.committed_at for w, _ in pairs],
    }


def _array(vector: Any) -> Vectors:
    """pgvector yields numpy arrays, or its own Vector type in newer releases."""
    return np.asarray(vector.to_numpy() if hasattr(vector, "to_numpy") else vector, dtype=np.float32)

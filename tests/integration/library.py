"""A collection of texts and its index, for the tests of indexing: documents go straight into the inbox."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psycopg
from psycopg.rows import TupleRow

from sophia import inbox
from sophia.catalog import Catalog
from sophia.catalog.models import Index
from sophia.database import Database
from sophia.documents import Change, Clock, Key, Origin, canonical_key
from sophia.indexing.compare import Difference, compare
from sophia.indexing.indexer import Indexer
from sophia.indexing.repair import repair_shard
from sophia.indexing.text import Texts
from sophia.indexing.versions import IndexVersion, active_versions, ensure_version
from sophia.indexing.writer import Figures, Row, Writer
from sophia.settings import Settings
from sophia.stores import IN_DATABASE, Scope, Store, Stores
from tests.embedders import HashEmbedder, hash_vector
from tests.waiting import WAIT_SECONDS, until

Connection = psycopg.Connection[TupleRow]
COLLECTION = "documents"


@dataclass
class Library:
    """The collection `documents` and one small index over it."""

    connection: Connection
    database: Database
    catalog: Catalog
    settings: Settings
    embedder: HashEmbedder
    stores: Stores = IN_DATABASE
    _positions: itertools.count[int] = field(default_factory=lambda: itertools.count(10))

    def __post_init__(self) -> None:
        inbox.ensure_collection(self.connection, COLLECTION, ["id"])

    # ---- documents ---------------------------------------------------------------------------------------

    def put(
        self, number: int, title: str | None = "t", body: str | None = "b", *, bulk: bool = False, **more: Any
    ) -> Clock:
        """Insert or update a document. Returns its clock."""
        row = {"id": number, "title": title, "body": body, "module": "m", "kind": "k"} | more
        return self.change(number, {name: value for name, value in row.items() if value is not ...}, bulk=bulk)

    def delete(self, number: int) -> Clock:
        return self.change(number, None)

    def change(
        self, number: int, body: dict[str, Any] | None, *, bulk: bool = False, missing: tuple[str, ...] = ()
    ) -> Clock:
        position = next(self._positions)
        clock = Clock(1, position, 1)
        key = canonical_key([number])
        change = Change(
            key, "d" if body is None else "u", clock, body, not missing, missing, origin=Origin(position), bulk=bulk
        )
        with self.connection.transaction():
            inbox.accept(self.connection, COLLECTION, [change])
        return clock

    # ---- index -------------------------------------------------------------------------------------------

    @property
    def index(self) -> Index:
        return self.catalog.indexes[0]

    def with_index(self, **changes: Any) -> Catalog:
        """The catalog with its index changed: another fingerprint."""
        return self.catalog.model_copy(update={"indexes": (self.index.model_copy(update=changes),)})

    def version(self, catalog: Catalog | None = None) -> IndexVersion:
        """The version of the index, its store ready."""
        catalog = catalog or self.catalog
        version = ensure_version(self.connection, catalog, catalog.indexes[0], "local")
        self.store(version).ensure(self.connection, version)
        return version

    def store(self, version: IndexVersion) -> Store:
        return self.stores.of(version)

    def writer(
        self, version: IndexVersion | None = None, embedder: HashEmbedder | None = None, lane: str = "bulk"
    ) -> Writer:
        version = version or self.version()
        return Writer(
            version,
            self.store(version),
            embedder or self.embedder,
            self.settings.indexer.max_text_bytes,
            run="test",
            lane=lane,
        )

    def rows(self, *numbers: int, version: IndexVersion | None = None) -> list[Row]:
        """Documents as a writer reads them."""
        from sophia.indexing.writer import Q

        version = version or self.version()
        keys = [canonical_key([number]) for number in numbers]
        params = {"version_id": version.id, "collection_id": version.collection_id, "keys": keys}
        return [Row.read(row) for row in self.connection.execute(Q["by_keys"], params)]

    def apply(self, *numbers: int, version: IndexVersion | None = None) -> Figures:
        """Write these documents as they are now."""
        version = version or self.version()
        return self.writer(version, lane="live").apply(self.connection, self.rows(*numbers, version=version))

    def repair(self, *, deep: bool = False, version: IndexVersion | None = None) -> Figures:
        """Repair every shard."""
        version = version or self.version()
        figures = Figures()
        for shard in range(version.index.shards):
            figures.add(repair_shard(self.connection, self.writer(version), shard, batch=10, deep=deep))
        return figures

    def compare(self, version: IndexVersion | None = None) -> Difference:
        return compare(self.connection, version := version or self.version(), self.store(version), Scope())

    def indexer(self, catalog: Catalog | None = None, **settings: Any) -> Indexer:
        quick = {"poll_seconds": 0.1, "lease_seconds": 1.0} | settings
        changed = self.settings.model_copy(update={"indexer": self.settings.indexer.model_copy(update=quick)})
        return Indexer(catalog or self.catalog, self.database, changed, stores=self.stores)

    # ---- what is there -----------------------------------------------------------------------------------

    def stored(self, version: IndexVersion | None = None) -> list[tuple[Any, ...]]:
        """(key, chunk, content, clock) of the version's table."""
        name = (version or active_versions(self.connection)[0]).store_name
        return self.connection.execute(
            f"SELECT key, chunk, content, clock FROM indexes.{name} ORDER BY key, chunk"
        ).fetchall()

    def contents(self, version: IndexVersion | None = None) -> dict[str, list[str]]:
        """Chunk texts by key."""
        found: dict[str, list[str]] = {}
        for key, _chunk, content, _clock in self.stored(version):
            found.setdefault(key, []).append(content)
        return found

    def parked(self) -> dict[str, str]:
        """Reason by key of what could not be indexed."""
        return dict(
            self.connection.execute("SELECT key, reason FROM sophia.dead_letters WHERE stage = 'index'").fetchall()
        )

    def pending(self, version: IndexVersion) -> list[str]:
        """Keys that a writer of a store outside of the database has begun and not ended."""
        rows = self.connection.execute(
            "SELECT key FROM sophia.ledger WHERE version_id = %s AND state = 'pending' ORDER BY key", [version.id]
        )
        return [row[0] for row in rows]

    def version_position(self, version: IndexVersion) -> int:
        """How far the live lane is, as the database has it."""
        row = self.connection.execute("SELECT position FROM sophia.index_versions WHERE id = %s", [version.id])
        return int((row.fetchone() or (0,))[0])

    def faults(self, version: IndexVersion | None = None) -> list[str]:
        """How the store differs from `embed(current documents)`, computed anew and without Sophia's own comparison."""
        version = version or active_versions(self.connection)[0]
        index = version.index
        texts = Texts(
            index.template, index.chunk_tokens, index.chunk_overlap, None, self.settings.indexer.max_text_bytes
        )
        parked = self.parked()
        wanted: dict[tuple[str, int], tuple[Any, ...]] = {}
        documents = self.connection.execute(
            "SELECT key, body, clock FROM sophia.documents WHERE collection_id = %s AND NOT deleted",
            [version.collection_id],
        ).fetchall()
        for key, body, clock in documents:
            if key in parked:
                continue
            metadata = {name: body.get(name) for name in index.metadata}
            for number, chunk in enumerate(texts.chunks(body)):
                identity = version.chunk_id(key, number)
                wanted[key, number] = (identity, chunk.content, chunk.content_hash, metadata, list(clock))
        faults = []
        rows = self.connection.execute(
            "SELECT key, chunk, id, content, content_hash, metadata, clock, embedding::real[] "
            f"FROM indexes.{version.store_name}"
        ).fetchall()
        for key, number, identity, content, content_hash, metadata, clock, embedding in rows:
            want = wanted.pop((key, number), None)
            if want is None:
                faults.append(f"{key}/{number} is extra")
            elif (identity, content, bytes(content_hash), metadata, list(clock)) != want:
                faults.append(f"{key}/{number} differs: {(content, metadata, clock)} is not {want}")
            elif float(np.dot(np.array(embedding, dtype=np.float32), hash_vector(content, version.dimension))) < 0.9998:
                faults.append(f"{key}/{number} has another text's vector")
        return faults + [f"{key}/{number} is missing" for key, number in wanted]

    def level(self, version: IndexVersion | None = None, seconds: float = WAIT_SECONDS) -> None:
        """Wait until the store is `embed(current documents)`."""
        last: list[str] = ["not looked at"]

        def equal() -> bool:
            nonlocal last
            last = self.faults(version)
            return not last

        try:
            until(equal, "the index", seconds)
        except AssertionError as error:
            raise AssertionError(f"the index differs: {last}") from error


Maker = Callable[..., Library]


def key(number: int) -> Key:
    return canonical_key([number])

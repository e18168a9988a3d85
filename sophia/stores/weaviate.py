"""Weaviate (1.32 or newer): each version a class of its own, the public name an alias.

The store is written between two transactions, by whoever holds the leases; see `sophia.stores.base`. What makes that
sound: ids are the version's, an object is replaced whole under its id, a delete names what the ledger says may be
there, and all of it ends within `write_seconds`.

With multi-tenancy a tenant is a shard of its own and an object cannot be found without it. So the database notes,
before the store is written, in which tenants a key may be: a document that moves is removed from its former tenant.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

from sophia.documents import BUCKETS, Key
from sophia.embedding.base import Vectors
from sophia.errors import FencedError
from sophia.indexing.versions import IndexVersion
from sophia.settings import Settings
from sophia.stores import ledger, weaviate_classes, weaviate_read, weaviate_tenants, weaviate_write
from sophia.stores.base import (
    ChunkOrigin,
    Connection,
    DocumentWrite,
    Hit,
    Query,
    Scope,
    StoredChunk,
    StoredDocument,
)
from sophia.stores.weaviate_batch import Batch
from sophia.stores.weaviate_client import Connection as Client
from sophia.stores.weaviate_objects import Found, Layout, document_of, metadata_dict, slot_range
from sophia.stores.weaviate_tenants import within

if TYPE_CHECKING:
    from weaviate import WeaviateAsyncClient
    from weaviate.collections import CollectionAsync

T = TypeVar("T")
# Of `write_seconds`, what is left for ending a call that was cut off.
MARGIN_SECONDS = 1.0
# How long a class that was seen counts as there.
SEEN_SECONDS = 5.0


class WeaviateStore:
    """The store `weaviate`; see `Store` for the contract. One client a process, connected when first needed.

    Raises:
        ConfigurationError: SOPHIA_WEAVIATE_URL is not set.
    """

    transactional = False

    def __init__(self, settings: Settings) -> None:
        self._client = Client(settings)
        self._settings = settings.weaviate
        self._layouts: dict[tuple[int, str, int], Layout] = {}
        self._seen: dict[str, float] = {}

    @property
    def write_seconds(self) -> float:
        """`SOPHIA_WEAVIATE__WRITE_SECONDS`."""
        return self._settings.write_seconds

    def close(self) -> None:
        """End the connection; see `Store.close`."""
        self._client.close()

    # ---- classes -----------------------------------------------------------------------------------------

    def ensure(self, connection: Connection, version: IndexVersion) -> None:
        """Make the version's class, or check it; see `sophia.stores.weaviate_classes.ensure`."""
        self._change(lambda client: weaviate_classes.ensure(client, version))

    def finish(self, connection: Connection, version: IndexVersion) -> None:
        """Nothing: Weaviate keeps its graph up while it is written."""

    def publish(self, connection: Connection, version: IndexVersion) -> None:
        """Let the alias lead to this version, and check that it does. May be repeated."""
        self._change(lambda client: weaviate_classes.publish(client, version))

    def drop(self, connection: Connection, version: IndexVersion) -> None:
        """Delete the version's class. Never one that the alias leads to."""
        self._seen.pop(self._layout(version).class_name, None)
        self._change(lambda client: weaviate_classes.drop(client, version))
        weaviate_tenants.forget(connection, version)

    def holders(self, connection: Connection, version: IndexVersion) -> str:
        """Nobody: neither an alias nor a class waits for its readers."""
        return ""

    def approximate(self, connection: Connection, version: IndexVersion) -> bool:
        """Always: the graph is there from the first object on."""
        return True

    # ---- writing -----------------------------------------------------------------------------------------

    def write(
        self,
        connection: Connection,
        version: IndexVersion,
        writes: Sequence[DocumentWrite],
        run: str,
        *,
        replace: bool = False,
    ) -> dict[Key, str]:
        """Store a batch within `write_seconds`; see `Store.write`."""
        deadline = time.monotonic() + self.write_seconds - MARGIN_SECONDS
        layout = self._layout(version)
        tenants = weaviate_tenants.note(connection, version, layout, writes)

        async def work(client: WeaviateAsyncClient) -> dict[Key, str]:
            await self._require_class(client, layout)
            batch = Batch(client, version, layout, self._settings, self._client.url, writes, tenants)
            return await batch.apply(run, replace=replace)

        refused = self._client.run(work, max(0.0, deadline - time.monotonic()))
        weaviate_tenants.keep(connection, version, layout, writes, refused)
        return refused

    def discard(self, connection: Connection, version: IndexVersion, keys: Sequence[str]) -> None:
        """Remove what the ledger does not hold as live; see `Store.discard`."""
        live = ledger.live_ids(connection, version, keys)
        self._remove(connection, version, [key for key in keys if key not in live])

    def erase(self, connection: Connection, version: IndexVersion, keys: Sequence[str]) -> int:
        """Remove every object of these keys; nothing where the version has no class any more."""
        try:
            return self._remove(connection, version, keys)
        except FencedError:
            weaviate_tenants.forget_keys(connection, version, keys)
            return 0

    def reclaim(self, connection: Connection, version: IndexVersion, *, rewrite: bool) -> list[str]:
        """Nothing: Weaviate clears what was removed in its own compaction, which nobody can ask for."""
        return []

    def _remove(self, connection: Connection, version: IndexVersion, keys: Sequence[str]) -> int:
        """Delete all objects of these keys, in whatever tenant they are."""
        layout = self._layout(version)

        async def work(client: WeaviateAsyncClient) -> int:
            await self._require_class(client, layout)
            removed = 0
            for each in await weaviate_tenants.each(client, layout):
                removed += await weaviate_write.delete_keys(each, keys, self._client.url)
            return removed

        removed = self._change(work) if keys else 0
        weaviate_tenants.forget_keys(connection, version, keys)
        return removed

    # ---- reading -----------------------------------------------------------------------------------------

    def search(self, connection: Connection, version: IndexVersion, query: Query) -> list[Hit]:
        """Nearest chunks by cosine, or ranks of nearness and BM25 fused; see `Store.search`."""
        layout = self._layout(version)
        column = layout.tenant_column
        tenants = [layout.tenant(query.filters) or ""] if column in query.filters else None

        parts = self._over(layout, tenants, partial(weaviate_read.search, query=query))
        hits = list(chain.from_iterable(parts))
        return hits if len(parts) == 1 else sorted(hits, key=lambda hit: -hit.score)[: query.k]

    def vectors(self, connection: Connection, version: IndexVersion, hashes: Sequence[bytes]) -> dict[bytes, Vectors]:
        """Vectors by content hash; see `Store.vectors`. None with multi-tenancy, where they are in unknown tenants."""
        layout = self._layout(version)
        if not hashes or layout.tenant_column is not None:
            return {}
        (found,) = self._over(layout, None, partial(weaviate_read.by_hashes, hashes=hashes))
        return self._vouched(connection, version, found)

    def sound_vectors(self, connection: Connection, version: IndexVersion, keys: Sequence[str]) -> dict[bytes, Vectors]:
        """Vectors whose hash is the ledger's; see `Store.sound_vectors`."""
        return self._vouched(connection, version, self._of_keys(connection, version, keys, vectors=True))

    @staticmethod
    def _vouched(connection: Connection, version: IndexVersion, found: Sequence[Found]) -> dict[bytes, Vectors]:
        """A vector that hashes to what the ledger noted of its place was computed from the text noted there."""
        noted = ledger.vector_hashes(connection, version, sorted({each.key for each in found}))
        sound: dict[bytes, Vectors] = {}
        for each in found:
            content_hash, vector_hash = noted.get((each.key, each.chunk), (b"", b""))
            if each.vector is not None and vector_hash == each.vector_hash:
                sound[content_hash] = each.vector
        return sound

    def inventory(self, connection: Connection, version: IndexVersion, scope: Scope) -> Iterator[StoredDocument]:
        """What is really there, hashes computed here from what was read; see `Store.inventory`."""
        layout = self._layout(version)
        if scope.keys is not None:
            found = self._of_keys(connection, version, scope.keys, vectors=True)
            for key, chunks in weaviate_read.grouped(found).items():
                yield document_of(layout, key, chunks)
            return
        first, last = slot_range(scope.first, scope.last)
        columns = list(layout.names.values())
        total = self.counts(connection, version)[1]
        whole, _ = slot_range(BUCKETS, BUCKETS)
        # Half a page, if keys are spread as hashes are.
        width = max(1, whole * weaviate_read.PAGE // (2 * max(1, total)))
        while first <= last:
            until = min(last, first + width - 1)
            read = partial(weaviate_read.by_slots, first=first, last=until, columns=columns)
            parts = self._over(layout, None, read)
            some = [each for part in parts if part is not None for each in part]
            if None in parts:
                width = max(1, (until - first + 1) // 2)
                continue
            for key, chunks in weaviate_read.grouped(some).items():
                yield document_of(layout, key, chunks)
            first = until + 1
            width = width * 2 if len(some) < weaviate_read.PAGE // 4 else width

    def counts(self, connection: Connection, version: IndexVersion) -> tuple[int, int]:
        """(documents, chunks): documents by their first chunks."""
        layout = self._layout(version)

        documents = sum(self._over(layout, None, weaviate_read.first_chunks))
        return documents, sum(self._over(layout, None, weaviate_read.count))

    def sample(self, connection: Connection, version: IndexVersion, size: int, seed: str) -> list[StoredChunk]:
        """Chunks that the ledger names, evenly over its keys, as far as they are there."""
        layout = self._layout(version)
        named = ledger.ledger_sample(connection, version, size, seed)
        ids = list({version.chunk_id(key, number) for key, number in named})
        noted = self._noted(connection, version, layout, [key for key, _ in named])

        parts = self._over(layout, noted, partial(weaviate_read.by_ids, ids=ids, vectors=True))
        return [
            StoredChunk(each.key, each.content, metadata_dict(each), each.vector)
            for part in parts
            for each in part
            if each.vector is not None
        ]

    def chunks_of(self, connection: Connection, version: IndexVersion, key: str) -> list[ChunkOrigin]:
        """Where each stored chunk of a key came from; see `Store.chunks_of`."""
        found = self._of_keys(connection, version, [key], vectors=False)
        return sorted((each.origin() for each in found), key=lambda origin: origin.chunk)

    def _of_keys(
        self, connection: Connection, version: IndexVersion, keys: Sequence[str], *, vectors: bool
    ) -> list[Found]:
        layout = self._layout(version)
        noted = self._noted(connection, version, layout, keys)
        columns = list(layout.names.values())
        read = partial(weaviate_read.by_keys, keys=keys, columns=columns, vectors=vectors)
        return list(chain.from_iterable(self._over(layout, noted, read))) if keys else []

    # ---- what all of these need ---------------------------------------------------------------------------

    def _layout(self, version: IndexVersion) -> Layout:
        """The version's layout, made once: reading the catalog entry from its JSON takes longer than a small write."""
        known = (version.id, version.fingerprint, version.number)
        if known not in self._layouts:
            self._layouts[known] = Layout.of(version)
        return self._layouts[known]

    @staticmethod
    def _noted(connection: Connection, version: IndexVersion, layout: Layout, keys: Sequence[str]) -> set[str]:
        """All tenants in which any of these keys may be."""
        return set().union(*weaviate_tenants.noted(connection, version, layout, keys).values())

    def _over(
        self,
        layout: Layout,
        tenants: Iterable[str] | None,
        read: Callable[[CollectionAsync[Any, Any]], Awaitable[T]],
    ) -> list[T]:
        """What `read` returns of the class, or of each of these tenants, of all if None: each has `read_seconds`."""

        async def one(client: WeaviateAsyncClient, tenant: str | None) -> T:
            return await read(within(client, layout, tenant))

        names: Iterable[str | None] = [None]
        if layout.tenant_column is not None:
            known = tenants if tenants is not None else self._read(partial(weaviate_tenants.names, layout=layout))
            names = sorted(known)
        return [self._read(partial(one, tenant=name)) for name in names]

    def _read(self, work: Callable[[WeaviateAsyncClient], Awaitable[T]]) -> T:
        return self._client.run(work, self._settings.read_seconds)

    def _change(self, work: Callable[[WeaviateAsyncClient], Awaitable[T]]) -> T:
        return self._client.run(work, self.write_seconds - MARGIN_SECONDS)

    async def _require_class(self, client: WeaviateAsyncClient, layout: Layout) -> None:
        """A write to a class that is gone would make it anew, as a server's automatic schema sees fit.

        Raises:
            FencedError: it is gone.
        """
        if time.monotonic() - self._seen.get(layout.class_name, -SEEN_SECONDS) < SEEN_SECONDS:
            return
        if not await weaviate_classes.exists(client, layout.class_name):
            raise FencedError(f"{layout.label} has no class {layout.class_name}; it was retired, or never begun")
        self._seen[layout.class_name] = time.monotonic()

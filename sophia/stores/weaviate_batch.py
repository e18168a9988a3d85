"""A batch of documents: which objects are put and which are deleted, in which tenants.

Order: what is new is put first, then the surplus is removed; so a search meanwhile finds a document's former chunks
beside its new ones rather than nothing of it. Only repair, which trusts nothing, removes first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID

from sophia.documents import Key
from sophia.embedding.base import Vectors
from sophia.failpoints import failpoint
from sophia.indexing.versions import IndexVersion
from sophia.settings import WeaviateSettings
from sophia.stores import weaviate_read, weaviate_tenants, weaviate_write
from sophia.stores.base import DocumentWrite
from sophia.stores.weaviate_objects import Layout
from sophia.stores.weaviate_tenants import Tenants, within
from sophia.stores.weaviate_write import NewObject

if TYPE_CHECKING:
    from weaviate import WeaviateAsyncClient


@dataclass(frozen=True, slots=True)
class Batch:
    """Documents to be written to a version's class. `tenants` says where their keys may be."""

    client: WeaviateAsyncClient
    version: IndexVersion
    layout: Layout
    settings: WeaviateSettings
    url: str
    writes: Sequence[DocumentWrite]
    tenants: Tenants

    async def apply(self, run: str, *, replace: bool) -> dict[Key, str]:
        """Write it. Returns the documents that the server refuses for what they are, with the reason."""
        kept = await self._kept_vectors()
        if replace:
            for part in await weaviate_tenants.each(self.client, self.layout):
                await weaviate_write.delete_keys(part, [write.key for write in self.writes], self.url)
            failpoint("weaviate.removed")
        refused = await self._put(kept, run)
        failpoint("weaviate.put")
        await self._remove_surplus(refused)
        failpoint("weaviate.surplus")
        return refused

    async def _kept_vectors(self) -> dict[UUID, Vectors]:
        """Vectors of the chunks of which only the rest changes: an object is replaced whole."""
        wanted: dict[str | None, list[UUID]] = {}
        for write in self.writes:
            ids = [chunk.id for chunk in write.chunks if chunk.vector is None]
            for tenant in weaviate_tenants.of(self.layout, write, self.tenants) if ids else ():
                wanted.setdefault(tenant, []).extend(ids)
        found: dict[UUID, Vectors] = {}
        for tenant, ids in wanted.items():
            for each in await weaviate_read.by_ids(within(self.client, self.layout, tenant), ids, vectors=True):
                if each.vector is not None:
                    found[each.id] = each.vector
        return found

    async def _put(self, kept: dict[UUID, Vectors], run: str) -> dict[Key, str]:
        now = datetime.now(UTC)
        puts: dict[str | None, list[NewObject]] = {}
        owners: dict[UUID, Key] = {}
        for write in self.writes:
            for chunk in write.chunks:
                vector = kept.get(chunk.id) if chunk.vector is None else chunk.vector
                if vector is None:
                    # It should be there and is not: someone removed it. The next look at the store finds that.
                    continue
                owners[chunk.id] = write.key
                puts.setdefault(self.layout.tenant(write.metadata), []).append(
                    NewObject(chunk.id, self.layout.properties(write, chunk, run, now), vector.tolist())
                )
        gate = asyncio.Semaphore(self.settings.requests)
        answers = await weaviate_write.together(
            [
                weaviate_write.put(
                    within(self.client, self.layout, tenant), objects, self.settings.batch_objects, gate, self.url
                )
                for tenant, objects in puts.items()
            ]
        )
        return {owners[each]: reason for answer in answers for each, reason in answer.items()}

    async def _remove_surplus(self, refused: dict[Key, str]) -> None:
        """What a key may have had beyond its chunks, all of a refused document, all in a former tenant."""
        ids: dict[str | None, list[UUID]] = {}
        keys: dict[str | None, list[str]] = {}
        for write in self.writes:
            first = 0 if write.key in refused else len(write.chunks)
            present = self.layout.tenant(write.metadata)
            for tenant in weaviate_tenants.of(self.layout, write, self.tenants):
                if tenant == present:
                    surplus = range(first, max(write.held, len(write.chunks)))
                    ids.setdefault(tenant, []).extend(self.version.chunk_id(write.key, number) for number in surplus)
                else:
                    keys.setdefault(tenant, []).append(write.key)
        for tenant, some in ids.items():
            await weaviate_write.delete_ids(within(self.client, self.layout, tenant), some, self.url)
        for tenant, former in keys.items():
            await weaviate_write.delete_keys(within(self.client, self.layout, tenant), former, self.url)

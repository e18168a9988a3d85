"""Where a key may be in a class with multi-tenancy: noted in the database before the store is written.

Invariant: every tenant that holds something which Sophia wrote of a key is noted, also after a crash; the notes may
name more. Without multi-tenancy there are no notes, and the class as one stands for its only tenant, None.
"""

from __future__ import annotations

from collections.abc import Collection as Keys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sophia import sql
from sophia.documents import Key
from sophia.indexing.versions import IndexVersion
from sophia.stores.base import Connection, DocumentWrite
from sophia.stores.weaviate_objects import Layout

if TYPE_CHECKING:
    from weaviate import WeaviateAsyncClient
    from weaviate.collections import CollectionAsync

Q = sql.load("weaviate")
Tenants = dict[Key, set[str]]


def note(connection: Connection, version: IndexVersion, layout: Layout, writes: Sequence[DocumentWrite]) -> Tenants:
    """Note where these documents go. Returns where their keys may be."""
    if layout.tenant_column is None:
        return {}
    live = [write for write in writes if write.chunks]
    connection.execute(
        Q["note_tenants"],
        {
            "version_id": version.id,
            "keys": [write.key for write in live],
            "tenants": [layout.tenant(write.metadata) for write in live],
        },
    )
    return noted(connection, version, layout, [write.key for write in writes])


def keep(
    connection: Connection,
    version: IndexVersion,
    layout: Layout,
    writes: Sequence[DocumentWrite],
    refused: Keys[Key],
) -> None:
    """Of these keys only the present tenants stay noted, and none of what is not there: the store was written."""
    if layout.tenant_column is not None:
        kept = [write for write in writes if write.chunks and write.key not in refused]
        _keep(connection, version, [write.key for write in writes], [(w.key, layout.tenant(w.metadata)) for w in kept])


def forget_keys(connection: Connection, version: IndexVersion, keys: Sequence[str]) -> None:
    """Nothing of these keys is there any more."""
    _keep(connection, version, keys, [])


def forget(connection: Connection, version: IndexVersion) -> None:
    """The version's class is gone."""
    connection.execute(Q["forget_tenants"], {"version_id": version.id})


def noted(connection: Connection, version: IndexVersion, layout: Layout, keys: Sequence[str]) -> Tenants:
    """Where these keys may be."""
    tenants: Tenants = {}
    if layout.tenant_column is not None:
        for key, tenant in connection.execute(Q["tenants_of"], {"version_id": version.id, "keys": list(keys)}):
            tenants.setdefault(Key(key), set()).add(tenant)
    return tenants


def of(layout: Layout, write: DocumentWrite, tenants: Tenants) -> set[str | None]:
    """Where a document may be."""
    return {None} if layout.tenant_column is None else {*tenants.get(write.key, set())}


def within(client: WeaviateAsyncClient, layout: Layout, tenant: str | None) -> CollectionAsync[Any, Any]:
    """A tenant of the version's class, or the class as one."""
    collection = client.collections.get(layout.class_name)
    return collection if tenant is None else collection.with_tenant(tenant)


async def names(client: WeaviateAsyncClient, layout: Layout) -> list[str]:
    """All tenants of the version's class."""
    return list(await client.collections.get(layout.class_name).tenants.get())


async def each(client: WeaviateAsyncClient, layout: Layout) -> list[CollectionAsync[Any, Any]]:
    """Each tenant of the version's class; without multi-tenancy the class as one."""
    if layout.tenant_column is None:
        return [within(client, layout, None)]
    return [within(client, layout, tenant) for tenant in sorted(await names(client, layout))]


def _keep(
    connection: Connection, version: IndexVersion, keys: Sequence[str], kept: Sequence[tuple[Key, str | None]]
) -> None:
    connection.execute(
        Q["keep_tenants"],
        {
            "version_id": version.id,
            "keys": list(keys),
            "kept_keys": [key for key, _ in kept],
            "kept_tenants": [tenant for _, tenant in kept],
        },
    )

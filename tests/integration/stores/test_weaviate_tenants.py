"""Multi-tenancy: a tenant for each value of the required filter, and no document in two of them."""

from __future__ import annotations

from typing import Any

import pytest

from sophia.documents import BUCKETS
from sophia.stores import weaviate_tenants, weaviate_write
from sophia.stores.base import Scope
from sophia.stores.weaviate_objects import tenant_name
from sophia.stores.weaviate_schema import class_name
from tests.embedders import hash_vector
from tests.integration.stores.documents import DIMENSION, key
from tests.integration.stores.weaviate_stand import WeaviateStand

pytestmark = pytest.mark.weaviate
TENANCY = {"required_filter": "module", "weaviate": {"tenancy": True}}


def where(stand: WeaviateStand, version: Any) -> dict[str, list[str]]:
    """Texts by tenant, read without the store."""

    async def work(client: Any) -> dict[str, list[str]]:
        collection = client.collections.get(class_name(version))
        found = {}
        for name in sorted(await collection.tenants.get()):
            items = (await collection.with_tenant(name).query.fetch_objects(limit=1000)).objects
            found[name] = sorted(each.properties["content"] for each in items)
        return found

    answer: dict[str, list[str]] = stand.do(work)
    return answer


def noted(stand: WeaviateStand) -> list[tuple[Any, ...]]:
    return stand.connection.execute("SELECT key, tenant FROM sophia.store_tenants ORDER BY 1, 2").fetchall()


def of(stand: WeaviateStand, version: Any, number: int, texts: list[str], tenant: Any, **more: Any) -> Any:
    return stand.document(version, number, texts, metadata={"module": tenant, "kind": "k"}, **more)


def test_each_value_is_a_tenant_and_a_search_sees_its_own_only(
    weaviate: WeaviateStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = weaviate.version(**TENANCY)
    values: list[Any] = ["ana", "a.b@example.com", 5, "5", None]
    weaviate.write(version, *(of(weaviate, version, n, [f"t{n}"], value) for n, value in enumerate(values)))
    assert where(weaviate, version) == {tenant_name(value): [f"t{n}"] for n, value in enumerate(values)}

    async def all_of_them(*_: Any, **__: Any) -> list[str]:
        raise AssertionError("a search with its tenant's value asks for all tenants")

    with monkeypatch.context() as patch:
        patch.setattr(weaviate_tenants, "names", all_of_them)
        for n, value in enumerate(values):
            for mode in ({}, {"hybrid": True}, {"exact": True}):
                assert [c for c, _ in weaviate.search(version, "t0", filters={"module": value}, **mode)] == [f"t{n}"]
        assert weaviate.search(version, "t0", filters={"module": "nobody"}) == []
    # A gate asks without a filter, and gets the best of all.
    assert len(weaviate.search(version, "t3", k=3)) == 3
    assert weaviate.search(version, "t3", k=3)[0][0] == "t3"
    assert weaviate.store.counts(weaviate.connection, version) == (5, 5)
    assert set(weaviate.stored(version)) == {key(n) for n in range(5)}
    assert set(weaviate.stored(version, Scope(0, BUCKETS // 2))) < {key(n) for n in range(5)}
    assert set(weaviate.stored(version, Scope(keys=(key(2), key(9))))) == {key(2)}
    assert [each.chunk for each in weaviate.store.chunks_of(weaviate.connection, version, key(1))] == [0]
    assert len(weaviate.store.sample(weaviate.connection, version, 20, "s")) >= 2


def test_a_document_that_moves_leaves_its_former_tenant(weaviate: WeaviateStand) -> None:
    version = weaviate.version(**TENANCY)
    before = of(weaviate, version, 1, ["a", "b"], "ana")
    weaviate.write(version, before, of(weaviate, version, 2, ["c"], "ana"))
    # Its text is the same, so that its vectors are not sent: they come from the former tenant.
    weaviate.write(version, of(weaviate, version, 1, ["a", "b"], "ben", kept=(0, 1), held=2))
    assert where(weaviate, version) == {"s-ana": ["c"], "s-ben": ["a", "b"]}
    assert weaviate.stored(version)[key(1)].vector_hashes == tuple(chunk.vector_hash for chunk in before.chunks)
    assert noted(weaviate) == [(key(1), "s-ben"), (key(2), "s-ana")]


def test_a_move_that_was_cut_off_is_completed_by_the_next_write(
    weaviate: WeaviateStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = weaviate.version(**TENANCY)
    weaviate.write(version, of(weaviate, version, 1, ["a"], "ana"))

    async def dies(*_: Any) -> None:
        raise KeyError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(weaviate_write, "delete_keys", dies)
        with pytest.raises(Exception, match="killed"):
            weaviate.write(version, of(weaviate, version, 1, ["a"], "ben", held=1))
    assert where(weaviate, version) == {"s-ana": ["a"], "s-ben": ["a"]}
    assert noted(weaviate) == [(key(1), "s-ana"), (key(1), "s-ben")]
    weaviate.write(version, of(weaviate, version, 1, ["c"], "cid", held=1))
    assert where(weaviate, version) == {"s-ana": [], "s-ben": [], "s-cid": ["c"]}


def test_a_deleted_document_leaves_every_tenant_and_no_note(weaviate: WeaviateStand) -> None:
    version = weaviate.version(**TENANCY)
    weaviate.write(version, of(weaviate, version, 1, ["a"], "ana"), of(weaviate, version, 2, ["b"], "ben"))
    weaviate.write(version, weaviate.document(version, 1, None, held=1))
    assert where(weaviate, version) == {"s-ana": [], "s-ben": ["b"]}
    assert noted(weaviate) == [(key(2), "s-ben")]
    assert weaviate.store.erase(weaviate.connection, version, [key(2)]) == 1
    assert where(weaviate, version) == {"s-ana": [], "s-ben": []}
    assert noted(weaviate) == []


def test_repair_erasure_and_discard_find_what_is_noted_nowhere(weaviate: WeaviateStand) -> None:
    version = weaviate.version(**TENANCY)
    document = of(weaviate, version, 1, ["a"], "ana")

    def copied() -> None:
        weaviate.connection.execute("DELETE FROM sophia.store_tenants")
        weaviate.write(version, of(weaviate, version, 1, ["stray"], "ben"))
        weaviate.connection.execute("DELETE FROM sophia.store_tenants")

    copied()
    weaviate.write(version, document, replace=True)
    assert where(weaviate, version) == {"s-ana": ["a"], "s-ben": []}
    copied()
    assert where(weaviate, version) == {"s-ana": ["a"], "s-ben": ["stray"]}
    assert len(weaviate.stored(version)[key(1)].ids) == 2
    assert weaviate.store.erase(weaviate.connection, version, [key(1)]) == 2
    copied()
    weaviate.connection.execute("DELETE FROM sophia.ledger")
    weaviate.store.discard(weaviate.connection, version, [key(1)])
    assert where(weaviate, version) == {"s-ana": [], "s-ben": []}


def test_a_dropped_version_leaves_no_note(weaviate: WeaviateStand) -> None:
    version = weaviate.version(**TENANCY)
    weaviate.write(version, of(weaviate, version, 1, ["a"], "ana"))
    weaviate.store.publish(weaviate.connection, weaviate.version(metadata=("module",)))
    weaviate.store.drop(weaviate.connection, version)
    assert noted(weaviate) == []
    # A note that a halted writer left behind is erased all the same.
    weaviate.connection.execute("INSERT INTO sophia.store_tenants VALUES (%s, %s, 's-ana')", [version.id, key(1)])
    assert weaviate.store.erase(weaviate.connection, version, [key(1)]) == 0
    assert noted(weaviate) == []


def test_vectors_of_repair_are_found_in_tenants(weaviate: WeaviateStand) -> None:
    version = weaviate.version(**TENANCY)
    document = of(weaviate, version, 1, ["a"], "ana")
    weaviate.write(version, document)
    (vector,) = weaviate.store.sound_vectors(weaviate.connection, version, [key(1)]).values()
    assert vector.tolist() == hash_vector("a", DIMENSION).tolist()

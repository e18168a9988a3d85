"""The Weaviate store against a real server: what is written is what is there, and what is found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from sophia.documents import BUCKETS, bucket_of
from sophia.embedding.base import Vectors
from sophia.errors import ConfigurationError, FencedError
from sophia.indexing.text import content_hash
from sophia.stores.base import Query, Scope, vector_hash
from sophia.stores.weaviate_schema import class_name
from tests.embedders import hash_vector
from tests.integration.stores.documents import DIMENSION, key
from tests.integration.stores.weaviate_stand import WeaviateStand, unit

pytestmark = pytest.mark.weaviate


def edit(stand: WeaviateStand, version: Any, number: int, chunk: int, **changes: Any) -> None:
    """Change an object as somebody with the client would."""
    vector = changes.pop("vector", None)

    async def work(client: Any) -> None:
        collection = client.collections.get(class_name(version))
        await collection.data.update(
            uuid=version.chunk_id(key(number), chunk),
            properties=changes,
            vector=None if vector is None else vector.tolist(),
        )

    stand.do(work)


# ---- what is written is what is there ------------------------------------------------------------------------


def test_what_was_written_reads_back_exactly(weaviate: WeaviateStand) -> None:
    version = weaviate.version()
    metadata = {"module": "größe \n 5", "kind": {"b": [1, 2.5, None], "a": "x"}}
    document = weaviate.document(version, 1, ["first text", "second text"], metadata=metadata)
    assert weaviate.write(version, document) == {}
    (stored,) = weaviate.stored(version).values()
    assert stored.key == key(1)
    assert stored.ids == tuple(chunk.id for chunk in document.chunks)
    assert stored.content_hashes == stored.read_hashes == tuple(chunk.content_hash for chunk in document.chunks)
    assert stored.vector_hashes == tuple(chunk.vector_hash for chunk in document.chunks)
    assert [json.loads(text) for text in stored.metadata] == [metadata]
    assert stored.oldest == stored.newest == document.clock
    origins = weaviate.store.chunks_of(weaviate.connection, version, key(1))
    assert [(each.chunk, each.start, each.end, each.run) for each in origins] == [
        (0, 0, 10, "test"),
        (1, 10, 21, "test"),
    ]
    assert origins[0].clock == list(document.clock)
    assert origins[0].lsn == "0/1"
    assert origins[0].txid == 7


def test_vectors_are_kept_as_they_were_sent(weaviate: WeaviateStand) -> None:
    """Cosine classes normalise for their graph; what is read back must still be what was sent, to the bit."""
    version = weaviate.version()
    vectors = unit(1, 3) * np.float32(3.7)
    document = weaviate.document(version, 1, ["a", "b", "c"], vectors=dict(enumerate(vectors)))
    weaviate.write(version, document)
    assert weaviate.stored(version)[key(1)].vector_hashes == tuple(vector_hash(vector) for vector in vectors)


def test_a_document_is_replaced_whole(weaviate: WeaviateStand) -> None:
    version = weaviate.version()
    weaviate.write(version, weaviate.document(version, 1, ["a", "b", "c"], metadata={"module": "old", "kind": "k"}))
    after = weaviate.document(version, 1, ["d"], metadata={"module": "new"}, held=3)
    weaviate.write(version, after)
    (stored,) = weaviate.stored(version).values()
    assert weaviate.contents(version) == {key(1): ["d"]}
    assert [json.loads(text) for text in stored.metadata] == [{"module": "new", "kind": None}]
    assert stored.oldest == after.clock


def test_a_deleted_document_leaves_nothing(weaviate: WeaviateStand) -> None:
    version = weaviate.version()
    weaviate.write(version, *(weaviate.document(version, number, ["a", "b"]) for number in (1, 2)))
    weaviate.write(version, weaviate.document(version, 1, None, held=2))
    assert weaviate.contents(version) == {key(2): ["a", "b"]}
    assert weaviate.store.counts(weaviate.connection, version) == (1, 2)


def test_unchanged_text_keeps_its_vector_and_takes_the_rest(weaviate: WeaviateStand) -> None:
    version = weaviate.version()
    before = weaviate.document(version, 1, ["a", "b"])
    weaviate.write(version, before)
    after = weaviate.document(version, 1, ["a", "b2"], metadata={"module": "new"}, kept=(0,), held=2)
    weaviate.write(version, after)
    stored = weaviate.stored(version)[key(1)]
    assert stored.vector_hashes == (before.chunks[0].vector_hash, after.chunks[1].vector_hash)
    assert stored.oldest == after.clock
    assert [json.loads(text) for text in stored.metadata] == [{"module": "new", "kind": None}]


def test_replace_removes_what_nobody_knows_of(weaviate: WeaviateStand) -> None:
    version = weaviate.version()
    document = weaviate.document(version, 1, ["a"])
    weaviate.write(version, document)
    edit(weaviate, version, 1, 0, content="edited")
    stray(weaviate, version, sophia_key=key(1), sophia_chunk=7, sophia_slot=bucket_of(key(1)) << 32, content="stray")
    assert weaviate.contents(version) == {key(1): ["edited", "stray"]}
    weaviate.write(version, document, replace=True)
    assert weaviate.contents(version) == {key(1): ["a"]}


def stray(stand: WeaviateStand, version: Any, **properties: Any) -> None:
    """Add an object as somebody with the client would."""

    async def work(client: Any) -> None:
        await client.collections.get(class_name(version)).data.insert(
            properties=properties, vector=unit(9, 1)[0].tolist()
        )

    stand.do(work)


def test_the_same_write_again_changes_nothing(weaviate: WeaviateStand) -> None:
    version = weaviate.version()
    documents = [weaviate.document(version, number, ["a", "b"]) for number in range(20)]
    weaviate.write(version, *documents)
    once = weaviate.stored(version)
    weaviate.write(version, *documents)
    assert weaviate.stored(version) == once
    assert weaviate.store.counts(weaviate.connection, version) == (20, 40)


@pytest.mark.parametrize(
    "changes",
    [
        {"content": "edited"},
        {"vector": unit(3, 1)[0]},
        {"vector": hash_vector("a", DIMENSION) * np.float32(1.0001)},
        {"module": "edited"},
        {"sophia_metadata": '{"module": "edited", "kind": "k"}'},
        {"sophia_fields": ['module="edited"', 'kind="k"']},
        {"sophia_clock": "1/99/1"},
        {"sophia_hash": "00"},
    ],
    ids=["text", "vector", "length of vector", "property", "metadata", "filter", "clock", "hash"],
)
def test_what_somebody_edited_is_seen(weaviate: WeaviateStand, changes: dict[str, Any]) -> None:
    version = weaviate.version()
    weaviate.write(version, weaviate.document(version, 1, ["a"]), weaviate.document(version, 2, ["b"]))
    before = weaviate.stored(version)
    edit(weaviate, version, 1, 0, **changes)
    after = weaviate.stored(version)
    assert after[key(1)] != before[key(1)]
    assert after[key(2)] == before[key(2)]


def test_an_object_in_a_wrong_place_is_seen(weaviate: WeaviateStand) -> None:
    """Its slot decides which scan reads it; looked at by its key it shows that it is wrong."""
    version = weaviate.version()
    weaviate.write(version, weaviate.document(version, 1, ["a"]))
    scope = Scope(keys=(key(1),))
    before = weaviate.stored(version, scope)
    edit(weaviate, version, 1, 0, sophia_slot=5)
    assert weaviate.stored(version, scope) != before


# ---- looking at all of it ------------------------------------------------------------------------------------


def test_the_inventory_has_every_document_once_in_its_scope(
    weaviate: WeaviateStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when a page holds far less than a scope, and one key more than a page."""
    from sophia.stores import weaviate_read

    monkeypatch.setattr(weaviate_read, "PAGE", 20)
    monkeypatch.setattr(weaviate_read, "CHUNKS", 10)
    version = weaviate.version()
    sizes = {number: number % 4 + 1 for number in range(60)} | {99: 45}
    weaviate.write(
        version,
        *(
            weaviate.document(version, number, [f"{number} {place}" for place in range(size)])
            for number, size in sizes.items()
        ),
    )
    everything = weaviate.stored(version)
    assert {each: len(stored.ids) for each, stored in everything.items()} == {
        key(number): size for number, size in sizes.items()
    }
    half = BUCKETS // 2
    low, high = weaviate.stored(version, Scope(0, half - 1)), weaviate.stored(version, Scope(half, BUCKETS - 1))
    assert low | high == everything
    assert all(bucket_of(each) < half for each in low)
    some = tuple(key(number) for number in (3, 17, 99, 1000))
    assert weaviate.stored(version, Scope(keys=some)) == {each: everything[each] for each in some[:3]}
    assert weaviate.store.counts(weaviate.connection, version) == (61, sum(sizes.values()))


def test_vectors_are_lent_only_where_the_ledger_vouches(weaviate: WeaviateStand) -> None:
    version = weaviate.version()
    weaviate.write(version, weaviate.document(version, 1, ["good", "bad"]), weaviate.document(version, 2, ["gone"]))
    edit(weaviate, version, 1, 1, vector=unit(3, 1)[0])
    weaviate.connection.execute("DELETE FROM sophia.ledger WHERE key = %s", [key(2)])
    hashes = [content_hash(text) for text in ("good", "bad", "gone", "unknown")]
    lent = weaviate.store.vectors(weaviate.connection, version, hashes)
    assert set(lent) == {content_hash("good")}
    assert np.array_equal(lent[content_hash("good")], hash_vector("good", DIMENSION))
    sound = weaviate.store.sound_vectors(weaviate.connection, version, [key(1), key(2)])
    assert set(sound) == {content_hash("good")}


def test_a_sample_is_of_stored_chunks_and_repeatable(weaviate: WeaviateStand) -> None:
    version = weaviate.version()
    weaviate.write(version, *(weaviate.document(version, number, [f"a{number}", f"b{number}"]) for number in range(40)))
    sample = weaviate.store.sample(weaviate.connection, version, 16, "seed")
    assert 8 <= len(sample) <= 16
    assert all(np.array_equal(each.vector, hash_vector(each.content, DIMENSION)) for each in sample)
    assert sample[0].metadata == {"module": "m", "kind": "k"}
    again = weaviate.store.sample(weaviate.connection, version, 16, "seed")
    assert {each.content for each in again} == {each.content for each in sample}


def test_discard_and_erase(weaviate: WeaviateStand) -> None:
    version = weaviate.version()
    weaviate.write(version, *(weaviate.document(version, number, ["a", "b"]) for number in (1, 2, 3)))
    weaviate.connection.execute("DELETE FROM sophia.ledger WHERE key = %s", [key(1)])
    weaviate.connection.execute("UPDATE sophia.ledger SET deleted = true WHERE key = %s", [key(2)])
    weaviate.store.discard(weaviate.connection, version, [key(1), key(2), key(3)])
    assert set(weaviate.contents(version)) == {key(3)}
    assert weaviate.store.erase(weaviate.connection, version, [key(3), key(4)]) == 2
    assert weaviate.contents(version) == {}


# ---- search --------------------------------------------------------------------------------------------------


def test_nearest_first_with_cosine_similarity(weaviate: WeaviateStand) -> None:
    version = weaviate.version()
    vectors = unit(5, 50)
    weaviate.write(
        version, *(weaviate.document(version, n, [f"t{n}"], vectors={0: vector}) for n, vector in enumerate(vectors))
    )
    query = unit(6, 1)[0]
    hits = weaviate.store.search(weaviate.connection, version, Query(vector=query, text="", k=5))
    best = np.argsort(-(vectors @ query))[:5]
    assert [hit.content for hit in hits] == [f"t{n}" for n in best]
    assert np.allclose([hit.score for hit in hits], (vectors @ query)[best], atol=1e-5)
    assert hits[0].metadata == {"module": "m", "kind": "k"}
    assert hits[0].key == key(int(best[0]))


def test_filters_compare_as_json(weaviate: WeaviateStand) -> None:
    version = weaviate.version()
    values: list[Any] = ["5", 5, 5.5, None, True, ["a", "b"], {"a": 1}, " 5 ", "a" * 3000, "A", "a", 'x"y', ""]
    weaviate.write(
        version,
        *(
            weaviate.document(version, number, [f"t{number}"], metadata={"module": value, "kind": "k"})
            for number, value in enumerate(values)
        ),
    )
    for number, value in enumerate(values):
        for hybrid in (False, True):
            found = weaviate.search(version, f"t{number}", filters={"module": value, "kind": "k"}, hybrid=hybrid)
            assert [content for content, _ in found] == [f"t{number}"], value
    assert weaviate.search(version, "t1", filters={"module": 5.0})[0][0] == "t1"
    assert weaviate.search(version, "t1", filters={"module": 5, "kind": "other"}) == []


def test_hybrid_finds_a_word_that_the_vector_does_not(weaviate: WeaviateStand) -> None:
    version = weaviate.version()
    vectors = unit(5, 40)
    texts = [f"some text number {n}" for n in range(39)] + ["the orange cannot be overlooked"]
    weaviate.write(
        version,
        *(
            weaviate.document(version, n, [text], vectors={0: vector})
            for n, (text, vector) in enumerate(zip(texts, vectors, strict=True))
        ),
    )
    query = Query(vector=vectors[3], text="orange", k=2, hybrid=True)
    found = weaviate.store.search(weaviate.connection, version, query)
    assert {hit.content for hit in found} == {texts[3], texts[39]}


def test_an_exact_search_is_exact_over_any_number_of_ranges(
    weaviate: WeaviateStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sophia.stores import weaviate_read

    monkeypatch.setattr(weaviate_read, "FLAT_CUTOFF", 200)
    # A graph that misses much: few links, few candidates.
    version = weaviate.version(
        weaviate={"hnsw": {"ef_construction": 8, "max_connections": 4, "ef_min": 1, "ef_max": 1, "ef_factor": 1}}
    )
    vectors = unit(5, 900)
    weaviate.write(
        version, *(weaviate.document(version, n, [f"t{n}"], vectors={0: vector}) for n, vector in enumerate(vectors))
    )
    queries = unit(6, 10)
    assert [found(weaviate, version, query, exact=True) for query in queries] == [
        [f"t{n}" for n in np.argsort(-(vectors @ query))[:10]] for query in queries
    ]
    assert weaviate.store.approximate(weaviate.connection, version)


def found(stand: WeaviateStand, version: Any, query: Vectors, **more: Any) -> Sequence[str]:
    hits = stand.store.search(stand.connection, version, Query(vector=query, text="", k=10, **more))
    return [hit.content for hit in hits]


def test_an_object_of_somebody_else_is_no_result(weaviate: WeaviateStand) -> None:
    version = weaviate.version()
    weaviate.write(version, weaviate.document(version, 1, ["a"]))
    stray(weaviate, version, content="foreign")
    assert [content for content, _ in weaviate.search(version, "a")] == ["a"]


# ---- classes and the alias -----------------------------------------------------------------------------------


def alias(stand: WeaviateStand) -> str | None:
    async def work(client: Any) -> str | None:
        there = await client.alias.get(alias_name=stand.class_name)
        return there.collection if there is not None else None

    answer: str | None = stand.do(work)
    return answer


def test_the_first_version_gets_the_alias_and_a_switch_moves_it(weaviate: WeaviateStand) -> None:
    first = weaviate.version()
    assert alias(weaviate) == f"{weaviate.class_name}_v1"
    second = weaviate.version(metadata=("module",))
    assert second.number == 2
    assert alias(weaviate) == f"{weaviate.class_name}_v1"
    for _ in range(2):
        weaviate.store.publish(weaviate.connection, second)
        assert alias(weaviate) == f"{weaviate.class_name}_v2"
    # A process that still believes the first one to serve does not switch back.
    weaviate.store.ensure(weaviate.connection, first)
    assert alias(weaviate) == f"{weaviate.class_name}_v2"


def test_a_class_is_dropped_unless_the_alias_leads_to_it(weaviate: WeaviateStand) -> None:
    first = weaviate.version()
    second = weaviate.version(metadata=("module",))
    with pytest.raises(ConfigurationError, match="promote another version first"):
        weaviate.store.drop(weaviate.connection, first)
    weaviate.store.publish(weaviate.connection, second)
    for _ in range(2):
        weaviate.store.drop(weaviate.connection, first)
    with pytest.raises(FencedError, match="retired"):
        weaviate.store.search(weaviate.connection, first, Query(vector=unit(1, 1)[0], text=""))
    assert weaviate.store.erase(weaviate.connection, first, [key(1)]) == 0


def test_a_write_does_not_bring_a_retired_class_back(weaviate: WeaviateStand) -> None:
    """A server with automatic schema makes the class of any object that it is sent."""
    weaviate.version()
    second = weaviate.version(metadata=("module",))
    weaviate.store.drop(weaviate.connection, second)
    with pytest.raises(FencedError, match="retired"):
        weaviate.write(second, weaviate.document(second, 1, ["a"]))
    with pytest.raises(FencedError, match="retired"):
        weaviate.store.publish(weaviate.connection, second)

    async def exists(client: Any) -> bool:
        return bool(await client.collections.exists(class_name(second)))

    assert weaviate.do(exists) is False


def test_a_class_that_bears_the_public_name_is_replaced_as_the_manual_says(
    weaviate: WeaviateStand, caplog: pytest.LogCaptureFixture
) -> None:
    async def make(client: Any) -> None:
        await client.collections.create_from_dict({"class": weaviate.class_name})

    async def remove(client: Any) -> None:
        await client.collections.delete(weaviate.class_name)

    weaviate.do(make)
    version = weaviate.version()
    assert "written without its public name" in caplog.text
    weaviate.write(version, weaviate.document(version, 1, ["a"]))
    with pytest.raises(ConfigurationError, match="A class that bears the public name"):
        weaviate.store.publish(weaviate.connection, version)
    assert weaviate.contents(version) == {key(1): ["a"]}
    weaviate.do(remove)
    weaviate.store.ensure(weaviate.connection, version)
    assert alias(weaviate) == class_name(version)


def test_ensure_may_be_repeated_and_names_what_differs(weaviate: WeaviateStand) -> None:
    version = weaviate.version()
    weaviate.store.ensure(weaviate.connection, version)

    async def other(client: Any) -> None:
        await client.collections.delete(class_name(version))
        await client.collections.create_from_dict(
            {
                "class": class_name(version),
                "properties": [
                    {"name": "content", "dataType": ["text"], "tokenization": "field"},
                    {"name": "sophia_key", "dataType": ["int"]},
                ],
                "vectorConfig": {
                    "default": {
                        "vectorizer": {"none": {}},
                        "vectorIndexType": "hnsw",
                        "vectorIndexConfig": {"distance": "dot", "maxConnections": 8},
                    }
                },
                "multiTenancyConfig": {"enabled": True},
            }
        )

    weaviate.do(other)
    with pytest.raises(ConfigurationError) as raised:
        weaviate.store.ensure(weaviate.connection, version)
    said = str(raised.value)
    for part in (
        "property content: tokenization is field, not word",
        "property sophia_key: type is int, not text",
        "property sophia_hash (text) is missing",
        "multi-tenancy is on",
        "distance is dot, not cosine",
        "max_connections is 8, not 32",
    ):
        assert part in said


def test_a_quantised_graph_keeps_whole_vectors(weaviate: WeaviateStand) -> None:
    version = weaviate.version(weaviate={"hnsw": {"quantizer": "rq"}})
    weaviate.store.ensure(weaviate.connection, version)
    document = weaviate.document(version, 1, ["a"])
    weaviate.write(version, document, weaviate.document(version, 2, ["b"]))
    assert weaviate.stored(version)[key(1)].vector_hashes == (document.chunks[0].vector_hash,)
    ((content, score),) = weaviate.search(version, "a", k=1)
    assert content == "a"
    assert score == pytest.approx(1, abs=0.01)


def test_properties_are_typed_for_other_readers(weaviate: WeaviateStand) -> None:
    columns = ("importance", "tags", "created_at", "user_id", "COUNT", "flag", "odd")
    version = weaviate.version(
        metadata=columns,
        weaviate={
            "properties": {
                "importance": {"type": "number"},
                "tags": {"type": "text[]"},
                "created_at": {"type": "date", "name": "timestamp"},
                "COUNT": {"type": "int"},
                "flag": {"type": "boolean"},
                "odd": {"type": "int"},
            },
            "generative": {"module": "generative-openai", "settings": {"model": "gpt-4"}},
        },
    )
    metadata = {
        "importance": 1,
        "tags": ["a", "b c"],
        "created_at": "2026-03-02 09:14:00.123456+00",
        "user_id": "ana",
        "COUNT": 7.0,
        "flag": False,
        "odd": "no number",
    }
    document = weaviate.document(version, 1, ["a"], metadata=metadata)
    weaviate.write(version, document)

    async def read(client: Any) -> tuple[dict[str, Any], Any]:
        collection = client.collections.get(class_name(version))
        config = await collection.config.get()
        (item,) = (await collection.query.fetch_objects()).objects
        return item.properties, config

    shown, config = weaviate.do(read)
    assert shown["timestamp"].isoformat() == "2026-03-02T09:14:00.123456+00:00"
    assert (shown["importance"], shown["tags"], shown["user_id"]) == (1.0, ["a", "b c"], "ana")
    assert (shown["count"], shown["flag"], shown["odd"]) == (7, False, None)
    assert {each.name: each.data_type.value for each in config.properties}["timestamp"] == "date"
    assert config.generative_config.generative.value == "generative-openai"
    (stored,) = weaviate.stored(version).values()
    assert [json.loads(text) for text in stored.metadata] == [metadata]
    assert weaviate.search(version, "a", filters={"odd": "no number"})[0][0] == "a"


# ---- documents that the store refuses ------------------------------------------------------------------------


def test_a_refused_document_is_named_and_gone_and_the_others_are_there(weaviate: WeaviateStand) -> None:
    version = weaviate.version()
    weaviate.write(version, *(weaviate.document(version, number, ["old", "old 2"]) for number in range(4)))
    wrong = unit(1, 1, 7)[0]
    refused = weaviate.write(
        version,
        weaviate.document(version, 0, ["new 0"], held=2),
        weaviate.document(version, 1, ["new 1", "secret text"], vectors={1: wrong}, held=2),
        weaviate.document(version, 2, ["new 2"], vectors={0: wrong}, held=2),
        weaviate.document(version, 3, ["new 3"], held=2),
    )
    assert set(refused) == {key(1), key(2)}
    assert "dimensions" in refused[key(1)]
    assert "secret" not in refused[key(1)]
    assert weaviate.contents(version) == {key(0): ["new 0"], key(3): ["new 3"]}


def test_all_of_a_batch_refused(weaviate: WeaviateStand, caplog: pytest.LogCaptureFixture) -> None:
    version = weaviate.version()
    weaviate.write(version, weaviate.document(version, 0, ["a"]))
    wrong = unit(1, 1, 7)[0]
    refused = weaviate.write(
        version, *(weaviate.document(version, n, ["secret text"], vectors={0: wrong}) for n in (1, 2, 3))
    )
    assert set(refused) == {key(1), key(2), key(3)}
    assert weaviate.contents(version) == {key(0): ["a"]}
    assert "secret text" not in caplog.text

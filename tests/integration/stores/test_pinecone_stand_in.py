"""The stand-in keeps the rules that Pinecone documents: one test a rule, each naming it.

That it speaks Pinecone's protocol is shown by Pinecone's own client, which works against it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from tests.pinecone_stand_in import API_KEY, StandIn
from tests.pinecone_stand_in.server import FORBIDDEN_KEY

INDEX = "an-index"
DIMENSION = 4
VERSION = {"X-Pinecone-Api-Version": "2026-07"}
UP: list[float] = [1.0, 0.0, 0.0, 0.0]
Post = Callable[..., httpx.Response]


@pytest.fixture(scope="module")
def server() -> Iterator[StandIn]:
    server = StandIn()
    yield server
    server.stop()


@pytest.fixture
def stand_in(server: StandIn) -> StandIn:
    server.reset()
    server.create(INDEX, DIMENSION)
    return server


@pytest.fixture
def client(stand_in: StandIn) -> Iterator[httpx.Client]:
    headers = {"Api-Key": API_KEY} | VERSION
    with httpx.Client(base_url=f"{stand_in.url}/index/{INDEX}", headers=headers, timeout=60) as client:
        yield client


@pytest.fixture
def upsert(client: httpx.Client) -> Post:
    def send(*vectors: Any, **body: Any) -> httpx.Response:
        return client.post("/vectors/upsert", json={"vectors": list(vectors), "namespace": "n"} | body)

    return send


def record(name: str = "a", **fields: Any) -> dict[str, Any]:
    return {"id": name, "values": UP} | fields


def refused(response: httpx.Response, words: str, status: int = 400, code: int = 3) -> bool:
    """Whether this is the data plane's error: gRPC's code, a message and details."""
    body = response.json()
    return (response.status_code, body["code"], body["details"]) == (status, code, []) and words in body["message"]


# ---- who may --------------------------------------------------------------------------------------------------


def test_a_missing_or_invalid_api_key_is_401(client: httpx.Client, stand_in: StandIn) -> None:
    for key in ("", "wrong"):
        assert client.get("/vectors/list", headers={"Api-Key": key}).status_code == 401
        answer = httpx.get(f"{stand_in.url}/indexes/{INDEX}", headers={"Api-Key": key} | VERSION, timeout=60)
        assert answer.json() == {"error": {"code": "UNAUTHENTICATED", "message": "Invalid API key."}, "status": 401}


def test_a_key_without_the_right_is_403(client: httpx.Client) -> None:
    assert client.get("/vectors/list", headers={"Api-Key": FORBIDDEN_KEY}).status_code == 403


def test_the_version_of_the_api_is_required(client: httpx.Client) -> None:
    assert refused(client.get("/vectors/list", headers={"X-Pinecone-Api-Version": ""}), "is required")


# ---- upsert ---------------------------------------------------------------------------------------------------


def test_an_upsert_has_one_to_a_thousand_records(upsert: Post) -> None:
    assert refused(upsert(), "from 1 to 1000")
    assert upsert(*(record(str(n)) for n in range(1_000))).json() == {"upsertedCount": 1_000}
    assert refused(upsert(*(record(str(n)) for n in range(1_001))), "from 1 to 1000")


def test_an_upsert_has_at_most_two_megabytes(upsert: Post, client: httpx.Client) -> None:
    part = {"text": "x" * 39_000}
    assert upsert(*(record(str(n), metadata=part) for n in range(50))).status_code == 200
    assert refused(upsert(*(record(str(n), metadata=part) for n in range(52))), "Request size")


@pytest.mark.parametrize(
    ("name", "words"), [("", "512"), ("x" * 513, "512"), (7, "512"), ("ä", "ASCII"), ("a\0", "ASCII")]
)
def test_an_id_has_one_to_512_ascii_characters(upsert: Post, name: Any, words: str) -> None:
    assert upsert(record("x" * 512)).status_code == 200
    assert refused(upsert(record(name)), words)


def test_a_vector_has_the_dimension_of_the_index(upsert: Post) -> None:
    assert refused(upsert(record(values=[1.0] * 3)), "Vector dimension 3 does not match the dimension of the index 4")
    assert refused(upsert({"id": "a"}), "Vector dimension 0")


def test_a_vector_has_a_value_that_is_not_zero(upsert: Post) -> None:
    assert refused(upsert(record(values=[0.0] * 4)), "at least one non-zero value")


@pytest.mark.parametrize("value", [None, {"a": 1}, [1, 2], ["a", 1], [["a"]]])
def test_metadata_is_strings_numbers_booleans_and_lists_of_strings(upsert: Post, value: Any) -> None:
    fine = {"s": "a", "n": 1, "f": 1.5, "b": True, "l": ["a"], "e": []}
    assert upsert(record(metadata=fine)).status_code == 200
    assert refused(upsert(record(metadata={"x": value})), "must be a string, number, boolean or list of strings")


def test_a_metadata_key_does_not_begin_with_a_dollar(upsert: Post) -> None:
    assert refused(upsert(record(metadata={"$x": 1})), "must not start with $")


def test_metadata_has_at_most_40_kilobytes(upsert: Post) -> None:
    assert upsert(record(metadata={"x": "y" * (40_960 - 8)})).status_code == 200
    assert refused(upsert(record(metadata={"x": "y" * (40_960 - 7)})), "Metadata size is 40961 bytes")


def test_a_number_becomes_a_64_bit_float(upsert: Post, client: httpx.Client) -> None:
    upsert(record(metadata={"x": 2**53 + 1}))
    found = client.get("/vectors/fetch", params={"ids": "a", "namespace": "n"}).json()["vectors"]["a"]
    assert found == {"id": "a", "values": UP, "metadata": {"x": float(2**53)}}


def test_an_upsert_overwrites_a_record_of_the_same_id(upsert: Post, client: httpx.Client) -> None:
    upsert(record(metadata={"x": 1, "y": 1}))
    upsert(record(metadata={"x": 2}))
    found = client.get("/vectors/fetch", params={"ids": "a", "namespace": "n"}).json()["vectors"]["a"]
    assert found["metadata"] == {"x": 2.0}


def test_one_bad_record_refuses_the_request(upsert: Post, stand_in: StandIn) -> None:
    assert upsert(record("a"), record("b", metadata={"x": None})).status_code == 400
    assert stand_in.shown(INDEX, "n") == {}


# ---- namespaces -----------------------------------------------------------------------------------------------


def test_an_upsert_makes_its_namespace_and_reads_see_their_own(upsert: Post, client: httpx.Client) -> None:
    upsert(record("a"))
    upsert(record("b"), namespace="m")
    for space, name in (("n", "a"), ("m", "b")):
        assert [v["id"] for v in client.get("/vectors/list", params={"namespace": space}).json()["vectors"]] == [name]
        assert list(client.get("/vectors/fetch", params={"ids": ["a", "b"], "namespace": space}).json()["vectors"]) == [
            name
        ]


def test_an_unknown_namespace_is_empty_to_read_and_404_to_delete_from(client: httpx.Client) -> None:
    assert client.get("/vectors/list", params={"namespace": "none"}).json()["vectors"] == []
    assert client.get("/vectors/fetch", params={"ids": "a", "namespace": "none"}).json()["vectors"] == {}
    assert client.post("/query", json={"namespace": "none", "topK": 1, "vector": UP}).json()["matches"] == []
    gone = client.post("/vectors/delete", json={"ids": ["a"], "namespace": "none"})
    assert refused(gone, "Namespace not found", 404, 5)
    assert refused(client.delete("/namespaces/none"), "Namespace not found", 404, 5)


def test_deleting_a_namespace_deletes_its_records(upsert: Post, client: httpx.Client) -> None:
    upsert(record())
    assert client.delete("/namespaces/n").json() == {}
    assert client.post("/describe_index_stats", json={}).json()["totalVectorCount"] == 0


def test_statistics_count_the_records_of_each_namespace(upsert: Post, client: httpx.Client) -> None:
    upsert(record("a"), record("b"))
    upsert(record("a"), namespace="m")
    found = client.post("/describe_index_stats", json={}).json()
    assert found["namespaces"] == {"n": {"vectorCount": 2}, "m": {"vectorCount": 1}}
    assert (found["dimension"], found["totalVectorCount"]) == (DIMENSION, 3)


# ---- reading and deleting by id -------------------------------------------------------------------------------


def test_a_fetch_names_one_to_a_thousand_ids_and_leaves_out_unknown_ones(upsert: Post, client: httpx.Client) -> None:
    upsert(record("a"))
    assert list(client.get("/vectors/fetch", params={"ids": ["a", "b"], "namespace": "n"}).json()["vectors"]) == ["a"]
    assert refused(client.get("/vectors/fetch", params={"namespace": "n"}), "from 1 to 1000")
    assert refused(client.get("/vectors/fetch", params={"ids": ["a"] * 1_001, "namespace": "n"}), "from 1 to 1000")


def test_a_list_is_sorted_by_bytes_and_comes_in_pages_of_up_to_a_hundred(upsert: Post, client: httpx.Client) -> None:
    names = sorted(f"{n:03}" for n in range(150))
    upsert(*(record(name) for name in reversed(names)), record("A"), record("z"))
    params: dict[str, Any] = {"namespace": "n"}
    first = client.get("/vectors/list", params=params).json()
    assert [each["id"] for each in first["vectors"]] == names[:100]
    second = client.get("/vectors/list", params=params | {"paginationToken": first["pagination"]["next"]}).json()
    assert [each["id"] for each in second["vectors"]] == [*names[100:], "A", "z"]
    assert "pagination" not in second
    assert len(client.get("/vectors/list", params=params | {"limit": 3}).json()["vectors"]) == 3
    for limit in (0, 101):
        assert refused(client.get("/vectors/list", params=params | {"limit": limit}), "from 1 to 100")


def test_a_list_by_prefix_lists_what_begins_so(upsert: Post, client: httpx.Client) -> None:
    upsert(record("0a#1"), record("0a#2"), record("0b#1"))
    found = client.get("/vectors/list", params={"namespace": "n", "prefix": "0a"}).json()["vectors"]
    assert [each["id"] for each in found] == ["0a#1", "0a#2"]


def test_a_deletion_names_one_to_a_thousand_ids_or_all_or_a_filter(upsert: Post, client: httpx.Client) -> None:
    def delete(**body: Any) -> httpx.Response:
        return client.post("/vectors/delete", json={"namespace": "n"} | body)

    upsert(*(record(name, metadata={"x": name}) for name in "abcd"))
    assert delete(ids=["a", "unknown"]).json() == {}
    assert delete(filter={"x": {"$eq": "b"}}).json() == {}
    assert [v["id"] for v in client.get("/vectors/list", params={"namespace": "n"}).json()["vectors"]] == ["c", "d"]
    assert refused(delete(), "Exactly one")
    assert refused(delete(ids=["a"], deleteAll=True), "Exactly one")
    assert refused(delete(ids=["a"] * 1_001), "from 1 to 1000")
    assert delete(deleteAll=True).json() == {}
    assert client.get("/vectors/list", params={"namespace": "n"}).json()["vectors"] == []


# ---- searching ------------------------------------------------------------------------------------------------


def test_a_query_gives_the_cosine_best_first(upsert: Post, client: httpx.Client) -> None:
    upsert(record("far", values=[0.0, 2.0, 0.0, 0.0]), record("near", values=[3.0, 0.0, 0.0, 0.0]))
    found = client.post("/query", json={"namespace": "n", "topK": 5, "vector": UP}).json()
    assert found["matches"] == [{"id": "near", "score": 1.0}, {"id": "far", "score": 0.0}]


def test_a_query_asks_for_one_to_ten_thousand_results(client: httpx.Client) -> None:
    for top in (0, 10_001, None):
        assert refused(client.post("/query", json={"namespace": "n", "topK": top, "vector": UP}), "from 1 to 10000")
    assert client.post("/query", json={"namespace": "n", "topK": 10_000, "vector": UP}).status_code == 200


def test_a_result_has_at_most_four_megabytes(upsert: Post, client: httpx.Client) -> None:
    for start in range(0, 150, 50):
        upsert(*(record(str(start + n), metadata={"x": "y" * 39_000}) for n in range(50)))
    query = {"namespace": "n", "topK": 150, "vector": UP}
    assert client.post("/query", json=query).status_code == 200
    assert refused(client.post("/query", json=query | {"includeMetadata": True}), "4 MB")


@pytest.mark.parametrize(
    ("condition", "found"),
    [
        ({"n": {"$eq": 1}}, "a"),
        ({"n": 1}, "a"),
        ({"n": {"$ne": 1}}, "bc"),
        ({"n": {"$gte": 1}}, "ab"),
        ({"n": {"$gt": 1}}, "b"),
        ({"n": {"$lt": 2}}, "a"),
        ({"n": {"$lte": 2}}, "ab"),
        ({"n": {"$in": [2, 3]}}, "b"),
        ({"n": {"$nin": [2, 3]}}, "ac"),
        ({"n": {"$exists": False}}, "c"),
        # A list passes if one of its elements does.
        ({"l": {"$eq": "x"}}, "ab"),
        ({"$and": [{"l": {"$eq": "x"}}, {"l": {"$eq": "y"}}]}, "a"),
        ({"$or": [{"n": {"$eq": 2}}, {"f": {"$eq": True}}]}, "bc"),
        ({"f": {"$eq": 1}}, ""),
    ],
)
def test_filters_select_by_metadata(upsert: Post, client: httpx.Client, condition: Any, found: str) -> None:
    upsert(
        record("a", metadata={"n": 1, "l": ["x", "y"]}),
        record("b", metadata={"n": 2, "l": ["x"]}),
        record("c", metadata={"f": True}),
    )
    query = {"namespace": "n", "topK": 9, "vector": UP, "filter": condition}
    assert sorted(match["id"] for match in client.post("/query", json=query).json()["matches"]) == list(found)


@pytest.mark.parametrize(
    "condition", [{}, {"n": {"$like": "a"}}, {"n": {"$eq": ["a"]}}, {"n": {"$eq": None}}, {"$and": []}]
)
def test_what_is_no_filter_is_refused(upsert: Post, client: httpx.Client, condition: Any) -> None:
    upsert(record("a", metadata={"n": 1}))
    query = {"namespace": "n", "topK": 9, "vector": UP, "filter": condition}
    assert client.post("/query", json=query).status_code == 400


# ---- eventual consistency, and being away ---------------------------------------------------------------------


def test_writes_are_numbered_and_a_query_says_how_far_the_index_is(
    upsert: Post, client: httpx.Client, stand_in: StandIn
) -> None:
    stand_in.lag = 2

    def query() -> tuple[str, int]:
        answer = client.post("/query", json={"namespace": "n", "topK": 9, "vector": UP})
        return answer.headers["x-pinecone-max-indexed-lsn"], len(answer.json()["matches"])

    assert upsert(record("a")).headers["x-pinecone-request-lsn"] == "1"
    gone = client.post("/vectors/delete", json={"ids": ["none"], "namespace": "n"})
    assert gone.headers["x-pinecone-request-lsn"] == "2"
    assert upsert(record("a"), namespace="m").headers["x-pinecone-request-lsn"] == "1"
    assert client.get("/vectors/list", params={"namespace": "n"}).json()["vectors"] == []
    assert [query(), query(), query()] == [("0", 0), ("0", 0), ("2", 1)]


def test_a_request_over_the_rate_is_429_and_may_say_how_long_to_wait(client: httpx.Client, stand_in: StandIn) -> None:
    stand_in.every, stand_in.retry_after = 2, 7
    assert client.get("/vectors/list").status_code == 200
    answer = client.get("/vectors/list")
    assert (answer.status_code, answer.headers["retry-after"], answer.json()["code"]) == (429, "7", 8)


def test_it_is_away_and_back_with_what_it_held(upsert: Post, client: httpx.Client, stand_in: StandIn) -> None:
    upsert(record())
    stand_in.trouble(503)
    assert client.get("/vectors/list").status_code == 503
    stand_in.stop()
    with pytest.raises(httpx.TransportError):
        client.get("/vectors/list")
    stand_in.start()
    assert len(client.get("/vectors/list", params={"namespace": "n"}).json()["vectors"]) == 1


# ---- the protocol ---------------------------------------------------------------------------------------------


def test_pinecones_own_client_works_against_it(stand_in: StandIn) -> None:
    from pinecone import Pinecone, ServerlessSpec
    from pinecone.errors import ApiError, ConflictError, NotFoundError, UnauthorizedError

    with pytest.raises(UnauthorizedError):
        Pinecone(api_key="wrong", host=stand_in.url).describe_index(INDEX)
    own = Pinecone(api_key=API_KEY, host=stand_in.url)
    with pytest.raises(NotFoundError):
        own.describe_index("none")
    with pytest.raises(ConflictError):
        own.create_index(INDEX, dimension=4, metric="cosine", spec=ServerlessSpec(cloud="aws", region="us-east-1"))
    made = own.create_index("made", dimension=4, metric="cosine", spec=ServerlessSpec(cloud="aws", region="us-east-1"))
    assert (made.dimension, made.metric, made.deployment.cloud) == (4, "cosine", "aws")
    index = own.Index(host=made.host)
    values = np.random.default_rng(1).normal(size=4).astype(np.float32)
    answer = index.upsert(vectors=[("a#1", values.tolist(), {"x": ["a"], "n": 1})], namespace="n")
    assert (answer.upserted_count, answer.response_info.lsn_committed) == (1, 1)
    found = index.query(vector=values.tolist(), top_k=1, namespace="n", include_metadata=True, filter={"n": 1})
    assert (found.matches[0].id, found.matches[0].metadata) == ("a#1", {"x": ["a"], "n": 1})
    assert found.response_info.is_reconciled(1)
    # A float32 comes back as it was.
    there = index.fetch(ids=["a#1"], namespace="n").vectors["a#1"]
    assert np.array_equal(np.asarray(there.values, dtype=np.float32), values)
    assert [item.id for page in index.list(prefix="a", namespace="n") for item in page.vectors] == ["a#1"]
    assert index.describe_index_stats().namespaces["n"].vector_count == 1
    with pytest.raises(ApiError) as fault:
        index.upsert(vectors=[("b", [1.0], {})], namespace="n")
    assert fault.value.status_code == 400
    index.delete(ids=["a#1"], namespace="n")
    assert index.fetch(ids=["a#1"], namespace="n").vectors == {}
    index.delete_namespace(name="n")

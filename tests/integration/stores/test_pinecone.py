"""The Pinecone store: what is its own. Against the stand-in; what every store must do is in the contract."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg import sql
from psycopg.rows import TupleRow
from pydantic import SecretStr

from sophia.catalog import Catalog
from sophia.database import Database
from sophia.database.embedded import EmbeddedPostgres
from sophia.errors import ConfigurationError, FencedError, TemporaryError, UnreachableError
from sophia.settings import Settings
from sophia.stores.base import Scope, vector_hash
from sophia.stores.pinecone import PineconeStore
from sophia.stores.pinecone_http import OVERRUN_SECONDS, Answer
from sophia.stores.pinecone_records import METADATA_BYTES
from sophia.stores.pinecone_writes import remove
from tests.conftest import drop_database
from tests.embedders import hash_vector
from tests.integration.stores.documents import DIMENSION, key
from tests.integration.stores.pinecone_stand import INDEX, PineconeStand
from tests.pinecone_stand_in import StandIn, rules
from tests.pinecone_stand_in.server import FORBIDDEN_KEY
from tests.waiting import until


@pytest.fixture(scope="module")
def shared(server: EmbeddedPostgres, template: str) -> Iterator[psycopg.Connection[TupleRow]]:
    """A connection to a database of this module's own."""
    name = "pinecone_tests"
    with psycopg.connect(server.url(), autocommit=True) as maintenance:
        maintenance.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
        )
        with Database(server.url(name)).connect("sophia-test") as connection:
            yield connection
        drop_database(maintenance, name)


@pytest.fixture(scope="module")
def stand_in() -> Iterator[StandIn]:
    server = StandIn()
    yield server
    server.stop()


@pytest.fixture
def stand(
    shared: psycopg.Connection[TupleRow], catalog: Catalog, settings: Settings, stand_in: StandIn
) -> Iterator[PineconeStand]:
    stand = PineconeStand(shared, catalog, settings, stand_in)
    yield stand
    stand.store.close()


# ---- the index ------------------------------------------------------------------------------------------------


def test_an_index_of_another_dimension_or_metric_is_refused(stand: PineconeStand) -> None:
    version = stand.version(ensure=False)
    stand.server.create(INDEX, DIMENSION + 1)
    with pytest.raises(ConfigurationError, match=f"dimension {DIMENSION + 1} and metric cosine; dimension {DIMENSION}"):
        stand.store.ensure(stand.connection, version)
    stand.server.create(INDEX, DIMENSION, metric="euclidean")
    with pytest.raises(ConfigurationError, match="metric euclidean"):
        stand.store.ensure(stand.connection, version)


def test_an_index_of_pods_is_refused(stand: PineconeStand) -> None:
    stand.server.create(INDEX, DIMENSION, pods=True)
    with pytest.raises(ConfigurationError, match="not serverless"):
        stand.version()


def test_a_missing_index_is_made_only_where_the_settings_say_where(stand: PineconeStand) -> None:
    del stand.server.indexes[INDEX]
    with pytest.raises(ConfigurationError, match=r"make a serverless one of dimension 384.*SOPHIA_PINECONE__CLOUD"):
        stand.version()
    assert not stand.server.indexes
    maker = stand.with_settings(cloud="aws", region="eu-west-1")
    version = stand.version(ensure=False)
    maker.ensure(stand.connection, version)
    maker.ensure(stand.connection, version)
    made = stand.server.indexes[INDEX]
    assert (made.dimension, made.metric, made.deployment["region"]) == (DIMENSION, "cosine", "eu-west-1")


@pytest.mark.parametrize("name", ["Sophia", "a_b", "a" * 46, "a-"])
def test_a_name_that_pinecone_does_not_take_is_said(stand: PineconeStand, name: str) -> None:
    with pytest.raises(ConfigurationError, match="change class_name"):
        stand.version(class_name=name)


def test_a_column_of_a_name_that_is_taken_is_refused(stand: PineconeStand) -> None:
    with pytest.raises(ConfigurationError, match="'sophia_key'"):
        stand.version(metadata=("sophia_key",))


@pytest.mark.parametrize(
    ("secret", "said"),
    [("wrong", "HTTP 401"), (FORBIDDEN_KEY, "HTTP 403"), (" ", "needs an API"), ("a\nb", "no header")],
)
def test_a_key_that_may_not_is_a_matter_of_configuration(stand: PineconeStand, secret: str, said: str) -> None:
    version = stand.version()
    other = PineconeStore(stand.settings.model_copy(update={"pinecone_api_key": SecretStr(secret)}))
    with pytest.raises(ConfigurationError, match=said) as fault:
        other.ensure(stand.connection, version)
    assert secret.strip() == "" or secret not in str(fault.value)
    stand.server.trouble(403)
    with pytest.raises(ConfigurationError, match="HTTP 403"):
        stand.search(version, "a")


def test_an_index_that_was_made_anew_is_found_again(stand: PineconeStand) -> None:
    version = stand.version()
    stand.write(version, stand.document(version, 1, ["one"]))
    del stand.server.indexes[INDEX]
    with pytest.raises(TemporaryError, match="its address is asked again"):
        stand.search(version, "one")
    with pytest.raises(ConfigurationError, match=f"no index {INDEX}"):
        stand.search(version, "one")
    stand.server.create(INDEX, DIMENSION)
    assert stand.search(version, "one") == []


# ---- writing --------------------------------------------------------------------------------------------------


def test_versions_are_namespaces_of_one_index(stand: PineconeStand) -> None:
    first, second = stand.version(), stand.version(chunk_tokens=99)
    stand.write(first, stand.document(first, 1, ["old"]))
    stand.write(second, stand.document(second, 1, ["new"]))
    assert set(stand.server.indexes[INDEX].namespaces) == {first.store_name, second.store_name}
    assert [text for text, _ in stand.search(first, "x")] == ["old"]
    assert [text for text, _ in stand.search(second, "x")] == ["new"]
    stand.store.drop(stand.connection, first)
    stand.store.drop(stand.connection, first)
    assert set(stand.server.indexes[INDEX].namespaces) == {second.store_name}


def test_ids_are_the_bucket_and_the_chunk_and_metadata_is_flat(stand: PineconeStand) -> None:
    version = stand.version(metadata=("text", "number", "huge", "flag", "tags", "nested", "nothing", "mixed"))
    given = {
        "text": "t",
        "number": 5,
        "huge": 2**60 + 1,
        "flag": True,
        "tags": ["a", "b"],
        "nested": {"b": [1], "a": None},
        "nothing": None,
        "mixed": [1, "a"],
    }
    stand.write(version, stand.document(version, 1, ["one"], metadata=given))
    (name,) = stand.shown(version)
    assert name == stand.id(version, 1)
    metadata = stand.shown(version)[name]["metadata"]
    assert {field: metadata.get(field) for field in given} == {
        "text": "t",
        "number": 5.0,
        "huge": str(2**60 + 1),
        "flag": True,
        "tags": ["a", "b"],
        "nested": '{"a": null, "b": [1]}',
        "nothing": None,
        "mixed": '[1, "a"]',
    }
    hit = stand.store.search(stand.connection, version, _query("one"))[0]
    assert hit.metadata == given
    assert type(hit.metadata["number"]) is int


def test_a_document_whose_metadata_is_too_large_is_refused_before_it_is_sent(stand: PineconeStand) -> None:
    version = stand.version()
    stand.write(version, stand.document(version, 1, ["a", "b"]), stand.document(version, 2, ["c"]))
    before = stand.server.asked("/vectors/upsert")
    refused = stand.write(version, stand.document(version, 1, ["new", "x" * METADATA_BYTES], held=2))
    assert list(refused) == [key(1)]
    assert "chunk 1 have 41," in refused[key(1)]
    assert "40,960" in refused[key(1)]
    assert "xxx" not in refused[key(1)]
    assert stand.server.asked("/vectors/upsert") == before
    assert stand.texts(version) == ["c"]


def test_a_vector_of_zeros_is_refused(stand: PineconeStand) -> None:
    version = stand.version()
    zeros = {0: np.zeros(DIMENSION, dtype=np.float32)}
    refused = stand.write(version, stand.document(version, 1, ["a"], vectors=zeros), stand.document(version, 2, ["b"]))
    assert "all zeros" in refused[key(1)]
    assert stand.texts(version) == ["b"]


def test_a_record_that_only_pinecone_refuses_is_found_by_halving(
    stand: PineconeStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "METADATA_BYTES", 2_000)
    version = stand.version()
    documents = [stand.document(version, n, [f"text {n}"]) for n in range(40)]
    documents[17] = stand.document(version, 17, ["short", "y" * 3_000])
    refused = stand.write(version, *documents)
    assert list(refused) == [key(17)]
    assert refused[key(17)].startswith("Pinecone refuses chunk 1 (HTTP 400, code 3")
    assert "yyy" not in refused[key(17)]
    # Not the first chunk of it either, which Pinecone had taken.
    assert stand.texts(version) == sorted(f"text {n}" for n in range(40) if n != 17)
    assert stand.server.asked("/vectors/upsert") < 16


def test_records_are_not_blamed_where_pinecone_refuses_all(stand: PineconeStand) -> None:
    version = stand.version()
    stand.server.indexes[INDEX].dimension = DIMENSION + 1
    with pytest.raises(ConfigurationError, match="refuses every record"):
        stand.write(version, *(stand.document(version, n, ["text"]) for n in range(20)))


def test_requests_stay_within_two_megabytes_and_a_thousand_records(stand: PineconeStand) -> None:
    version = stand.version()
    long = "z" * 30_000
    assert stand.write(version, *(stand.document(version, n, [f"{n} {long}"]) for n in range(130))) == {}
    assert stand.server.asked("/vectors/upsert") == 3
    assert len(stand.shown(version)) == 130


def test_a_write_that_fails_has_no_request_under_way(stand: PineconeStand, monkeypatch: pytest.MonkeyPatch) -> None:
    version = stand.version()
    long = "z" * 30_000
    over = threading.Event()
    numbers = itertools.count()
    late: list[bool] = []

    def post(*_: Any) -> Answer:
        number = next(numbers)
        if number == 1:
            raise TemporaryError("away")
        if number > 1:
            late.append(over.wait(0.3))
        return Answer({}, None, None)

    with monkeypatch.context() as patched:
        patched.setattr(stand.store._http, "post", post)
        with pytest.raises(TemporaryError, match="away"):
            stand.write(version, *(stand.document(version, n, [f"{n} {long}"]) for n in range(200)))
        over.set()
    assert late
    assert not any(late)


def test_what_goes_is_deleted_by_the_ids_of_the_ledger(stand: PineconeStand) -> None:
    version = stand.version()
    stand.write(version, stand.document(version, 1, ["a", "b", "c"]), stand.document(version, 2, ["d"]))
    # A filter on metadata would not find it.
    stand.shown(version)[stand.id(version, 1, 2)]["metadata"]["sophia_key"] = "[9]"
    stand.write(version, stand.document(version, 1, ["a"], held=3))
    assert stand.texts(version) == ["a", "d"]
    stand.write(version, stand.document(version, 2, None, held=1))
    assert stand.texts(version) == ["a"]
    bodies = [path for _, path in stand.server.requests if path.endswith("/vectors/delete")]
    assert len(bodies) == 2


def test_a_repair_replaces_also_what_no_ledger_knows(stand: PineconeStand) -> None:
    version = stand.version()
    stand.write(version, *(stand.document(version, n, [f"text {n}"]) for n in range(70)))
    shown = stand.shown(version)
    for n, place in ((1, "0" * 4), (2, stand.id(version, 2)[:4])):
        shown[f"{place}#by-hand"] = {**shown[stand.id(version, n)]}
    found = list(stand.store.inventory(stand.connection, version, Scope()))
    assert sorted(len(each.ids) for each in found if each.key in (key(1), key(2))) in ([1, 1, 2], [2, 2])
    # More keys than are listed one by one: what the comparison came across is remembered.
    stand.write(version, *(stand.document(version, n, [f"text {n}"], held=1) for n in range(70)), replace=True)
    assert set(stand.shown(version)) == {stand.id(version, n) for n in range(70)}


def test_unchanged_text_keeps_its_vector_and_loses_a_column_that_became_null(stand: PineconeStand) -> None:
    version = stand.version()
    odd = {0: hash_vector("odd", DIMENSION)}
    stand.write(version, stand.document(version, 1, ["a"], vectors=odd))
    stand.write(version, stand.document(version, 1, ["a"], vectors=odd, kept=[0], held=1, metadata={"module": "n"}))
    record = stand.shown(version)[stand.id(version, 1)]
    assert vector_hash(record["values"]) == vector_hash(odd[0])
    assert record["metadata"]["module"] == "n"
    assert "kind" not in record["metadata"]


def test_a_kept_vector_that_is_not_shown_yet_is_waited_for(stand: PineconeStand) -> None:
    version = stand.version()
    stand.server.lag = 3
    stand.write(version, stand.document(version, 1, ["a"]))
    assert stand.shown(version) == {}
    stand.write(version, stand.document(version, 1, ["a"], kept=[0], held=1, metadata={"module": "n"}))
    stand.server.catch_up()
    assert stand.shown(version)[stand.id(version, 1)]["metadata"]["module"] == "n"


def test_a_kept_vector_that_was_edited_goes(stand: PineconeStand, caplog: pytest.LogCaptureFixture) -> None:
    version = stand.version()
    stand.write(version, stand.document(version, 1, ["a", "b"]))
    stand.shown(version)[stand.id(version, 1)]["values"] = hash_vector("else", DIMENSION)
    with caplog.at_level(logging.WARNING, "sophia.stores"):
        stand.write(version, stand.document(version, 1, ["a", "b"], kept=[0, 1], held=2))
    assert stand.texts(version) == ["b"]
    assert "1 of 2 unchanged chunks" in caplog.text


# ---- being away -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 408])
def test_what_passes_is_asked_again(stand: PineconeStand, status: int) -> None:
    version = stand.version()
    stand.server.trouble(status, 2, path="/vectors/upsert", retry_after=0.01)
    assert stand.write(version, stand.document(version, 1, ["a"])) == {}
    assert stand.server.asked("/vectors/upsert") == 3
    assert stand.texts(version) == ["a"]


def test_an_answer_that_is_not_about_the_record_blames_none(stand: PineconeStand) -> None:
    version = stand.version()
    # As of a proxy that wants a login.
    stand.server.trouble(302, path="/vectors/upsert")
    stand.server.trouble(405, path="/vectors/upsert")
    assert stand.write(version, stand.document(version, 1, ["a"])) == {}
    assert stand.texts(version) == ["a"]


def test_a_limited_rate_slows_down_and_loses_nothing(stand: PineconeStand) -> None:
    version = stand.version()
    stand.server.every, stand.server.retry_after = 3, 0.01
    for n in range(10):
        stand.write(version, stand.document(version, n, [f"text {n}"]))
    assert len(stand.stored(version)) == 10


def test_a_pause_beyond_the_deadline_is_not_waited_for(stand: PineconeStand) -> None:
    version = stand.version()
    stand.server.trouble(429, 1, retry_after=3600)
    with pytest.raises(TemporaryError, match=r"within 30 s: HTTP 429.*quota of the month"):
        stand.search(version, "a")


def test_a_lost_answer_is_no_lost_write(stand: PineconeStand) -> None:
    version = stand.version()
    stand.server.trouble(504, 1, path="/vectors/upsert", late=True)
    stand.server.trouble(504, 1, path="/vectors/delete", late=True)
    stand.write(version, stand.document(version, 1, ["a"], held=2))
    assert stand.texts(version) == ["a"]


def test_a_store_that_is_down_is_temporary_and_goes_on_when_it_is_back(stand: PineconeStand) -> None:
    version = stand.version()
    quick = stand.with_settings(write_seconds=0.3, read_seconds=0.3)
    until(lambda: _taken(stand, version, quick), "a write within so short a time")
    stand.server.stop()
    # Nothing of it is under way, so whoever holds the lease need not wait.
    with pytest.raises(UnreachableError, match=r"did not take the request within 0.3 s: ConnectError"):
        stand.write(version, stand.document(version, 2, ["b"]), store=quick)
    # One that does not know yet where the index is.
    another = stand.with_settings(write_seconds=0.3, read_seconds=0.3)
    with pytest.raises(UnreachableError, match="control plane"):
        stand.write(version, stand.document(version, 2, ["b"]), store=another)
    with pytest.raises(UnreachableError):
        quick.ensure(stand.connection, version)
    stand.server.start()
    stand.write(version, stand.document(version, 2, ["b"]))
    assert stand.texts(version) == ["a", "b"]
    quick.close()


def _taken(stand: PineconeStand, version: Any, store: Any) -> bool:
    try:
        stand.write(version, stand.document(version, 1, ["a"]), store=store)
    except TemporaryError:
        return False
    return True


def test_a_part_that_is_taken_is_repeated_whole(stand: PineconeStand) -> None:
    version = stand.version()
    long = "z" * 30_000
    documents = [stand.document(version, n, [f"{n} {long}"]) for n in range(100)]
    stand.server.every = 2
    stand.server.retry_after = 60
    with pytest.raises(TemporaryError) as fault:
        stand.write(version, *documents)
    assert not isinstance(fault.value, UnreachableError)
    assert 0 < len(stand.shown(version)) < 100
    stand.server.every = 0
    assert stand.write(version, *documents) == {}
    assert len(stand.shown(version)) == 100


def test_a_write_is_over_when_it_says(stand: PineconeStand) -> None:
    assert stand.store.write_seconds > stand.settings.pinecone.write_seconds + OVERRUN_SECONDS


def test_several_threads_write_through_one_client(stand: PineconeStand) -> None:
    version = stand.version()
    documents = [stand.document(version, n, [f"text {n}"]) for n in range(40)]
    with ThreadPoolExecutor(4) as pool:
        for part in [documents[n::4] for n in range(4)]:
            pool.submit(stand.store.write, stand.connection, version, part, "test")
    assert len(stand.shown(version)) == 40


def test_no_text_and_no_key_is_in_a_message_or_in_the_log(
    stand: PineconeStand, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def quote(metadata: dict[str, Any]) -> None:
        raise rules.Fault(400, rules.INVALID_ARGUMENT, f"got '{metadata['content']}'")

    monkeypatch.setattr(rules, "check_metadata", quote)
    version = stand.version()
    with caplog.at_level(logging.DEBUG):
        refused = stand.write(version, stand.document(version, 1, ["secret text"]))
        stand.server.trouble(429, 1, retry_after=60)
        with pytest.raises(TemporaryError) as fault:
            stand.search(version, "secret text")
    said = caplog.text + str(refused) + str(fault.value)
    assert "secret text" not in said
    assert "pc-test-key" not in said


# ---- what it shows --------------------------------------------------------------------------------------------


def test_a_fresh_write_that_is_not_shown_yet_is_waited_for_whoever_wrote_it(stand: PineconeStand) -> None:
    version = stand.version()
    stand.server.lag = 4
    # Another process: this one knows nothing of the position of that write.
    other = stand.with_settings()
    stand.write(version, stand.document(version, 1, ["a"]), store=other)
    assert list(stand.stored(version)) == [key(1)]
    stand.write(version, stand.document(version, 1, None, held=1), store=other)
    assert stand.stored(version) == {}


def test_an_index_that_nobody_wrote_to_is_not_asked_again(stand: PineconeStand) -> None:
    version = stand.version()
    stand.write(version, stand.document(version, 1, ["a"]))
    for _ in range(3):
        assert len(stand.stored(version)) == 1
    assert stand.server.asked("/query") == 1
    stand.server.lag = 3
    stand.write(version, stand.document(version, 2, ["b"]), store=stand.with_settings())
    assert len(stand.stored(version)) == 2
    assert len(stand.stored(version)) == 2
    assert stand.server.asked("/query") == 5


def test_an_index_that_does_not_catch_up_is_no_difference(stand: PineconeStand) -> None:
    version = stand.version()
    stand.server.lag = None
    stand.write(version, stand.document(version, 1, ["a"]))
    quick = stand.with_settings(fresh_seconds=0.3)
    with pytest.raises(TemporaryError, match=r"did not show what was written within 0.3 s: its index is at 0 of 2"):
        list(quick.inventory(stand.connection, version, Scope()))


def test_without_positions_time_is_left(stand: PineconeStand, caplog: pytest.LogCaptureFixture) -> None:
    version = stand.version()
    stand.server.positions = False
    quick = stand.with_settings(settle_seconds=0.01)
    stand.write(version, stand.document(version, 1, ["a"]))
    assert len(list(quick.inventory(stand.connection, version, Scope()))) == 1
    assert len(list(quick.inventory(stand.connection, version, Scope()))) == 1
    assert caplog.text.count("does not say how far its index is") == 1


def test_a_version_that_was_never_written_is_empty(stand: PineconeStand) -> None:
    version = stand.version()
    assert stand.stored(version) == {}
    assert stand.search(version, "a") == []
    assert stand.store.counts(stand.connection, version) == (0, 0)
    assert stand.store.erase(stand.connection, version, [key(1)]) == 0
    stand.store.discard(stand.connection, version, [key(1)])
    stand.store.drop(stand.connection, version)


def test_a_version_that_was_retired_is_gone_and_not_empty(stand: PineconeStand) -> None:
    version = stand.version()
    stand.write(version, stand.document(version, 1, ["a"]))
    state = "UPDATE sophia.index_versions SET state = %s WHERE id = %s"
    stand.connection.execute(state, ["retired", version.id])
    stand.store.drop(stand.connection, version)
    with pytest.raises(FencedError):
        stand.search(version, "a")
    with pytest.raises(FencedError):
        stand.stored(version)
    stand.connection.execute(state, ["serving", version.id])


def test_a_comparison_reads_every_bucket_and_only_those_of_its_scope(stand: PineconeStand) -> None:
    version = stand.version()
    stand.write(version, *(stand.document(version, n, [f"text {n}", "more"]) for n in range(150)))
    everything = stand.stored(version)
    assert len(everything) == 150
    parts: dict[Any, Any] = {}
    for first, last in ((0, 4_095), (4_096, 30_001), (30_002, 65_535)):
        part = stand.stored(version, Scope(first, last))
        assert not parts.keys() & part.keys()
        parts |= part
    assert parts == everything
    some = stand.stored(version, Scope(keys=(key(3), key(5), key(999))))
    assert some == {each: everything[each] for each in (key(3), key(5))}
    many = stand.stored(version, Scope(keys=tuple(key(n) for n in range(100))))
    assert many == {key(n): everything[key(n)] for n in range(100)}


def test_what_was_edited_behind_our_back_shows(stand: PineconeStand) -> None:
    version = stand.version()
    stand.write(version, *(stand.document(version, n, [f"text {n}"]) for n in range(6)))
    before = stand.stored(version)
    shown = stand.shown(version)
    shown[stand.id(version, 0)]["metadata"]["content"] = "edited"
    shown[stand.id(version, 1)]["values"] = hash_vector("edited", DIMENSION)
    shown[stand.id(version, 2)]["metadata"]["module"] = "edited"
    shown[stand.id(version, 3)]["metadata"]["sophia_clock"] = "edited"
    shown[stand.id(version, 4)]["metadata"].clear()
    shown["zz"] = {"values": hash_vector("zz", DIMENSION), "metadata": {}}
    found = stand.stored(version)
    assert [key(n) for n in range(6) if found.get(key(n)) == before[key(n)]] == [key(5)]
    # Without a key it is someone else's record; it is no result, and a repair discards it.
    stray = next(each for each in found if each not in before)
    assert stray == stand.id(version, 4)
    assert "" not in [text for text, _ in stand.search(version, "zz")]
    stand.store.discard(stand.connection, version, [stray])
    assert stand.id(version, 4) not in stand.shown(version)


def test_an_erasure_finds_also_what_no_ledger_knows_and_is_verified(stand: PineconeStand) -> None:
    version = stand.version()
    stand.write(version, stand.document(version, 1, ["a", "b"]), stand.document(version, 2, ["c"]))
    shown = stand.shown(version)
    shown[f"{stand.id(version, 1)[:4]}#by-hand"] = {**shown[stand.id(version, 1)]}
    stand.server.lag = 2
    assert stand.store.erase(stand.connection, version, [key(1)]) == 3
    assert stand.texts(version) == ["c"]


def test_an_erasure_that_is_not_shown_is_not_done(stand: PineconeStand, monkeypatch: pytest.MonkeyPatch) -> None:
    version = stand.version()
    stand.write(version, stand.document(version, 1, ["a"]))
    with monkeypatch.context() as patched:
        # Deletions that are taken and have no effect.
        patched.setattr("sophia.stores.pinecone.remove", lambda *_: None)
        with pytest.raises(TemporaryError, match="still shows 1 of 1 records"):
            stand.with_settings(write_seconds=2.0).erase(stand.connection, version, [key(1)])
    stand.server.lag = None
    with pytest.raises(TemporaryError, match="did not show"):
        stand.with_settings(fresh_seconds=0.3).erase(stand.connection, version, [key(1)])
    stand.server.lag = 0
    assert stand.store.erase(stand.connection, version, [key(1)]) == 1


def test_an_erasure_sends_nothing_behind_the_leases_of_its_shards(
    stand: PineconeStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They last as long as a write: what is waited for before the deletion is a part of that time."""
    version = stand.version()
    stand.write(version, stand.document(version, 1, ["a"]))
    given: list[Any] = []
    caught_up = stand.store._reader.caught_up

    def noted(version: Any, deadline: Any = None) -> bool:
        given.append(deadline)
        return caught_up(version, deadline)

    with monkeypatch.context() as patched:
        patched.setattr(stand.store._reader, "caught_up", noted)
        patched.setattr("sophia.stores.pinecone.remove", lambda *args: given.append(args[-1]) or remove(*args))
        assert stand.store.erase(stand.connection, version, [key(1)]) == 1
    before, deletion, _ = given
    assert deletion is before
    assert deletion.seconds == stand.settings.pinecone.write_seconds


# ---- searching ------------------------------------------------------------------------------------------------


def test_hybrid_search_is_refused(stand: PineconeStand) -> None:
    version = stand.version()
    with pytest.raises(ConfigurationError, match="no words"):
        stand.search(version, "a", hybrid=True)


def test_filters_compare_as_the_documents_have_it(stand: PineconeStand) -> None:
    version = stand.version(metadata=("value",))
    values = ["1", 1, 1.5, True, None, ["a", "b"], ["a"], "a", {"a": 1}, 2**60 + 1, str(2**60 + 1), []]
    stand.write(version, *(stand.document(version, n, [f"{n}"], metadata={"value": v}) for n, v in enumerate(values)))
    for n, value in enumerate(values):
        found = [text for text, _ in stand.search(version, "x", k=1, filters={"value": value})]
        assert found == [f"{n}"], value
    assert stand.search(version, "x", filters={"value": "b"}) == []
    assert [text for text, _ in stand.search(version, "x", filters={"value": 1.0})] == ["1"]


def test_many_results_are_fetched_beyond_the_size_of_an_answer(stand: PineconeStand) -> None:
    version = stand.version()
    long = "z" * 30_000
    stand.write(version, *(stand.document(version, n, [f"{n} {long}"]) for n in range(150)))
    found = stand.search(version, "x", k=150)
    assert len(found) == 150
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)


def test_a_wide_search_stands_for_an_exact_one(stand: PineconeStand) -> None:
    version = stand.version()
    stand.write(version, *(stand.document(version, n, [f"text {n}"]) for n in range(120)))
    exact = stand.search(version, "text 7", k=5, exact=True)
    assert exact == stand.search(version, "text 7", k=5)
    assert exact[0] == ("text 7", pytest.approx(1.0, abs=1e-6))


def _query(text: str, **more: Any) -> Any:
    from sophia.stores.base import Query

    return Query(vector=hash_vector(text, DIMENSION), text=text, **more)

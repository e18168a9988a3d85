"""The embedding cache, one suite for both of its stores, on real servers."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg.rows import TupleRow

from sophia import failpoints
from sophia.catalog import Catalog
from sophia.catalog.models import EmbeddingModel, Retention
from sophia.database import Database
from sophia.database.embedded import EmbeddedPostgres, running_url
from sophia.embedding import RefusedTextsError, Vectors, load_embedder, model_fingerprint, postgres_cache, redis_cache
from sophia.embedding import cache as cache_module
from sophia.embedding.base import Kind
from sophia.embedding.cache import BATCH, SHORT_CALL, CachedEmbedder, uncached
from sophia.embedding.endpoint import EndpointEmbedder
from sophia.embedding.postgres_cache import PostgresCache, erase_vectors
from sophia.erasure import Erasure, erase
from sophia.errors import ConfigurationError, SophiaError, TemporaryError
from sophia.indexing.verify import verify
from sophia.retention import apply_retention
from sophia.settings import load_settings
from sophia.stores import PgvectorStore
from tests.embedders import HashEmbedder, hash_vector
from tests.integration.caches import BrokenCache, PostgresStand, RedisStand, Stand, waits_for_a_lock
from tests.integration.library import Library, key
from tests.proxy import Proxy
from tests.waiting import until

Connection = psycopg.Connection[TupleRow]
TEXTS = [f"text {number}" for number in range(12)]
MODEL = "hash-384"
NO_PREFIX: Mapping[Kind, str] = {"document": "", "query": ""}
Q = postgres_cache.Q


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may halt for longer than a live process waits."""
    monkeypatch.setattr(postgres_cache, "WAIT_SECONDS", 60)


@pytest.fixture
def postgres(database: Database) -> Iterator[PostgresStand]:
    stand = PostgresStand(database)
    yield stand
    stand.close()


@pytest.fixture(params=["postgres", "redis_server"])
def stand(request: pytest.FixtureRequest) -> Stand:
    made: Stand = request.getfixturevalue(request.param)
    return made


def cached(stand: Stand, inner: HashEmbedder | None = None, **options: Any) -> CachedEmbedder:
    """An embedder of its own, as in another process."""
    return CachedEmbedder(inner or HashEmbedder(), stand.cache(), options.pop("prefixes", NO_PREFIX), **options)


def embedded(embedder: CachedEmbedder) -> list[str]:
    """The document texts that were really embedded."""
    assert isinstance(embedder.inner, HashEmbedder)
    return embedder.inner.texts


def are_of(vectors: Vectors, texts: Sequence[str]) -> bool:
    return bool(np.array_equal(vectors, np.stack([hash_vector(text) for text in texts])))


# ---- what answers ----------------------------------------------------------------------------------------------


def test_a_text_is_embedded_once_in_all_processes(stand: Stand) -> None:
    first = cached(stand)
    assert are_of(first.embed(TEXTS), TEXTS)
    again = cached(stand)
    assert are_of(again.embed(TEXTS), TEXTS), "to the bit"
    assert embedded(first) == TEXTS
    assert embedded(again) == []
    assert (first.figures.texts, first.figures.cache_hits) == (12, 0)
    assert (again.figures.texts, again.figures.cache_hits, again.figures.tokens) == (12, 12, 0)


def test_what_is_missing_is_embedded_and_put_in_its_place(stand: Stand) -> None:
    cached(stand).embed(TEXTS)
    mixed = [text for pair in zip(TEXTS, [f"new {text}" for text in TEXTS], strict=True) for text in pair]
    embedder = cached(stand)
    assert are_of(embedder.embed(mixed), mixed)
    assert embedded(embedder) == mixed[1::2]
    assert embedder.figures.cache_hits == 12
    assert len(stand.entries(MODEL)) == 24


def test_equal_texts_are_embedded_once_and_counted_once(stand: Stand) -> None:
    texts = [*TEXTS, *TEXTS, *TEXTS[::-1]]
    embedder = cached(stand)
    assert are_of(embedder.embed(texts), texts)
    assert embedded(embedder) == TEXTS
    figures = embedder.figures
    assert (figures.texts, figures.duplicates, figures.cache_hits) == (36, 24, 0)
    assert are_of(embedder.embed(texts), texts)
    assert (figures.texts, figures.duplicates, figures.cache_hits) == (72, 48, 12)


def test_another_precision_misses(stand: Stand, catalog: Catalog) -> None:
    model = catalog.model("minilm")
    for precision in ("exact", "fast"):
        inner = HashEmbedder()
        inner.fingerprint = model_fingerprint(model, precision)
        embedder = cached(stand, inner)
        embedder.embed(TEXTS)
        assert embedded(embedder) == TEXTS
        assert len(stand.entries(inner.fingerprint)) == 12


def test_a_query_is_another_text_than_a_document(stand: Stand) -> None:
    """By its prefix. A document that begins with that prefix is the same text for the model."""
    prefixes = {"document": "", "query": "query: "}
    cached(stand, prefixes=prefixes).embed(TEXTS)
    queries = cached(stand, prefixes=prefixes)
    queries.embed(TEXTS, kind="query")
    inner = queries.inner
    assert isinstance(inner, HashEmbedder)
    assert inner.queries == TEXTS
    documents = cached(stand, prefixes=prefixes)
    documents.embed([f"query: {text}" for text in TEXTS])
    assert embedded(documents) == []
    assert len(stand.entries(MODEL)) == 24


def test_another_prefix_misses(stand: Stand) -> None:
    cached(stand, prefixes={"document": "a: ", "query": ""}).embed(TEXTS)
    other = cached(stand, prefixes={"document": "b: ", "query": ""})
    other.embed(TEXTS)
    assert embedded(other) == TEXTS


@pytest.mark.parametrize(
    "value",
    [
        b"",
        hash_vector("x").tobytes()[:-1],
        hash_vector("x", 768).tobytes(),
        bytes(384 * 4),
        np.full(384, np.nan, dtype="<f4").tobytes(),
        np.full(384, np.inf, dtype="<f4").tobytes(),
        (hash_vector("x") * 2).tobytes(),
        hash_vector("x").astype(">f4").tobytes(),
    ],
    ids=["empty", "short", "of another dimension", "zeros", "not numbers", "infinite", "too long", "swapped bytes"],
)
def test_a_corrupt_value_is_a_miss_and_replaced(stand: Stand, value: bytes) -> None:
    cached(stand).embed(TEXTS)
    stand.corrupt(MODEL, value)
    embedder = cached(stand)
    assert are_of(embedder.embed(TEXTS), TEXTS)
    assert embedded(embedder) == TEXTS
    again = cached(stand)
    assert are_of(again.embed(TEXTS), TEXTS)
    assert embedded(again) == []


def test_values_are_little_endian_floats(stand: Stand) -> None:
    cached(stand).embed(TEXTS)
    found = {np.frombuffer(value, dtype="<f4").tobytes() for value in stand.entries(MODEL).values()}
    assert found == {hash_vector(text).tobytes() for text in TEXTS}


def test_refused_texts_keep_their_places_and_are_never_kept(stand: Stand) -> None:
    inner = HashEmbedder()
    inner.refused = {TEXTS[3]: "too odd"}
    cached(stand).embed(TEXTS[:3] + [f"other {text}" for text in TEXTS])
    embedder = cached(stand, inner)
    texts = [*TEXTS, TEXTS[3], TEXTS[4]]
    with pytest.raises(RefusedTextsError) as refused:
        embedder.embed(texts)
    assert refused.value.reasons == {3: "too odd", 12: "too odd"}
    sound = [place for place in range(len(texts)) if place not in (3, 12)]
    assert are_of(refused.value.vectors[sound], [texts[place] for place in sound])
    assert not refused.value.vectors[[3, 12]].any()
    assert embedder.figures.cache_hits == 3
    assert len(stand.entries(MODEL)) == 15 + 12 - 3 - 1
    again = cached(stand)
    again.embed(TEXTS)
    assert embedded(again) == [TEXTS[3]]


def test_half_a_surrogate_pair_is_for_the_model_to_judge(stand: Stand) -> None:
    class Careless(HashEmbedder):
        def embed(self, texts: Sequence[str], between: Callable[[], None] = lambda: None, *, kind: Any = "d") -> Any:
            return super().embed([text.encode("utf-8", "replace").decode() for text in texts], between, kind=kind)

    assert len(cached(stand, Careless()).embed([*TEXTS, "half \ud83d pair"])) == 13


@pytest.mark.parametrize("number", [1, SHORT_CALL])
def test_a_short_call_passes_by(number: int) -> None:
    """A live change waits for nothing here."""
    cache = BrokenCache()
    embedder = CachedEmbedder(HashEmbedder(), cache, NO_PREFIX, pause=0.0)
    asked = cache.asked
    embedder.embed(TEXTS[:number])
    embedder.embed_query("query")
    assert cache.asked == asked
    embedder.embed(TEXTS)
    assert cache.asked == asked + 1


def test_attributes_are_those_of_the_embedder(stand: Stand) -> None:
    inner = HashEmbedder()
    embedder = cached(stand, inner)
    embedder.pass_tokens = 96
    assert inner.pass_tokens == 96
    inner.pass_tokens = None
    assert embedder.pass_tokens is None
    names = ("fingerprint", "precision", "backend", "dimension", "max_tokens", "tokenizer", "engine", "figures")
    assert [getattr(embedder, name) for name in names] == [getattr(inner, name) for name in names]
    assert are_of(embedder.probe(TEXTS), TEXTS)
    assert inner.probes == TEXTS
    assert uncached(embedder) is inner
    assert uncached(inner) is inner


def test_many_texts_need_few_round_trips(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"text {number}" for number in range(10_000)]
    calls: dict[str, int] = {"read": 0, "write": 0, "between": 0}
    embedder = cached(stand, HashEmbedder(pass_size=len(texts)))
    for name in ("read", "write"):
        real = getattr(embedder._cache, name)

        def counted(*arguments: Any, name: str = name, real: Any = real) -> Any:
            calls[name] += 1
            assert len(arguments[-1]) <= BATCH
            return real(*arguments)

        monkeypatch.setattr(embedder._cache, name, counted)

    def between() -> None:
        calls["between"] += 1

    embedder.embed(texts, between)
    assert calls == {"read": 40, "write": 40, "between": 78}, "urgent work is looked at between any two round trips"
    assert len(stand.entries(MODEL)) == 10_000
    assert are_of(embedder.embed(texts), texts)
    assert calls["read"] == 80
    assert calls["write"] == 40
    assert len(embedded(embedder)) == 10_000


def test_a_look_up_is_one_round_trip_to_the_server(database: Database) -> None:
    proxy = Proxy(database.url)
    try:
        embedder = CachedEmbedder(HashEmbedder(), PostgresCache(proxy.url), NO_PREFIX)
        embedder.embed(TEXTS)
        embedder.embed([f"other {text}" for text in TEXTS])
        before = proxy.turns
        embedder.embed(TEXTS * 40)
        assert proxy.turns == before + 1
    finally:
        proxy.close()


def test_what_runs_between_may_stop_the_work(stand: Stand) -> None:
    class Stopped(Exception):
        pass

    def stop() -> None:
        raise Stopped

    texts = [f"text {number}" for number in range(BATCH + 1)]
    embedder = cached(stand)
    with pytest.raises(Stopped):
        embedder.embed(texts, stop)
    assert are_of(embedder.embed(texts), texts)


# ---- faults of the store ---------------------------------------------------------------------------------------


def test_a_store_that_is_down_fails_nothing_and_is_used_again_when_it_is_back(
    stand: Stand, caplog: pytest.LogCaptureFixture
) -> None:
    embedder = cached(stand, pause=0.0)
    embedder.embed(TEXTS)
    stand.down()
    with caplog.at_level("INFO", "sophia.embedding"):
        for _ in range(3):
            assert are_of(embedder.embed(TEXTS), TEXTS)
        assert embedded(embedder) == TEXTS * 4
        stand.up()
        assert are_of(embedder.embed(TEXTS), TEXTS)
        embedder.embed([f"new {text}" for text in TEXTS])
    assert len(embedded(embedder)) == 5 * 12
    assert len(stand.entries(MODEL)) == 24
    said = [record.levelname for record in caplog.records]
    assert said == ["WARNING", "INFO"], "once each"
    assert "text 1" not in caplog.text


def test_an_embedder_that_began_without_its_store_uses_it_later(stand: Stand) -> None:
    stand.down()
    embedder = cached(stand, pause=0.0)
    stand.up()
    embedder.embed(TEXTS)
    assert stand.entries(MODEL) == {}, "the texts may be older than what it knows of erasures"
    embedder.embed(TEXTS)
    assert len(stand.entries(MODEL)) == 12


def test_a_store_that_is_silent_is_not_waited_for(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    filled = cached(stand)
    filled.embed(TEXTS)
    monkeypatch.setattr(postgres_cache, "WAIT_SECONDS", 1)
    monkeypatch.setattr(redis_cache, "TIMEOUT_SECONDS", 1.0)
    embedder = cached(stand)
    embedder.embed(TEXTS)
    found: list[Vectors] = []
    speak = stand.silence()
    try:
        thread = threading.Thread(target=lambda: found.append(embedder.embed(TEXTS)), daemon=True)
        thread.start()
        thread.join(60)
        assert not thread.is_alive(), "it waits for the cache"
        assert are_of(found[0], TEXTS)
        assert embedder._reading.paused
    finally:
        speak()


def test_a_lock_is_not_waited_for(
    postgres: PostgresStand, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_cache, "WAIT_SECONDS", 1)
    embedder = cached(postgres)
    found: list[Vectors] = []
    with connection.transaction():
        connection.execute("LOCK TABLE sophia.embedding_cache IN ACCESS EXCLUSIVE MODE")
        thread = threading.Thread(target=lambda: found.append(embedder.embed(TEXTS)), daemon=True)
        thread.start()
        thread.join(60)
        assert not thread.is_alive(), "it waits for the lock"
        assert not waits_for_a_lock(connection, "sophia-embedding-cache"), "the server still does"
    assert are_of(found[0], TEXTS)


def test_a_store_that_failed_is_left_alone_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(cache_module, "monotonic", lambda: now)
    cache = BrokenCache()
    embedder = CachedEmbedder(HashEmbedder(), cache, NO_PREFIX, pause=60.0)
    for _ in range(3):
        embedder.embed(TEXTS)
    assert cache.asked == 1
    now = 1060.0
    for _ in range(3):
        embedder.embed(TEXTS)
    assert cache.asked == 2


def test_a_full_store_goes_on_answering(stand: Stand) -> None:
    embedder = cached(stand)
    embedder.embed(TEXTS)
    stand.fill()
    others = [f"other {text}" for text in TEXTS]
    assert are_of(embedder.embed(others), others)
    assert are_of(embedder.embed(TEXTS), TEXTS)
    assert embedded(embedder) == TEXTS + others
    assert len(stand.entries(MODEL)) == 12


def test_a_database_without_the_table_is_gone_on_without(postgres: PostgresStand, connection: Connection) -> None:
    connection.execute("DROP TABLE sophia.embedding_cache, sophia.embedding_epochs")
    assert are_of(cached(postgres).embed(TEXTS), TEXTS)


def test_an_embedded_server_is_used_while_it_runs_and_never_started(server: EmbeddedPostgres, tmp_path: Path) -> None:
    assert running_url(server.pgdata, "x") == server.url("x")
    settings = load_settings(home=tmp_path / "home", embedding={"cache": "postgres"})
    with pytest.raises(TemporaryError, match="does not run"):
        PostgresCache.of(settings).epoch(MODEL)
    assert not (tmp_path / "home").exists()


def test_an_embedded_server_that_just_ends_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file was whole when it was looked at, and is not when it is read."""
    monkeypatch.setattr("sophia.database.embedded._complete", lambda pgdata: True)
    (tmp_path / "postmaster.pid").write_text("12\n")
    assert running_url(tmp_path) is None


WRITER = """
import random, sys
from pathlib import Path
from sophia.embedding import postgres_cache, redis_cache
from sophia.embedding.cache import CachedEmbedder, open_cache
from sophia.settings import load_settings
from tests.embedders import HashEmbedder
import numpy as np
home, cache, url = sys.argv[1:]
postgres_cache.WAIT_SECONDS = redis_cache.TIMEOUT_SECONDS = 60
random.seed(0)
place = {"database_url": url, "embedding": {"cache": cache}} if cache == "postgres" else {
    "embedding": {"cache": cache, "redis_url": url}}
texts = [f"text {number}" for number in range(1200)]
want = HashEmbedder(pass_size=9999).embed(texts)
for round in range(6):
    inner = HashEmbedder(pass_size=9999)
    inner.fingerprint = f"round-{round}"
    embedder = CachedEmbedder(inner, open_cache(load_settings(home=Path(home), **place)), {"document": ""})
    order = list(range(len(texts)))
    random.shuffle(order)
    sys.stdout.write("ready\\n")
    sys.stdout.flush()
    sys.stdin.readline()
    found = embedder.embed([texts[i] for i in order])
    assert np.array_equal(found, want[order])
    assert not embedder._reading.paused and not embedder._writing.paused, "the cache failed"
"""


def test_two_processes_may_write_the_same_texts(stand: Stand, tmp_path: Path) -> None:
    """At the same time, in another order: nobody fails, waits for long or reads what is not whole."""
    settings = stand.settings(tmp_path)
    secret = settings.database_url or settings.embedding.redis_url
    assert secret is not None
    command = [sys.executable, "-c", WRITER, str(tmp_path), settings.embedding.cache, secret.get_secret_value()]
    root = Path(cache_module.__file__).parents[2]
    writers = [
        subprocess.Popen(
            command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for _ in range(6):
        for writer in writers:
            assert writer.stdout is not None
            if writer.stdout.readline() != "ready\n":
                raise AssertionError(writer.communicate()[1])
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("go\n")
            writer.stdin.flush()
    for writer in writers:
        _, errors = writer.communicate(timeout=120)
        assert writer.returncode == 0, errors
        assert errors == ""
    for number in range(6):
        assert len(stand.entries(f"round-{number}")) == 1200


# ---- retention -------------------------------------------------------------------------------------------------


def test_use_is_noted_once_a_day(stand: Stand) -> None:
    embedder = cached(stand)
    embedder.embed(TEXTS)
    assert stand.unused_days(MODEL) == {0}
    stand.age(MODEL, 40)
    assert stand.unused_days(MODEL) == {40}
    embedder.embed(TEXTS)
    assert stand.unused_days(MODEL) == {0}
    assert embedded(embedder) == TEXTS


def test_a_second_use_of_a_day_writes_nothing(postgres: PostgresStand, redis_server: RedisStand) -> None:
    for stand in (postgres, redis_server):
        embedder = cached(stand)
        embedder.embed(TEXTS)
    rows = postgres._connection.execute("SELECT text_hash, xmin FROM sophia.embedding_cache").fetchall()
    cached(postgres).embed(TEXTS)
    assert postgres._connection.execute("SELECT text_hash, xmin FROM sophia.embedding_cache").fetchall() == rows
    changes = redis_server.client.info("persistence")["rdb_changes_since_last_save"]
    cached(redis_server).embed(TEXTS)
    assert redis_server.client.info("persistence")["rdb_changes_since_last_save"] == changes


def test_retention_removes_what_was_not_used(postgres: PostgresStand, connection: Connection) -> None:
    embedder = cached(postgres)
    embedder.embed(TEXTS)
    others = [f"other {text}" for text in TEXTS]
    postgres.age(MODEL, 91)
    embedder.embed(others)
    assert apply_retention(connection, Retention(cache_days=91))["cache"] == 0
    assert apply_retention(connection, Retention(cache_days=90))["cache"] == 12
    embedder.embed([*TEXTS, *others])
    assert embedded(embedder) == [*TEXTS, *others, *TEXTS]


def test_retention_passes_by_what_is_being_used(postgres: PostgresStand, connection: Connection) -> None:
    cached(postgres).embed(TEXTS)
    postgres.age(MODEL, 91)
    with postgres._connection.transaction():
        postgres._connection.execute("UPDATE sophia.embedding_cache SET used_on = current_date")
        assert apply_retention(connection, Retention())["cache"] == 0
    assert len(postgres.entries(MODEL)) == 12


def test_redis_takes_its_days_from_the_catalog(redis_server: RedisStand, monkeypatch: pytest.MonkeyPatch) -> None:
    cached(redis_server).embed(TEXTS)
    lives = {redis_server.client.ttl(name) for name in redis_server._keys(MODEL)}
    days = redis_cache.load(redis_cache.default_path()).retention.cache_days
    assert all(days * 86_400 - 3_600 < life <= days * 86_400 for life in lives)


# ---- erasure ---------------------------------------------------------------------------------------------------


@pytest.fixture
def shelf(library: Library) -> Library:
    """Twenty documents, of which number 7 had two texts; its source has deleted it."""
    library.version()
    for number in range(20):
        library.put(number, f"title {number}", f"text {number}")
    library.delete(7)
    return library


def inner_of(library: Library) -> HashEmbedder:
    """The embedder of the shelf's version."""
    inner = HashEmbedder()
    inner.fingerprint = library.version().spec["model_fingerprint"]
    return inner


def erase_7(library: Library, stand: Stand, connection: Connection | None = None) -> Erasure:
    caches = [stand.cache()] if isinstance(stand, RedisStand) else []
    return erase(connection or library.connection, "documents", key(7), caches=caches)


def place_of(stand: Stand) -> str:
    return "cache" if isinstance(stand, PostgresStand) else "cache in Redis"


def test_rule_an_erasure_leaves_no_vector_of_any_text_of_the_document(stand: Stand, shelf: Library) -> None:
    embedder = cached(stand, inner_of(shelf))
    embedder.embed(["its text", "its former text", *TEXTS])
    other = cached(stand)
    other.embed(TEXTS)
    found = erase_7(shelf, stand)
    assert found.removed[place_of(stand)] == 14
    assert stand.entries(embedder.fingerprint) == {}
    assert len(stand.entries(MODEL)) == 12, "a model that never saw the document keeps its vectors"
    assert "sophia.embedding_cache" in found.vacuumed
    assert place_of(stand) in found.to_json()["removed"]
    assert set(erase_7(shelf, stand).removed.values()) == {0}


def test_rule_with_an_endpoint_every_model_may_have_seen_the_document(
    stand: Stand, shelf: Library, connection: Connection
) -> None:
    """It may be our own inference service, which keeps vectors under its own model."""
    cached(stand).embed(TEXTS)
    connection.execute(
        "UPDATE sophia.index_versions SET spec = jsonb_set(jsonb_set(jsonb_set(jsonb_set(spec, '{model,provider}', "
        """'"openai"'), '{model,url}', '"http://x/v1"'), '{model,model}', '"m"'), '{model,path}', 'null')"""
    )
    assert erase_7(shelf, stand).removed[place_of(stand)] == 12
    assert stand.entries(MODEL) == {}


@pytest.mark.parametrize("models", [[MODEL], None])
def test_rule_a_vector_computed_before_an_erasure_is_not_stored_after_it(
    stand: Stand, models: list[str] | None
) -> None:
    """The erasure comes between the look-up and the write."""
    inner = HashEmbedder()
    embedder = cached(stand, inner)
    erased: list[int] = []
    inner.before = lambda texts: erased.append(stand.erase(models)) if not erased else None
    assert are_of(embedder.embed(TEXTS), TEXTS)
    assert erased == [0]
    assert stand.entries(MODEL) == {}
    # Its next call read its texts later.
    embedder.embed(TEXTS)
    embedder.embed(TEXTS)
    assert len(stand.entries(MODEL)) == 12


@pytest.mark.parametrize("models", [[MODEL], None])
def test_rule_a_text_that_was_read_before_an_erasure_is_not_stored(stand: Stand, models: list[str] | None) -> None:
    """The erasure comes between the reading of the text and the call that embeds it."""
    embedder = cached(stand)
    stand.erase(models)
    assert are_of(embedder.embed(TEXTS), TEXTS)
    assert stand.entries(MODEL) == {}
    embedder.embed(TEXTS)
    assert len(stand.entries(MODEL)) == 12


def test_rule_a_call_within_a_call_does_not_open_the_cache_for_the_outer_one(stand: Stand) -> None:
    """The outer one has read its texts before the erasure; the inner one learns of the erasure, and reads after it."""
    embedder = cached(stand)
    inner_texts = [f"inner {text}" for text in TEXTS]
    erased: list[int] = []

    def between() -> None:
        if not erased:
            erased.append(stand.erase([MODEL]))
            embedder.embed(inner_texts)
            embedder.embed(inner_texts)

    assert are_of(embedder.embed(TEXTS, between), TEXTS)
    assert set(stand.entries(MODEL).values()) == {hash_vector(text).tobytes() for text in inner_texts}


def test_rule_an_erasure_in_the_middle_of_a_look_up_closes_the_cache(stand: Stand) -> None:
    texts = [f"text {number}" for number in range(2 * BATCH)]
    embedder = cached(stand, HashEmbedder(pass_size=len(texts)))
    erased: list[int] = []

    def between() -> None:
        if not erased:
            erased.append(stand.erase([MODEL]))

    assert are_of(embedder.embed(texts, between), texts)
    assert erased == [0]
    assert stand.entries(MODEL) == {}


def test_rule_an_erasure_waits_for_a_write_that_is_under_way(database: Database, connection: Connection) -> None:
    epoch = PostgresCache(lambda: database.url).epoch(MODEL)
    erased: list[tuple[int, int]] = []
    entry = {"model": MODEL, "epoch": epoch, "hashes": [b"h"], "vectors": [b"v"]}

    def remove() -> None:
        with database.connect("eraser") as eraser:
            erased.append(erase_vectors(eraser, [MODEL]))

    with database.connect("writer") as writer:
        with writer.transaction():
            writer.execute(Q["write"], entry)
            thread = threading.Thread(target=remove)
            thread.start()
            until(lambda: erased or waits_for_a_lock(connection, "eraser"), "the eraser")
            assert erased == [], "it did not wait"
        thread.join(60)
        writer.execute(Q["write"], entry)
    assert [count for count, _ in erased] == [1]
    assert connection.execute("SELECT count(*) FROM sophia.embedding_cache").fetchone() == (0,)


def test_rule_a_write_does_not_wait_for_an_erasure_that_is_under_way(
    database: Database, connection: Connection, postgres: PostgresStand
) -> None:
    embedder = cached(postgres)
    with database.connect("eraser") as eraser, eraser.transaction():
        eraser.execute(Q["raise_epochs"], {"models": None})
        assert are_of(embedder.embed(TEXTS), TEXTS)
        assert not embedder._writing.paused, "it waited until its time was over"
    assert postgres.entries(MODEL) == {}


def test_an_emptied_redis_is_no_known_one(redis_server: RedisStand) -> None:
    """Who knew an epoch of before cannot take one of after for it."""
    embedder = cached(redis_server)
    redis_server.client.flushall()
    embedder.embed(TEXTS)
    assert redis_server.entries(MODEL) == {}
    embedder.embed(TEXTS)
    assert len(redis_server.entries(MODEL)) == 12


def test_rule_a_redis_that_is_away_stops_an_erasure_before_it_began(redis_server: RedisStand, shelf: Library) -> None:
    cached(redis_server, inner_of(shelf)).embed(TEXTS)
    cache = redis_server.cache()
    redis_server.down()
    with pytest.raises(TemporaryError):
        erase(shelf.connection, "documents", key(7), caches=[cache])
    assert shelf.connection.execute("SELECT count(*) FROM sophia.erasures").fetchone() == (0,)
    redis_server.up()
    assert erase_7(shelf, redis_server).removed["cache in Redis"] == 12


def test_rule_an_erasure_that_lost_its_redis_says_so_and_is_done_by_the_next(
    redis_server: RedisStand, shelf: Library
) -> None:
    embedder = cached(redis_server, inner_of(shelf))
    embedder.embed(TEXTS)
    cache = redis_server.cache()
    failpoints.arm(lambda name: redis_server.down() if name == "erase.after_commit" else None)
    try:
        with pytest.raises(TemporaryError, match=r"not yet its vectors in the cache.*run this again"):
            erase(shelf.connection, "documents", key(7), caches=[cache])
    finally:
        failpoints.arm(None)
    redis_server.up()
    assert len(redis_server.entries(embedder.fingerprint)) == 12
    assert erase_7(shelf, redis_server).removed["cache in Redis"] == 12


def test_rule_an_erasure_that_dies_before_the_cache_is_done_by_the_next(stand: Stand, shelf: Library) -> None:
    class Killed(BaseException):
        pass

    def die(name: str) -> None:
        if name == "erase.after_commit":
            raise Killed

    embedder = cached(stand, inner_of(shelf))
    embedder.embed(TEXTS)
    failpoints.arm(die)
    try:
        with shelf.database.connect("doomed") as doomed, pytest.raises(Killed):
            erase_7(shelf, stand, doomed)
    finally:
        failpoints.arm(None)
    assert erase_7(shelf, stand).removed[place_of(stand)] == 12
    assert stand.entries(embedder.fingerprint) == {}


def test_rule_a_refused_erasure_leaves_the_cache(stand: Stand, shelf: Library) -> None:
    embedder = cached(stand, inner_of(shelf))
    embedder.embed(TEXTS)
    shelf.put(7, "t", "back")
    with pytest.raises(SophiaError, match="still has this row"):
        erase_7(shelf, stand)
    assert len(stand.entries(embedder.fingerprint)) == 12


def test_a_bulk_load_is_answered_and_an_erased_text_is_not(stand: Stand, shelf: Library) -> None:
    """The writer of indexes itself, over the cache: a second version embeds nothing, and an erasure ends that."""
    embedder = cached(stand, inner_of(shelf))
    rows = shelf.rows(*range(20))
    shelf.writer(embedder=embedder).apply(shelf.connection, rows)  # type: ignore[arg-type]
    assert len(stand.entries(embedder.fingerprint)) == 19
    shelf.connection.execute("TRUNCATE sophia.ledger")
    shelf.connection.execute(f"TRUNCATE indexes.{shelf.version().store_name}")
    again = cached(stand, inner_of(shelf))
    shelf.writer(embedder=again).apply(shelf.connection, shelf.rows(*range(20)))  # type: ignore[arg-type]
    assert embedded(again) == []
    assert shelf.faults(shelf.version()) == []
    erase_7(shelf, stand)
    assert stand.entries(embedder.fingerprint) == {}


def test_a_proof_computes_and_does_not_remember(stand: Stand, shelf: Library) -> None:
    """A wrong vector in the cache must not testify for one in the store."""
    embedder = cached(stand, inner_of(shelf))
    shelf.writer(embedder=embedder).apply(shelf.connection, shelf.rows(*range(20)))  # type: ignore[arg-type]
    stand.corrupt(embedder.fingerprint, hash_vector("another text").tobytes())
    proof = verify(shelf.connection, shelf.version(), PgvectorStore(), cached(stand, inner_of(shelf)))
    assert proof.sampled > SHORT_CALL
    assert proof.cosine_min is not None
    assert proof.cosine_min > 0.999


# ---- settings --------------------------------------------------------------------------------------------------


def endpoint(port: int = 9, **fields: Any) -> EmbeddingModel:
    given = {"provider": "openai", "url": f"http://127.0.0.1:{port}/v1", "model": "m", "version": "1"}
    sizes = {"dimension": 384, "max_tokens": 256}
    return EmbeddingModel(name="remote", description="A model.", **(given | sizes | fields))


@pytest.fixture
def embeddings_server() -> Iterator[tuple[int, list[str]]]:
    """An OpenAI-compatible server: its port, and all texts that it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            texts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["input"]
            asked.extend(texts)
            data = [{"index": i, "embedding": hash_vector(text).tolist()} for i, text in enumerate(texts)]
            body = json.dumps({"data": data}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port, asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_endpoint_is_cached_too_and_under_its_prefixes(
    stand: Stand, tmp_path: Path, embeddings_server: tuple[int, list[str]]
) -> None:
    port, asked = embeddings_server
    model = endpoint(port, query_prefix="query: ")
    first = load_embedder(model, "exact", stand.settings(tmp_path))
    vectors = first.embed(TEXTS)
    again = load_embedder(model, "exact", stand.settings(tmp_path))
    assert np.array_equal(again.embed(TEXTS), vectors)
    assert sorted(asked) == sorted(TEXTS)
    assert np.allclose(vectors, np.stack([hash_vector(text) for text in TEXTS]))
    again.embed(TEXTS, kind="query")
    assert sorted(asked[12:]) == sorted(f"query: {text}" for text in TEXTS)


def test_no_cache_unless_asked_for(tmp_path: Path) -> None:
    assert isinstance(load_embedder(endpoint(), "exact", load_settings(home=tmp_path)), EndpointEmbedder)


@pytest.mark.parametrize(
    ("url", "message"), [(None, "set SOPHIA_EMBEDDING__REDIS_URL"), ("localhost:6379", "must look like redis://")]
)
def test_redis_needs_a_url(tmp_path: Path, url: str | None, message: str) -> None:
    settings = load_settings(home=tmp_path, embedding={"cache": "redis", "redis_url": url})
    with pytest.raises(ConfigurationError, match=message):
        load_embedder(endpoint(), "exact", settings)


def test_redis_needs_its_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    settings = load_settings(home=tmp_path, embedding={"cache": "redis", "redis_url": "redis://x"})
    with pytest.raises(ConfigurationError, match=r"pip install 'sophia-platform\[redis\]'"):
        load_embedder(endpoint(), "exact", settings)

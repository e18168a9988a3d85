"""Results kept in a real Redis: when they answer, when they do not, and what happens without that Redis."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from sophia.catalog import Catalog
from sophia.embedding.redis_cache import RESULTS, redis_cache
from sophia.services.inference import results
from sophia.settings import Settings
from tests.embedders import HashEmbedder
from tests.inference import hashed, inference
from tests.integration.caches import RedisStand
from tests.waiting import until

CLASSIFY = {"text": "The team won.", "labels": ["sport", "politics"]}
TEXT = "It rained. The river rose. The bridge was closed."


@pytest.fixture
def with_redis(settings: Settings, redis_server: RedisStand) -> Settings:
    return settings.model_copy(update={"embedding": redis_server.settings(settings.home).embedding})


@pytest.fixture
def client(with_redis: Settings, catalog: Catalog, hash_embedder: HashEmbedder) -> Iterator[httpx.Client]:
    with (
        inference(with_redis, catalog, hashed(hash_embedder)) as address,
        httpx.Client(base_url=address, timeout=60) as client,
    ):
        yield client


def kept(server: RedisStand) -> list[Any]:
    return list(server.client.scan_iter(match=f"sophia:embedding:{{{RESULTS}*:v:*"))


def ask(client: httpx.Client, path: str, body: dict[str, Any]) -> bytes:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.content


def counted(client: httpx.Client, path: str, outcome: str) -> float:
    name = f'sophia_inference_results_total{{outcome="{outcome}",route="{path}"}} '
    found = [line for line in client.get("/metrics").text.splitlines() if line.startswith(name)]
    return float(found[0].removeprefix(name)) if found else 0.0


@pytest.mark.parametrize(
    ("path", "body", "other"),
    [
        ("/classify", CLASSIFY, CLASSIFY | {"text": "The team lost."}),
        ("/classify", CLASSIFY, CLASSIFY | {"labels": ["politics", "sport"]}),
        ("/summarize", {"text": TEXT}, {"text": TEXT, "sentences": 3}),
        ("/analyze", {"text": "good"}, {"texts": ["good"]}),
    ],
)
def test_the_same_body_is_computed_once(
    client: httpx.Client,
    redis_server: RedisStand,
    hash_embedder: HashEmbedder,
    path: str,
    body: dict[str, Any],
    other: dict[str, Any],
) -> None:
    first = ask(client, path, body)
    until(lambda: len(kept(redis_server)) == 1, "the result")
    embedded = len(hash_embedder.texts)
    assert ask(client, path, dict(reversed(body.items()))) == first
    assert len(hash_embedder.texts) == embedded
    assert (counted(client, path, "hit"), counted(client, path, "miss")) == (1, 1)
    ask(client, path, other)
    assert (counted(client, path, "hit"), counted(client, path, "miss")) == (1, 2)


def test_results_live_as_long_as_the_settings_say(
    client: httpx.Client, redis_server: RedisStand, with_redis: Settings
) -> None:
    ask(client, "/classify", CLASSIFY)
    until(lambda: len(kept(redis_server)) == 1, "the result")
    (key,) = kept(redis_server)
    life: Any = redis_server.client.ttl(key)
    assert with_redis.inference.result_days * 86_400 - 60 < life <= with_redis.inference.result_days * 86_400


def test_vectors_and_what_is_generated_are_no_results(client: httpx.Client, redis_server: RedisStand) -> None:
    ask(client, "/embed", {"text": "one"})
    client.post("/generate", json={"prompt": "one"})
    client.post("/classify", json={"text": "one"})
    ask(client, "/classify", CLASSIFY)
    until(lambda: len(kept(redis_server)) == 1, "the one result")


def test_another_model_or_code_has_results_of_its_own(
    with_redis: Settings, catalog: Catalog, redis_server: RedisStand
) -> None:
    for number, (code, refused) in enumerate([("one", 0), ("two", 0), ("two", 1)], 1):
        embedder = HashEmbedder()
        embedder.fingerprint = f"model {refused}"
        changed = with_redis.model_copy(update={"code_version": code})
        with (
            inference(changed, catalog, hashed(embedder)) as address,
            httpx.Client(base_url=address, timeout=60) as client,
        ):
            ask(client, "/classify", CLASSIFY)
            assert counted(client, "/classify", "miss") == 1
            until(lambda expected=number: len(kept(redis_server)) == expected, "the result")


def test_an_erasure_removes_all_results(
    client: httpx.Client, redis_server: RedisStand, with_redis: Settings, hash_embedder: HashEmbedder
) -> None:
    """Also of what was asked before the erasure and is computed after it."""
    ask(client, "/summarize", {"text": TEXT})
    until(lambda: len(kept(redis_server)) == 1, "the result")
    cache = redis_cache(with_redis)
    assert cache is not None
    assert cache.erase(["another model"]) == 1
    assert kept(redis_server) == []

    def erase_now(texts: Any) -> None:
        assert cache is not None
        cache.erase(["another model"])

    hash_embedder.before = erase_now
    ask(client, "/classify", CLASSIFY)
    hash_embedder.before = lambda texts: None
    ask(client, "/classify", CLASSIFY)
    until(lambda: len(kept(redis_server)) == 1, "the second result, which nobody erased")
    assert counted(client, "/classify", "miss") == 2


def test_without_redis_everything_is_computed_and_it_is_said_once(
    client: httpx.Client, redis_server: RedisStand, hash_embedder: HashEmbedder, caplog: pytest.LogCaptureFixture
) -> None:
    redis_server.down()
    with caplog.at_level(logging.WARNING, "sophia.embedding"):
        for _ in range(3):
            ask(client, "/classify", CLASSIFY)
    assert len(hash_embedder.texts) == 9
    said = [record.getMessage() for record in caplog.records if "cache of results" in record.getMessage()]
    assert len(said) == 1
    assert "going on without it" in said[0]


def test_a_full_redis_still_answers_and_fails_nothing(
    client: httpx.Client, redis_server: RedisStand, hash_embedder: HashEmbedder
) -> None:
    first = ask(client, "/classify", CLASSIFY)
    until(lambda: len(kept(redis_server)) == 1, "the result")
    redis_server.fill()
    embedded = len(hash_embedder.texts)
    assert ask(client, "/classify", CLASSIFY) == first
    assert len(hash_embedder.texts) == embedded
    ask(client, "/classify", CLASSIFY | {"text": "Another."})
    assert len(kept(redis_server)) == 1


@pytest.fixture
def in_a_hurry(redis_server: RedisStand, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service waits no longer for Redis than a live one does."""
    monkeypatch.setattr("sophia.embedding.redis_cache.TIMEOUT_SECONDS", 1.0)


@pytest.mark.usefixtures("in_a_hurry")
def test_a_silent_redis_is_waited_for_once(
    client: httpx.Client, redis_server: RedisStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bytes] = []
    read = results.Results._read

    def counting(self: results.Results, key: bytes) -> Any:
        if not self._reading.paused:
            asked.append(key)
        return read(self, key)

    monkeypatch.setattr(results.Results, "_read", counting)
    ask(client, "/classify", CLASSIFY)
    before = len(asked)
    speak = redis_server.silence()
    try:
        for number in range(3):
            ask(client, "/classify", CLASSIFY | {"text": f"text {number}"})
    finally:
        speak()
    assert len(asked) - before <= 1


def test_no_days_and_no_redis_keep_nothing(
    settings: Settings, with_redis: Settings, catalog: Catalog, redis_server: RedisStand
) -> None:
    for changed, days in ((settings, 1), (with_redis, 0)):
        with (
            inference(changed, catalog, hashed(HashEmbedder()), result_days=days) as address,
            httpx.Client(base_url=address, timeout=60) as client,
        ):
            ask(client, "/classify", CLASSIFY)
            assert "sophia_inference_results" not in client.get("/metrics").text
    assert kept(redis_server) == []

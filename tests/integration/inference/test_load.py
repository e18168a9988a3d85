"""More than can be done at once: lanes, overload, time-outs, clients that leave."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from sophia.catalog import Catalog
from sophia.embedding.base import Ids
from sophia.embedding.tokens import TextTokenizer
from sophia.errors import TemporaryError
from sophia.services.inference import models, threads
from sophia.services.inference.server import serve
from sophia.settings import InferenceSettings, Settings
from tests.embedders import HashEmbedder
from tests.inference import Gate, hashed
from tests.integration.inference.conftest import Serve
from tests.ports import free_port
from tests.service_process import answers
from tests.waiting import until


def waiting(client: httpx.Client, lane: str) -> float:
    """Tokens that wait in a lane, as the metrics have it."""
    start = f'sophia_inference_waiting_tokens{{lane="{lane}"}} '
    return next(
        float(line[len(start) :]) for line in client.get("/metrics").text.splitlines() if line.startswith(start)
    )


def counted(client: httpx.Client, route: str, status: int) -> bool:
    """Whether a request of that route ended with that status."""
    line = f'sophia_inference_request_seconds_count{{method="POST",route="{route}",status="{status}"}} '
    return any(each.startswith(line) for each in client.get("/metrics").text.splitlines())


@pytest.mark.parametrize(
    ("texts", "lane"),
    [
        (["short"] * 32, "online"),
        (["short"] * 33, "bulk"),
        (["a" * 2_000] * 4, "online"),
        (["a" * 2_000] * 5, "bulk"),
    ],
)
def test_large_requests_take_the_bulk_lane(
    served: Serve, hash_embedder: HashEmbedder, texts: list[str], lane: str
) -> None:
    client, gate = served(), Gate(hash_embedder)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(client.post, "/embed", json={"text": "hold"})
        assert gate.reached.wait(60)
        second = pool.submit(client.post, "/embed", json={"texts": texts})
        try:
            until(lambda: waiting(client, lane) > 0, f"a request in the {lane} lane")
        finally:
            gate.opened.set()
        assert [first.result().status_code, second.result().status_code] == [200, 200]


@pytest.mark.parametrize("route", ["/embed", "/v1/embeddings"])
def test_overload_is_said_at_once(served: Serve, hash_embedder: HashEmbedder, route: str) -> None:
    client, gate = served(online_tokens=100), Gate(hash_embedder)
    text = "a" * 360
    body = {"text": text} if route == "/embed" else {"input": text, "model": "minilm"}
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(client.post, "/embed", json={"text": "hold"})
        assert gate.reached.wait(60)
        accepted = pool.submit(client.post, route, json=body)
        try:
            until(lambda: waiting(client, "online") > 0, "the request that fits")
            refused = client.post(route, json=body)
        finally:
            gate.opened.set()
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        assert [running.result().status_code, accepted.result().status_code] == [200, 200]
    assert client.post(route, json=body).status_code == 200


def test_what_takes_too_long_is_answered_and_given_up(served: Serve, hash_embedder: HashEmbedder) -> None:
    client, gate = served(timeout_seconds=0.3), Gate(hash_embedder)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.post, "/embed", json={"text": "hold"})
        assert gate.reached.wait(60)
        late = client.post("/embed", json={"text": "late"})
        assert late.status_code == 504
        assert waiting(client, "online") == 0
        gate.opened.set()
        assert running.result().status_code in (200, 504)
    # As short a time may be too short for it on a busy machine.
    until(lambda: client.post("/embed", json={"text": "after"}).status_code == 200, "an answer in time")
    assert "late" not in hash_embedder.texts


def test_a_client_that_leaves_costs_no_computation(served: Serve, hash_embedder: HashEmbedder) -> None:
    client, gate = served(), Gate(hash_embedder)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.post, "/embed", json={"text": "hold"})
        assert gate.reached.wait(60)
        with socket.create_connection((client.base_url.host, client.base_url.port or 80)) as leaving:
            body = b'{"text":"left"}'
            leaving.sendall(
                b"POST /embed HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
            )
            until(lambda: waiting(client, "online") > 0, "the request")
        try:
            until(lambda: waiting(client, "online") == 0, "its end")
        finally:
            gate.opened.set()
        assert running.result().status_code == 200
    assert "left" not in hash_embedder.texts
    until(lambda: counted(client, "/embed", 499), "word of it in the metrics")


class SlowSentiment:
    """Analyses nothing until it may."""

    name = "slow"

    def __init__(self) -> None:
        self.may = threading.Event()
        self.calls: list[Sequence[str]] = []
        self.stopped = 0

    def analyze(self, texts: Sequence[str], stopped: Callable[[], bool]) -> list[Any]:
        self.calls.append(texts)
        until(lambda: self.may.is_set() or stopped(), "leave to go on")
        self.stopped += stopped()
        return []


def test_functions_beside_the_engine_are_bounded_too(served: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SlowSentiment()
    monkeypatch.setattr(models, "load_sentiment", lambda settings: slow)
    monkeypatch.setattr(threads, "MOST_WAITING", 2)
    client = served()
    with ThreadPoolExecutor(3) as pool:
        taken = [pool.submit(client.post, "/analyze", json={"text": str(i)}) for i in range(3)]
        try:
            refused = until(lambda: next((each.result() for each in taken if each.done()), None), "the third")
        finally:
            slow.may.set()
        assert refused.status_code == 429
        assert sorted(each.result().status_code for each in taken) == [200, 200, 429]
    assert len(slow.calls) == 2


def test_an_analysis_that_nobody_waits_for_is_given_up(served: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SlowSentiment()
    monkeypatch.setattr(models, "load_sentiment", lambda settings: slow)
    client = served(timeout_seconds=0.2)

    def begun_and_late() -> bool:
        assert client.post("/analyze", json={"text": "late"}).status_code == 504
        return bool(slow.calls)

    until(begun_and_late, "an analysis that was begun within its time")
    until(lambda: slow.stopped == len(slow.calls), "its end")


def test_a_long_text_is_not_tokenised_on_the_event_loop(
    served: Serve, hash_embedder: HashEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even one of which the model sees only the beginning."""
    threads: dict[int, str] = {}

    class Watched(TextTokenizer):
        def encode(self, texts: Sequence[str]) -> list[Ids]:
            threads[len(texts[0])] = threading.current_thread().name
            return super().encode(texts)

    monkeypatch.setattr(models, "TextTokenizer", Watched)
    hash_embedder.tokenizer = Tokenizer(WordLevel({"?": 0}, unk_token="?"))
    client = served()
    for length in (10, 3_000):
        assert client.post("/embed", json={"text": "語" * length}).status_code == 200
    assert threads[3_000].startswith("count")
    assert not threads[10].startswith("count"), "a short one is counted at once"


def test_a_service_whose_engine_has_died_ends(
    settings: Settings, catalog: Catalog, hash_embedder: HashEmbedder
) -> None:
    """It would answer 503 to everything and still pass for ready."""

    class PanicError(BaseException):
        """As native libraries raise it, which is no `Exception`."""

    def panic(texts: Sequence[str]) -> None:
        raise PanicError

    hash_embedder.before = panic
    port = free_port()
    settings = settings.model_copy(update={"inference": InferenceSettings(port=port)})
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        serving = pool.submit(serve, settings, catalog, stop, load=hashed(hash_embedder))
        try:
            address = f"http://127.0.0.1:{port}"
            until(lambda: answers(address), "the service")
            assert httpx.post(f"{address}/embed", json={"text": "a"}, timeout=60).status_code == 503
            with pytest.raises(TemporaryError, match="died of PanicError; restart the process"):
                serving.result(60)
        finally:
            stop.set()

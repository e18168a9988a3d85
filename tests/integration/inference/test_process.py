"""The process: how it ends, what it writes, and when it does not start."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import httpx
import pytest

from sophia.catalog import Catalog
from sophia.services import draining
from sophia.services.draining import QUIET_SECONDS
from sophia.services.inference import server
from sophia.services.inference.app import Service, create_service
from sophia.settings import Settings
from tests.embedders import HashEmbedder
from tests.inference import SLOW_VARIABLE, Process, hashed, inference
from tests.service_process import START_SECONDS, answers
from tests.waiting import until

CLIENTS = 8
Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a process with the given environment; what still runs at the end is killed."""
    started: list[Process] = []

    def begin(**environment: str) -> Process:
        started.append(Process(tmp_path, environment))
        return started[-1]

    yield begin
    for process in started:
        process.kill()


class Caller:
    """Asks one request after another until the port is closed, and keeps what came of each."""

    def __init__(self, address: str, *, keep_alive: bool) -> None:
        self.answers: list[httpx.Response] = []
        self.lost: list[Exception] = []
        self._address = address
        self._limits = httpx.Limits(max_keepalive_connections=1 if keep_alive else 0)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with httpx.Client(base_url=self._address, limits=self._limits, timeout=60) as client:
            while True:
                try:
                    self.answers.append(client.post("/embed", json={"text": f"slow {len(self.answers)}"}))
                except httpx.ConnectError:
                    # Never accepted: the caller knows that it can ask elsewhere.
                    return
                except httpx.HTTPError as error:
                    self.lost.append(error)
                    return

    def join(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive(), "a caller is never told that the port is closed"


def test_no_accepted_request_is_lost_when_it_ends(start: Start) -> None:
    process = start(**{SLOW_VARIABLE: "0.02"})
    process.ready()
    callers = [Caller(process.address, keep_alive=bool(number % 2)) for number in range(CLIENTS)]
    until(lambda: all(caller.answers for caller in callers), "answers to all")
    process.popen.send_signal(signal.SIGTERM)
    for caller in callers:
        caller.join()
    assert process.popen.wait(60) == 0
    assert [caller.lost for caller in callers if caller.lost] == []
    assert {answer.status_code for caller in callers for answer in caller.answers} == {200}
    # All that was answered was logged, and nothing else.
    asked = [json.loads(line) for line in process.log if '"/embed"' in line]
    assert len(asked) == sum(len(caller.answers) for caller in callers)


REQUEST = (
    b"POST /embed HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n"
    b'{"text":"a"}'
)


@pytest.mark.parametrize("sent", ["before", "after"])
def test_what_the_kernel_had_accepted_is_answered(
    settings: Settings, catalog: Catalog, monkeypatch: pytest.MonkeyPatch, sent: str
) -> None:
    """Connections of which the process knows nothing yet when it begins to end, since its loop was busy. They ask
    before the port is closed, or a moment after."""
    drain = draining._drain
    late = [socket.socket() for _ in range(20)]

    def ask() -> None:
        for connection in late:
            connection.sendall(REQUEST)

    async def drain_with_a_backlog(ending: Any, service: Any, listener: socket.socket) -> None:
        for connection in late:
            connection.settimeout(60)
            connection.connect(listener.getsockname())
        if sent == "before":
            ask()
        else:
            ending.servers = [Closing(each, threading.Timer(0.3, ask).start) for each in ending.servers]
        await drain(ending, service, listener)

    monkeypatch.setattr(draining, "_drain", drain_with_a_backlog)
    # The moment that they get; over as soon as all are answered.
    monkeypatch.setattr(draining, "QUIET_SECONDS", 20.0)
    try:
        with inference(settings, catalog, hashed(HashEmbedder())):
            pass
        assert [connection.recv(64).partition(b"\r\n")[0] for connection in late] == [b"HTTP/1.1 200 OK"] * 20
    finally:
        for connection in late:
            connection.close()


class Closing:
    """A listening server that calls something when it is closed for the first time."""

    def __init__(self, real: Any, then: Callable[[], None]) -> None:
        self._real = real
        self._then = [then]

    def close(self) -> None:
        self._real.close()
        while self._then:
            self._then.pop()()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def ask_twice(process: Process, pool: ThreadPoolExecutor) -> list[Future[httpx.Response]]:
    """Two requests: one that is being computed until `open`, and one that waits for it."""
    running = pool.submit(httpx.post, f"{process.address}/embed", json={"text": "hold"}, timeout=60)
    until(process.reached, "the pass")
    waiting = pool.submit(httpx.post, f"{process.address}/embed", json={"text": "wait"}, timeout=60)
    metrics = f"{process.address}/metrics"
    until(lambda: 'waiting_tokens{lane="online"} 3.0' in httpx.get(metrics, timeout=60).text, "the second")
    return [running, waiting]


def test_running_requests_end_behind_a_closed_port(start: Start) -> None:
    process = start()
    process.ready()
    with ThreadPoolExecutor(2) as pool:
        asked = ask_twice(process, pool)
        process.popen.send_signal(signal.SIGTERM)
        until(lambda: not answers(process.address, "/health"), "the port's end")
        # Neither is given up when the moment for connections that have not asked yet is over.
        assert not wait(asked, timeout=4 * QUIET_SECONDS, return_when=FIRST_COMPLETED).done
        process.open()
        ended = [each.result() for each in asked]
    assert [(each.status_code, each.headers["Connection"]) for each in ended] == [(200, "close")] * 2
    assert process.popen.wait(60) == 0


def test_what_does_not_end_in_time_is_told_so(start: Start) -> None:
    process = start(SOPHIA_INFERENCE__DRAIN_SECONDS="0.1")
    process.ready()
    with ThreadPoolExecutor(2) as pool:
        asked = ask_twice(process, pool)
        process.popen.send_signal(signal.SIGTERM)
        ended = [each.result() for each in asked]
    assert [(each.status_code, each.headers["Retry-After"]) for each in ended] == [(503, "1")] * 2
    # The pass that runs is deep in the model: the process does not wait for it.
    assert process.popen.wait(60) == 0
    assert "Traceback" not in process.errors


def test_ready_says_that_it_ends(settings: Settings, catalog: Catalog) -> None:
    service = create_service(settings, catalog, load=lambda model, precision, settings: HashEmbedder())
    service.loading.start()
    until(lambda: service.loading.done, "the models")
    service.draining = True

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(service.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            answer = await client.get("/ready")
        await service.loading.close(1)
        return answer

    answer = asyncio.run(ask())
    assert (answer.status_code, answer.json(), answer.headers["Connection"]) == (503, {"status": "ending"}, "close")


def test_a_process_of_its_own_keeps_what_it_loaded_before_it_is_ready(
    settings: Settings, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the garbage collector looks through all of it, for a third of a second, among the first requests."""
    services: list[Service] = []
    kept: list[bool] = []

    def serve_nobody(service: Service, *_: Any) -> None:
        services.append(service)
        service.loading.start()
        until(lambda: service.loading.done, "the models")
        asyncio.run(service.loading.close(1))

    monkeypatch.setattr(server, "listen", lambda *_: None)
    monkeypatch.setattr(server, "serve_until_stopped", serve_nobody)
    monkeypatch.setattr(server, "keep_what_is_loaded", lambda: kept.append(services[-1].loading.done))
    server.serve(settings, catalog, load=hashed(HashEmbedder()))
    assert kept == [False]
    server.serve(settings, catalog, threading.Event(), load=hashed(HashEmbedder()))
    assert kept == [False], "whoever stops it goes on with this process"


def test_the_access_log_holds_numbers_and_no_texts(start: Start) -> None:
    process = start(SOPHIA_INFERENCE__TOKENS="token-of-callers")
    process.ready()
    headers = {"Authorization": "Bearer token-of-callers", "X-Request-Id": "mine"}
    text = "a purple elephant"
    with httpx.Client(base_url=process.address, headers=headers, timeout=60) as client:
        client.post("/embed", json={"texts": [text, text]})
        client.post("/embed", json={"texts": [text, 7], text: 1})
        client.post("/analyze", json={"text": text})
        client.get(f"/{text}?{text}")
        client.post("/embed", json={"text": text}, headers={"Authorization": "Bearer guessed-token"})
        client.post("/embed", json={"text": text}, headers={"X-Request-Id": 'a", "status": 200'})
    process.popen.send_signal(signal.SIGINT)
    assert process.popen.wait(60) == 0
    lines = [json.loads(line) for line in process.log if '"/ready"' not in line]
    assert [(line["method"], line["route"], line["status"], line["texts"], line["tokens"]) for line in lines] == [
        ("POST", "/embed", 200, 2, lines[0]["tokens"]),
        ("POST", "/embed", 422, 0, 0),
        ("POST", "/analyze", 200, 1, 0),
        ("GET", "other", 404, 0, 0),
        ("POST", "/embed", 401, 0, 0),
        ("POST", "/embed", 200, 1, lines[5]["tokens"]),
    ]
    assert lines[0]["tokens"] > 0
    assert [line["id"] for line in lines[:5]] == ["mine"] * 5
    assert lines[5]["id"].isalnum()
    assert set(lines[0]) == {"time", "id", "method", "route", "status", "ms", "texts", "tokens"}
    written = "\n".join(process.log) + process.errors
    assert not any(secret in written for secret in ("elephant", "token-of-callers", "guessed"))


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"SOPHIA_INFERENCE__MODEL": "nobody"}, "nobody"),
        ({"SOPHIA_INFERENCE__HOST": "0.0.0.0"}, "SOPHIA_INFERENCE__TOKENS"),  # noqa: S104
        ({"SOPHIA_INFERENCE__SENTIMENT_MODEL": "/nowhere/model"}, "SOPHIA_INFERENCE__SENTIMENT_MODEL"),
    ],
)
def test_what_must_be_configured_first_ends_it(start: Start, environment: dict[str, str], reason: str) -> None:
    process = start(**environment)
    assert process.popen.wait(START_SECONDS) == 2
    assert reason in process.errors


def test_a_port_in_use_is_said(start: Start) -> None:
    first = start()
    first.ready()
    second = start(SOPHIA_INFERENCE__PORT=first.address.rpartition(":")[2])
    assert second.popen.wait(START_SECONDS) == 2
    assert "SOPHIA_INFERENCE__PORT" in second.errors

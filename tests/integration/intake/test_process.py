"""The process: how it ends under load, when it is killed, and what it writes."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sophia.database import Database
from tests.intake import NAME, body, document
from tests.integration.intake.inbox_view import Deliveries
from tests.integration.intake.process import DIE_VARIABLE, Process
from tests.service_process import START_SECONDS
from tests.waiting import until

PATH = f"/estuary/{NAME}"
Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path, database: Database) -> Iterator[Start]:
    """Starts a process with the given environment; what still runs at the end is killed."""
    started: list[Process] = []

    def begin(**environment: str) -> Process:
        started.append(Process(tmp_path, database, **environment))
        return started[-1]

    yield begin
    for process in started:
        process.kill()


class Sender:
    """Sends one request after another until the port is closed; knows what was answered with 2xx."""

    def __init__(self, address: str, number: int) -> None:
        self.answered: list[str] = []
        self.lost: list[str] = []
        self._address = address
        self._number = number
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with httpx.Client(base_url=self._address, timeout=60, headers={"Content-Type": "application/json"}) as client:
            for request in range(100_000):
                first = self._number * 10_000_000 + request * 20
                numbers = range(first, first + 20)
                try:
                    answer = client.post(PATH, content=body(*[document(n, n, title="t" * 500) for n in numbers]))
                except httpx.ConnectError:
                    return
                except httpx.HTTPError as error:
                    self.lost.append(type(error).__name__)
                    return
                if answer.status_code == 200:
                    self.answered += [f"[{n}]" for n in numbers]

    def join(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()


def keys(deliveries: Deliveries) -> set[str]:
    return {key for (key,) in deliveries.connection.execute("SELECT key FROM sophia.documents").fetchall()}


def test_it_ends_under_load_without_losing_what_it_accepted(start: Start, deliveries: Deliveries) -> None:
    process = start()
    process.ready()
    senders = [Sender(process.address, number) for number in range(4)]
    until(lambda: all(len(sender.answered) > 60 for sender in senders), "load", 60)
    process.popen.send_signal(signal.SIGTERM)
    assert process.popen.wait(60) == 0
    for sender in senders:
        sender.join()
    assert [sender.lost for sender in senders] == [[], [], [], []]
    # Every 2xx is in the inbox, and nothing is there that was not sent.
    assert keys(deliveries) == {key for sender in senders for key in sender.answered}
    lines = [json.loads(line) for line in process.log if PATH in line]
    assert sum(line["documents"] for line in lines) == len(keys(deliveries))
    assert "Traceback" not in process.errors


def test_killed_at_any_moment_every_2xx_is_in_the_inbox(start: Start, deliveries: Deliveries) -> None:
    process = start()
    process.ready()
    senders = [Sender(process.address, number) for number in range(3)]
    until(lambda: all(len(sender.answered) > 60 for sender in senders), "load", 60)
    process.kill()
    for sender in senders:
        sender.join()
    answered = {key for sender in senders for key in sender.answered}
    # A last request of each sender may have been committed and not answered: all of it or nothing.
    assert answered <= keys(deliveries)
    assert len(keys(deliveries) - answered) in (0, 20, 40, 60)


def test_killed_beside_the_commit_a_delivery_is_taken_once(start: Start, deliveries: Deliveries) -> None:
    raw = body(document(1, 1, title="t"), document(2, 2), {"a": 1}, document(5, 3, "u", before={"id": 4}))
    headers = {"Content-Type": "application/json"}
    for point, taken in (("intake.before_commit", False), ("intake.after_commit", True)):
        process = start(**{DIE_VARIABLE: point})
        process.ready()
        with pytest.raises(httpx.TransportError):
            httpx.post(f"{process.address}{PATH}", content=raw, headers=headers, timeout=60)
        assert process.popen.wait(60) == -signal.SIGKILL
        # All of it or nothing; the server may not have heard of the death yet.
        until(lambda: bool(keys(deliveries)) is taken, "the transaction's end")  # noqa: B023
        assert bool(deliveries.parked()) is taken
        assert bool(deliveries.rereads()) is taken
    process = start()
    process.ready()
    answer = httpx.post(f"{process.address}{PATH}", content=raw, headers=headers, timeout=60)
    assert answer.json() == {"documents": 4, "parked": 1}
    assert keys(deliveries) == {"[1]", "[2]", "[5]"}
    assert len(deliveries.parked()) == 1
    (log,) = deliveries.connection.execute("SELECT count(*) FROM sophia.inbox WHERE key = '[1]'").fetchone() or (0,)
    assert log >= 1


def test_the_access_log_holds_numbers_and_no_texts(start: Start) -> None:
    process = start(SOPHIA_INTAKE__TOKENS=json.dumps({"*": "token-of-estuary"}))
    process.ready()
    text = "a purple elephant"
    with httpx.Client(
        base_url=process.address, headers={"Authorization": "Bearer token-of-estuary"}, timeout=60
    ) as client:
        client.post(PATH, content=body(document(1, 1, title=text), {text: 1}, document(text, 2, op="x")))
        client.post(PATH, content=f'["{text}'.encode())
        client.post(f"/estuary/{text}", content=b"[]")
        client.post("/estuary-events", content=text.encode())
        client.post(PATH, content=b"[]", headers={"Authorization": "Bearer guessed-token"})
    process.popen.send_signal(signal.SIGINT)
    assert process.popen.wait(60) == 0
    lines: list[Any] = [json.loads(line) for line in process.log if '"/ready"' not in line]
    assert [(line["route"], line["status"], line["documents"], line["parked"]) for line in lines] == [
        (PATH, 200, 3, 2),
        (PATH, 200, 0, 1),
        ("other", 404, 0, 0),
        ("/estuary-events", 200, 0, 1),
        (PATH, 401, 0, 0),
    ]
    assert set(lines[0]) == {"time", "id", "method", "route", "status", "ms", "bytes", "documents", "parked"}
    written = "\n".join(process.log) + process.errors
    assert not any(secret in written for secret in ("elephant", "token-of-estuary", "guessed"))


def test_what_must_be_configured_first_ends_it(start: Start) -> None:
    process = start(SOPHIA_INTAKE__TOKENS="{}", SOPHIA_INTAKE__HOST="0.0.0.0")  # noqa: S104
    assert process.popen.wait(START_SECONDS) == 2
    assert "SOPHIA_INTAKE__TOKENS" in process.errors

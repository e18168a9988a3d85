"""The service over HTTP: what it answers, who may deliver, and that nothing is answered too early."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from datetime import UTC, datetime
from typing import Any

import httpx
import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families
from psycopg.rows import TupleRow

from sophia.catalog import Catalog
from sophia.database import Database
from sophia.errors import ConfigurationError, TemporaryError
from sophia.estuary.intake import take as taking
from sophia.services.intake import writers
from sophia.services.intake.auth import IntakeTokens
from sophia.services.intake.room import Room
from sophia.settings import IntakeSettings, Settings
from tests.intake import NAME, body, document, fed_catalog, intake
from tests.integration.intake.conftest import Serve
from tests.integration.intake.inbox_view import Deliveries
from tests.waiting import until

Connection = psycopg.Connection[TupleRow]
PATH = f"/estuary/{NAME}"
OLD, NEW = "old-token-of-estuary", "new-token-of-estuary"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def figures(client: httpx.Client) -> dict[tuple[Any, ...], float]:
    """Every sample of /metrics by name and labels."""
    found = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            found[(sample.name, *sample.labels.values())] = sample.value
    return found


def test_documents_are_in_the_inbox_when_it_answers(served: Serve, deliveries: Deliveries) -> None:
    client = served()
    answer = client.post(PATH, content=body(document(1, 1, title="t"), {"a": 1}, document(2, 2)))
    assert (answer.status_code, answer.json()) == (200, {"documents": 3, "parked": 1})
    assert list(deliveries.rows()) == ["[1]", "[2]"]
    assert client.post(PATH, content=b"[]").json() == {"documents": 0, "parked": 0}
    again = client.post(PATH, content=body(document(1, 1, title="t"), document(2, 1)))
    assert again.status_code == 200
    found = figures(client)
    assert found["sophia_intake_documents_total", NAME, "taken"] == 2
    assert found["sophia_intake_documents_total", NAME, "duplicate"] == 1
    assert found["sophia_intake_documents_total", NAME, "stale"] == 1
    assert found["sophia_intake_documents_total", NAME, "parked"] == 1
    assert found["sophia_intake_request_seconds_count", "POST", PATH, "200"] == 3
    assert found["sophia_intake_transaction_seconds_count", NAME] == 3
    assert found["sophia_intake_bytes_total", PATH] > 300
    assert found["sophia_intake_waiting", "room"] == 0


def test_a_body_that_cannot_be_read_is_kept_and_accepted(served: Serve, deliveries: Deliveries) -> None:
    client = served()
    raws = [b"", b"{}", b"nope", b"[1,", b'[{"id":', b"\xff\xfe", b"[" * 20_000]
    for raw in raws:
        answer = client.post(PATH, content=raw)
        assert (answer.status_code, answer.json()) == (200, {"documents": 0, "parked": 1})
    assert [text for *_, text in deliveries.parked()] == raws


def test_what_is_not_taken_here_is_refused_and_counted(served: Serve, deliveries: Deliveries) -> None:
    client = served()
    for path in ("/estuary/sophia/nobody", "/estuary/", "/estuary/documents", f"{PATH}/", f"{PATH}/x", "/nowhere"):
        answer = client.post(path, content=body(document(1, 1)))
        assert answer.status_code == 404, path
        assert "error" in answer.json()
    assert client.get(PATH).status_code == 405
    assert deliveries.rows() == {}
    found = figures(client)
    assert found["sophia_intake_refused_total", "unknown"] == 6
    assert found["sophia_intake_request_seconds_count", "POST", "other", "404"] == 6


def test_nothing_is_redirected(served: Serve) -> None:
    client = served()
    for path in (f"{PATH}/", "/estuary", "/estuary-events/", "/health/", f"/{PATH}"):
        for method in ("GET", "POST"):
            assert not 300 <= client.request(method, path, content=b"[]").status_code < 400, path


def test_tokens_open_what_they_are_for(served: Serve, catalog: Catalog, deliveries: Deliveries) -> None:
    tokens = {NAME: f" {OLD} ,{NEW}", "*": "rest-token", "/events": "event-token"}
    client = served(fed_catalog(catalog, ("documents", "other")), tokens=json.dumps(tokens))
    raw = body(document(1, 1))

    def status(path: str, token: str | None) -> int:
        return client.post(path, content=raw, headers=bearer(token) if token else {}).status_code

    assert [status(PATH, token) for token in (OLD, NEW)] == [200, 200]
    for wrong in (None, "rest-token", "event-token", OLD.upper(), OLD + "x", f"{OLD},{NEW}", ""):
        assert status(PATH, wrong) == 401
    assert [status("/estuary/sophia/other", token) for token in (OLD, "rest-token")] == [401, 200]
    assert [status("/estuary-events", token) for token in (OLD, "rest-token", "event-token")] == [401, 401, 200]
    # Whether a collection is taken here is nobody's business without a token.
    assert [status("/estuary/sophia/nobody", token) for token in (None, "wrong", OLD)] == [401, 401, 404]
    for path in ("/health", "/ready", "/metrics", "/openapi.json"):
        assert client.get(path).status_code == 200
    assert figures(client)["sophia_intake_refused_total", "token"] == 12
    assert client.post(PATH, content=raw).headers["WWW-Authenticate"].startswith("Bearer")
    two = [("Authorization", f"Bearer {OLD}"), ("Authorization", f"Bearer {NEW}")]
    assert client.post(PATH, content=raw, headers=two).status_code == 401


@pytest.mark.parametrize(
    ("group", "said"),
    [
        ({"host": "0.0.0.0"}, "SOPHIA_INTAKE__TOKENS"),  # noqa: S104
        ({"tokens": "plain"}, "JSON object"),
        ({"tokens": "[1]"}, "JSON object"),
        ({"tokens": '{"*": 7}'}, "JSON object"),
        ({"tokens": '{"*": " , "}'}, "holds no token"),
        ({"tokens": f'{{"{NAME}": "a"}}'}, "/events"),
        ({"tokens": '{"/events": "a"}'}, NAME),
        ({"tokens": '{"sophia/document": "a", "*": "b"}'}, f'did you mean "{NAME}"'),
    ],
)
def test_tokens_that_do_not_fit_are_said_at_the_start(group: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match="SOPHIA_INTAKE__TOKENS") as refused:
        IntakeTokens(IntakeSettings.model_validate(group), [NAME])
    assert said in str(refused.value)


def test_without_tokens_only_this_machine_is_answered(served: Serve) -> None:
    client = served()
    assert client.post(PATH, content=b"[]", headers={"Host": "evil.example.com"}).status_code == 400
    # What a page in a browser could send without asking first.
    assert client.post(PATH, content=b"[]", headers={"Content-Type": "text/plain"}).status_code == 415
    assert client.post("/estuary-events", content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415


def test_without_a_collection_of_estuary_it_does_not_start(
    settings: Settings, catalog: Catalog, database: Database
) -> None:
    with pytest.raises(ConfigurationError, match="estuary"), intake(settings, catalog, database):
        pass


def test_a_collection_without_a_key_is_said(settings: Settings, fed: Catalog, database: Database) -> None:
    keyless = fed.collections[0].model_copy(update={"key": ()})
    catalog = fed.model_copy(update={"collections": (keyless,)})
    with pytest.raises(ConfigurationError, match="`key`"), intake(settings, catalog, database):
        pass


def test_a_body_that_ends_short_gets_no_2xx_and_nothing_of_it_is_taken(served: Serve, deliveries: Deliveries) -> None:
    client = served()
    raw = body(*[document(number, number, title="x" * 1_000) for number in range(50)])
    framings = [
        (f"Content-Length: {len(raw) + 1}", raw),
        ("Transfer-Encoding: chunked", b"%x\r\n%b\r\n" % (len(raw), raw)),
    ]
    for framing, sent in framings:
        head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{framing}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", client.base_url.port or 0)) as connection:
            connection.sendall(head.encode() + sent)
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(30)
            answered = b""
            with contextlib.suppress(ConnectionError):
                answered = connection.recv(100)
        assert b" 200 " not in answered
    until(lambda: figures(client).get(("sophia_intake_refused_total", "cut off")) == 2, "the end of the requests")
    assert (deliveries.rows(), deliveries.parked()) == ({}, [])


def test_a_body_that_is_too_large_or_too_slow(served: Serve, deliveries: Deliveries) -> None:
    client = served(max_request_bytes=1_000)
    assert client.post(PATH, content=b"[%b]" % (b" " * 2_000)).status_code == 413
    assert client.post(PATH, content=iter([b"[", b" " * 2_000, b"]"])).status_code == 413
    client = served(receive_seconds=0.2)
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n["
    with socket.create_connection(("127.0.0.1", client.base_url.port or 0)) as connection:
        connection.sendall(head.encode())
        connection.settimeout(30)
        assert b" 408 " in connection.recv(100)
    assert deliveries.parked() == []


def test_a_commit_that_fails_gets_no_2xx(
    served: Serve, deliveries: Deliveries, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = served(retry_seconds=0)

    def die(name: str) -> None:
        if name == "intake.before_commit":
            raise psycopg.OperationalError("gone")

    monkeypatch.setattr(taking, "failpoint", die)
    answer = client.post(PATH, content=body(document(1, 1)))
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert deliveries.rows() == {}
    monkeypatch.undo()
    assert client.post(PATH, content=body(document(1, 1))).status_code == 200
    assert list(deliveries.rows()) == ["[1]"]


def test_a_lost_connection_is_made_up_for_within_the_request(
    served: Serve, deliveries: Deliveries, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = served()
    killed = []

    def kill(name: str) -> None:
        """Once before and once after a commit: the answer of the server is lost, or the transaction is."""
        if name not in killed:
            killed.append(name)
            if name == "intake.after_commit":
                raise psycopg.OperationalError("lost")
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'sophia-intake'"
            )

    monkeypatch.setattr(taking, "failpoint", kill)
    answer = client.post(PATH, content=body(document(1, 1), document(2, 2), {"a": 1}))
    assert answer.json() == {"documents": 3, "parked": 1}
    assert killed == ["intake.before_commit", "intake.after_commit"]
    assert list(deliveries.rows()) == ["[1]", "[2]"]
    assert len(deliveries.parked()) == 1


WAITING = (
    "SELECT 1 FROM pg_stat_activity WHERE application_name = 'sophia-intake' AND wait_event_type = 'Lock' "
    "AND datname = current_database()"
)


def test_what_waits_goes_into_one_transaction(
    served: Serve, deliveries: Deliveries, connection: Connection, database: Database
) -> None:
    client = served()
    with connection.transaction():
        # Whoever writes the collection waits for this.
        connection.execute("SELECT FROM sophia.collections FOR UPDATE")
        sent = [
            threading.Thread(target=client.post, args=(PATH,), kwargs={"content": body(document(n, n))})
            for n in range(12)
        ]
        sent[0].start()
        # On a connection of its own: what it sees does not stand still with this transaction.
        with database.connect("watcher") as watcher:
            until(lambda: watcher.execute(WAITING).fetchone(), "the first, which waits for this")
        for thread in sent[1:]:
            thread.start()
        until(lambda: figures(client)["sophia_intake_waiting", "transaction"] == 11, "the requests")
    for thread in sent:
        thread.join(60)
    assert len(deliveries.rows()) == 12
    # The first that came, and the others together.
    assert figures(client)["sophia_intake_transaction_seconds_count", NAME] == 2


def test_room_is_given_in_the_order_of_arrival() -> None:
    async def run() -> list[str]:
        room = Room(10)
        seen: list[str] = []
        leave = {name: asyncio.Event() for name in "abcd"}

        async def enter(name: str, size: int) -> None:
            async with room.of(size):
                seen.append(name)
                await leave[name].wait()

        tasks = []
        for name, size in (("a", 6), ("b", 10), ("c", 2), ("d", 2)):
            tasks.append(asyncio.create_task(enter(name, size)))
            await asyncio.sleep(0)
        assert (seen, room.waiting) == (["a"], 3)
        leave["a"].set()
        while seen != ["a", "b"]:
            await asyncio.sleep(0)
        tasks[1].cancel()
        tasks[2].cancel()
        while seen != ["a", "b", "d"]:
            await asyncio.sleep(0)
        leave["d"].set()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with room.of(10):
            seen.append("all of it")
        return seen

    assert asyncio.run(run()) == ["a", "b", "d", "all of it"]


EVENT = {
    "materialization": "sophia/webhook",
    "collections": [NAME, "sophia/elsewhere"],
    "publishedAtMin": "2026-01-02T03:04:05.123456789Z",
    "publishedAtMax": "2026-01-02T03:04:06Z",
}


def test_commit_events_raise_watermarks_and_never_lower_them(served: Serve, connection: Connection) -> None:
    client = served()
    for published in ("2026-01-02T03:04:06Z", "2026-01-02T03:04:09+00:00", "2026-01-02T03:04:07Z") * 2:
        answer = client.post("/estuary-events", json=EVENT | {"publishedAtMax": published})
        assert (answer.status_code, answer.json()) == (200, {"recorded": True})
    rows = connection.execute("SELECT collection, published_at_max FROM sophia.estuary_watermarks").fetchall()
    newest = datetime(2026, 1, 2, 3, 4, 9, tzinfo=UTC)
    assert sorted(rows) == [(NAME, newest), ("sophia/elsewhere", newest)]
    (count,) = connection.execute("SELECT count(*) FROM sophia.estuary_commits").fetchone() or (0,)
    assert count == 3
    found = figures(client)
    assert found["sophia_estuary_watermark_seconds", NAME] == newest.timestamp()
    assert ("sophia_estuary_watermark_seconds", "sophia/elsewhere") not in found


def test_an_event_of_many_collections_is_recorded_once(served: Serve, connection: Connection) -> None:
    client = served()
    names = [f"sophia/production/public/table_{number:04d}_{number * 7919:08x}" for number in range(1_000)]
    for _ in range(2):
        answer = client.post("/estuary-events", json=EVENT | {"collections": names})
        assert (answer.status_code, answer.json()) == (200, {"recorded": True})
    rows = connection.execute("SELECT cardinality(collections) FROM sophia.estuary_commits").fetchall()
    assert rows == [(1_000,)]


def test_events_that_cannot_be_read_are_kept_and_accepted(served: Serve, connection: Connection) -> None:
    client = served()
    raws = [
        b"",
        b"nope",
        b"[]",
        b"{}",
        json.dumps(EVENT | {"collections": []}).encode(),
        json.dumps(EVENT | {"collections": [1]}).encode(),
        json.dumps(EVENT | {"collections": ["a\0"]}).encode(),
        json.dumps(EVENT | {"materialization": "x" * 600}).encode(),
        json.dumps(EVENT | {"publishedAtMax": "yesterday"}).encode(),
        json.dumps(EVENT | {"publishedAtMax": "2026-01-02T03:04:06"}).encode(),
        json.dumps(EVENT | {"publishedAtMin": "0001-01-01T00:00:00+14:00"}).encode(),
        json.dumps(EVENT | {"publishedAtMax": "9999-12-31T23:59:59-14:00"}).encode(),
        b"[" * 50_000,
    ]
    for raw in raws:
        answer = client.post("/estuary-events", content=raw)
        assert (answer.status_code, answer.json()) == (200, {"recorded": False})
    rows = connection.execute("SELECT name, body FROM sophia.parked ORDER BY id").fetchall()
    assert rows == [("/events", raw) for raw in raws]
    assert connection.execute("SELECT FROM sophia.estuary_watermarks").fetchall() == []


def test_events_are_accepted_while_the_database_is_away(
    served: Serve, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = served()
    away = [True]
    connect = Database.connect

    def refused(self: Database, *arguments: Any, **named: Any) -> Any:
        if away[0]:
            raise TemporaryError("away")
        return connect(self, *arguments, **named)

    monkeypatch.setattr(Database, "connect", refused)
    answer = client.post("/estuary-events", json=EVENT)
    assert (answer.status_code, answer.json()) == (202, {"recorded": False})
    away[0] = False
    until(lambda: connection.execute("SELECT FROM sophia.estuary_watermarks").fetchall(), "the watermark")


def test_documents_wait_for_the_database_and_give_up_in_time(
    served: Serve, deliveries: Deliveries, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, impatient = served(retry_seconds=60), served(retry_seconds=0.3)
    away = [2]
    connect = Database.connect

    def refused(self: Database, *arguments: Any, **named: Any) -> Any:
        away[0] -= 1
        if away[0] >= 0:
            raise TemporaryError("away")
        return connect(self, *arguments, **named)

    monkeypatch.setattr(Database, "connect", refused)
    monkeypatch.setattr(writers, "FIRST_DELAY_SECONDS", 0.001)
    assert client.post(PATH, content=body(document(1, 1))).status_code == 200
    client.post(PATH, content=body(document(1, 1)))
    away[0] = 10**6
    assert deliveries.connection.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'sophia-intake'"
    ).fetchall()
    answer = impatient.post(PATH, content=body(document(2, 2)))
    assert answer.status_code == 503
    assert list(deliveries.rows()) == ["[1]"]


def test_the_document_says_what_is_there(served: Serve, catalog: Catalog) -> None:
    found = served(fed_catalog(catalog, ("documents", "other"))).get("/openapi.json").json()
    assert set(found["paths"]) == {PATH, "/estuary/sophia/other", "/estuary-events"}
    secured = served(tokens='{"*": "a"}').get("/openapi.json").json()
    assert secured["paths"][PATH]["post"]["security"] == [{"bearer": []}]

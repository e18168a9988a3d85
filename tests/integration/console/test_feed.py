"""The live feed: order, resuming, lost connections, slow readers."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from typing import Any

import httpx
import psycopg
import pytest
from psycopg import sql
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool

from sophia.database import Database
from sophia.database.embedded import EmbeddedPostgres
from sophia.services.console import feed as feed_module
from sophia.services.console.feed import Feed
from sophia.services.console.metrics import Metrics
from tests.console import Documents
from tests.waiting import until

Connection = psycopg.Connection[TupleRow]


class Stream:
    """Reads server-sent events of the console."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines

    def next(self) -> dict[str, Any]:
        """The next batch, with its event id as `event_id`."""
        event: dict[str, str] = {}
        for line in self._lines:
            name, _, value = line.partition(": ")
            if line:
                event[name] = value
            elif "data" in event:
                return json.loads(event["data"]) | {"event_id": int(event["id"])}
        raise AssertionError("the stream ended")


@contextlib.contextmanager
def events(client: httpx.Client, last_id: int | None = None) -> Iterator[Stream]:
    headers = {} if last_id is None else {"Last-Event-ID": str(last_id)}
    with client.stream("GET", "/api/events", headers=headers) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        yield Stream(response.iter_lines())


def add_batch(connection: Connection, version_id: int, *, notify: bool = True) -> int:
    """A batch as the writer records one."""
    row = connection.execute(
        "INSERT INTO sophia.batches"
        " (version_id, lane, run, documents, embedded, reused, deleted, tokens, embed_ms, apply_ms, lag_ms)"
        " VALUES (%s, 'live', 'live', 1, 1, 0, 0, 9, 1, 1, 12.5) RETURNING id",
        [version_id],
    ).fetchone()
    assert row is not None
    if notify:
        connection.execute("SELECT pg_notify('sophia_indexed', %s)", [json.dumps({"batch": row[0]})])
    return int(row[0])


def test_a_change_shows_as_it_becomes_searchable(client: httpx.Client, documents: Documents) -> None:
    documents.put(1, "old", "before the client came")
    with events(client) as stream:
        assert stream.next()["keys"] == ["[1]"]
        documents.put(2, "new", "text")
        batch = stream.next()
        assert (batch["index"], batch["keys"], batch["embedded"], batch["lane"]) == ("documents", ["[2]"], 1, "live")
        assert batch["lag_ms"] > 0
        assert batch["event_id"] == batch["id"]
        documents.put(2, "new", "text", kind="other")
        batch = stream.next()
        assert (batch["embedded"], batch["reused"]) == (0, 1)
        documents.delete(2)
        batch = stream.next()
        assert (batch["keys"], batch["deleted"]) == (["-[2]"], 1)


def test_a_client_resumes_after_the_last_batch_that_it_has(client: httpx.Client, documents: Documents) -> None:
    with events(client) as stream:
        documents.put(1, "a", "a")
        last = stream.next()["id"]
    for number in range(2, 6):
        documents.put(number, "a", str(number))
    with events(client, last) as stream:
        assert [stream.next()["keys"] for _ in range(4)] == [["[2]"], ["[3]"], ["[4]"], ["[5]"]]


def test_a_batch_that_commits_after_a_younger_one_is_not_missed(
    client: httpx.Client, database: Database, documents: Documents
) -> None:
    version = documents.version.id
    with database.connect(autocommit=False) as slow, database.connect() as quick:
        older = add_batch(slow, version)
        with events(client) as stream:
            younger = add_batch(quick, version)
            assert older < younger
            assert stream.next()["id"] == younger
        slow.commit()
        with events(client, younger) as stream:
            assert stream.next()["id"] == older


def test_the_feed_outlives_its_connection_and_shows_what_it_missed(
    client: httpx.Client, server: EmbeddedPostgres, connection: Connection, documents: Documents
) -> None:
    name = sql.Identifier(connection.info.dbname)
    with psycopg.connect(server.url(), autocommit=True) as maintenance, events(client) as stream:
        documents.put(1, "a", "a")
        assert stream.next()["keys"] == ["[1]"]
        maintenance.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(name))
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'sophia-console%'"
            " AND datname = current_database()"
        )
        until(lambda: client.get("/ready").status_code == 503, "the console without a database")
        documents.put(2, "a", "b")
        maintenance.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(name))
        assert stream.next()["keys"] == ["[2]"]
        documents.put(3, "a", "c")
        assert stream.next()["keys"] == ["[3]"]
    until(lambda: client.get("/ready").status_code == 200, "the pool's new connections")


def test_what_others_notify_does_no_harm(client: httpx.Client, connection: Connection, documents: Documents) -> None:
    with events(client) as stream:
        for payload in ("", "x", "[]", '{"batch": null}', '{"batch": "1"}', '{"batch": 999999}'):
            connection.execute("SELECT pg_notify('sophia_indexed', %s)", [payload])
        documents.put(1, "a", "a")
        assert stream.next()["keys"] == ["[1]"]


def test_a_slow_reader_is_dropped_and_resumes_while_others_go_on(
    database: Database, connection: Connection, documents: Documents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "REMEMBERED", 100)
    ids: list[int] = []

    def write(number: int) -> None:
        with connection.transaction():
            ids.extend(add_batch(connection, documents.version.id) for _ in range(number))

    async def scenario() -> None:
        with ConnectionPool(database.url, min_size=1, max_size=2, open=True) as pool:
            feed = Feed(database.url, pool, Metrics())
            running = asyncio.create_task(feed.run())
            slow, quick = feed.stream(None), feed.stream(None)
            first = asyncio.gather(anext(slow), anext(quick))
            await asyncio.to_thread(write, 1)
            await asyncio.wait_for(first, 60)
            for _ in range(5):
                await asyncio.to_thread(write, 60)
                seen = [(await asyncio.wait_for(anext(quick), 60)).id for _ in range(60)]
                assert seen == [str(number) for number in ids[-60:]]
            assert [event async for event in slow] == []
            resumed = feed.stream(ids[0])
            assert [(await asyncio.wait_for(anext(resumed), 60)).id for _ in ids[1:]] == [str(n) for n in ids[1:]]
            feed.close()
            assert [event async for event in quick] == []
            running.cancel()

    asyncio.run(scenario())


def test_a_client_that_comes_before_the_feed_listens_misses_nothing(
    database: Database, connection: Connection, documents: Documents
) -> None:
    async def scenario() -> str | None:
        with ConnectionPool(database.url, min_size=1, max_size=2, open=True) as pool:
            feed = Feed(database.url, pool, Metrics())
            first = asyncio.create_task(anext(feed.stream(None)))
            # Long enough to read the table, were it read at once.
            await asyncio.sleep(0.3)
            add_batch(connection, documents.version.id)
            running = asyncio.create_task(feed.run())
            event = await asyncio.wait_for(first, 60)
            running.cancel()
            return event.id

    assert asyncio.run(scenario()) is not None


def test_a_client_of_an_earlier_process_misses_nothing(
    database: Database, connection: Connection, documents: Documents
) -> None:
    ids = [add_batch(connection, documents.version.id, notify=False) for _ in range(120)]

    async def scenario() -> list[int]:
        with ConnectionPool(database.url, min_size=1, max_size=2, open=True) as pool:
            feed = Feed(database.url, pool, Metrics())
            running = asyncio.create_task(feed.run())
            stream = feed.stream(ids[59])
            # Those after it, and once more the few before it.
            received = [int((await anext(stream)).id or 0) for _ in range(60 + 49)]
            running.cancel()
            return received

    received = asyncio.run(scenario())
    assert set(ids[60:]) <= set(received)
    assert received == sorted(received)

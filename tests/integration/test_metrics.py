"""The metrics of capture and indexer over real HTTP: what they say, and when the process is ready."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from sophia.database import Database
from sophia.database.embedded import EmbeddedPostgres
from sophia.embedding.base import EmbeddingFigures
from sophia.errors import ConfigurationError
from sophia.indexing.indexer import Indexer
from sophia.indexing.status import IndexProgress, index_progress, index_status
from sophia.services.engine_metrics import EngineCollector
from sophia.services.metrics import CaptureMetrics, IndexerMetrics, exposed
from sophia.services.worker import Loop, keep_running
from tests.bounded import the_idle_one_makes_room
from tests.embedders import TOKENS_PER_SECOND, HashEmbedder
from tests.integration.conftest import Captures
from tests.integration.library import Library
from tests.ports import free_port
from tests.waiting import until

RunLoop = Callable[..., Any]


class Kept:
    """A loop under the process's own supervision, as a loop of the test."""

    def __init__(self, loop: Loop) -> None:
        self.ready = loop.ready
        self._loop = loop

    def run(self, stop: Any) -> None:
        keep_running(self._loop, stop)


@pytest.fixture
def port() -> int:
    """A port that nobody listens on."""
    return free_port()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may halt for longer than a scrape waits for the database."""
    monkeypatch.setattr("sophia.services.metrics.STATEMENT_TIMEOUT", "60s")


@pytest.fixture
def indexing(library: Library, port: int, run_loop: RunLoop) -> Iterator[tuple[httpx.Client, Indexer, Any]]:
    """An indexer with its endpoint: (client, indexer, start)."""
    metrics = IndexerMetrics(library.database)
    settings = library.indexer()._settings
    indexer = Indexer(library.catalog, library.database, settings, observe=metrics.observe)
    metrics.watch(indexer.embedders)
    loop = Loop("indexer", indexer.run, indexer.ready)
    with (
        exposed(metrics, "127.0.0.1", port, [loop], "SOPHIA_INDEXER__METRICS_PORT"),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        until(lambda: _answers(client), "the endpoint")
        yield client, indexer, lambda: run_loop(Kept(loop))


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


def value(text: str, name: str, **labels: str) -> float:
    """The value of a sample."""
    for line in text.splitlines():
        if line.startswith((name + "{", name + " ")) and all(f'{k}="{v}"' in line for k, v in labels.items()):
            return float(line.rpartition(" ")[2])
    raise AssertionError(f"{name}{labels} is not in\n{text}")


def says(client: httpx.Client, number: float, name: str, **labels: str) -> str | None:
    """A scrape in which the sample is there and has that value."""
    text = client.get("/metrics").text
    try:
        return text if value(text, name, **labels) == number else None
    except AssertionError:
        return None


def test_indexer_tells_what_it_did(indexing: tuple[httpx.Client, Indexer, Any], library: Library) -> None:
    client, _, start = indexing
    for number in range(5):
        library.put(number, body=f"bulk {number}", bulk=True)
    start()
    library.level()
    for number in range(10, 13):
        library.put(number, body="equal")
    library.level()
    text = until(lambda: says(client, 8, "sophia_index_verified_position", index="documents"), "the verified position")
    live = {"index": "documents", "version": "1", "lane": "live"}
    assert value(text, "sophia_documents_applied_total", **live) == 3
    assert value(text, "sophia_documents_applied_total", **(live | {"lane": "bulk"})) == 5
    assert value(text, "sophia_embeddings_total", **live, kind="paid") >= 1
    paid_and_reused = sum(value(text, "sophia_embeddings_total", **live, kind=kind) for kind in ("paid", "reused"))
    assert 1 <= paid_and_reused <= 3
    assert value(text, "sophia_batch_documents_sum", **live) == 3
    assert value(text, "sophia_stage_seconds_count", **live, stage="store") >= 1
    assert value(text, "sophia_stage_seconds_count", **live, stage="embed") >= 1
    assert value(text, "sophia_index_backlog", index="documents") == 0
    assert value(text, "sophia_index_level", index="documents") == 1
    assert value(text, "sophia_database_up") == 1
    assert value(text, "sophia_drift_found", index="documents") == 0
    assert value(text, "sophia_dead_letters") == 0
    # By the server's statistics, in which an ANALYZE beside the writes may count them twice.
    until(lambda: value(client.get("/metrics").text, "sophia_index_fresh", index="documents") in (3, 6))


def test_indexer_tells_what_its_embedders_did(indexing: tuple[httpx.Client, Indexer, Any], library: Library) -> None:
    client, _, start = indexing
    assert "sophia_engine_tokens_total{" not in client.get("/metrics").text, "no model is loaded"
    library.embedder.refused = {"t\n\nbad": "its vector holds a value that is no number"}
    for number in range(20):
        library.put(number, body=f"bulk {number}", bulk=True)
    library.put(20, body="bad", bulk=True)
    start()
    library.level()
    until(lambda: library.parked(), "the refused document")
    figures = library.embedder.figures
    figures.padding, figures.cache_hits, figures.duplicates, figures.out_of_memory = 30, 4, 5, 1
    text = client.get("/metrics").text
    of_model = {"model": "minilm", "precision": "exact", "backend": "hash"}
    counted = {
        name: value(text, f"sophia_engine_{name}_total", **of_model) for name in EmbeddingFigures.__dataclass_fields__
    }
    assert counted == {name: pytest.approx(getattr(figures, name)) for name in counted}
    assert (counted["texts"], counted["refused"], counted["padding"]) == (21, 1, 30)
    speed = "sophia_engine_tokens_per_second"
    assert value(text, speed, **of_model) == pytest.approx(TOKENS_PER_SECOND)
    assert value(client.get("/metrics").text, speed, **of_model) == 0, "nothing was computed since the last look"


def test_figures_of_two_embedders_of_one_name_are_one_series() -> None:
    """Two versions may differ in their model's entry and not in its name."""
    first, second, third = HashEmbedder(), HashEmbedder(), HashEmbedder(backend="other")
    for embedder in (first, second, third):
        embedder.embed(["text"])
    collector = EngineCollector(lambda: [("minilm", first), ("minilm", second), ("minilm", third)])
    texts = next(metric for metric in collector.collect() if metric.name == "sophia_engine_texts")
    assert [(sample.labels["backend"], sample.value) for sample in texts.samples] == [("hash", 2), ("other", 1)]


def test_readiness_follows_the_loop_and_health_the_process(
    indexing: tuple[httpx.Client, Indexer, Any], library: Library, server: EmbeddedPostgres
) -> None:
    client, _, start = indexing
    answer = client.get("/ready")
    assert (answer.status_code, answer.json()["waiting"]) == (503, ["indexer"])
    start()
    assert client.get("/ready").status_code == 200
    # The database goes away: sessions end, and new ones are refused.
    name = library.connection.info.dbname
    with Database(server.url()).connect() as maintenance:
        maintenance.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        maintenance.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = %s AND application_name LIKE 'sophia-indexer%%'",
            [name],
        )
        until(lambda: client.get("/ready").status_code == 503, "not ready")
        assert client.get("/health").status_code == 200
        until(lambda: says(client, 0, "sophia_database_up"), "word of the database")
        maintenance.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    until(lambda: client.get("/ready").status_code == 200, "ready again")
    until(lambda: says(client, 1, "sophia_database_up"), "word of the database")


def test_slow_count_costs_the_scrape_no_other_figure(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    library.version()
    # Long enough for every other query of a scrape, also on a busy machine.
    monkeypatch.setattr("sophia.services.metrics.STATEMENT_TIMEOUT", "2s")
    monkeypatch.setattr(
        "sophia.services.metrics.index_status", lambda connection: connection.execute("SELECT pg_sleep(30)")
    )
    text = IndexerMetrics(library.database).text().decode()
    assert value(text, "sophia_database_up") == 1
    assert value(text, "sophia_index_backlog", index="documents") == 0
    assert "sophia_index_documents{" not in text


def test_capture_tells_its_slot_and_the_time_to_the_inbox(captures: Captures, database: Database, port: int) -> None:
    with database.connect() as connection:
        connection.execute("CREATE TABLE notes (id int PRIMARY KEY, body text)")
        running = captures.start("public.notes")
        source = captures.source("public.notes")
        metrics = CaptureMetrics(database, [source])
        loop = Loop("capture", running.loop.run, running.loop.ready)
        with (
            exposed(metrics, "127.0.0.1", port, [loop], "SOPHIA_CAPTURE__METRICS_PORT"),
            httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
        ):
            until(lambda: _answers(client), "the endpoint")
            assert client.get("/ready").status_code == 200
            first = client.get("/metrics").text
            assert value(first, "sophia_capture_tables", source="test", complete="yes") == 1
            for number in range(4):
                connection.execute("INSERT INTO notes VALUES (%s, 'text')", [number])

            def four() -> bool:
                text = client.get("/metrics").text
                # The series begins with its first change.
                return 'stage="wal_to_inbox"' in text and (
                    value(text, "sophia_stage_seconds_count", stage="wal_to_inbox") == 4
                )

            until(four, "four changes")
            assert value(client.get("/metrics").text, "sophia_slot_retained_bytes", source="test") > 0


def test_a_source_that_is_away_is_not_taken_for_our_database(captures: Captures, database: Database) -> None:
    away = captures.source("public.notes", url="postgresql://nobody@127.0.0.1:1/nothing")
    metrics = CaptureMetrics(database, [away])
    try:
        text = metrics.text().decode()
    finally:
        metrics.close()
    assert value(text, "sophia_source_up", source="test") == 0
    assert value(text, "sophia_database_up") == 1


def test_port_that_is_taken_is_named_with_its_setting(database: Database) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        exposing = exposed(IndexerMetrics(database), "127.0.0.1", port, [], "SOPHIA_INDEXER__METRICS_PORT")
        with pytest.raises(ConfigurationError, match="SOPHIA_INDEXER__METRICS_PORT"), exposing:
            pass


def test_its_connections_are_bounded(database: Database, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        exposed(IndexerMetrics(database), "127.0.0.1", port, [], "SOPHIA_INDEXER__METRICS_PORT"),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        until(lambda: _answers(client), "the endpoint")
        client.close()
        assert the_idle_one_makes_room(f"http://127.0.0.1:{port}", monkeypatch)


def test_port_zero_serves_nothing(database: Database) -> None:
    with exposed(IndexerMetrics(database), "127.0.0.1", 0, [], "SOPHIA_INDEXER__METRICS_PORT"):
        pass


def test_progress_is_the_status_without_counting(library: Library) -> None:
    """What sensors and scrapes read every few seconds reads no document, ledger entry or vector."""
    for number in range(50):
        library.put(number)
    library.repair()
    flush = "SELECT pg_stat_force_next_flush()"
    read = (
        "SELECT sum(seq_tup_read + COALESCE(idx_tup_fetch, 0))::bigint FROM pg_stat_all_tables WHERE relid IN "
        "('sophia.documents'::regclass, 'sophia.ledger'::regclass, 'indexes.documents_v1'::regclass)"
    )

    def rows_read() -> int:
        library.connection.execute(flush)
        row = library.connection.execute(read).fetchone()
        assert row is not None
        return int(row[0])

    before = rows_read()
    progress = index_progress(library.connection)
    assert rows_read() == before
    status = index_status(library.connection)
    assert rows_read() > before
    assert (status[0].documents, status[0].indexed) == (50, 50)
    shared = IndexProgress.__dataclass_fields__
    assert {name: getattr(status[0], name) for name in shared} == {name: getattr(progress[0], name) for name in shared}

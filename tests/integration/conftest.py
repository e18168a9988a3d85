"""Fixtures that run the real processes' loops in threads, and stop them."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import TupleRow

from sophia.capture import Binding, Capture, CaptureSource
from sophia.catalog import Catalog
from sophia.database import Database
from sophia.embedding import redis_cache
from sophia.indexing.gates import run_gates
from sophia.settings import CaptureSettings, Settings
from tests.embedders import HashEmbedder
from tests.integration.caches import RedisStand
from tests.integration.library import Library
from tests.running import Running, run_loop
from tests.waiting import WAIT_SECONDS

__all__ = ["Running", "run_loop"]
Connection = psycopg.Connection[TupleRow]
_slots = itertools.count(1)
# Quick, so that tests do not wait for a process's idle moments.
QUICK = CaptureSettings(status_seconds=0.2, catalog_check_seconds=0.2)


class Captures:
    """Starts captures of the test's own database, each test under its own slot name."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.slot = f"slot_{next(_slots)}_{database.url.rsplit('/', 1)[-1].split('?')[0]}"
        self.running: list[Running] = []

    def source(self, *tables: str | Binding, url: str | None = None, slot: str | None = None) -> CaptureSource:
        bindings = tuple(
            table if isinstance(table, Binding) else Binding(table, table.rpartition(".")[2]) for table in tables
        )
        return CaptureSource("test", url or self.database.url, "test_publication", slot or self.slot, bindings)

    def start(
        self,
        *tables: str | Binding,
        settings: CaptureSettings = QUICK,
        progress: Callable[[str, int, int], None] | None = None,
        url: str | None = None,
        wait: bool = True,
    ) -> Running:
        running = Running(Capture(self.source(*tables, url=url), self.database, settings, progress))
        self.running.append(running)
        if wait:
            running.ready()
        return running

    def fails(self, *tables: str | Binding, url: str | None = None, slot: str | None = None) -> BaseException:
        """The error of a capture that cannot start."""
        running = Running(Capture(self.source(*tables, url=url, slot=slot), self.database, QUICK))
        self.running.append(running)
        return running.failed()

    def stop_all(self) -> None:
        for running in self.running:
            with contextlib.suppress(BaseException):
                running.stop()


@pytest.fixture
def captures(database: Database) -> Iterator[Captures]:
    """A starter of captures; what still runs is stopped at the end."""
    captures = Captures(database)
    yield captures
    captures.stop_all()


def current(connection: Connection, collection: str) -> dict[str, Any]:
    """The current documents of a collection: key to body, without tombstones."""
    return dict(
        connection.execute(
            "SELECT d.key, d.body FROM sophia.documents d JOIN sophia.collections c ON c.id = d.collection_id "
            "WHERE c.name = %s AND NOT d.deleted",
            [collection],
        ).fetchall()
    )


@pytest.fixture
def documents_of(connection: Connection) -> Callable[[str], dict[str, Any]]:
    """The current documents of a collection: key to body, without tombstones."""
    return lambda collection: current(connection, collection)


@pytest.fixture
def library(
    connection: Connection,
    database: Database,
    catalog: Catalog,
    settings: Settings,
    hash_embedder: HashEmbedder,
    monkeypatch: pytest.MonkeyPatch,
) -> Library:
    """The collection `documents` under a small index; every embedder is the cheap one."""
    index = next(index for index in catalog.indexes if index.name == "documents").model_copy(update={"shards": 2})
    small = catalog.model_copy(update={"indexes": (index,)})
    from sophia.indexing import indexer

    monkeypatch.setattr(indexer, "load_embedder", lambda model, precision, settings: hash_embedder)
    return Library(connection, database, small, settings, hash_embedder)


@pytest.fixture
def hasty_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gates of a version wait for nothing: where nobody writes, nothing is on its way."""
    monkeypatch.setitem(run_gates.__kwdefaults__, "patience", 0.0)


@pytest.fixture
def redis_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RedisStand]:
    """A Redis server of the test's own, whose clients wait long for it: a busy machine may halt for seconds."""
    monkeypatch.setattr(redis_cache, "TIMEOUT_SECONDS", WAIT_SECONDS)
    if not RedisStand.installed():
        pytest.skip("redis-server is not installed; on Debian: apt-get install redis-server")
    # A socket's path may have a hundred bytes.
    with tempfile.TemporaryDirectory(prefix="sr", dir="/tmp") as folder:
        stand = RedisStand(Path(folder))
        yield stand
        stand.close()

"""Fixtures: a recording receiver, a journal, a captured table, and loops in threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.rows import TupleRow

from sophia.catalog import Catalog
from sophia.database import Database
from sophia.estuary.intake.take import feeds
from sophia.services.draining import serve_until_stopped
from sophia.services.intake.app import create_intake
from sophia.services.listening import listen
from sophia.settings import Settings
from tests.estuary.recorder import Recorder
from tests.estuary.scene import Source, Writer
from tests.running import run_loop

__all__ = ["run_loop"]


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    """A receiver that answers 200 unless told otherwise."""
    recorder = Recorder()
    yield recorder
    recorder.close()


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """Where the test's journal is."""
    return tmp_path / "journal.sqlite"


@pytest.fixture
def writer(journal: Path) -> Writer:
    """Appends documents to the test's journal."""
    return Writer(journal)


@pytest.fixture
def source(database: Database, connection: psycopg.Connection[TupleRow], journal: Path) -> Source:
    """The test's database as a source."""
    return Source(database, connection, journal)


@pytest.fixture
def start_intake(database: Database, settings: Settings) -> Iterator[Callable[[Catalog], str]]:
    """Starts the intake over a catalog, and gives back the address that the stand-in sends to."""
    stop = threading.Event()
    threads: list[threading.Thread] = []

    def start(catalog: Catalog) -> str:
        with database.connect("sophia-test") as connection:
            fed = feeds(connection, catalog, settings.profile)
        listener = listen("127.0.0.1", 0, "SOPHIA_INTAKE__PORT")
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/estuary/"
        service = create_intake(settings.intake, database, fed)
        threads.append(threading.Thread(target=serve_until_stopped, args=(service, listener, 1.0, stop), daemon=True))
        threads[-1].start()
        return address

    yield start
    stop.set()
    for thread in threads:
        thread.join(60)

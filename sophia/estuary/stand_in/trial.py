"""What `sophia estuary send` does: a table or a file of documents through the stand-in to an intake that runs.

Nothing of it stays behind: the journal is in a folder of its own, the slot is temporary, the publication is dropped.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from psycopg import sql as composed

from sophia.capture.values import SESSION_OPTIONS
from sophia.database.connect import connect
from sophia.errors import ConfigurationError, DocumentError, SophiaError
from sophia.estuary.source.tables import describe_table
from sophia.estuary.stamps import Producer
from sophia.estuary.stand_in.journal import Journal
from sophia.estuary.stand_in.materialize import Figures, Materializer
from sophia.estuary.stand_in.source_postgres import (
    Captured,
    PostgresEndpoint,
    SourcePostgres,
    backfill_documents,
    key_pointers,
)

# Documents of one journal transaction, and of one of the materialisation.
BATCH = 5_000


def table_key(url: str, table: str) -> tuple[str, ...]:
    """The key of a table's collection, as JSON pointers.

    Raises:
        SourceError: the table does not exist.
    """
    with connect(url, "sophia-estuary-send") as connection:
        return key_pointers(describe_table(connection, table))


def journal_table(journal: Journal, url: str, table: str, collection: str) -> int:
    """Put a table's rows into the journal as a backfill sends them. Returns how many.

    Raises:
        SourceError: the table does not exist.
    """
    producer = Producer(time.time, random.SystemRandom(), journal.last_clock())
    count = 0
    with connect(url, "sophia-estuary-send", autocommit=False, options=SESSION_OPTIONS) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        for documents in backfill_documents(connection, describe_table(connection, table)):
            for document in documents:
                document["_meta"]["uuid"] = producer.stamp()
            journal.append([(collection, document) for document in documents])
            count += len(documents)
        connection.rollback()
    return count


def journal_file(journal: Journal, path: Path, collection: str) -> int:
    """Put a file's documents, one JSON object a line, into the journal. Returns how many.

    A line without `_meta` is a row and becomes a `c` document; a document without UUID is stamped.

    Raises:
        ConfigurationError: the file cannot be read, or a line is no such object.
    """
    producer = Producer(time.time, random.SystemRandom(), journal.last_clock())
    batch: list[tuple[str, dict[str, Any]]] = []
    count = 0
    for number, document in _lines(path):
        meta = document.setdefault("_meta", {"op": "c", "source": {"snapshot": True, "loc": [-1, number - 1, 0]}})
        meta.setdefault("uuid", producer.stamp())
        batch.append((collection, document))
        count += 1
        if len(batch) == BATCH:
            _append(journal, batch, number)
            batch = []
    _append(journal, batch, count)
    return count


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                document = json.loads(line)
                if not isinstance(document, dict) or not isinstance(document.get("_meta", {}), dict):
                    raise ConfigurationError(f"{path.name}, line {number}: a document is a JSON object")
                yield number, document
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path.name} cannot be read: {error}") from error
    except ValueError as error:
        raise ConfigurationError(f"{path.name}, line {number}: is no JSON; write one object a line") from error


def _append(journal: Journal, batch: list[tuple[str, dict[str, Any]]], number: int) -> None:
    try:
        journal.append(batch)
    except DocumentError as error:
        raise ConfigurationError(f"a document up to line {number} cannot be sent: {error}") from error


def follow(
    stand_in: Materializer,
    journal: Path,
    url: str,
    captured: Captured,
    stop: threading.Event,
    progress: Callable[[Figures], None],
) -> None:
    """Send a table's rows, then its changes, until `stop` is set.

    Raises:
        SophiaError: the capture or the materialisation failed.
    """
    name = f"sophia_stand_in_{os.getpid()}"
    source = SourcePostgres(PostgresEndpoint(url, (captured,), name, name, temporary=True), journal)
    fault: list[SophiaError] = []

    def capture() -> None:
        try:
            source.run(stop)
        except SophiaError as error:
            fault.append(error)
            stop.set()

    thread = threading.Thread(target=capture, name="stand-in-capture")
    thread.start()
    try:
        while not stop.is_set():
            stand_in.drain(progress)
            stop.wait(0.05)
    finally:
        stop.set()
        thread.join()
        with connect(url, "sophia-estuary-send") as connection:
            connection.execute(composed.SQL("DROP PUBLICATION IF EXISTS {}").format(composed.Identifier(name)))
    if fault:
        raise fault[0]

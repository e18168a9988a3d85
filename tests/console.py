"""A console that really serves, over an index that was really written. Only the model is a cheap one."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import psycopg
from psycopg.rows import TupleRow

from sophia import inbox, sql
from sophia.catalog import Catalog
from sophia.database import Database
from sophia.documents import Change, Clock, Key, Origin, canonical_key
from sophia.indexing.versions import ensure_version
from sophia.indexing.writer import Row, Writer
from sophia.services.console import serve
from sophia.services.console.models import LoadEmbedder
from sophia.settings import ConsoleSettings, Settings
from sophia.stores import IN_DATABASE
from tests.embedders import HashEmbedder
from tests.ports import free_port
from tests.waiting import until

INDEX = "documents"


class Documents:
    """Writes rows of the collection `documents` through the inbox and the writer of its index."""

    def __init__(self, connection: psycopg.Connection[TupleRow], catalog: Catalog) -> None:
        self.connection = connection
        self.version = ensure_version(connection, catalog, catalog.index(INDEX), "local")
        store = IN_DATABASE.of(self.version)
        store.ensure(connection, self.version)
        self._writer = Writer(self.version, store, HashEmbedder(), 1_000_000, run="live", lane="live")
        self._positions = itertools.count(1)

    def put(self, number: int, title: str, body: str, **columns: Any) -> Key:
        """Insert or update a row, and index it."""
        row = {"id": number, "title": title, "body": body, "module": "m", "kind": "note"} | columns
        return self._apply(number, "c", row)

    def delete(self, number: int) -> Key:
        """Delete a row, and take it out of the index."""
        return self._apply(number, "d", None)

    def _apply(self, number: int, op: Any, body: dict[str, Any] | None) -> Key:
        key = canonical_key([number])
        position = next(self._positions)
        origin = Origin(lsn=position * 256, txid=position, committed_at=datetime.now(UTC))
        with self.connection.transaction():
            inbox.accept(self.connection, INDEX, [Change(key, op, Clock(1, position, 0), body, origin=origin)])
        rows = self.connection.execute(
            sql.load("indexing")["by_keys"],
            {"version_id": self.version.id, "collection_id": self.version.collection_id, "keys": [key]},
        ).fetchall()
        self._writer.apply(self.connection, [Row.read(row) for row in rows], position=rows[0][2])
        return key


@contextlib.contextmanager
def console(
    settings: Settings, database: Database, catalog: Catalog, load: LoadEmbedder | None = None
) -> Iterator[str]:
    """A console on a free port of 127.0.0.1; yields its address and ends it in order."""
    port = free_port()
    settings = settings.model_copy(update={"console": ConsoleSettings(port=port)})
    stop = threading.Event()
    thread = threading.Thread(
        target=serve,
        args=(settings, database, catalog, stop),
        kwargs={"load": load or (lambda model, precision, settings: HashEmbedder(model.dimension))},
    )
    thread.start()
    address = f"http://127.0.0.1:{port}"
    try:
        until(lambda: not thread.is_alive() or _up(address), "the console's port")
        yield address
    finally:
        stop.set()
        thread.join(60)
        assert not thread.is_alive(), "the console does not stop"


def _up(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health", timeout=60).status_code == 200
    except httpx.TransportError:
        return False

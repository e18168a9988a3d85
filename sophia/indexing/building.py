"""Builds the nearest-neighbour indexes of loaded versions aside, one after another, while the live lane goes on."""

from __future__ import annotations

import logging
import threading

import psycopg
from psycopg.rows import TupleRow

from sophia.database.connect import Database
from sophia.errors import SophiaError
from sophia.indexing.repair import finish_load
from sophia.indexing.writer import Writer

logger = logging.getLogger("sophia.indexer")


class IndexBuilder:
    """A thread with a connection of its own that lets stores finish their first load.

    A build that dies with its process is begun anew at the next look.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: dict[int, Writer] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._connection: psycopg.Connection[TupleRow] | None = None

    def look(self, writer: Writer) -> None:
        """See to it that this version's index is built, if its load is complete. Returns at once."""
        with self._lock:
            self._waiting[writer.version.id] = writer
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="index-builder", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Cancel a build that is under way."""
        with self._lock:
            self._waiting.clear()
            thread, connection = self._thread, self._connection
        if connection is not None:
            connection.cancel_safe()
        if thread is not None:
            thread.join(10)

    def _next(self) -> Writer | None:
        with self._lock:
            if not self._waiting:
                self._thread = None
                return None
            return self._waiting.pop(next(iter(self._waiting)))

    def _work(self) -> None:
        while (writer := self._next()) is not None:
            try:
                with self._database.connect("sophia-index-builder") as connection:
                    self._connection = connection
                    finish_load(connection, writer)
            except (SophiaError, psycopg.Error) as error:
                logger.warning(
                    "the index of %s was not built, trying later: %s", writer.version.label, str(error).strip()
                )
            finally:
                self._connection = None

"""Keeps commit events: on disk within a moment, or, while the database is away, in memory.

Estuary holds data back for as long as its trigger is not answered, so the answer waits for nothing. An event that dies
with the process is made up for by the collection's next one, which says the same and more.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field

import psycopg
from psycopg.rows import TupleRow

from sophia.database import Database
from sophia.errors import DocumentError, TemporaryError
from sophia.estuary.intake import events
from sophia.estuary.intake.documents import Rejected
from sophia.estuary.intake.take import park

logger = logging.getLogger("sophia.intake")
# Beyond this the oldest are forgotten.
MOST_EVENTS = 1_000
ANSWER_SECONDS = 1.0
RETRY_SECONDS = 1.0


@dataclass(slots=True)
class _Event:
    body: bytes
    done: Future[bool] = field(default_factory=Future)


class Events:
    """A thread that records events in their order."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: deque[_Event] = deque(maxlen=MOST_EVENTS)
        self._wake = threading.Event()
        self._ending = threading.Event()
        self._connection: psycopg.Connection[TupleRow] | None = None
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)
        self._thread.start()

    async def keep(self, body: bytes) -> bool | None:
        """Whether the body was an event (else it is parked); None if the database has not taken it yet."""
        event = _Event(body)
        self._waiting.append(event)
        self._wake.set()
        try:
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(event.done)), ANSWER_SECONDS)
        except TimeoutError:
            return None

    def close(self) -> None:
        """Record what waits, unless the database is away, and end."""
        self._ending.set()
        self._wake.set()
        self._thread.join()
        if self._waiting:
            logger.warning("%d commit events were not recorded; the next ones make up for them", len(self._waiting))

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            while self._waiting:
                event = self._waiting[0]
                try:
                    taken = self._record(event.body)
                except (psycopg.Error, TemporaryError) as error:
                    logger.warning("commit event: the database: %s", type(error).__name__)
                    self._disconnect()
                    if self._ending.wait(RETRY_SECONDS):
                        return
                    continue
                if self._waiting and self._waiting[0] is event:
                    self._waiting.popleft()
                event.done.set_result(taken)
            if self._ending.is_set():
                self._disconnect()
                return

    def _record(self, body: bytes) -> bool:
        if self._connection is None:
            self._connection = self._database.connect("sophia-intake-events")
        try:
            events.record_event(self._connection, events.read_event(body))
        except DocumentError as error:
            reason = str(error)
        except psycopg.DataError as error:
            reason = f"the database cannot hold the event (SQLSTATE {error.sqlstate})"
        else:
            return True
        park(self._connection, events.NAME, Rejected(body, reason, documents=0))
        return False

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

"""The live feed: one LISTEN connection for all clients, and a resumable stream of batches for each.

Invariants:

* Every committed batch reaches every client that is connected, in commit order. The notification carries the batch's
  id; what is sent is read from `sophia.batches`.
* A client that comes back with `Last-Event-ID` gets what it missed. Ids are given before commit, so a smaller one may
  commit later: a client that this process served resumes in commit order from memory, and another one from the
  table, a few ids earlier than it asked, so that it may see a batch twice and misses none. The page drops repeats.
* Clients read from one shared memory, each at its own place. One that falls behind what is remembered is dropped; it
  reconnects and resumes. Others never wait for it, and it costs no memory.
* A lost database connection is opened again, and what was committed meanwhile is read from the table.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterable
from dataclasses import asdict, dataclass
from datetime import datetime

import psycopg
from psycopg.rows import TupleRow, class_row
from psycopg_pool import ConnectionPool
from sse_starlette import ServerSentEvent
from starlette.concurrency import run_in_threadpool
from tenacity import AsyncRetrying, before_sleep_log, retry_if_exception_type, wait_random_exponential

from sophia import sql
from sophia.services.console.metrics import Metrics

logger = logging.getLogger("sophia.console")
Q = sql.load("status")
CHANNEL = "sophia_indexed"
# What a new client sees at once.
FIRST_BATCHES = 30
# Most batches that a resuming client gets; beyond that it is told how many it did not get.
REPLAY_BATCHES = 5_000
# Batches kept in memory: how far a client may fall behind, or be away, before the table has to be read.
REMEMBERED = 2_000
# How far the commit order of batches may differ from the order of their ids.
OVERLAP = 50
# An idle connection is asked this often whether it still lives.
PROBE_SECONDS = 15.0
LONGEST_BACKOFF_SECONDS = 5.0
RESTART_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Batch:
    """What one transaction of an indexer or a repair made searchable. A key that begins with `-` was deleted."""

    id: int
    index: str
    version: int
    lane: str
    run: str
    documents: int
    embedded: int
    reused: int
    deleted: int
    lag_ms: float | None
    keys: list[str]
    applied_at: datetime

    def event(self) -> ServerSentEvent:
        """As a server-sent event; its id is what `Last-Event-ID` sends back."""
        data = asdict(self) | {"applied_at": self.applied_at.isoformat()}
        return ServerSentEvent(json.dumps(data, ensure_ascii=False), event="batch", id=str(self.id))


class Feed:
    """Fans committed batches out to event streams. `run` is its one background task."""

    def __init__(self, url: str, pool: ConnectionPool[psycopg.Connection[TupleRow]], metrics: Metrics) -> None:
        self._url = url
        self._pool = pool
        self._metrics = metrics
        self._published: deque[Batch] = deque(maxlen=REMEMBERED)
        # How many were ever published: the place after the newest one.
        self._count = 0
        self._news = asyncio.Event()
        self._seen: deque[int] = deque(maxlen=REMEMBERED)
        self._newest: int | None = None
        # Set once the feed listens: what a client reads from the table before that may miss what commits meanwhile.
        self._listening = asyncio.Event()
        self._closed = False

    async def run(self) -> None:
        """Listen until cancelled, through any number of lost connections."""
        while True:
            try:
                async with await self._connect() as connection:
                    await self._listen(connection)
            except psycopg.Error as error:
                # Not only a lost connection: the schema may not be there yet.
                logger.warning("the feed lost its connection: %s", error)
                await asyncio.sleep(RESTART_SECONDS)

    async def stream(self, last_id: int | None) -> AsyncIterator[ServerSentEvent]:
        """Events of one client: what it missed (or the newest few), then what comes.

        Args:
            last_id: the last batch that the client has, or None for a new one.

        The stream ends early when the database does not answer for what was missed; the client will ask again.
        """
        place = self._place_after(last_id)
        self._metrics.feed_clients.inc()
        try:
            sent: set[int] = set()
            if place is None:
                await self._listening.wait()
                # Batches that are published while the table is read come twice, and are sent once.
                place = self._count
                missed = await run_in_threadpool(self._read_after, last_id)
                sent = {batch.id for batch in missed}
                if last_id is not None and len(missed) >= REPLAY_BATCHES:
                    yield ServerSentEvent(json.dumps({"before": missed[0].id}), event="gap")
                for batch in missed:
                    yield batch.event()
            while not self._closed:
                # Taken before the look, so that what is published during it wakes us.
                news = self._news
                while place < self._count:
                    first = self._count - len(self._published)
                    if place < first:
                        logger.info("an event stream does not keep up and is closed")
                        self._metrics.feed_dropped.inc()
                        return
                    batch = self._published[place - first]
                    place += 1
                    if batch.id not in sent:
                        yield batch.event()
                await news.wait()
        except psycopg.OperationalError as error:
            logger.warning("an event stream cannot be resumed now: %s", error)
        finally:
            self._metrics.feed_clients.dec()

    def close(self) -> None:
        """End all streams, now and later."""
        self._closed = True
        self._listening.set()
        self._wake()

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def _connect(self) -> psycopg.AsyncConnection[TupleRow]:
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(psycopg.OperationalError),
            wait=wait_random_exponential(multiplier=0.4, max=LONGEST_BACKOFF_SECONDS),
            before_sleep=before_sleep_log(logger, logging.INFO),
        )
        return await retrying(
            psycopg.AsyncConnection.connect,
            self._url,
            autocommit=True,
            application_name="sophia-console-feed",
            connect_timeout=5,
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
        )

    async def _listen(self, connection: psycopg.AsyncConnection[TupleRow]) -> None:
        # Before the look at the table, so that nothing slips between look and wait.
        await connection.execute(f"LISTEN {CHANNEL}")
        await self._catch_up(connection)
        while True:
            ids = [
                batch
                async for notify in connection.notifies(timeout=PROBE_SECONDS, stop_after=1)
                if (batch := _batch_id(notify.payload)) is not None
            ]
            if not ids:
                await connection.execute("SELECT 1")
                continue
            async with connection.cursor(row_factory=class_row(Batch)) as cursor:
                found = {b.id: b for b in await (await cursor.execute(Q["batches"], {"ids": ids})).fetchall()}
            self._publish(found[number] for number in ids if number in found)

    async def _catch_up(self, connection: psycopg.AsyncConnection[TupleRow]) -> None:
        first = self._newest is None
        after = max(0, (self._newest or 0) - OVERLAP)
        limit = OVERLAP if first else REPLAY_BATCHES
        async with connection.cursor(row_factory=class_row(Batch)) as cursor:
            rows = await (await cursor.execute(Q["newest_batches"], {"after": after, "limit": limit})).fetchall()
        if first:
            # Clients that connect read these from the table; only what comes later is news.
            self._seen.extend(batch.id for batch in rows)
            self._newest = max((batch.id for batch in rows), default=0)
            self._listening.set()
        else:
            self._publish(reversed(rows))

    def _publish(self, batches: Iterable[Batch]) -> None:
        for batch in batches:
            if batch.id in self._seen:
                continue
            self._seen.append(batch.id)
            self._published.append(batch)
            self._count += 1
            self._newest = max(self._newest or 0, batch.id)
        self._wake()

    def _place_after(self, last_id: int | None) -> int | None:
        """The place after a batch that this process has published, or None if it does not remember that one."""
        for back, batch in enumerate(reversed(self._published)):
            if batch.id == last_id:
                return self._count - back
        return None

    def _read_after(self, last_id: int | None) -> list[Batch]:
        if last_id is None:
            after, limit = 0, FIRST_BATCHES
        else:
            after, limit = max(0, last_id - OVERLAP), REPLAY_BATCHES
        with self._pool.connection() as connection, connection.cursor(row_factory=class_row(Batch)) as cursor:
            rows = cursor.execute(Q["newest_batches"], {"after": after, "limit": limit}).fetchall()
        return [batch for batch in reversed(rows) if batch.id != last_id]


def _batch_id(payload: str) -> int | None:
    """The batch of a notification. Anyone may notify on the channel, so anything may come."""
    try:
        batch = json.loads(payload)["batch"]
    except (ValueError, KeyError, TypeError):
        return None
    return batch if isinstance(batch, int) else None

"""Takes request bodies into the inbox on threads: what waits of a collection goes into one transaction.

Invariants, each with a test:

* `take` returns after the commit that holds its body, and raises if there was none.
* The bodies of a collection are taken in the order in which they came, one transaction at a time.
* While the database is away a body waits, for at most the retry time; nothing of it is lost or doubled by that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import psycopg
from psycopg.rows import TupleRow

from sophia.database import Database
from sophia.errors import TemporaryError
from sophia.estuary.intake.documents import Feed, Reader
from sophia.estuary.intake.take import Taken, take_documents

logger = logging.getLogger("sophia.intake")
Connection = psycopg.Connection[TupleRow]
# Bodies of one transaction; one that is larger has it for itself.
GROUP_BYTES = 2 * 1024 * 1024
# The client library keeps its buffer at the size of the largest statement, and documents are a statement's.
LARGE_BYTES = 4 * 1024 * 1024
LOCK_TIMEOUT = "5s"
FIRST_DELAY_SECONDS = 0.05
LONGEST_DELAY_SECONDS = 2.0


@dataclass(slots=True)
class _Body:
    data: bytearray
    # Documents and parked entries, once they are committed.
    done: Future[tuple[int, int]] = field(default_factory=Future)


class _Lane:
    """A collection's bodies that wait. At most one thread is at them."""

    def __init__(self, feed: Feed) -> None:
        self.reader = Reader(feed)
        self.lock = threading.Lock()
        self.waiting: deque[_Body] = deque()
        self.active = False

    def next_group(self) -> list[_Body]:
        """The bodies of the next transaction; none ends the lane's turn."""
        with self.lock:
            group: list[_Body] = []
            size = 0
            while self.waiting and (not group or size + len(self.waiting[0].data) <= GROUP_BYTES):
                group.append(self.waiting.popleft())
                size += len(group[-1].data)
            self.active = bool(group)
            return group


class Writers:
    """The threads that write, and their connections.

    Args:
        observe: called after each transaction with the collection's Estuary name, what was taken, and the seconds.
    """

    def __init__(
        self,
        database: Database,
        feeds: Mapping[str, Feed],
        *,
        threads: int,
        retry_seconds: float,
        observe: Callable[[str, Taken, float], None],
    ) -> None:
        self._database = database
        self._lanes = {name: _Lane(feed) for name, feed in feeds.items()}
        self._retry_seconds = retry_seconds
        self._observe = observe
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="intake")
        self._large = threading.Lock()
        self._local = threading.local()
        self._connections: set[Connection] = set()
        self._ending = threading.Event()

    @property
    def waiting(self) -> int:
        """Bodies that wait for a transaction."""
        return sum(len(lane.waiting) for lane in self._lanes.values())

    async def take(self, name: str, data: bytearray) -> tuple[int, int]:
        """Documents and parked entries of a body, after its commit.

        Raises:
            TemporaryError: the database did not take it in time; nothing of it was taken, or all of it was and the
                answer was lost, which the same body again does not double.
        """
        body = _Body(data)
        lane = self._lanes[name]
        with lane.lock:
            lane.waiting.append(body)
            begin = not lane.active
            lane.active = True
        if begin:
            self._executor.submit(self._turn, name, lane)
        # Who asked may leave; the body is taken all the same.
        return await asyncio.shield(asyncio.wrap_future(body.done))

    def close(self) -> None:
        """End the threads and their connections. What waits is still taken, unless the database is away."""
        self._ending.set()
        self._executor.shutdown(wait=True)
        for connection in self._connections:
            connection.close()

    def _turn(self, name: str, lane: _Lane) -> None:
        group = lane.next_group()
        if not group:
            return
        try:
            # Of large bodies one at a time: each is in memory several times while it is written.
            large = sum(len(body.data) for body in group) > LARGE_BYTES
            with self._large if large else contextlib.nullcontext():
                started = time.perf_counter()
                taken = self._take_group(lane.reader, [body.data for body in group])
                seconds = time.perf_counter() - started
                if large:
                    self._disconnect()
            for body, figures in zip(group, taken.bodies, strict=True):
                body.done.set_result(figures)
            self._observe(name, taken, seconds)
        except BaseException as error:
            for body in group:
                if not body.done.done():
                    body.done.set_exception(error)
        # Others that wait for a thread come in between.
        try:
            self._executor.submit(self._turn, name, lane)
        except RuntimeError:
            # It is to end: nothing else comes in between any more.
            self._turn(name, lane)

    def _take_group(self, reader: Reader, bodies: list[bytearray]) -> Taken:
        until = time.monotonic() + self._retry_seconds
        delay = FIRST_DELAY_SECONDS
        while True:
            try:
                return take_documents(self._connection(), reader, bodies)
            except (psycopg.Error, TemporaryError) as error:
                self._disconnect()
                if self._ending.is_set() or time.monotonic() + delay > until:
                    raise TemporaryError("the database does not take documents now; send them again") from error
                logger.warning(
                    "%s: the database: %s; again in %.2f s", reader.feed.estuary, type(error).__name__, delay
                )
            self._ending.wait(delay)
            delay = min(delay * 2, LONGEST_DELAY_SECONDS)

    def _connection(self) -> Connection:
        found: Connection | None = getattr(self._local, "connection", None)
        if found is None or found.closed:
            found = self._database.connect("sophia-intake")
            # Whoever holds the collection for longer than this must not keep the process from ending.
            found.execute("SELECT set_config('lock_timeout', %s, false)", [LOCK_TIMEOUT])
            self._local.connection = found
            self._connections.add(found)
        return found

    def _disconnect(self) -> None:
        found: Connection | None = getattr(self._local, "connection", None)
        if found is not None:
            self._connections.discard(found)
            with contextlib.suppress(psycopg.Error):
                found.close()
            self._local.connection = None

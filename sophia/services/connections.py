"""The connections of a web service, within bounds. What always holds:

* No more than `MOST_CONNECTIONS` are open. Beyond them the one that has been idle for longest is closed, and a new one
  is refused with 503 only while all others have requests running.
* An answer of which its reader takes less than `LEAST_BYTES` in `UNREAD_SECONDS` is not kept: its connection is cut,
  which ends the work behind it as if the client had left. Who reads a large one slowly gets all of it.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

# Below the 1,024 files that a process may have open on many systems.
MOST_CONNECTIONS = 512
# Of an answer that is larger than the system's buffers and 64 KiB.
UNREAD_SECONDS = 30.0
LEAST_BYTES = 65_536
_REFUSAL = b'{"error":"too many connections are open; try again in a moment"}'
_REFUSED = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%s"
) % (len(_REFUSAL), _REFUSAL)
# Which of uvicorn's two classes it is depends on what is installed.
_Protocol: Any = AutoHTTPProtocol


class BoundedConnection(_Protocol):  # type: ignore[misc]
    """Uvicorn's connection, within the bounds above.

    Attributes:
        used: when its client last sent something, by the loop's clock.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.used = 0.0
        self._unread: asyncio.TimerHandle | None = None
        self._unanswered: list[Any] = []

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Take the connection, if need be in another one's place."""
        super().connection_made(transport)
        self.used = self.loop.time()
        if len(self.connections) <= MOST_CONNECTIONS:
            return
        idle = [each for each in self.connections if each is not self and each.idle]
        # Not to be counted from now on, though it is lost a moment later.
        if idle:
            longest = min(idle, key=lambda each: each.used)
            self.connections.discard(longest)
            longest.transport.abort()
        else:
            self.connections.discard(self)
            transport.write(_REFUSED)
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer with the connection, and tell all that still work for it: uvicorn tells the last only."""
        self._stop_timer()
        for cycle in self._unanswered:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        super().connection_lost(exc)

    def on_headers_complete(self) -> None:
        """Note a request. One may wait behind another that is being answered where httptools reads them."""
        super().on_headers_complete()
        self._unanswered = [cycle for cycle in self._unanswered if not cycle.response_complete]
        if self.cycle is not None:
            self._unanswered.append(self.cycle)

    def data_received(self, data: bytes) -> None:
        """Note when a request came."""
        self.used = self.loop.time()
        super().data_received(data)

    def pause_writing(self) -> None:
        """More is written than the reader has taken: it gets some time to go on."""
        super().pause_writing()
        self._stop_timer()
        self._wait_for_reader()

    def resume_writing(self) -> None:
        """The reader goes on."""
        self._stop_timer()
        super().resume_writing()

    @property
    def idle(self) -> bool:
        """Whether no request of its client is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _wait_for_reader(self) -> None:
        self._unread = self.loop.call_later(UNREAD_SECONDS, self._look, self.transport.get_write_buffer_size())

    def _look(self, before: int) -> None:
        """Wait on if enough was read since there were `before` bytes: none are added while writing is paused."""
        if before - self.transport.get_write_buffer_size() >= LEAST_BYTES:
            self._wait_for_reader()
        else:
            self.transport.abort()

    def _stop_timer(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

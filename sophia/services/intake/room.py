"""Bounds what request bodies take of memory: who asks for more waits for its turn, in the order of arrival."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator


class Room:
    """So many bytes, for one event loop. A large request is not overtaken by small ones for ever: nobody overtakes.

    Attributes:
        waiting: requests that wait for room.
    """

    def __init__(self, capacity: int) -> None:
        self._free = capacity
        self._turns: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return sum(not turn.cancelled() for _, turn in self._turns)

    @contextlib.asynccontextmanager
    async def of(self, size: int) -> AsyncIterator[None]:
        """Room for `size` bytes, at most the capacity, for as long as the block runs."""
        await self._take(size)
        try:
            yield
        finally:
            self._free += size
            self._admit()

    async def _take(self, size: int) -> None:
        if not self._turns and size <= self._free:
            self._free -= size
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._turns.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                # It had just been let in.
                self._free += size
            self._admit()
            raise

    def _admit(self) -> None:
        while self._turns and (self._turns[0][1].cancelled() or self._turns[0][0] <= self._free):
            size, turn = self._turns.popleft()
            if not turn.cancelled():
                self._free -= size
                turn.set_result(None)

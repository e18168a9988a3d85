"""How long an answer waits for its reader, by a clock of the test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from sophia.services.connections import LEAST_BYTES, UNREAD_SECONDS, BoundedConnection


class Line(asyncio.Transport):
    """A connection of which `waiting` bytes have not been read yet."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = 0
        self.cut = False

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def abort(self) -> None:
        self.cut = True


class Clock:
    """An event loop's, which runs what is due when time is made to pass."""

    def __init__(self) -> None:
        self.now = 0.0
        self.due: list[tuple[asyncio.TimerHandle, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def get_debug(self) -> bool:
        return False

    def call_later(self, delay: float, call: Callable[..., None], *arguments: Any) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(self.now + delay, call, arguments, self)  # type: ignore[arg-type]
        self.due.append((handle, lambda: call(*arguments)))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass

    def passes(self, seconds: float) -> None:
        self.now += seconds
        ready = [(handle, call) for handle, call in self.due if handle.when() <= self.now]
        self.due = [each for each in self.due if each not in ready]
        for handle, call in ready:
            if not handle.cancelled():
                call()


@pytest.fixture
def clock() -> Clock:
    """The clock of `answer`."""
    return Clock()


@pytest.fixture
def answer(clock: Clock) -> tuple[BoundedConnection, Line]:
    """A connection on which ten times the least have just been written, and nothing was read."""

    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        raise AssertionError("nobody asks")

    config = uvicorn.Config(app)
    config.load()
    connection = BoundedConnection(config, ServerState(), {}, clock)
    line = Line()
    connection.connection_made(line)
    line.waiting = 10 * LEAST_BYTES
    connection.pause_writing()
    return connection, line


def test_who_reads_a_large_answer_slowly_gets_all_of_it(clock: Clock, answer: tuple[BoundedConnection, Line]) -> None:
    connection, line = answer
    for _ in range(9):
        line.waiting -= LEAST_BYTES
        clock.passes(UNREAD_SECONDS)
        assert not line.cut
    connection.resume_writing()
    clock.passes(2 * UNREAD_SECONDS)
    assert not line.cut


def test_who_reads_next_to_nothing_is_cut_off(clock: Clock, answer: tuple[BoundedConnection, Line]) -> None:
    _, line = answer
    line.waiting -= LEAST_BYTES
    clock.passes(UNREAD_SECONDS)
    line.waiting -= LEAST_BYTES - 1
    clock.passes(UNREAD_SECONDS - 1)
    assert not line.cut
    clock.passes(1)
    assert line.cut

"""The server around a service, and how it ends: what was accepted is answered.

On SIGTERM or SIGINT /ready says 503 and each answer closes its connection. Then connections that the kernel has
accepted are taken, the port is closed, and those that were opened but have not asked yet get a moment to do so.
Running requests get the drain time; what is left then is cut off. A second signal ends the process at once.
"""

from __future__ import annotations

import asyncio
import logging
import math
import select
import signal
import socket
from threading import Event
from types import FrameType
from typing import Protocol

import uvicorn
from starlette.types import ASGIApp

from sophia.services.access import log_to_stdout
from sophia.services.connections import BoundedConnection

logger = logging.getLogger("sophia.server")
TICK_SECONDS = 0.1
# Longer than a proxy keeps an idle connection: whoever reuses connections should be the one who closes them.
KEEP_ALIVE_SECONDS = 75
# An open connection may just be sending its request; an idle one is not waited for longer than this.
QUIET_SECONDS = 0.5


class Draining(Protocol):
    """A service that is served and drained.

    Attributes:
        draining: set when the process is to end: /ready says 503, and each answer closes its connection.
    """

    draining: bool

    @property
    def app(self) -> ASGIApp:
        """The ASGI application."""
        ...

    @property
    def error(self) -> BaseException | None:
        """Why it cannot go on; the process drains and ends when there is a reason."""
        ...


def serve_until_stopped(
    service: Draining, listener: socket.socket, drain_seconds: float, stop_event: Event | None = None
) -> None:
    """Serve until a signal comes, `stop_event` is set or the service cannot go on; then drain.

    Raises:
        BaseException: the service's own error.
    """
    log_to_stdout()
    config = uvicorn.Config(
        service.app,
        http=BoundedConnection,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=math.ceil(drain_seconds),
    )
    server = _Server(config)
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(_serve(server, service, listener, stop_event or Event()))
    if service.error is not None:
        raise service.error


class _Server(uvicorn.Server):
    """Uvicorn, except that a signal begins the drain above and ends the process with exit code 0."""

    asked_to_end = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Of the first signal take note; the second means it."""
        logger.info("%s: ending", signal.Signals(sig).name)
        if self.asked_to_end:
            self.should_exit = self.force_exit = True
        self.asked_to_end = True


async def _serve(server: _Server, service: Draining, listener: socket.socket, stop_event: Event) -> None:
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not serving.done():
        await asyncio.wait({serving}, timeout=TICK_SECONDS)
        if server.started and (server.asked_to_end or stop_event.is_set() or service.error is not None):
            await _drain(server, service, listener)
            break
    await serving


async def _drain(server: _Server, service: Draining, listener: socket.socket) -> None:
    service.draining = True
    # Closing a port resets the connections that nobody has taken yet.
    while select.select([listener], [], [], 0)[0]:
        await asyncio.sleep(0)
    for listening in server.servers:
        listening.close()
    until = asyncio.get_running_loop().time() + QUIET_SECONDS
    while server.server_state.connections and not server.should_exit and asyncio.get_running_loop().time() < until:
        await asyncio.sleep(TICK_SECONDS / 10)
    server.should_exit = True

"""The server around the service, and how it ends: what was accepted is answered.

On SIGTERM or SIGINT /ready says 503 and each answer closes its connection. Then connections that the kernel has
accepted are taken, the port is closed, and those that were opened but have not asked yet get a moment to do so.
Running requests get `drain_seconds`; what is left then is cut off. A second signal ends the process at once.
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

import uvicorn

from sophia.catalog import Catalog
from sophia.embedding import load_embedder
from sophia.services.inference.access import log_to_stdout
from sophia.services.inference.app import Service, create_service
from sophia.services.inference.models import LoadEmbedder
from sophia.services.listening import listen
from sophia.settings import Settings

logger = logging.getLogger("sophia.inference")
TICK_SECONDS = 0.1
# Longer than a proxy keeps an idle connection: whoever reuses connections should be the one who closes them.
KEEP_ALIVE_SECONDS = 75
# An open connection may just be sending its request; an idle one is not waited for longer than this.
QUIET_SECONDS = 0.5


def serve(
    settings: Settings, catalog: Catalog, stop_event: Event | None = None, *, load: LoadEmbedder = load_embedder
) -> None:
    """Serve until a signal comes, or until `stop_event` is set; then drain.

    Raises:
        ConfigurationError: the address cannot be listened on or would be open to all, or a model cannot be loaded.
        TemporaryError: the engine's thread has died; another process can serve.
    """
    inference = settings.inference
    service = create_service(settings, catalog, load=load)
    listener = listen(inference.host, inference.port, "SOPHIA_INFERENCE__PORT")
    log_to_stdout()
    config = uvicorn.Config(
        service.app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=math.ceil(inference.drain_seconds),
    )
    server = _Server(config)
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(_serve(server, service, listener, stop_event or Event()))
    if service.loading.error is not None:
        raise service.loading.error


class _Server(uvicorn.Server):
    """Uvicorn, except that a signal begins the drain above and ends the process with exit code 0."""

    asked_to_end = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Of the first signal take note; the second means it."""
        logger.info("%s: ending", signal.Signals(sig).name)
        if self.asked_to_end:
            self.should_exit = self.force_exit = True
        self.asked_to_end = True


async def _serve(server: _Server, service: Service, listener: socket.socket, stop_event: Event) -> None:
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not serving.done():
        await asyncio.wait({serving}, timeout=TICK_SECONDS)
        if server.started and (server.asked_to_end or stop_event.is_set() or service.loading.error is not None):
            await _drain(server, service, listener)
            break
    await serving


async def _drain(server: _Server, service: Service, listener: socket.socket) -> None:
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

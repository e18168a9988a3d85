"""Composes the console: resources opened in the lifespan, routes, error answers, and the server around it.

The page is up before anything behind it is: the pool connects in the background, models load in a thread of their
own, and whatever is not there yet answers 503 with `Retry-After`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator
from threading import Event
from typing import Any

import psycopg
import uvicorn
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.routing import Mount, Route
from starlette.types import ExceptionHandler

from sophia.catalog import Catalog
from sophia.database.connect import Database
from sophia.embedding import load_embedder
from sophia.errors import SophiaError
from sophia.services.connections import BoundedConnection
from sophia.services.console import errors
from sophia.services.console.api import Api
from sophia.services.console.feed import Feed
from sophia.services.console.metrics import Metrics
from sophia.services.console.models import LoadEmbedder, QueryModels
from sophia.services.console.page import PageFiles, SecurityHeaders
from sophia.services.listening import listen
from sophia.services.web import RequestTimer
from sophia.settings import Settings
from sophia.stores import Stores

logger = logging.getLogger("sophia.console")
LOOPBACK = ("127.0.0.1", "localhost")
POOL_SIZE = 8
# How long a request waits for a connection before it is told that the database is away.
POOL_TIMEOUT_SECONDS = 3.0
# No question of the console is worth more of the database's time.
STATEMENT_TIMEOUT = "15s"
SHUTDOWN_SECONDS = 3


def create_app(
    settings: Settings, database: Database, catalog: Catalog, *, load: LoadEmbedder = load_embedder
) -> Starlette:
    """The console as an ASGI application.

    Args:
        load: makes the embedder of a model; called in a background thread.
    """
    pool = ConnectionPool(
        database.url,
        kwargs={"autocommit": True, "application_name": "sophia-console", "connect_timeout": 5},
        configure=_configure,
        check=ConnectionPool[psycopg.Connection[TupleRow]].check_connection,
        min_size=1,
        max_size=POOL_SIZE,
        timeout=POOL_TIMEOUT_SECONDS,
        name="console",
        open=False,
    )
    metrics = Metrics()
    models = QueryModels(settings, load)
    feed = Feed(database.url, pool, metrics)
    stores = Stores(settings)
    api = Api(settings, catalog, pool, models, feed, metrics, stores)
    page = PageFiles()

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        pool.open(wait=False)
        models.preload(catalog)
        listening = asyncio.create_task(feed.run(), name="console-feed")
        try:
            yield
        finally:
            feed.close()
            listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listening
            await run_in_threadpool(models.close)
            await run_in_threadpool(stores.close)
            await run_in_threadpool(pool.close, timeout=SHUTDOWN_SECONDS)

    handlers: dict[Any, ExceptionHandler] = {
        HTTPException: errors.http,
        SophiaError: errors.sophia,
        psycopg.OperationalError: errors.database,
        psycopg.DataError: errors.data,
        Exception: errors.unexpected,
    }
    app = Starlette(
        routes=[
            Route("/", page.index),
            Route("/api/status", api.status),
            Route("/api/indexes", api.indexes),
            Route("/api/fields", api.fields),
            Route("/api/search", api.search, methods=["POST"]),
            Route("/api/why", api.why),
            Route("/api/lag", api.lag),
            Route("/api/events", api.events),
            Route("/api/dead-letters", api.dead_letters),
            Route("/health", api.health),
            Route("/ready", api.ready),
            Route("/metrics", api.metrics),
            Mount("/static", page, name="static"),
        ],
        middleware=[
            Middleware(RequestTimer, observe=metrics.observe),
            Middleware(SecurityHeaders),
            Middleware(TrustedHostMiddleware, allowed_hosts=_hosts(settings), www_redirect=False),
        ],
        exception_handlers=handlers,
        lifespan=lifespan,
    )
    app.state.feed = feed
    return app


def serve(
    settings: Settings,
    database: Database,
    catalog: Catalog,
    stop_event: Event | None = None,
    *,
    load: LoadEmbedder = load_embedder,
) -> None:
    """Serve the console on the configured address until a signal comes, or until `stop_event` is set.

    Raises:
        ConfigurationError: the address cannot be listened on.
    """
    listener = listen(settings.console.host, settings.console.port, "SOPHIA_CONSOLE__PORT")
    app = create_app(settings, database, catalog, load=load)
    config = uvicorn.Config(
        app,
        http=BoundedConnection,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    if settings.console.host not in LOOPBACK:
        logger.warning("the console listens on %s without authentication", settings.console.host)
    # Uvicorn raises Ctrl-C again once it has shut down in order.
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(uvicorn.Server(config), listener, app.state.feed, stop_event))


async def _serve(server: uvicorn.Server, listener: socket.socket, feed: Feed, stop_event: Event | None) -> None:
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not serving.done():
        await asyncio.wait({serving}, timeout=0.1)
        if stop_event is not None and stop_event.is_set():
            server.should_exit = True
        if server.should_exit:
            # Streams never end by themselves; uvicorn would wait for them until its time-out.
            feed.close()
    await serving


def _configure(connection: psycopg.Connection[TupleRow]) -> None:
    connection.execute("SELECT set_config('statement_timeout', %s, false)", [STATEMENT_TIMEOUT])


def _hosts(settings: Settings) -> list[str]:
    """Names that a browser may use. On loopback this stops a foreign page that rebinds its DNS name to us."""
    return list(LOOPBACK) if settings.console.host in LOOPBACK else ["*"]

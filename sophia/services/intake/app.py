"""Composes the intake: routes, error answers, and what every request passes.

Invariants, each with a test:

* 2xx comes after the transaction that holds all documents of the request, and a body that ends short gets none.
* No answer is a redirect, and none depends on what is in a body: what cannot be taken is parked.
* Who is not known, and what is not taken here, is refused before anything of the body is read.
* The bytes of bodies in memory are bounded; who comes when there is no room waits. That slows Estuary down.
"""

from __future__ import annotations

import contextlib
import json
import logging
import traceback
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, ExceptionHandler, Scope

from sophia.database import Database
from sophia.errors import ConfigurationError, TemporaryError
from sophia.estuary.intake.documents import Feed
from sophia.estuary.intake.events import NAME as EVENTS
from sophia.services import access
from sophia.services.bearer import CHALLENGE, LOOPBACK, has_authorization, sent_token
from sophia.services.bodies import CLOSE, ClientGoneError, declared_length, gone, read_body
from sophia.services.intake.auth import VARIABLE, IntakeTokens
from sophia.services.intake.events import Events
from sophia.services.intake.metrics import IntakeMetrics
from sophia.services.intake.openapi import document
from sophia.services.intake.room import Room
from sophia.services.intake.writers import Writers
from sophia.services.web import Json, RequestTimer
from sophia.settings import IntakeSettings

logger = logging.getLogger("sophia.intake")
PREFIX = "/estuary/"
EVENTS_PATH = "/estuary-events"
OPEN_PATHS = ("/health", "/ready", "/metrics", "/openapi.json")
# An event is a few names and times.
MOST_EVENT_BYTES = 1_000_000
RETRY = {"Retry-After": "1"}


@dataclass(slots=True)
class Intake:
    """The application with what the server around it must know.

    Attributes:
        draining: set when the process is to end: /ready says 503, and each answer closes its connection.
        error: why the process cannot go on.
    """

    app: ASGIApp = field(init=False)
    draining: bool = False
    error: BaseException | None = None


def create_intake(settings: IntakeSettings, database: Database, feeds: Mapping[str, Feed]) -> Intake:
    """The intake as an ASGI application.

    Args:
        feeds: the collections that are taken, by their full Estuary names.

    Raises:
        ConfigurationError: the tokens do not fit the collections, or it would be open to other machines without any.
    """
    tokens = IntakeTokens(settings, feeds)
    intake = Intake()
    routes = _Routes(settings, database, feeds, tokens, intake)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            routes.close()

    def observe(scope: Scope, status: int, seconds: float) -> None:
        routes.metrics.observe_request(scope, status, seconds)
        access.log(scope, status, seconds)

    handlers: dict[Any, ExceptionHandler] = {
        HTTPException: _refused,
        TemporaryError: _away,
        ClientGoneError: gone,
        Exception: _unexpected,
    }
    inner = Starlette(
        routes=[
            Route(f"{PREFIX}{{collection:path}}", routes.documents, methods=["POST"]),
            Route(EVENTS_PATH, routes.events, methods=["POST"]),
            Route("/health", routes.health),
            Route("/ready", routes.ready),
            Route("/metrics", routes.exposition),
            Route("/openapi.json", routes.openapi),
        ],
        middleware=[
            Middleware(
                TrustedHostMiddleware, allowed_hosts=["*"] if tokens.required else list(LOOPBACK), www_redirect=False
            )
        ],
        exception_handlers=handlers,
        lifespan=lifespan,
    )
    # Estuary follows a redirect with a GET and takes its 2xx for ours.
    inner.router.redirect_slashes = False
    label = access.among([*OPEN_PATHS, EVENTS_PATH, *(PREFIX + name for name in feeds)])
    noted = access.RequestIds(inner, label, ("bytes", "documents", "parked"), lambda: intake.draining)
    intake.app = RequestTimer(noted, observe)
    return intake


class _Routes:
    """The handlers, and what they share."""

    def __init__(
        self,
        settings: IntakeSettings,
        database: Database,
        feeds: Mapping[str, Feed],
        tokens: IntakeTokens,
        intake: Intake,
    ) -> None:
        self._settings = settings
        self._names = frozenset(feeds)
        self._tokens = tokens
        self._intake = intake
        self._room = Room(settings.memory_bytes)
        self.metrics = IntakeMetrics(database, sorted(feeds))
        self._writers = Writers(
            database,
            feeds,
            threads=settings.writers,
            retry_seconds=settings.retry_seconds,
            observe=self.metrics.observe_taken,
        )
        self.metrics.watch_waiting("room", lambda: self._room.waiting)
        self.metrics.watch_waiting("transaction", lambda: self._writers.waiting)
        self._events = Events(database)
        described = document(sorted(feeds), settings.max_request_bytes, secured=tokens.required)
        self._described = json.dumps(described, ensure_ascii=False, indent=1).encode()

    def close(self) -> None:
        """End what runs behind the handlers."""
        self._writers.close()
        self._events.close()
        self.metrics.close()

    async def documents(self, request: Request) -> Response:
        """Take a collection's documents."""
        name: str = request.path_params["collection"]
        known = name if name in self._names else None
        self._admit(request, known)
        if known is None:
            raise HTTPException(404, "no collection of that name is taken here", CLOSE)
        most = self._settings.max_request_bytes
        declared = declared_length(request, most)
        async with self._room.of(most if declared is None else declared):
            body = await read_body(request, most, self._settings.receive_seconds)
            note = access.note(request)
            note.add("bytes", len(body))
            try:
                documents, parked = await self._writers.take(name, body)
            except ConfigurationError as error:
                # The catalog has changed under this process: the next one reads it anew, and Estuary sends this again.
                self._intake.error = error
                raise HTTPException(503, "the catalog has changed; send this again", RETRY) from error
        note.add("documents", documents)
        note.add("parked", parked)
        return Json({"documents": documents, "parked": parked})

    async def events(self, request: Request) -> Response:
        """Take a commit event."""
        self._admit(request, EVENTS)
        body = await read_body(request, MOST_EVENT_BYTES, self._settings.receive_seconds)
        access.note(request).add("bytes", len(body))
        taken = await self._events.keep(bytes(body))
        if taken is None:
            return Json({"recorded": False}, 202)
        access.note(request).add("documents" if taken else "parked", 1)
        return Json({"recorded": taken})

    async def health(self, request: Request) -> Response:
        """The process is up."""
        return Json({"status": "up"})

    async def ready(self, request: Request) -> Response:
        """It takes requests."""
        if self._intake.draining:
            return Json({"status": "ending"}, 503, RETRY)
        return Json({"status": "ready"})

    def exposition(self, request: Request) -> Response:
        """Metrics of Prometheus."""
        return Response(self.metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def openapi(self, request: Request) -> Response:
        """What the routes take and answer."""
        return Response(self._described, media_type="application/json")

    def _admit(self, request: Request, name: str | None) -> None:
        """Let in who may deliver under that name.

        Raises:
            HTTPException: 401; 415, if a page in a browser of this machine could have sent it without being asked.
        """
        if not self._tokens.accepts(name, sent_token(request.scope)):
            sent = has_authorization(request.scope)
            raise HTTPException(
                401,
                f"the bearer token does not open this; it is one of {VARIABLE}"
                if sent
                else "a bearer token is missing",
                CHALLENGE,
            )
        if not self._tokens.required:
            media = [each.partition(";")[0].strip().lower() for each in request.headers.getlist("content-type")]
            if "application/json" not in media:
                raise HTTPException(415, "the body must be JSON: send `Content-Type: application/json`", CLOSE)


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    return Json({"error": str(error.detail)}, error.status_code, dict(error.headers or {}))


def _away(request: Request, error: Exception) -> Response:
    return Json({"error": str(error)}, 503, dict(RETRY))


def _unexpected(request: Request, error: Exception) -> Response:
    """A fault of ours. The log has where it happened, but not its message, which may hold a text."""
    logger.error(
        "%s: %s\n%s",
        access.note(request).route,
        type(error).__name__,
        "".join(traceback.format_tb(error.__traceback__)),
    )
    return Json({"error": "the service failed to answer; its log names the place"}, 500)

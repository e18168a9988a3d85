"""Composes the inference service: routes from the table, error answers, and what every request passes.

The port is open before the models are loaded; until then functions answer 503 with `Retry-After`, and /ready says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, select_autoescape
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, ExceptionHandler, Scope

from sophia.catalog import Catalog, UnknownEntryError
from sophia.embedding import load_embedder
from sophia.embedding.base import nothing
from sophia.errors import ConfigurationError, SophiaError, TemporaryError
from sophia.services import access
from sophia.services.bearer import LOOPBACK
from sophia.services.bodies import ClientGoneError, gone
from sophia.services.inference import errors
from sophia.services.inference.auth import BearerAuth, tokens_of
from sophia.services.inference.body import parse, within
from sophia.services.inference.metrics import Metrics
from sophia.services.inference.models import LoadEmbedder, Loading
from sophia.services.inference.openapi import document
from sophia.services.inference.operations import Operation, operations
from sophia.services.web import Json, RequestTimer
from sophia.settings import InferenceSettings, Settings

# Kubernetes, Prometheus and whoever writes a client have no token.
OPEN_PATHS = ("/", "/health", "/ready", "/metrics", "/openapi.json")
# Nothing but the page itself: no script, no other host.
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(slots=True)
class Service:
    """The application with what the server around it must know.

    Attributes:
        draining: set when the process is to end: /ready says 503, and each answer closes its connection.
    """

    loading: Loading
    app: ASGIApp = field(init=False)
    draining: bool = False

    @property
    def error(self) -> BaseException | None:
        """Why the models cannot be served."""
        return self.loading.error


def create_service(
    settings: Settings,
    catalog: Catalog,
    *,
    load: LoadEmbedder = load_embedder,
    loaded: Callable[[], None] = nothing,
) -> Service:
    """The inference service as an ASGI application.

    Args:
        load: makes the embedder; called in a background thread.
        loaded: called there when everything is loaded, before /ready says so.

    Raises:
        ConfigurationError: it would be open to other machines without a token, or the catalog lacks the model.
    """
    inference = settings.inference
    tokens = tokens_of(inference)
    try:
        model = catalog.model(inference.model)
    except UnknownEntryError as error:
        raise ConfigurationError(f"SOPHIA_INFERENCE__MODEL: {error}") from error
    service = Service(Loading(settings, model, load, loaded))
    metrics = Metrics(service.loading)
    table = operations(inference, model)
    described = document(table, secured=bool(tokens))

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.loading.start()
        try:
            yield
        finally:
            await service.loading.close(inference.drain_seconds)

    def observe(scope: Scope, status: int, seconds: float) -> None:
        metrics.observe(scope, status, seconds)
        access.log(scope, status, seconds)

    handlers: dict[Any, ExceptionHandler] = {
        HTTPException: errors.http,
        SophiaError: errors.sophia,
        ClientGoneError: gone,
        Exception: errors.unexpected,
    }
    inner = Starlette(
        routes=[
            *(Route(each.path, _endpoint(each, service, inference), methods=["POST"]) for each in table),
            *_open_routes(service, metrics, described),
        ],
        middleware=[
            Middleware(
                TrustedHostMiddleware,
                allowed_hosts=["*"] if bool(tokens) else list(LOOPBACK),
                www_redirect=False,
            ),
            Middleware(BearerAuth, tokens=tokens, open_paths=OPEN_PATHS),
        ],
        exception_handlers=handlers,
        lifespan=lifespan,
    )
    paths = [*OPEN_PATHS, *(each.path for each in table)]
    service.app = RequestTimer(
        access.RequestIds(inner, access.among(paths), ("texts", "tokens"), lambda: service.draining), observe
    )
    return service


def _endpoint(
    operation: Operation, service: Service, settings: InferenceSettings
) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        functions = service.loading.functions
        asked = await parse(request, operation.request, settings.max_request_bytes, settings.timeout_seconds)
        compute = partial(operation.handler, request, functions, asked)
        kept = functions.results if operation.kept else None
        work = compute() if kept is None else kept.answer(operation.path, asked, compute)
        try:
            return await within(request, work, settings.timeout_seconds)
        except asyncio.CancelledError:
            if not service.draining:
                raise
            raise TemporaryError("the process ends before this is done; ask another, or try again") from None

    return endpoint


def _open_routes(service: Service, metrics: Metrics, described: dict[str, Any]) -> list[Route]:
    text = json.dumps(described, ensure_ascii=False, indent=1).encode()
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder), autoescape=select_autoescape(default=True), trim_blocks=True
    )
    html = environment.get_template("page.html.j2").render(document=described)

    async def health(request: Request) -> Response:
        return Json({"status": "up"})

    async def ready(request: Request) -> Response:
        if service.draining or not service.loading.done:
            status = "ending" if service.draining else "loading"
            return Json({"status": status}, 503, {"Retry-After": str(errors.RETRY_SECONDS)})
        return Json({"status": "ready"})

    async def exposition(request: Request) -> Response:
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def openapi(request: Request) -> Response:
        return Response(text, media_type="application/json")

    async def page(request: Request) -> Response:
        return HTMLResponse(html, headers=_PAGE_HEADERS)

    return [
        Route("/", page),
        Route("/health", health),
        Route("/ready", ready),
        Route("/metrics", exposition),
        Route("/openapi.json", openapi),
    ]

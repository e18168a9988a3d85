"""The console's HTTP API: thin handlers over `sophia.indexing`. Sync handlers run in Starlette's thread pool."""

from __future__ import annotations

import time
from dataclasses import asdict
from threading import Lock
from typing import Any

import psycopg
from prometheus_client import CONTENT_TYPE_LATEST
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from sse_starlette import EventSourceResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from sophia.catalog import Catalog
from sophia.errors import SophiaError
from sophia.estuary.control.observation import watermarks
from sophia.indexing import status
from sophia.indexing.search import search
from sophia.indexing.versions import IndexVersion, active_versions, local_indexes, serving_version
from sophia.services.console.errors import NotFoundError
from sophia.services.console.feed import Feed
from sophia.services.console.metrics import Metrics
from sophia.services.console.models import QueryModels
from sophia.services.web import Json
from sophia.settings import Settings
from sophia.stores import Stores

Connection = psycopg.Connection[TupleRow]
BODY_LIMIT_BYTES = 64 * 1024
# Counting documents costs the database something; all open pages share one answer for this long.
STATUS_SECONDS = 1.0
SEND_TIMEOUT_SECONDS = 20.0


class SearchRequest(BaseModel):
    """The body of `POST /api/search`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    index: str = Field(min_length=1, max_length=200)
    text: str = Field(min_length=1)
    k: int = Field(10, ge=1, le=100)
    filters: dict[str, JsonValue] = Field(default_factory=dict)
    hybrid: bool = False


class Api:
    """The handlers, with what they need."""

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        pool: ConnectionPool[Connection],
        models: QueryModels,
        feed: Feed,
        metrics: Metrics,
        stores: Stores,
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        self._pool = pool
        self._models = models
        self._feed = feed
        self._metrics = metrics
        self._stores = stores
        self._status_lock = Lock()
        self._status: dict[str, Any] = {}
        self._status_until = 0.0

    def status(self, request: Request) -> Response:
        """Every index version, capture and collection, and the number of dead letters."""
        return Json(self._read_status())

    def indexes(self, request: Request) -> Response:
        """The indexes of this profile, with what a search form needs; `serving` is false before the first build."""
        with self._pool.connection() as connection:
            versions = {v.index_name: v for v in active_versions(connection) if v.state == "serving"}
        described = [_describe(version) for version in versions.values()]
        described += [
            {"name": index.name, "description": index.description, "serving": False}
            for index in local_indexes(self._catalog, self._settings.profile)
            if index.name not in versions
        ]
        return Json({"indexes": sorted(described, key=lambda item: item["name"])})

    def fields(self, request: Request) -> Response:
        """Frequent values of an index's metadata fields, each as JSON text, so that no number loses a digit."""
        with self._pool.connection() as connection:
            version = _serving(connection, _parameter(request, "index"))
            return Json({"index": version.index_name, "fields": status.field_values(connection, version)})

    async def search(self, request: Request) -> Response:
        """The best chunks for a text."""
        body = await _body(request)
        try:
            asked = SearchRequest.model_validate_json(body)
        except ValidationError as error:
            fault = error.errors()[0]
            place = ".".join(str(part) for part in fault["loc"])
            raise HTTPException(400, f"{place}: {fault['msg']}" if place else fault["msg"]) from error
        return await run_in_threadpool(self._search, asked)

    def _search(self, asked: SearchRequest) -> Response:
        started = time.perf_counter()
        used: list[IndexVersion] = []

        def embedder(version: IndexVersion) -> Any:
            used.append(version)
            return self._models.embedder(version)

        with self._pool.connection() as connection:
            _serving(connection, asked.index)
            hits = search(
                connection,
                asked.index,
                asked.text,
                embedder,
                k=asked.k,
                filters=asked.filters,
                hybrid=asked.hybrid,
                stores=self._stores,
            )
        version = used[-1]
        return Json(
            {
                "index": version.index_name,
                "version": version.number,
                "model": version.model.name,
                "fingerprint": version.fingerprint,
                "took_ms": round((time.perf_counter() - started) * 1000, 2),
                "hits": [asdict(hit) for hit in hits],
            }
        )

    def why(self, request: Request) -> Response:
        """Where a key's vectors came from."""
        index, key = _parameter(request, "index"), _parameter(request, "key")
        with self._pool.connection() as connection:
            try:
                return Json(status.why(connection, index, key, stores=self._stores))
            except SophiaError as error:
                raise NotFoundError(str(error)) from error

    def lag(self, request: Request) -> Response:
        """The newest live batches of an index, oldest first, for a plot."""
        limit = _integer(request, "limit", default=300, most=1000)
        with self._pool.connection() as connection:
            version = _serving(connection, _parameter(request, "index"))
            rows = status.lag_history(connection, version.index_name, limit)
        names = ("batch", "applied_at", "lag_ms", "documents")
        return Json({"index": version.index_name, "batches": [dict(zip(names, row, strict=True)) for row in rows]})

    async def events(self, request: Request) -> Response:
        """What becomes searchable, as it does (server-sent events)."""
        # A browser sends the header when it reconnects by itself, and the page the parameter when it does.
        text = request.headers.get("Last-Event-ID") or request.query_params.get("after", "")
        last_id = int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None
        return EventSourceResponse(
            self._feed.stream(last_id), send_timeout=SEND_TIMEOUT_SECONDS, headers={"X-Accel-Buffering": "no"}
        )

    def dead_letters(self, request: Request) -> Response:
        """Parked documents with the reason, the latest first."""
        limit = _integer(request, "limit", default=100, most=1000)
        with self._pool.connection() as connection:
            return Json({"dead_letters": status.dead_letters(connection, limit)})

    async def health(self, request: Request) -> Response:
        """The process is up."""
        return Json({"status": "up"})

    def ready(self, request: Request) -> Response:
        """The database answers."""
        with self._pool.connection() as connection:
            connection.execute("SELECT 1")
        return Json({"status": "ready"})

    def metrics(self, request: Request) -> Response:
        """Prometheus metrics."""
        try:
            self._read_status()
        except psycopg.OperationalError:
            self._metrics.set_database_down()
        return Response(self._metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    def _read_status(self) -> dict[str, Any]:
        with self._status_lock:
            if time.monotonic() >= self._status_until:
                with self._pool.connection() as connection:
                    indexes = status.index_status(connection)
                    captures = status.capture_status(connection)
                    collections = status.collection_status(connection)
                    dead_letters = status.dead_letter_count(connection)
                    settings = self._settings
                    complete = watermarks(connection, self._catalog, settings.profile, settings.estuary)
                self._metrics.set_indexes(indexes, dead_letters)
                self._status = {
                    "profile": self._settings.profile,
                    "indexes": [s.to_json() | {"source": self._source(s.collection)} for s in indexes],
                    "captures": [asdict(capture) for capture in captures],
                    "collections": [collection.to_json(complete) for collection in collections],
                    "dead_letters": dead_letters,
                }
                self._status_until = time.monotonic() + STATUS_SECONDS
            return self._status

    def _source(self, collection: str) -> str | None:
        """The source of a collection in this profile; None when the catalog no longer has it."""
        for known in self._catalog.collections:
            if known.name == collection:
                return known.source.for_profile(self._settings.profile)
        return None


def _describe(version: IndexVersion) -> dict[str, Any]:
    index = version.index
    return {
        "name": index.name,
        "description": index.description,
        "serving": True,
        "version": version.number,
        "model": version.model.name,
        "store": version.store,
        "collection": version.collection,
        "metadata": list(index.metadata),
        "required_filter": index.required_filter,
    }


def _serving(connection: Connection, name: str) -> IndexVersion:
    try:
        return serving_version(connection, name)
    except SophiaError as error:
        raise NotFoundError(str(error)) from error


def _parameter(request: Request, name: str) -> str:
    value = request.query_params.get(name, "")
    if not value:
        raise HTTPException(400, f"the parameter `{name}` is missing")
    return value


def _integer(request: Request, name: str, *, default: int, most: int) -> int:
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= most):
        raise HTTPException(400, f"the parameter `{name}` must be a number from 1 to {most}")
    return int(text)


async def _body(request: Request) -> bytes:
    """The body, or 413 as soon as it is longer than the limit, whatever Content-Length says."""
    received = bytearray()
    async for part in request.stream():
        received += part
        if len(received) > BODY_LIMIT_BYTES:
            raise HTTPException(413, f"the body is larger than {BODY_LIMIT_BYTES} bytes")
    return bytes(received)

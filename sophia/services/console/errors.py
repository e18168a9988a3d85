"""Every error answer of the console: JSON `{"error": …, "fix": …?}`, never a trace, never a connection string."""

from __future__ import annotations

import json
import logging
from datetime import date, datetime
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from sophia.errors import ConfigurationError, SophiaError, TemporaryError

logger = logging.getLogger("sophia.console")
RETRY_SECONDS = 1


class Json(JSONResponse):
    """JSON with times in ISO 8601; answers of the API are never cached."""

    def __init__(self, content: Any, status_code: int = 200, headers: dict[str, str] | None = None) -> None:
        super().__init__(content, status_code, {"Cache-Control": "no-store"} | (headers or {}))

    def render(self, content: Any) -> bytes:
        """Compact UTF-8."""
        return json.dumps(content, ensure_ascii=False, separators=(",", ":"), default=_encode).encode()


class NotFoundError(SophiaError):
    """The index or the key does not exist."""


def _encode(value: Any) -> str:
    if isinstance(value, datetime | date):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _answer(status: int, error: str, fix: str | None = None) -> Json:
    content = {"error": error} if fix is None else {"error": error, "fix": fix}
    return Json(content, status, {"Retry-After": str(RETRY_SECONDS)} if status == 503 else None)


def http(request: Request, error: Exception) -> Json:
    """Unknown paths, methods, and what handlers raise on purpose."""
    assert isinstance(error, HTTPException)  # noqa: S101
    return Json({"error": error.detail}, error.status_code, dict(error.headers or {}))


def sophia(request: Request, error: Exception) -> Json:
    """The type of the error decides: not there, not now, not configured, or asked wrongly."""
    if isinstance(error, NotFoundError):
        return _answer(404, str(error))
    return _answer(503 if isinstance(error, TemporaryError | ConfigurationError) else 400, str(error))


def database(request: Request, error: Exception) -> Json:
    """The database is away, or took too long."""
    logger.warning("%s: the database does not answer: %s", request.url.path, error)
    return _answer(503, "the database does not answer", "see whether it runs; the console reconnects by itself")


def data(request: Request, error: Exception) -> Json:
    """A value that PostgreSQL cannot take, such as a NUL character."""
    return _answer(400, f"a value cannot be used: {str(error).splitlines()[0]}")


def unexpected(request: Request, error: Exception) -> Json:
    """A fault of ours; the server's log has the trace."""
    logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _answer(500, "the console failed to answer", "its log names the reason")

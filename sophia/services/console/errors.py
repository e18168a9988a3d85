"""Every error answer of the console: JSON `{"error": …, "fix": …?}`, never a trace, never a connection string."""

from __future__ import annotations

import logging

from starlette.exceptions import HTTPException
from starlette.requests import Request

from sophia.errors import ConfigurationError, SophiaError, TemporaryError
from sophia.services.web import Json

logger = logging.getLogger("sophia.console")
RETRY_SECONDS = 1


class NotFoundError(SophiaError):
    """The index or the key does not exist."""


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

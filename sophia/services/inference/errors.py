"""Every error answer of the service: JSON `{"error": …, "fix": …?, "faults": […]?}`, below /v1 in OpenAI's shape.

No answer and no log line holds a text, a token or a trace; what a client sent is named by its place only.
"""

from __future__ import annotations

import logging
import math
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Scope

from sophia.embedding.scheduler import OverloadedError
from sophia.errors import ConfigurationError, SophiaError, TemporaryError
from sophia.services.access import note
from sophia.services.inference.generate import RefusedRequestError
from sophia.services.web import Json

logger = logging.getLogger("sophia.inference")
OPENAI_PREFIX = "/v1/"
RETRY_SECONDS = 1
# A body with a thousand faults is told the first of them.
MOST_FAULTS = 20
_CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded"}


class CrowdedError(TemporaryError):
    """More requests wait for a function than may.

    Attributes:
        retry_after: seconds.
    """

    def __init__(self, name: str, retry_after: float) -> None:
        super().__init__(f"too many requests wait for {name}; try again in {retry_after:.0f} s")
        self.retry_after = retry_after


class FaultsError(SophiaError):
    """Fields of a body are not as they must be.

    Attributes:
        faults: (path of the field, what is wrong).
        status: of the answer.
        code: OpenAI's word for it, below /v1.
    """

    def __init__(self, faults: Sequence[tuple[str, str]], status: int = 422, code: str | None = None) -> None:
        super().__init__(": ".join(faults[0]))
        self.faults = list(faults)
        self.status = status
        self.code = code


def faults_of(error: ValidationError) -> FaultsError:
    """Each fault with the path of its field, never with the value; 400 for what is no JSON."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    if any(fault["type"] == "json_invalid" for fault in found):
        return FaultsError([("body", found[0]["msg"])], status=400)
    return FaultsError(
        [(".".join(str(part) for part in fault["loc"]) or "body", fault["msg"]) for fault in found[:MOST_FAULTS]]
    )


def answer(
    scope: Scope,
    status: int,
    message: str,
    *,
    fix: str | None = None,
    faults: Sequence[tuple[str, str]] = (),
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Json:
    """An error answer in the shape of its path."""
    if scope["path"].startswith(OPENAI_PREFIX):
        # OpenAI answers 400 to faults of the body, and its clients know no other.
        status = 400 if status == 422 else status
        detail = {
            "message": message if fix is None else f"{message}; {fix}",
            "type": _openai_type(status),
            "param": faults[0][0] if faults else None,
            "code": code or _CODES.get(status),
        }
        return Json({"error": detail}, status, dict(headers or {}))
    content: dict[str, Any] = {"error": message}
    if fix is not None:
        content["fix"] = fix
    if faults:
        content["faults"] = [{"field": field, "message": text} for field, text in faults]
    return Json(content, status, dict(headers or {}))


def http(request: Request, error: Exception) -> Json:
    """Unknown paths, methods, and what handlers raise on purpose."""
    assert isinstance(error, HTTPException)  # noqa: S101
    return answer(request.scope, error.status_code, str(error.detail), headers=error.headers)


def sophia(request: Request, error: Exception) -> Json:
    """The type of the error decides: asked wrongly, too much, not now, or not configured."""
    if isinstance(error, FaultsError):
        return answer(request.scope, error.status, str(error), faults=error.faults, code=error.code)
    if isinstance(error, RefusedRequestError):
        return answer(request.scope, 422, str(error))
    if isinstance(error, OverloadedError | CrowdedError):
        return answer(request.scope, 429, str(error), headers={"Retry-After": str(math.ceil(error.retry_after))})
    if isinstance(error, ConfigurationError):
        return answer(request.scope, 503, str(error))
    if isinstance(error, TemporaryError):
        return answer(request.scope, 503, str(error), headers={"Retry-After": str(RETRY_SECONDS)})
    return answer(request.scope, 500, str(error))


def unexpected(request: Request, error: Exception) -> Json:
    """A fault of ours. The log has where it happened, but not its message, which may hold a text."""
    logger.error(
        "%s %s: %s\n%s",
        request.method,
        note(request).route,
        type(error).__name__,
        "".join(traceback.format_tb(error.__traceback__)),
    )
    return answer(request.scope, 500, "the service failed to answer", fix="its log names the place")


def _openai_type(status: int) -> str:
    if status == 401:
        return "authentication_error"
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"

"""From a request to its checked body, and the bounds of its time: what is too large, too slow or unread ends here."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from sophia.services.inference.errors import CLIENT_CLOSED_REQUEST, faults_of

_M = TypeVar("_M", bound=BaseModel)
# What is refused unread would else have to be read to its end before the connection could be used again.
_CLOSE = {"Connection": "close"}


class ClientGoneError(Exception):
    """The client closed its connection; nobody reads an answer."""


async def parse(request: Request, model: type[_M], most_bytes: int, seconds: float) -> _M:
    """The body as a model.

    Raises:
        HTTPException: 415, 413 (before the rest is read, whatever Content-Length says), 408.
        FaultsError: it is no JSON (400), or has faults (422).
        ClientGoneError: the client left before the end.
    """
    # Also what keeps a browser's form from reaching the service without the browser asking first.
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json":
        raise HTTPException(415, "the body must be JSON: send `Content-Type: application/json`", _CLOSE)
    length = request.headers.get("content-length", "0")
    if int(length) > most_bytes:
        raise _too_large(most_bytes)
    received = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                received += part
                if len(received) > most_bytes:
                    raise _too_large(most_bytes)
    except TimeoutError:
        raise HTTPException(408, f"the body did not come within {seconds:g} s", _CLOSE) from None
    except ClientDisconnect:
        raise ClientGoneError from None
    try:
        return model.model_validate_json(received)
    except ValidationError as error:
        raise faults_of(error) from None


async def within(request: Request, work: Coroutine[Any, Any, Response], seconds: float) -> Response:
    """The answer of `work`, which is cancelled when the client leaves or the time is over. The body was read before.

    Raises:
        HTTPException: 504.
        ClientGoneError: the client left.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        done, _ = await asyncio.wait({working, leaving}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if working in done:
            return working.result()
        if leaving in done:
            raise ClientGoneError
        raise HTTPException(504, f"the answer was not ready within {seconds:g} s")
    finally:
        leaving.cancel()
        if not working.done():
            working.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await working


def gone(request: Request, error: Exception) -> Response:
    """Stands in the log and the metrics for a request whose client left."""
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue


def _too_large(most_bytes: int) -> HTTPException:
    return HTTPException(413, f"the body is larger than {most_bytes} bytes", _CLOSE)

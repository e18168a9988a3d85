"""From a request to its checked body, and the bounds of its time: what is too large, too slow or unread ends here."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from sophia.services.bodies import CLOSE, ClientGoneError, read_body
from sophia.services.inference.errors import faults_of

_M = TypeVar("_M", bound=BaseModel)


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
        raise HTTPException(415, "the body must be JSON: send `Content-Type: application/json`", CLOSE)
    received = await read_body(request, most_bytes, seconds)
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


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue

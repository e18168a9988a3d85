"""Reading a request's body under bounds: what is too large or too slow ends here, and what ends short is told apart."""

from __future__ import annotations

import asyncio

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

# As nginx has it: nobody reads this answer, but the log and the metrics show it.
CLIENT_CLOSED_REQUEST = 499
# What is refused unread would else have to be read to its end before the connection could be used again.
CLOSE = {"Connection": "close"}


class ClientGoneError(Exception):
    """The client closed its connection; nobody reads an answer, and what it sent may be cut off."""


def gone(request: Request, error: Exception) -> Response:
    """Stands in the log and the metrics for a request whose client left."""
    return Response(status_code=CLIENT_CLOSED_REQUEST)


def declared_length(request: Request, most_bytes: int) -> int | None:
    """What the request says of its body's length; None if it says nothing.

    Raises:
        HTTPException: 413, it is too large.
    """
    length = request.headers.get("content-length")
    if length is None:
        return None
    if int(length) > most_bytes:
        raise _too_large(most_bytes)
    return int(length)


async def read_body(request: Request, most_bytes: int, seconds: float) -> bytearray:
    """The whole body.

    Raises:
        HTTPException: 413 (before the rest is read, whatever Content-Length says), 408.
        ClientGoneError: the client left before the end.
    """
    declared_length(request, most_bytes)
    received = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                received += part
                if len(received) > most_bytes:
                    raise _too_large(most_bytes)
    except TimeoutError:
        raise HTTPException(408, f"the body did not come within {seconds:g} s", CLOSE) from None
    except ClientDisconnect:
        raise ClientGoneError from None
    return received


def _too_large(most_bytes: int) -> HTTPException:
    return HTTPException(413, f"the body is larger than {most_bytes} bytes", CLOSE)

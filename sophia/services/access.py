"""What is noted of every request: an id that its caller may choose, and one line of JSON, without texts and tokens."""

from __future__ import annotations

import json
import logging
import re
import sys
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("sophia.access")
HEADER = "X-Request-Id"
OTHER = "other"
# Anything else could forge a log line or a header.
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_NOTE = "sophia.note"


@dataclass(slots=True)
class Note:
    """What a request was about, in numbers.

    Attributes:
        route: its path. Those that do not exist share a label: they are the client's to choose, and have no bound.
        figures: by name, in the order of the line.
    """

    id: str
    route: str
    figures: dict[str, int]

    def add(self, name: str, count: int) -> None:
        """Raise a figure."""
        self.figures[name] += count


def note_of(scope: Scope) -> Note:
    """The note of a request."""
    found: Note = scope[_NOTE]
    return found


def note(request: Request) -> Note:
    """The note of a request; handlers write into it."""
    return note_of(request.scope)


def among(paths: Collection[str]) -> Callable[[str], str]:
    """The label of a path: itself if it is one of these."""
    known = frozenset(paths)
    return lambda path: path if path in known else OTHER


class RequestIds:
    """Gives each request its note and each answer its id; while draining, each answer closes its connection.

    An exception that comes through has been logged and answered below; it ends here.

    Args:
        label: the route of a path.
        figures: names of what a note counts.
    """

    def __init__(
        self, app: ASGIApp, label: Callable[[str], str], figures: Collection[str], draining: Callable[[], bool]
    ) -> None:
        self._app = app
        self._label = label
        self._figures = tuple(figures)
        self._draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = Headers(scope=scope).get(HEADER, "")
        kept = Note(
            asked if _ID.fullmatch(asked) else uuid.uuid4().hex,
            self._label(scope["path"]),
            dict.fromkeys(self._figures, 0),
        )
        scope[_NOTE] = kept
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers[HEADER] = kept.id
                if self._draining():
                    headers["Connection"] = "close"
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            if not started:
                raise


def log(scope: Scope, status: int, seconds: float) -> None:
    """Write the line of a request."""
    kept = note_of(scope)
    logger.info(
        json.dumps(
            {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "id": kept.id,
                "method": scope["method"],
                "route": kept.route,
                "status": status,
                "ms": round(seconds * 1000, 2),
                **kept.figures,
            }
        )
    )


def log_to_stdout() -> None:
    """Access lines go to standard output as they are, whatever else is logged."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False

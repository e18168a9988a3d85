"""A client of Estuary's data plane: the journals of one collection, as bytes. It only reads.

Invariants, each with a test:

* Bytes come in order and none twice: what was cut off is asked for again from where it ended. A place that the journal
  no longer has is skipped, and whoever reads sees it by the offset.
* Attempts without a byte are few; then the error says what is wrong. What passes by itself (away, slow, busy, an
  offset that this broker does not have yet) is a TemporaryError.
* A broker's token ends after an hour: once it is refused, the control plane is asked for another.
* The token goes to the address that the control plane named, by TLS except on this machine: redirects are not followed.

Sources: gazette `broker/http_gateway`, `broker/protocol/protocol.proto` by grpc-gateway. Where a broker has no REST
page to read by, its own gateway is used, which knows no modification times.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import sleep
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import httpx
import orjson
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, stop_before_delay

from sophia.errors import ConfigurationError, TemporaryError
from sophia.estuary.control.client import ATTEMPTS, RETRIED, EstuaryAwayError, kind_of, next_pause
from sophia.estuary.control.shapes import Authorization, plain
from sophia.estuary.journals.lines import Lines
from sophia.settings import LOOPBACK

# A broker may fetch a fragment from its bucket before the first byte comes.
SILENT_SECONDS = 60.0
# All attempts at one place of a journal, with what the broker asks to wait.
PATIENCE_SECONDS = 120.0
# Content comes in messages of 128 KiB.
LONGEST_MESSAGE = 8 * 1024 * 1024
_MISSING = frozenset({404, 405, 501})
_RANGE = re.compile(r"bytes (\d{1,19})-")
ResultT = TypeVar("ResultT")
Pieces = Generator[tuple[int, bytes], None, None]


@dataclass(frozen=True, slots=True)
class Span:
    """What of a journal is read: offsets in bytes, the end not included."""

    journal: str
    begin: int
    end: int


class _NoPageError(ConfigurationError):
    """The broker has no such page."""


class Broker:
    """Reads the journals of one collection; used as a context manager, by one thread.

    Args:
        authorize: asks the control plane where the broker is and for a token; called again when the token has ended.
    """

    def __init__(self, authorize: Callable[[], Authorization]) -> None:
        self._authorize = authorize
        self._authorization: Authorization | None = None
        self._gateway = False
        self._client = httpx.Client(
            timeout=httpx.Timeout(SILENT_SECONDS, connect=5.0), headers={"Accept-Encoding": "identity"}
        )

    def __enter__(self) -> Broker:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def journals(self) -> list[str]:
        """Names of the collection's journals, in order; none before its first document."""
        return self._again(self._list)

    def span(self, journal: str, since: int) -> Span:
        """Where what was stored since then begins, and where the journal ends now.

        Args:
            since: seconds since 1970; 0 for all that it has. Where the broker cannot tell, the span begins earlier.
        """
        return self._again(lambda: self._span(journal, since))

    def content(self, span: Span) -> Pieces:
        """Bytes of the span in pieces, each with its offset, which is past the end of the one before it at a gap.

        Raises:
            TemporaryError: the broker is away or the journal is gone.
            ConfigurationError: it refuses, or answers something else.
        """
        offset = span.begin
        while offset < span.end:
            stream = self._again(lambda: self._first(span, offset))  # noqa: B023 - it is called at once
            try:
                for at, data in stream:
                    if at < offset:
                        raise _unexpected()
                    piece = data[: max(0, span.end - at)]
                    if piece:
                        yield at, piece
                    offset = at + len(data)
                    if offset >= span.end:
                        return
            except EstuaryAwayError:
                # There were bytes; what is wrong shows when the next are asked for.
                continue
            finally:
                stream.close()

    # ---- one question ------------------------------------------------------------------------------------------

    def _again(self, once: Callable[[], ResultT]) -> ResultT:
        return Retrying(
            retry=retry_if_exception_type(EstuaryAwayError),
            stop=stop_after_attempt(ATTEMPTS) | stop_before_delay(PATIENCE_SECONDS),
            wait=next_pause,
            sleep=sleep,
            reraise=True,
        )(once)

    def _list(self) -> list[str]:
        prefix = self._authorized().journal_name_prefix
        include = {"labels": [{"name": "name", "value": prefix, "prefix": True}]}
        found: set[str] = set()
        messages = 0
        with self._sent("POST", "/v1/journals/list", {"selector": {"include": include}}) as response:
            if response.status_code != httpx.codes.OK:
                raise _NoPageError(_refusal(response.status_code))
            for message in self._messages(response):
                messages += 1
                _status(message)
                journals = message.get("journals") or []
                try:
                    found.update(journal["spec"]["name"] for journal in journals)
                except (KeyError, TypeError) as error:
                    raise _unexpected() from error
        if not messages:
            raise EstuaryAwayError("Estuary's broker: the list of journals was cut off; try again later")
        return sorted(name for name in found if name.startswith(prefix))

    def _span(self, journal: str, since: int) -> Span:
        if not self._gateway:
            body = {"journal": journal, "offset": "0", "block": False, "metadataOnly": True, "beginModTime": str(since)}
            with self._sent("POST", "/v1/journals/read", body) as response:
                if response.status_code == httpx.codes.OK:
                    for message in self._messages(response):
                        head = _number(message.get("writeHead"))
                        at_end = _status(message) == "OFFSET_NOT_YET_AVAILABLE"
                        return Span(journal, head if at_end else _number(message.get("offset")), head)
                    raise EstuaryAwayError("Estuary's broker: the answer was cut off; try again later")
            self._gateway = True
        with self._sent("HEAD", f"/{quote(journal)}", params={"offset": "0", "block": "false"}) as response:
            head = _number(response.headers.get("X-Write-Head"))
            if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                return Span(journal, head, head)
            return Span(journal, _range(response), head)

    def _first(self, span: Span, offset: int) -> Pieces:
        """A stream from the offset on that has its first bytes."""
        stream = self._by_gateway(span, offset) if self._gateway else self._by_rest(span, offset)
        try:
            first = next(stream, None)
        except _NoPageError:
            self._gateway = True
            return self._first(span, offset)
        if first is None:
            raise EstuaryAwayError("Estuary's broker: the answer has no bytes of a journal; try again later")
        return _chained(first, stream)

    def _by_rest(self, span: Span, offset: int) -> Pieces:
        body = {"journal": span.journal, "offset": str(offset), "block": False, "endOffset": str(span.end)}
        with self._sent("POST", "/v1/journals/read", body) as response:
            if response.status_code != httpx.codes.OK:
                raise _NoPageError(_refusal(response.status_code))
            for message in self._messages(response):
                if _status(message) == "OFFSET_NOT_YET_AVAILABLE":
                    raise EstuaryAwayError("Estuary's broker: it has less of a journal than was written; try again")
                at, content = _number(message.get("offset")), message.get("content")
                if not content and at < span.end:
                    continue
                # Without content: all of the rest is gone.
                try:
                    yield at, base64.b64decode(content or b"", validate=True)
                except (binascii.Error, TypeError, ValueError) as error:
                    raise _unexpected() from error

    def _by_gateway(self, span: Span, offset: int) -> Pieces:
        params = {"offset": str(offset), "block": "false"}
        with self._sent("GET", f"/{quote(span.journal)}", params=params) as response:
            if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise EstuaryAwayError("Estuary's broker: it has less of a journal than was written; try again later")
            at = _range(response)
            # How it ended is told behind the body, in X-Close-Error; where it ended is what counts.
            for part in _parts(response):
                yield at, part
                at += len(part)

    @contextmanager
    def _sent(
        self, method: str, path: str, body: Any = None, params: dict[str, str] | None = None
    ) -> Iterator[httpx.Response]:
        """An answer that is a success, a 416 of the gateway, or a page of REST that is not there."""
        authorization = self._authorized()
        try:
            with self._client.stream(
                method,
                f"{_address(authorization)}{path}",
                headers={"Authorization": f"Bearer {authorization.broker_token}"},
                json=body,
                params=params,
            ) as response:
                self._check(response, rest=body is not None)
                yield response
        except httpx.InvalidURL as error:
            raise _unexpected() from error
        except httpx.TransportError as error:
            raise EstuaryAwayError(f"Estuary's broker does not answer: {kind_of(error)}") from error

    def _messages(self, response: httpx.Response) -> Iterator[dict[str, Any]]:
        """The JSON objects of an answer, one a line."""
        lines = Lines(LONGEST_MESSAGE)
        for part in _parts(response):
            for line in lines.cut(part):
                yield self._message(line)
        if rest := lines.rest():
            yield self._message(rest)

    def _message(self, line: bytes) -> dict[str, Any]:
        try:
            message = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            if line.lstrip()[:1] == b"{":
                raise EstuaryAwayError("Estuary's broker: the answer was cut off; try again later") from error
            raise _unexpected() from error
        if not isinstance(message, dict):
            raise _unexpected()
        if message.get("error"):
            # Its text is a server's own; among the reasons is a token that ended while the answer came.
            self._authorization = None
            raise EstuaryAwayError("Estuary's broker: it broke off with an error; try again later")
        # An answer of several messages has each in an envelope.
        result = message.get("result", message)
        if not isinstance(result, dict):
            raise _unexpected()
        return result

    def _authorized(self) -> Authorization:
        if self._authorization is None:
            self._authorization = self._authorize()
        return self._authorization

    def _check(self, response: httpx.Response, *, rest: bool) -> None:
        status = response.status_code
        if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            self._authorization = None
            raise EstuaryAwayError("Estuary's broker: it does not take its token; try again later")
        if status in _MISSING and not rest:
            raise TemporaryError(
                f"Estuary's broker: {status}: a journal is gone, or none is served over HTTP; run the command again, "
                "which lists them anew"
            )
        if status in RETRIED:
            raise EstuaryAwayError(f"Estuary's broker: it answers {status}; try again later")
        expected = (httpx.codes.OK, *_MISSING) if rest else (206, httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE)
        if status not in expected:
            raise ConfigurationError(_refusal(status))
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise ConfigurationError("Estuary's broker: the answer is compressed, which was not asked for")


def _chained(first: tuple[int, bytes], rest: Pieces) -> Pieces:
    yield first
    yield from rest


def _parts(response: httpx.Response) -> Iterator[bytes]:
    try:
        yield from response.iter_raw()
    except httpx.TransportError as error:
        raise EstuaryAwayError(f"Estuary's broker broke off: {kind_of(error)}") from error


def _status(message: dict[str, Any]) -> str:
    """OK or OFFSET_NOT_YET_AVAILABLE; every other status is an error. OK is left out by some brokers."""
    status = str(message.get("status") or "OK")
    if status == "JOURNAL_NOT_FOUND":
        raise TemporaryError("Estuary's broker: a journal is gone; run the command again, which lists them anew")
    if status not in ("OK", "OFFSET_NOT_YET_AVAILABLE"):
        raise EstuaryAwayError(f"Estuary's broker: it cannot say now: {plain(status)}")
    return status


def _number(value: Any) -> int:
    """An offset, which JSON has as a string; 0 is left out."""
    try:
        number = int(value or 0)
    except (TypeError, ValueError) as error:
        raise _unexpected() from error
    if not 0 <= number < 1 << 63:
        raise _unexpected()
    return number


def _range(response: httpx.Response) -> int:
    """The offset of the body's first byte."""
    match = _RANGE.match(response.headers.get("Content-Range", ""))
    if match is None:
        raise _unexpected()
    return int(match[1])


def _address(authorization: Authorization) -> str:
    address = authorization.broker_address.rstrip("/")
    try:
        parts = urlsplit(address)
        host = parts.hostname
    except ValueError:
        host = None
    if not host or not (parts.scheme == "https" or (parts.scheme == "http" and host in LOOPBACK)):
        raise ConfigurationError(
            "Estuary's broker: the control plane names an address without https, where the token does not go; "
            "check SOPHIA_ESTUARY__URL"
        )
    return address


def _refusal(status: int) -> str:
    if 300 <= status < 400:
        return (
            f"Estuary's broker: {status}: it sends elsewhere, where the token does not go; "
            "ask Estuary which address brokers of this data plane have"
        )
    if status in _MISSING:
        return f"Estuary's broker: {status}: it has no such page, so its journals cannot be read over HTTP"
    return f"Estuary's broker: {status}: it refuses the question; update Sophia"


def _unexpected() -> ConfigurationError:
    return ConfigurationError("Estuary's broker: the answer is not of the form that Estuary documents; update Sophia")

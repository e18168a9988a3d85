"""Requests as Estuary's materialize-webhook sends them, byte for byte.

Invariants: a request is a POST of one JSON array of whole documents, never empty, with its length and never chunked;
nothing in it names collection, transaction or attempt; before a document is added the request is sent if it has 1 MiB
or more or is of another binding, so it may be larger than that by one document; requests follow one another, each
after the 2xx of the one before; any 2xx is success and everything else is tried again alike, up to 11 times.

Header lines come in the order of Go's client: host, agent, length, then the others by name, each as often as it was
added (a custom `Content-Type` is one more line). There is no time-out. Redirects are followed as Go does.

Source: estuary/connectors `materialize-webhook/driver.go`, Go's `net/http`.
"""

from __future__ import annotations

import http.client
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol
from urllib.parse import SplitResult, urljoin, urlsplit

from sophia.errors import ConfigurationError, TemporaryError

logger = logging.getLogger("sophia.estuary")
FLUSH_BYTES = 1 << 20
# Seconds before each attempt.
DELAYS = (0.0, 0.1, *(float(seconds) for seconds in range(1, 10)))
MOST_REDIRECTS = 10
# These turn a POST into a GET without a body; 307 and 308 keep both.
_TO_GET = (301, 302, 303)
_REDIRECTS = (*_TO_GET, 307, 308)
# Not sent to another host.
_SENSITIVE = ("authorization", "www-authenticate", "cookie", "cookie2")
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode


class TaskFailedError(TemporaryError):
    """The materialisation fails; Estuary starts it again and replays the whole uncommitted transaction."""


@dataclass(frozen=True, slots=True)
class Binding:
    """One collection of a materialisation.

    Attributes:
        collection: full Estuary name.
        key: JSON pointers.
        relative_path: resolved against the endpoint's address; Estuary's own default is the collection's name.
        history: the collection keeps every event.
    """

    collection: str
    key: tuple[str, ...]
    relative_path: str
    history: bool = False


@dataclass(frozen=True)
class Endpoint:
    """Where requests go. `address` ends in `/`; `headers` are added in their order, a name may occur twice.

    Raises:
        ConfigurationError: the address is no HTTP URL that ends in `/`.
    """

    address: str
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if not self.address.startswith(("http://", "https://")) or not self.address.endswith("/"):
            raise ConfigurationError("the webhook's address must be an http(s) URL that ends in `/`")

    def url(self, binding: Binding) -> str:
        """Where a binding's requests go. A path that begins with `/` replaces that of the address."""
        return urljoin(self.address, binding.relative_path)


class Transport(Protocol):
    """Sends one request; tests put faults around it."""

    def post(self, url: str, headers: Sequence[tuple[str, str]], body: bytes) -> int:
        """Send and follow redirects. Returns the last status.

        Raises:
            OSError: the connection broke or could not be made.
            http.client.HTTPException: no HTTP came back.
        """
        ...


class HttpTransport:
    """One kept connection a host, as Go's default client has it. For one thread; a context manager."""

    def __init__(self) -> None:
        self._connections: dict[tuple[str, str], http.client.HTTPConnection] = {}

    def __enter__(self) -> HttpTransport:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()

    def post(self, url: str, headers: Sequence[tuple[str, str]], body: bytes) -> int:
        method, content, first = "POST", body, urlsplit(url)
        for _ in range(MOST_REDIRECTS + 1):
            target = urlsplit(url)
            if target.hostname != first.hostname:
                headers = [(name, value) for name, value in headers if name.lower() not in _SENSITIVE]
            status, location = self._exchange(method, target, headers, content)
            if status not in _REDIRECTS or location is None:
                return status
            if status in _TO_GET:
                method, content = "GET", b""
            url = urljoin(url, location)
        raise http.client.HTTPException(f"stopped after {MOST_REDIRECTS} redirects")

    def _exchange(
        self, method: str, target: SplitResult, headers: Iterable[tuple[str, str]], body: bytes
    ) -> tuple[int, str | None]:
        place = (target.scheme, target.netloc)
        connection = self._connections.pop(place, None)
        if connection is None:
            kind = http.client.HTTPSConnection if target.scheme == "https" else http.client.HTTPConnection
            connection = kind(target.netloc)
        try:
            connection.putrequest(
                method,
                (target.path or "/") + (f"?{target.query}" if target.query else ""),
                skip_host=True,
                skip_accept_encoding=True,
            )
            connection.putheader("Host", target.netloc)
            connection.putheader("User-Agent", "Go-http-client/1.1")
            if method == "POST":
                connection.putheader("Content-Length", str(len(body)))
            for name, value in sorted(headers, key=lambda header: _canonical(header[0])):
                connection.putheader(_canonical(name), value)
            connection.putheader("Accept-Encoding", "gzip")
            connection.endheaders(body or None)
            response = connection.getresponse()
            response.read()
        except BaseException:
            connection.close()
            raise
        self._connections[place] = connection
        return response.status, response.headers.get("Location")


def _canonical(name: str) -> str:
    return "-".join(part.capitalize() for part in name.split("-"))


class Webhook:
    """The connector's `Store`: documents in, requests out.

    Args:
        sleep: waits some seconds between two attempts.

    Attributes:
        requests: requests that were answered 2xx.
        attempts: all requests, also those tried again.
    """

    def __init__(self, endpoint: Endpoint, transport: Transport, sleep: Callable[[float], None]) -> None:
        self._endpoint = endpoint
        self._transport = transport
        self._sleep = sleep
        self._binding: Binding | None = None
        self._body = bytearray()
        self.requests = self.attempts = 0
        self._headers = (("Content-Type", "application/json"), *endpoint.headers)

    def store(self, binding: Binding, document: Mapping[str, Any]) -> None:
        """Add a document; the request before it is sent when it is full or of another binding.

        Raises:
            TaskFailedError: that request failed after all attempts.
        """
        if self._binding is not None and (len(self._body) >= FLUSH_BYTES or binding != self._binding):
            self.flush()
        self._binding = binding
        self._body += b"," if self._body else b"["
        self._body += _encode(document).encode(errors="surrogatepass")

    def flush(self) -> None:
        """Send what is left. Must be called before the transaction commits.

        Raises:
            TaskFailedError: it failed after all attempts.
        """
        if self._binding is None:
            return
        body = bytes(self._body) + b"]"
        url = self._endpoint.url(self._binding)
        self._binding, self._body = None, bytearray()
        self._send(url, body)

    def _send(self, url: str, body: bytes) -> None:
        outcome = ""
        path = urlsplit(url).path
        for number, delay in enumerate(DELAYS, start=1):
            if delay:
                self._sleep(delay)
            self.attempts += 1
            try:
                status = self._transport.post(url, self._headers, body)
            except (OSError, http.client.HTTPException) as error:
                outcome = f"{type(error).__name__}: {error}"
            else:
                if 200 <= status <= 299:
                    self.requests += 1
                    return
                outcome = f"status {status}"
            logger.warning("%s: attempt %d of %d: %s", path, number, len(DELAYS), outcome)
        raise TaskFailedError(f"webhook failed after many attempts: {outcome}; see what {path} answers")

"""The connection to Weaviate: one client a process, every call bounded, every fault one of Sophia's errors.

The asynchronous client runs in a thread of its own, and callers wait for it. The reason is the bound: the client
repeats a call on an unavailable server by itself, for up to a minute, and a synchronous call cannot be called back. A
coroutine is cancelled at its deadline, and so is the request at the server, which gets the deadline with it.

Invariants:

* A call ends at its deadline, one way or the other, and what it may still do in the server was cancelled by then.
* After a fault of the transport the next call connects anew: a channel that failed would wait up to two minutes before
  it tries again.
* No error text or log line holds a document: the client logs refused objects, so its log is turned off, and what the
  server says of an object is shown without the values that it quotes.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import re
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from sophia.errors import ConfigurationError, FencedError, SophiaError, TemporaryError, UnreachableError
from sophia.settings import Settings

if TYPE_CHECKING:
    from weaviate import WeaviateAsyncClient

T = TypeVar("T")
LEAST_VERSION = (1, 32)
GRPC_PORT = 50051
# What the waiting thread grants the loop beyond a call's deadline, to cancel it.
GRACE_SECONDS = 1.0
# Names are fine; whatever stands between the first and the last quotation mark behind them may be a document's.
_NAMES = re.compile(r"[^'\"]*property '\w+' on class '\w+'")
_QUOTED = re.compile(r"(['\"]).*\1", re.DOTALL)
_MISSING_CLASS = re.compile(r"could not find class|class .{1,300} not found|not present in schema", re.IGNORECASE)
_MISSING_TENANT = re.compile(r"tenant not found|tenant .{1,300} not found", re.IGNORECASE)
_BAD_KEY = re.compile(r"unauthenticated|unauthorized|anonymous access not enabled|invalid api key|forbidden", re.I)


class MissingTenantError(SophiaError):
    """The class has no such tenant: nothing was ever written to it."""


class _Loop:
    """An event loop in a daemon thread: one for all stores of a process, since gRPC polls for one loop only."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name="weaviate", daemon=True).start()

    def run(self, work: Coroutine[Any, Any, T], seconds: float) -> T:
        """Wait for `work`; TimeoutError after `seconds`, when it was cancelled."""
        waiting = asyncio.run_coroutine_threadsafe(_bounded(work, seconds), self.loop)
        try:
            return waiting.result(seconds + GRACE_SECONDS)
        except concurrent.futures.CancelledError as error:
            raise TimeoutError from error
        except BaseException:
            waiting.cancel()
            raise


async def _bounded(work: Coroutine[Any, Any, T], seconds: float) -> T:
    return await asyncio.wait_for(work, seconds)


_loop_lock = threading.Lock()
_shared_loop: _Loop | None = None


def _loop() -> _Loop:
    """The process's loop. A fork has none of its parent's threads, so it gets its own."""
    global _shared_loop
    with _loop_lock:
        if _shared_loop is None or _shared_loop.pid != os.getpid():
            _shared_loop = _Loop()
        return _shared_loop


class Connection:
    """A lazily made client. Safe to use from several threads.

    Args:
        settings: of which the address, the key and the bounds of calls are read.

    Raises:
        ConfigurationError: no address is set.
    """

    def __init__(self, settings: Settings) -> None:
        if settings.weaviate_url is None:
            raise ConfigurationError("SOPHIA_WEAVIATE_URL is not set; it is the base URL of the Weaviate server")
        self.url = settings.weaviate_url
        self._key = settings.weaviate_api_key.get_secret_value() if settings.weaviate_api_key else None
        self._http, self._grpc = addresses(settings.weaviate_url, settings.weaviate_grpc_url)
        self._longest = max(settings.weaviate.write_seconds, settings.weaviate.read_seconds)
        self._lock = threading.Lock()
        self._client: WeaviateAsyncClient | None = None
        self._pid = os.getpid()
        self._connecting: asyncio.Lock | None = None
        # Here and not in the first call, whose time it would take.
        import weaviate  # noqa: F401

    def run(self, work: Callable[[WeaviateAsyncClient], Awaitable[T]], seconds: float) -> T:
        """What `work` returns, at most `seconds` from now.

        Raises:
            UnreachableError: there is no connection; `work` was not begun.
            TemporaryError: the server is away, too slow, overloaded or in no state to take this now.
            FencedError: the class is gone: its version was retired.
            ConfigurationError: the key is refused, the server is too old, or it refuses the request for what it is.
            MissingTenantError: there is no such tenant.
        """
        begun = threading.Event()
        try:
            return _loop().run(self._with_client(work, begun), seconds)
        except TimeoutError as error:
            self._forget()
            kind = TemporaryError if begun.is_set() else UnreachableError
            raise kind(
                f"Weaviate at {self.url} (gRPC {self._grpc[0]}:{self._grpc[1]}) did not answer within {seconds:g} s"
            ) from error

    def close(self) -> None:
        """End the connection. A later call makes a new one."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None and self._pid == os.getpid():
            _loop().run(client.close(), self._longest)

    async def _with_client(self, work: Callable[[WeaviateAsyncClient], Awaitable[T]], begun: threading.Event) -> T:
        try:
            client = await self._connected()
            begun.set()
            return await work(client)
        except Exception as error:
            raised = translated(error, self.url)
            if raised is None:
                raise
            if type(raised) is TemporaryError:
                self._forget()
                raise (raised if begun.is_set() else UnreachableError(str(raised))) from error
            raise raised from error

    async def _connected(self) -> WeaviateAsyncClient:
        """The client, connected. Runs in the loop, so that only connecting itself must be kept apart."""
        with self._lock:
            if self._pid != os.getpid():
                self._pid, self._client, self._connecting = os.getpid(), None, None
            client = self._client
            lock = self._connecting = self._connecting or asyncio.Lock()
        if client is not None:
            return client
        async with lock:
            if self._client is None:
                made = await self._connect()
                with self._lock:
                    self._client = made
            return self._client

    async def _connect(self) -> WeaviateAsyncClient:
        import weaviate
        from weaviate.auth import Auth
        from weaviate.config import AdditionalConfig, Timeout
        from weaviate.connect import ConnectionParams

        logging.getLogger("weaviate-client").setLevel(logging.CRITICAL + 1)
        secure = self.url.startswith("https://")
        client = weaviate.WeaviateAsyncClient(
            connection_params=ConnectionParams.from_params(*self._http, secure, *self._grpc, secure),
            auth_client_secret=Auth.api_key(self._key) if self._key else None,
            additional_config=AdditionalConfig(
                timeout=Timeout(init=self._longest, query=self._longest, insert=self._longest)
            ),
            # The checks would ask a package index for the newest client. What they find out otherwise, the first calls
            # say as well.
            skip_init_checks=True,
        )
        try:
            await client.connect()
            require_version(str((await client.get_meta()).get("version", "")), self.url)
        except BaseException as error:
            await client.close()
            if isinstance(error, KeyError):
                # The client looks for the version in whatever answers.
                raise ConfigurationError(
                    f"the server at {self.url} does not answer as Weaviate, or refuses the key: check "
                    "SOPHIA_WEAVIATE_URL and SOPHIA_WEAVIATE_API_KEY"
                ) from error
            raise
        return client

    def _forget(self) -> None:
        """Connect anew for the next call; calls that are under way on the old client have their time to end."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            loop = _loop().loop
            loop.call_soon_threadsafe(loop.call_later, self._longest, _close_later, client)


def _close_later(client: WeaviateAsyncClient) -> None:
    task = asyncio.ensure_future(client.close())
    _closing.add(task)
    task.add_done_callback(_closing.discard)


_closing: set[asyncio.Future[None]] = set()


def addresses(url: str, grpc_url: str | None) -> tuple[tuple[str, int], tuple[str, int]]:
    """(host, port) of HTTP and of gRPC. Weaviate Cloud has a host of its own for gRPC, beside the other one.

    Raises:
        ConfigurationError: the URL has no host.
    """
    parts = urlsplit(url)
    if not parts.hostname:
        raise ConfigurationError("SOPHIA_WEAVIATE_URL has no host; it looks like https://weaviate.example.com")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    http = (host, parts.port or (443 if parts.scheme == "https" else 80))
    if grpc_url is not None:
        grpc_host, _, port = grpc_url.rpartition(":")
        return http, (grpc_host, int(port))
    if parts.hostname.endswith(".weaviate.network"):
        name, _, domain = parts.hostname.partition(".")
        return http, (f"{name}.grpc.{domain}", 443)
    if parts.hostname.endswith(".weaviate.cloud"):
        return http, (f"grpc-{parts.hostname}", 443)
    return http, (host, GRPC_PORT)


def require_version(version: str, url: str) -> None:
    """Check that the server knows collection aliases.

    Raises:
        ConfigurationError: it is older, or says no version.
    """
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None or (int(found[1]), int(found[2])) < LEAST_VERSION:
        raise ConfigurationError(
            f"Weaviate at {url} is version {version or 'unknown'}; Sophia needs "
            f"{LEAST_VERSION[0]}.{LEAST_VERSION[1]} or newer, which has collection aliases: upgrade the server"
        )


def translated(error: Exception, url: str) -> SophiaError | None:
    """The error of Sophia that an error of the client or its transport stands for; None for any other."""
    import httpx
    from weaviate.exceptions import UnexpectedStatusCodeError, WeaviateBaseError

    if not isinstance(error, WeaviateBaseError | httpx.HTTPError | OSError) or isinstance(error, TimeoutError):
        return None
    said = " ".join(filter(None, (str(error), str(getattr(error.__context__, "details", lambda: "")() or ""))))
    code = _status(error)
    if code in ("401", "403", "UNAUTHENTICATED", "PERMISSION_DENIED") or _BAD_KEY.search(said):
        return ConfigurationError(
            f"Weaviate at {url} refuses the key; check SOPHIA_WEAVIATE_API_KEY and what the key may do"
        )
    if _MISSING_TENANT.search(said):
        return MissingTenantError(masked(said))
    if _MISSING_CLASS.search(said):
        return FencedError(f"the class is not in Weaviate any more; its version was retired: {masked(said)[:300]}")
    if isinstance(error, UnexpectedStatusCodeError) and code == "422":
        return ConfigurationError(f"Weaviate at {url} refuses the request: {said[:1000]}")
    return TemporaryError(f"Weaviate at {url} failed ({type(error).__name__} {code or ''}): {masked(said)[:300]}")


def _status(error: BaseException) -> str:
    """The HTTP status or the name of the gRPC status behind an error, if it has one."""
    from weaviate.exceptions import UnexpectedStatusCodeError

    code = getattr(error.__context__, "code", None)
    if callable(code):
        return str(getattr(code(), "name", ""))
    return str(error.status_code) if isinstance(error, UnexpectedStatusCodeError) else ""


def masked(text: str) -> str:
    """A server's message without what it quotes, which may be a document's."""
    names = _NAMES.match(text)
    head = names[0] if names is not None else ""
    return head + _QUOTED.sub("'…'", text[len(head) :])

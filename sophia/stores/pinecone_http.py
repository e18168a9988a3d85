"""Requests to an index of Pinecone, over its documented REST API.

The `pinecone` package speaks to the control plane, but not to the index. Its client of an index repeats a request by
itself for as long as a server asks, with no bound that could be set from outside, while a write must have ended when
the writer's lease does; and its `delete` keeps back the log position of the deletion, without which nobody knows
whether an index shows it yet. Invariants:

* a call makes no attempt behind its deadline, and each step of an attempt ends by itself: `OVERRUN_SECONDS` behind
  the deadline the call is over;
* every request has the same effect if it is repeated;
* no text of an answer goes into a message: it may quote a document.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
import orjson
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

from sophia.errors import ConfigurationError, TemporaryError, UnreachableError
from sophia.retry_after import asked_pause
from sophia.settings import Settings
from sophia.stores.pinecone_control import PineconeControl

logger = logging.getLogger("sophia.stores")
API_VERSION = "2026-07"
CONNECT_SECONDS = 5.0
# Longest time of a step of an attempt: connecting, sending, waiting for the answer.
STEP_SECONDS = 10.0
# An attempt just before the deadline gets so long: with less it would be made in vain.
LEAST_STEP_SECONDS = 2.0
# An attempt that begins so long before the deadline that its first step may take up all of it has two steps more.
OVERRUN_SECONDS = 2 * STEP_SECONDS
TOO_MANY = 429
_RETRIED_STATUS = frozenset({408, TOO_MANY, 500, 502, 503, 504})
# For what is in the request. Anything else is not Pinecone's word on a record.
_REFUSED_STATUS = frozenset({400, 413, 422})
_GRPC_NOT_FOUND = 5
# Of the log: where a write stands, and up to where a query's index has read. The second names are those of newer
# answers.
_WRITTEN = ("x-pinecone-request-lsn", "x-pinecone-lsn-committed")
_INDEXED = ("x-pinecone-max-indexed-lsn", "x-pinecone-lsn-reconciled")
_backoff = wait_random_exponential(multiplier=0.1, max=5)
# Deleting it changes nothing and gets a log position that is behind all writes before it.
MARK = "sophia-mark"
T = TypeVar("T")


class Deadline:
    """A point in time, so many seconds from now.

    Attributes:
        reached: whether a request under this deadline has come so far that it may have, or get, an effect.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.reached = False
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds until then, at least 0."""
        return max(0.0, self._end - time.monotonic())


class RefusedError(ConfigurationError):
    """Pinecone does not take what is in a request, and will not when asked again. `numbers` are for its console."""

    def __init__(self, index: str, status: int, code: Any, request: str | None) -> None:
        self.numbers = f"HTTP {status}" + (f", code {code}" if isinstance(code, int) else "")
        self.numbers += f", request {request}" if request else ""
        super().__init__(f"Pinecone does not take a request to its index {index}: {self.numbers}")


class NoNamespaceError(Exception):
    """The namespace does not exist: nothing was ever written to it, or it was deleted."""


class _AgainError(Exception):
    """Worth asking again. `pause`: seconds that Pinecone asks to wait, if it says so."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


# They are sent as POST, and change nothing.
_QUESTIONS = frozenset({"/query", "/describe_index_stats"})
# What ends an attempt before anything was sent.
_NOT_CONNECTED = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer: `written` is the log position of a write, `indexed` up to where a query's index has read the log."""

    body: dict[str, Any]
    written: int | None
    indexed: int | None


class PineconeHttp:
    """Asks indexes. Safe to use from several threads."""

    def __init__(self, settings: Settings, control: PineconeControl) -> None:
        self._settings = settings
        self._control = control
        self._client: httpx.Client | None = None
        self._warned = False
        # Position of each namespace's log up to which it was seen to show its writes.
        self._seen: dict[tuple[str, str], int] = {}
        self._lock = threading.Lock()

    def post(self, index: str, path: str, body: dict[str, Any] | bytes, deadline: Deadline) -> Answer:
        """One request with a JSON body, repeated until the deadline. See `_call`."""
        content = body if isinstance(body, bytes) else orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
        return self._call(index, "POST", path, deadline, content=content, headers={"Content-Type": "application/json"})

    def get(self, index: str, path: str, params: dict[str, Any], deadline: Deadline) -> Answer:
        """One question, repeated until the deadline. See `_call`."""
        return self._call(index, "GET", path, deadline, params=params)

    def delete(self, index: str, path: str, deadline: Deadline) -> Answer:
        """One deletion of what the path names, repeated until the deadline. See `_call`."""
        return self._call(index, "DELETE", path, deadline)

    def catch_up(self, index: str, namespace: str, dimension: int, deadline: Deadline) -> bool:
        """Wait until reads of a namespace show all that was written to it before, by whatever process.

        Pinecone's reads follow its writes by seconds at times. A deletion that deletes nothing gets a position of the
        namespace's log behind all writes so far, and a query says up to which position the index shows the log.

        Returns:
            Whether there is such a namespace.

        Raises:
            TemporaryError: the index did not catch up until the deadline.
        """
        try:
            written = self.post(index, "/vectors/delete", {"ids": [MARK], "namespace": namespace}, deadline).written
        except NoNamespaceError:
            return False
        place = (index, namespace)
        if written is not None and self._seen.get(place, written) + 1 == written:
            # Nothing was written since this process last saw the index caught up, but this deletion of nothing.
            self._seen[place] = written
            return True
        probe = {"namespace": namespace, "topK": 1, "vector": [1.0] + [0.0] * (dimension - 1)}

        def look() -> int | None:
            indexed = self.post(index, "/query", probe, deadline).indexed
            if written is not None and indexed is not None and indexed < written:
                raise _AgainError(f"its index is at {indexed} of {written}")
            return indexed

        try:
            indexed = self._repeated(look, deadline, "show what was written")
        except NoNamespaceError:
            return False
        if written is None or indexed is None:
            self._settle(deadline)
        else:
            self._seen[place] = written
        return True

    def close(self) -> None:
        """End the connections; they open again when asked."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _settle(self, deadline: Deadline) -> None:
        """Where answers name no log positions, as behind a proxy that drops headers, only time is left."""
        if not self._warned:
            self._warned = True
            logger.warning(
                "Pinecone does not say how far its index is; each verification waits %g s instead "
                "(SOPHIA_PINECONE__SETTLE_SECONDS)",
                self._settings.pinecone.settle_seconds,
            )
        time.sleep(min(self._settings.pinecone.settle_seconds, deadline.left))

    def _call(self, index: str, method: str, path: str, deadline: Deadline, **request: Any) -> Answer:
        """One request, repeated while Pinecone is away or asks to wait.

        Raises:
            RefusedError: Pinecone does not take this request.
            NoNamespaceError: the namespace does not exist.
            ConfigurationError: the index does not exist, or key, quota or plan do not allow it.
            UnreachableError: nothing that was sent under the deadline came to anything.
            TemporaryError: Pinecone did not take the request until the deadline.
        """
        try:
            host = self._control.host(index)
        except UnreachableError as error:
            if deadline.reached:
                raise TemporaryError(str(error)) from error
            raise

        changes = method != "GET" and path not in _QUESTIONS

        def once() -> Answer:
            step = max(LEAST_STEP_SECONDS, min(STEP_SECONDS, deadline.left))
            timeout = httpx.Timeout(step, connect=min(CONNECT_SECONDS, step))
            try:
                response = self._open().request(method, host + path, timeout=timeout, **request)
            except httpx.RequestError as error:
                deadline.reached |= changes and not isinstance(error, _NOT_CONNECTED)
                raise _AgainError(type(error).__name__) from error
            # A request that is over the rate is turned away at the door.
            deadline.reached |= changes and response.status_code != TOO_MANY
            return self._read(index, response)

        return self._repeated(once, deadline, "take the request")

    def _repeated(self, once: Callable[[], T], deadline: Deadline, what: str) -> T:
        def wait(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome is not None else None
            pause = error.pause if isinstance(error, _AgainError) and error.pause is not None else 0.0
            return max(pause, _backoff(state))

        retrying = Retrying(
            retry=retry_if_exception_type(_AgainError),
            wait=wait,
            stop=lambda state: deadline.left <= state.upcoming_sleep,
            reraise=True,
        )
        try:
            return retrying(once)
        except _AgainError as error:
            kind = TemporaryError if deadline.reached else UnreachableError
            raise kind(f"Pinecone did not {what} within {deadline.seconds:g} s: {error}") from error

    def _open(self) -> httpx.Client:
        with self._lock:
            if self._client is None:
                headers = {"Api-Key": self._control.key, "X-Pinecone-Api-Version": API_VERSION}
                # No bound on connections: waiting for one of them would be a step more.
                self._client = httpx.Client(headers=headers, limits=httpx.Limits(max_connections=None))
            return self._client

    def _read(self, index: str, response: httpx.Response) -> Answer:
        body = _json(response)
        if response.is_success:
            if body is None:
                raise _AgainError("its answer cannot be read")
            return Answer(body, _position(response, _WRITTEN), _position(response, _INDEXED))
        status = response.status_code
        if status in _RETRIED_STATUS:
            limit = "; it limits the rate, or the plan's quota of the month is used up" if status == TOO_MANY else ""
            raise _AgainError(f"HTTP {status}{limit}", asked_pause(response.headers.get("retry-after")))
        if status == 401:
            raise ConfigurationError(
                "Pinecone does not take the API key (HTTP 401): set SOPHIA_PINECONE_API_KEY to one of the index's "
                "project"
            )
        if status in (402, 403):
            raise ConfigurationError(
                f"Pinecone refuses (HTTP {status}): check the project's plan, quota and payment, and what its API key "
                "may do"
            )
        code = body.get("code") if body is not None else None
        if status == 404:
            if code == _GRPC_NOT_FOUND and body is not None and "namespace" in str(body.get("message")).lower():
                raise NoNamespaceError
            # Not a namespace but the whole index: made anew, it answers elsewhere.
            self._control.forget(index)
            raise TemporaryError(f"Pinecone's index {index} is not where it was (HTTP 404); its address is asked again")
        if status not in _REFUSED_STATUS:
            raise _AgainError(f"HTTP {status}")
        raise RefusedError(index, status, code, response.headers.get("x-pinecone-request-id"))


def _json(response: httpx.Response) -> dict[str, Any] | None:
    try:
        body = orjson.loads(response.content or b"{}")
    except orjson.JSONDecodeError:
        return None
    return body if isinstance(body, dict) else None


def _position(response: httpx.Response, names: tuple[str, ...]) -> int | None:
    for name in names:
        value = response.headers.get(name, "")
        if value.isdecimal():
            return int(value)
    return None

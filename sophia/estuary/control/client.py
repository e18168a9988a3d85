"""A client of Estuary's control plane: metrics, alerts, published specs and their state, tokens to read journals.

It only reads.

Bounded whatever the other side does: a question ends after `timeout_seconds` with all its repetitions, all questions of
one client after `LOOK_SECONDS`, an answer at `max_response_bytes`, a list after so many pages. What passes by itself
(away, slow, busy, cut off) is a TemporaryError; what a person must change is a ConfigurationError that names the fix.
The token goes to no other address: redirects are not followed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from time import monotonic, sleep, time
from typing import Any, TypeVar

import httpx
import orjson
from pydantic import BaseModel, ValidationError
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    stop_before_delay,
    wait_random_exponential,
)

from sophia.errors import ConfigurationError, TemporaryError
from sophia.estuary.control.metrics_text import Metrics, parse_metrics
from sophia.estuary.control.shapes import (
    ALERTS,
    LIVE_SPECS,
    MODELS,
    Alert,
    Authorization,
    LiveSpec,
    TaskStatus,
    plain,
)
from sophia.retry_after import asked_pause
from sophia.settings import EstuarySettings

# A sensor's tick has 60 seconds; the rest is for the database.
LOOK_SECONDS = 40.0
ATTEMPTS = 4
ALERT_PAGE, MOST_ALERT_PAGES = 100, 5
SPEC_PAGE, MOST_SPEC_PAGES = 100, 10
# Names go into the address of a status request.
STATUS_PAGE = 50
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f]")
_backoff = wait_random_exponential(multiplier=0.2, max=3)
ShapeT = TypeVar("ShapeT", bound=BaseModel)
AnswerT = TypeVar("AnswerT")


class EstuaryAwayError(TemporaryError):
    """Estuary does not answer, or not now. `pause`: seconds that it asks to wait, if it says so."""

    def __init__(self, message: str, pause: float | None = None) -> None:
        super().__init__(message)
        self.pause = pause


class ControlPlane:
    """Estuary's control plane for one look; used as a context manager, by one thread.

    Args:
        settings: with a token.

    Raises:
        ConfigurationError: no token is set.
    """

    def __init__(self, settings: EstuarySettings) -> None:
        if settings.token is None:
            raise ConfigurationError("SOPHIA_ESTUARY__TOKEN is not set; make a refresh token or API key in Estuary")
        token = settings.token.get_secret_value().strip()
        if not token.isascii() or _CONTROL_CHARACTERS.search(token):
            raise ConfigurationError("SOPHIA_ESTUARY__TOKEN holds characters that no token has; copy it anew")
        self._settings = settings
        self._ends = self._question_ends = monotonic() + LOOK_SECONDS
        self._client = httpx.Client(
            base_url=settings.url.rstrip("/"),
            # A compressed answer would have its size only after it was unpacked.
            headers={"Authorization": f"Bearer {token}", "Accept-Encoding": "identity"},
        )

    def __enter__(self) -> ControlPlane:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def metrics(self, prefix: str) -> Metrics:
        """Totals of this month under a prefix, which ends in a slash."""
        body = self._ask("metrics", "GET", f"/api/v1/metrics/{prefix}")
        try:
            text = body.decode()
        except UnicodeDecodeError as error:
            raise _no_json("metrics") from error
        return parse_metrics(text)

    def alerts(self, prefix: str) -> tuple[list[Alert], bool]:
        """The alerts that fire now, the newest first; and whether these are all of them."""
        found: list[Alert] = []
        before: str | None = None
        for _ in range(MOST_ALERT_PAGES):
            page = self._graphql("alerts", ALERTS, {"prefix": prefix, "last": ALERT_PAGE, "before": before})
            edges, more = _edges("alerts", page, "hasPreviousPage")
            found += [_shape("alerts", Alert, edge["node"]) for edge in edges]
            if not more or not edges:
                return found, True
            before = edges[-1]["cursor"]
        return found, False

    def live_specs(self, prefix: str) -> tuple[list[LiveSpec], bool]:
        """Everything published under a prefix, by name; and whether that is all of it."""
        nodes, whole = self._live_specs(LIVE_SPECS, prefix)
        return [_shape("liveSpecs", LiveSpec, node) for node in nodes], whole

    def published(self, prefix: str) -> tuple[dict[tuple[str, str], Any], bool]:
        """Every definition below a prefix as it was published, by kind and name; and whether that is all of them."""
        nodes, whole = self._live_specs(MODELS, prefix)
        try:
            return {
                (node["liveSpec"]["catalogType"], node["catalogName"]): node["liveSpec"]["model"] for node in nodes
            }, whole
        except (KeyError, TypeError) as error:
            raise _no_json("liveSpecs") from error

    def _live_specs(self, query: str, prefix: str) -> tuple[list[Any], bool]:
        """The nodes of all pages; what the token may not read has a name and nothing else, and is left out."""
        found: list[Any] = []
        after: str | None = None
        for _ in range(MOST_SPEC_PAGES):
            page = self._graphql("liveSpecs", query, {"prefix": prefix, "first": SPEC_PAGE, "after": after})
            edges, more = _edges("liveSpecs", page, "hasNextPage")
            found += [edge["node"] for edge in edges if edge["node"].get("liveSpec")]
            if not more or not edges:
                return found, True
            after = edges[-1]["cursor"]
        return found, False

    def status(self, names: Sequence[str]) -> list[TaskStatus]:
        """The state of these specs as their controllers see it, in the order of the names.

        Raises:
            ConfigurationError: also if one of them is not published.
        """
        found: dict[str, TaskStatus] = {}
        for start in range(0, len(names), STATUS_PAGE):
            params = [*(("name", name) for name in names[start : start + STATUS_PAGE]), ("short", "true")]
            entries = _json("status", self._ask("status", "GET", "/api/v1/catalog/status", params=params))
            if not isinstance(entries, list):
                raise _no_json("status")
            for entry in entries:
                status = _shape("status", TaskStatus, entry)
                found[status.name] = status
        return [found[name] for name in names if name in found]

    def authorize(self, collection: str) -> Authorization:
        """Where a collection's journals are, and a token that may read them for an hour.

        Raises:
            ConfigurationError: also if the token may not read the collection, or there is none of that name.
        """
        question = {"collection": collection, "capability": "read", "startedUnix": 0}

        def once() -> Authorization:
            body = self._send("authorization", "POST", "/authorize/user/collection", json=question)
            granted = _shape("authorization", Authorization, _json("authorization", body))
            if granted.retry_millis:
                # Its view of who may what is not new enough yet.
                question["startedUnix"] = question["startedUnix"] or int(time())
                raise EstuaryAwayError(
                    "Estuary's authorization: it cannot say yet; try again later", granted.retry_millis / 1000
                )
            return granted

        return self._again(once)

    def _graphql(self, what: str, query: str, variables: Mapping[str, Any]) -> Any:
        """The field `what` of the answer's data; asked again while Estuary says that it cannot now."""

        def once() -> Any:
            answer = _json(
                what, self._send(what, "POST", "/api/graphql", json={"query": query, "variables": variables})
            )
            if not isinstance(answer, dict):
                raise _no_json(what)
            if answer.get("errors"):
                raise _graphql_fault(what, answer["errors"])
            if not isinstance(answer.get("data"), dict) or what not in answer["data"]:
                raise _no_json(what)
            return answer["data"][what]

        return self._again(once)

    def _ask(self, what: str, method: str, path: str, **arguments: Any) -> bytes:
        return self._again(lambda: self._send(what, method, path, **arguments))

    def _again(self, once: Callable[[], AnswerT]) -> AnswerT:
        """Its result, after as many attempts as fit into the time of one question."""
        limit = min(self._settings.timeout_seconds, self._ends - monotonic())
        self._question_ends = monotonic() + limit
        return Retrying(
            retry=retry_if_exception_type(EstuaryAwayError),
            stop=stop_after_attempt(ATTEMPTS) | stop_before_delay(limit),
            wait=next_pause,
            sleep=sleep,
            reraise=True,
        )(once)

    def _send(self, what: str, method: str, path: str, **arguments: Any) -> bytes:
        """One request; the body of its answer."""
        left = self._question_ends - monotonic()
        if left <= 0:
            raise TemporaryError(f"Estuary's {what}: no answer in time; it is looked at again later")
        try:
            with self._client.stream(
                method, path, timeout=httpx.Timeout(left, connect=min(left, 5.0)), **arguments
            ) as response:
                body = self._read(what, response)
        except httpx.TransportError as error:
            raise EstuaryAwayError(
                f"Estuary's {what}: {self._settings.url} does not answer: {kind_of(error)}"
            ) from error
        if response.status_code in RETRIED:
            raise EstuaryAwayError(
                f"Estuary's {what}: it answers {response.status_code}; it is asked again later",
                asked_pause(response.headers.get("Retry-After")),
            )
        if response.status_code != httpx.codes.OK:
            raise _refusal(what, response.status_code, body)
        return body

    def _read(self, what: str, response: httpx.Response) -> bytes:
        most = self._settings.max_response_bytes
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise ConfigurationError(f"Estuary's {what}: the answer is compressed, which was not asked for")
        parts: list[bytes] = []
        size = 0
        for part in response.iter_raw():
            size += len(part)
            if size > most:
                raise ConfigurationError(
                    f"Estuary's {what}: the answer has more than {most} bytes; "
                    "narrow SOPHIA_ESTUARY__PREFIX or raise SOPHIA_ESTUARY__MAX_RESPONSE_BYTES"
                )
            if monotonic() > self._question_ends:
                raise TemporaryError(f"Estuary's {what}: the answer comes too slowly; it is asked again later")
            parts.append(part)
        return b"".join(parts)


def next_pause(state: RetryCallState) -> float:
    """Seconds until the next attempt: what Estuary asks for, else a random and growing time."""
    error = state.outcome.exception() if state.outcome is not None else None
    if isinstance(error, EstuaryAwayError) and error.pause is not None:
        return error.pause
    return _backoff(state)


def kind_of(error: Exception) -> str:
    """What went wrong, without the address that httpx may put into its text."""
    return "timed out" if isinstance(error, httpx.TimeoutException) else type(error).__name__


def _refusal(what: str, status: int, body: bytes) -> ConfigurationError:
    """Why an answer is none, with what to change."""
    if status == httpx.codes.UNAUTHORIZED:
        fix = "it knows no such token, or it has expired: make a new one and set SOPHIA_ESTUARY__TOKEN"
    elif status == httpx.codes.FORBIDDEN:
        fix = "the token may not read this: grant its account read on SOPHIA_ESTUARY__PREFIX"
    elif status == httpx.codes.NOT_FOUND and what == "status":
        fix = f"not published: {plain(body[:2_000].decode(errors='replace'))}"
    elif status == httpx.codes.NOT_FOUND:
        fix = "there is no such page: SOPHIA_ESTUARY__URL must be the control plane's"
    elif 300 <= status < 400:
        fix = "it sends elsewhere, where the token does not go: set SOPHIA_ESTUARY__URL to the final address"
    else:
        fix = f"it refuses the question: {plain(body[:2_000].decode(errors='replace'))}"
    return ConfigurationError(f"Estuary's {what}: {status}: {fix}")


def _graphql_fault(what: str, errors: Any) -> Exception:
    """GraphQL answers 200 whatever happens; what happened is in the errors."""
    first = errors[0] if isinstance(errors, list) and isinstance(errors[0], dict) else {}
    text = plain(first.get("message", "no reason given"))
    if re.search(r"authoriz|authenticat|permission|capability|token", text, re.IGNORECASE):
        return ConfigurationError(
            f"Estuary's {what}: {text}; check SOPHIA_ESTUARY__TOKEN and what it may read of SOPHIA_ESTUARY__PREFIX"
        )
    if not first.get("path"):
        # The question itself was refused, before anything was looked up.
        return ConfigurationError(f"Estuary's {what}: it does not take the question: {text}; update Sophia")
    return EstuaryAwayError(f"Estuary's {what}: it cannot say now: {text}")


def _json(what: str, body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if body.lstrip()[:1] in (b"{", b"["):
            raise EstuaryAwayError(f"Estuary's {what}: the answer was cut off; it is asked again later") from error
        raise _no_json(what) from error


def _no_json(what: str) -> ConfigurationError:
    return ConfigurationError(
        f"Estuary's {what}: the answer is not of the form that Estuary documents; "
        "SOPHIA_ESTUARY__URL must be the control plane's"
    )


def _edges(what: str, connection: Any, more: str) -> tuple[list[Any], bool]:
    """The edges of a page and whether there is another."""
    try:
        edges, another = list(connection["edges"]), bool(connection["pageInfo"][more])
        if not all(isinstance(edge["cursor"], str) and isinstance(edge["node"], dict) for edge in edges):
            raise _no_json(what)
    except (KeyError, TypeError) as error:
        raise _no_json(what) from error
    return edges, another


def _shape(what: str, shape: type[ShapeT], value: Any) -> ShapeT:
    try:
        return shape.model_validate(value)
    except (ValidationError, KeyError, TypeError) as error:
        raise _no_json(what) from error

"""Estuary's triggers: one webhook a committed transaction of a materialisation, after the connector acknowledged it.

Invariants: what a trigger says is stored with the commit and removed only after all were delivered, so that after a
death it is said again (at least once); `interval` collapses the transactions of a burst into one delivery over their
whole span; of triggers with the same method and URL only the first fires. A 5xx, 408, 429 or network error is tried
again after 1, 2, 4 … at most 30 s, up to `maxAttempts`; any other refusal, and the last failure, fails the task.

Source: Flow's `crates/models/src/triggers.rs` and docs `materialization-triggers.md`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from sophia.errors import ConfigurationError, TemporaryError
from sophia.estuary.stamps import published_at
from sophia.estuary.stand_in.templates import render
from sophia.estuary.stand_in.webhook import TaskFailedError

IMAGE = "ghcr.io/estuary/materialize-webhook:v1"
_AGAIN = (408, 429)
_DURATION = re.compile(r"(\d+)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class _AgainError(TemporaryError):
    """This delivery may succeed later."""


@dataclass(frozen=True)
class Trigger:
    """One trigger; `timeout` in seconds."""

    url: str
    template: str
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeout: float = 30.0
    attempts: int = 3


@dataclass(frozen=True)
class Triggers:
    """The triggers of a materialisation; `interval` in seconds, 0 for none."""

    triggers: tuple[Trigger, ...] = ()
    interval: float = 0.0


@dataclass(frozen=True)
class Span:
    """What transactions brought: collections (full names), and the clocks of their first and last documents."""

    collections: tuple[str, ...]
    first: int
    last: int

    def join(self, later: Span) -> Span:
        """Both as one."""
        names = sorted({*self.collections, *later.collections})
        return Span(tuple(names), min(self.first, later.first), max(self.last, later.last))


def parse_triggers(value: Mapping[str, Any]) -> Triggers:
    """The `triggers` of a materialisation in flow.yaml, in its present shape (`config` is a map) or its older (a list).

    Raises:
        ConfigurationError: a key or value that Estuary would refuse, or a template that names an unknown variable.
    """
    config = value.get("config", {})
    entries = list(config.values()) if isinstance(config, Mapping) else list(config)
    triggers = Triggers(tuple(_trigger(entry) for entry in entries), duration(value.get("interval", "0s")))
    if unknown := set(value) - {"config", "interval"}:
        raise ConfigurationError(f"triggers: {sorted(unknown)[0]!r} is no key of theirs; use config and interval")
    for trigger in triggers.triggers:
        render(trigger.template, _variables("a/b", Span(("a/c",), 0, 0), trigger))
    return triggers


def duration(text: str) -> float:
    """Seconds of a duration such as `30s` or `1m30s`.

    Raises:
        ConfigurationError: it is none.
    """
    parts = _DURATION.findall(text)
    if "".join(number + unit for number, unit in parts) != text or not parts:
        raise ConfigurationError(f"{text!r} is no duration; write 30s, 5m or 1h")
    return sum(int(number) * _SECONDS[unit] for number, unit in parts)


def _trigger(entry: Mapping[str, Any]) -> Trigger:
    known = {"url", "method", "headers", "payloadTemplate", "timeout", "timeoutSecs", "maxAttempts"}
    if unknown := set(entry) - known:
        raise ConfigurationError(f"trigger: {sorted(unknown)[0]!r} is no key of one; use {', '.join(sorted(known))}")
    method = entry.get("method", "POST")
    if method not in ("POST", "PUT", "PATCH"):
        raise ConfigurationError(f"trigger: method {method!r} is none of POST, PUT, PATCH")
    if "url" not in entry or "payloadTemplate" not in entry:
        raise ConfigurationError("trigger: url and payloadTemplate are required")
    seconds = float(entry["timeoutSecs"]) if "timeoutSecs" in entry else duration(entry.get("timeout", "30s"))
    headers = dict(entry.get("headers", {}))
    return Trigger(entry["url"], entry["payloadTemplate"], method, headers, seconds, int(entry.get("maxAttempts", 3)))


def _variables(materialization: str, span: Span, trigger: Trigger) -> dict[str, Any]:
    # The run id has another name in each version of Estuary: a template that is to hold in both cannot use it.
    return {
        "materialization_name": materialization,
        "collection_names": list(span.collections),
        "connector_image": IMAGE,
        "flow_published_at_min": published_at(span.first),
        "flow_published_at_max": published_at(span.last),
        "headers": trigger.headers,
    }


class Deliverer:
    """Delivers to the triggers of one materialisation.

    Args:
        now: seconds of a clock that does not step back.
        sleep: waits between two attempts.
    """

    def __init__(
        self,
        materialization: str,
        triggers: Triggers,
        client: httpx.Client,
        *,
        now: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self._materialization = materialization
        self._triggers = triggers
        self._client = client
        self._now = now
        self._sleep = sleep
        self._delivered_at: float | None = None

    @property
    def due(self) -> bool:
        """Whether the interval since the last delivery is over."""
        return self._delivered_at is None or self._now() >= self._delivered_at + self._triggers.interval

    def deliver(self, span: Span) -> None:
        """Call each trigger.

        Raises:
            TaskFailedError: one refused or did not answer.
        """
        for trigger in _distinct(self._triggers.triggers):
            self._call(trigger, render(trigger.template, _variables(self._materialization, span, trigger)))
        self._delivered_at = self._now()

    def _call(self, trigger: Trigger, payload: str) -> None:
        again = Retrying(
            retry=retry_if_exception_type(_AgainError),
            wait=wait_exponential(multiplier=1, max=30),
            stop=stop_after_attempt(trigger.attempts),
            sleep=self._sleep,
            reraise=True,
        )
        try:
            again(self._attempt, trigger, payload)
        except _AgainError as error:
            raise TaskFailedError(f"a trigger failed after {trigger.attempts} attempts: {error}") from error

    def _attempt(self, trigger: Trigger, payload: str) -> None:
        try:
            response = self._client.request(
                trigger.method,
                trigger.url,
                headers={"Content-Type": "application/json", **trigger.headers},
                content=payload.encode(),
                timeout=trigger.timeout,
            )
        except httpx.TransportError as error:
            raise _AgainError(type(error).__name__) from error
        if response.status_code >= 500 or response.status_code in _AGAIN:
            raise _AgainError(f"status {response.status_code}")
        if not response.is_success:
            raise TaskFailedError(f"a trigger was refused with status {response.status_code}; answer it with 2xx")


def _distinct(triggers: Sequence[Trigger]) -> list[Trigger]:
    first: dict[tuple[str, str], Trigger] = {}
    for trigger in triggers:
        first.setdefault((trigger.method, trigger.url), trigger)
    return list(first.values())

"""Waits for a Dagster run over the webserver's GraphQL, so that CI needs HTTP and nothing else.

`dagster job launch` only queues: its exit code says nothing of the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx

from sophia.errors import SophiaError, TemporaryError

_QUERY = """
query Outcome($runId: ID!) {
  runOrError(runId: $runId) {
    __typename
    ... on Run { status tags { key value } }
    ... on Error { message }
  }
}
"""
_ENDED = frozenset({"SUCCESS", "FAILURE", "CANCELED"})
# A run that was only just launched may not be in the storage yet.
_UNKNOWN_GRACE_SECONDS = 30.0


def wait_for_run(
    url: str,
    run_id: str,
    timeout: float,
    report: Callable[[str], None],
    interval: float = 2.0,
) -> str:
    """Poll until the run has ended; returns SUCCESS, FAILURE or CANCELED and reports each change of state.

    Raises:
        TemporaryError: the webserver does not answer, or the run has not ended in `timeout` seconds.
        SophiaError: there is no such run.
    """
    deadline = time.monotonic() + timeout
    began = time.monotonic()
    last = ""
    with httpx.Client(base_url=url, timeout=10) as client:
        while True:
            status, reason = _status(client, url, run_id)
            now = time.monotonic()
            if status is None and now - began > _UNKNOWN_GRACE_SECONDS:
                raise SophiaError(f"run {run_id} does not exist at {url}")
            if status is not None and status != last:
                report(f"run {run_id}: {status}{f' ({reason})' if reason and status in _ENDED else ''}")
                last = status
            if status in _ENDED:
                return status
            if now > deadline:
                raise TemporaryError(f"run {run_id} is {last or 'unknown'} after {timeout:g} s; it goes on without us")
            time.sleep(min(interval, max(0.05, deadline - now)))


def _status(client: httpx.Client, url: str, run_id: str) -> tuple[str | None, str | None]:
    """(status, reason tag); (None, None) for a run that is not known."""
    for attempt in range(5):
        try:
            response = client.post("/graphql", json={"query": _QUERY, "variables": {"runId": run_id}})
            response.raise_for_status()
            found = response.json()["data"]["runOrError"]
            kind = found["__typename"]
            break
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            if attempt == 4:
                raise TemporaryError(f"the Dagster webserver at {url} does not answer: {error}") from error
            time.sleep(1.0)
    if kind == "RunNotFoundError":
        return None, None
    if kind != "Run":
        raise SophiaError(f"run {run_id} cannot be read: {found.get('message', kind)}")
    tags = {tag["key"]: tag["value"] for tag in found["tags"]}
    return str(found["status"]), tags.get("sophia/reason")

"""A control plane of Estuary on loopback: its metrics, GraphQL and status pages over what a test puts there.

The GraphQL is executed against the part of Estuary's schema that Sophia asks, so that a question that Estuary would
refuse is refused here too. Pages behave as Estuary's do: alerts go backwards from the newest unless `after` is given.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from graphql import build_schema, graphql_sync
from pydantic import SecretStr

from sophia.settings import EstuarySettings
from tests.estuary_control.answers import Answer
from tests.estuary_control.data_plane import DataPlane

SCHEMA = build_schema(Path(__file__).with_name("schema.graphql").read_text())
TOKEN = "estuary-test-token"
HELP = {
    "logged_warnings_total": "Total log lines at level WARN, by task",
    "logged_errors_total": "Total log lines at level ERROR, by task",
    "logged_failures_total": "Total log lines indicating task failure, by task",
    "txn_count_total": "Total number of transactions processed by this task, by task",
}


@dataclass
class Spec:
    """A published spec."""

    name: str
    kind: str
    publication: str = "0a1b2c3d4e5f6071"
    published_at: str = "2026-11-20T08:00:00Z"
    health: str = "OK"
    summary: str = "Ok"
    disabled: bool = False
    schema_hash: str | None = None
    written_by: tuple[str, ...] = ()
    read_by: tuple[str, ...] = ()
    readable: bool = True
    model: Any = None

    def node(self) -> dict[str, Any]:
        def refs(names: tuple[str, ...]) -> Any:
            # Null where there is none, as Estuary has it.
            return (lambda *_, **__: _connection([{"catalogName": n} for n in names])) if names else None

        if not self.readable:
            return {"catalogName": self.name}
        return {
            "catalogName": self.name,
            "lastPublication": {
                "publicationId": self.publication,
                "publishedAt": self.published_at,
                "userEmail": "author@example.com",
            },
            "status": {
                "type": self.health,
                "summary": self.summary,
                "controller": {"inferredSchema": self.schema_hash and {"schemaMd5": self.schema_hash}},
            },
            "liveSpec": {
                "catalogName": self.name,
                "catalogType": self.kind,
                "isDisabled": self.disabled,
                "lastPubId": self.publication,
                "lastBuildId": self.publication,
                "model": self.model,
                "writtenBy": refs(self.written_by),
                "readBy": refs(self.read_by),
            },
        }

    def status(self) -> dict[str, Any]:
        return {
            "catalog_name": self.name,
            "live_spec_id": "1122334455667788",
            "spec_type": self.kind,
            "summary": {"status": {"TASK_DISABLED": "taskDisabled"}.get(self.health, self.health.lower())}
            | {"message": self.summary},
            **({"disabled": True} if self.disabled else {}),
            "last_pub_id": self.publication,
            "last_build_id": self.publication,
            "connector_status": None,
            "controller_next_run": None,
            "live_spec_updated_at": self.published_at,
            "controller_updated_at": self.published_at,
            "controller_status": None,
            "controller_error": self.summary if self.health == "ERROR" else None,
            "controller_failures": 3 if self.health == "ERROR" else 0,
        }


class Plane:
    """What the control plane knows, and what it was asked."""

    def __init__(self) -> None:
        self.tokens = {TOKEN: "sophia/"}
        self.alerts: list[dict[str, Any]] = []
        self.specs: list[Spec] = []
        # (metric, labels) to value.
        self.samples: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self.faults: list[Answer] = []
        self.requests: list[str] = []
        self.data = DataPlane()
        plane = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                plane.requests.append(f"GET {self.path}")
                if "?offset=" in self.path:
                    self._answer(plane.data.gateway(self.path, self._token()))
                else:
                    self._answer(plane.get(self.path, self._prefix()))

            def do_HEAD(self) -> None:
                plane.requests.append(f"HEAD {self.path}")
                self._answer(plane.data.gateway(self.path, self._token()), bodiless=True)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                plane.requests.append(f"POST {self.path}")
                if self.path.startswith("/v1/"):
                    self._answer(plane.data.post(self.path, json.loads(body), self._token()))
                else:
                    self._answer(plane.post(self.path, json.loads(body), self._prefix()))

            def _token(self) -> str:
                return self.headers.get("Authorization", "").removeprefix("Bearer ")

            def _prefix(self) -> str | None:
                return plane.tokens.get(self._token())

            def _answer(self, answer: Answer, *, bodiless: bool = False) -> None:
                if plane.faults:
                    answer = plane.faults.pop(0)
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                if bodiless:
                    self.end_headers()
                    return
                if answer.trailers is not None:
                    self._chunked(answer.body, answer.trailers)
                    return
                self.send_header("Content-Length", str(len(answer.body) if answer.length is None else answer.length))
                self.end_headers()
                if answer.between is None:
                    self.wfile.write(answer.body)
                else:
                    for byte in answer.body:
                        answer.between()
                        self.wfile.write(bytes([byte]))
                        self.wfile.flush()
                self.close_connection = answer.length is not None or answer.between is not None

            def _chunked(self, body: bytes, trailers: dict[str, str]) -> None:
                self.send_header("Transfer-Encoding", "chunked")
                self.send_header("Trailer", ", ".join(trailers))
                self.end_headers()
                for at in range(0, len(body), 700):
                    part = body[at : at + 700]
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
                lines = "".join(f"{name}: {value}\r\n" for name, value in trailers.items())
                self.wfile.write(b"0\r\n" + lines.encode() + b"\r\n")

            def log_message(self, *_: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    # ---- what a test puts there ------------------------------------------------------------------------------

    def settings(self, **changes: Any) -> EstuarySettings:
        """Settings of a client of this control plane."""
        fields: dict[str, Any] = {"url": self.url, "token": SecretStr(TOKEN), "prefix": "sophia/"}
        return EstuarySettings(**(fields | changes))

    def sample(self, metric: str, value: float, **labels: str) -> None:
        """Set a sample; 0 takes it away, as Estuary leaves out what is 0."""
        key = (metric, tuple(labels.items()))
        if value:
            self.samples[key] = value
        else:
            self.samples.pop(key, None)

    def binding(self, task: str, collection: str, role: str, docs: float, published_at: float = 0.0) -> None:
        """Totals of a task with a collection; a capture's are also what was written to the collection."""
        side = "out" if role == "captured" else "in"
        self.sample(f"{role}_{side}_docs_total", docs, task=task, collection=collection)
        self.sample(f"{role}_{side}_bytes_total", docs * 100, task=task, collection=collection)
        if role == "captured":
            self.sample("written_to_me_docs_total", docs, collection=collection)
            self.sample("written_to_me_bytes_total", docs * 100, collection=collection)
        else:
            self.sample("read_from_me_docs_total", docs, collection=collection)
            self.sample(f"{role}_last_source_published_at_time_seconds", published_at, task=task, collection=collection)

    def fire(
        self, kind: str, name: str, error: str | None, fired_at: str = "2026-11-21T10:00:00Z", **more: Any
    ) -> None:
        """An alert begins."""
        recipients = [{"email": "someone@example.com", "full_name": "Some One"}]
        arguments = {"error": error, "spec_type": "capture", "recipients": recipients, **more}
        self.alerts.append(
            {"alertType": kind, "catalogName": name, "firedAt": fired_at, "arguments": arguments, "resolvedAt": None}
        )

    def resolve(self, kind: str, name: str) -> None:
        """An alert ends."""
        for alert in self.alerts:
            if (alert["alertType"], alert["catalogName"]) == (kind, name):
                alert["resolvedAt"] = "2026-11-21T11:00:00Z"

    # ---- answers ---------------------------------------------------------------------------------------------

    def get(self, path: str, readable: str | None) -> Answer:
        if readable is None:
            return Answer(401, b'{"error":"invalid or expired bearer token"}')
        parts = urlsplit(path)
        if parts.path.startswith("/api/v1/metrics/"):
            prefix = unquote(parts.path.removeprefix("/api/v1/metrics/"))
            if not prefix.endswith("/"):
                return Answer(400, f"prefix \"{prefix}\" must end with a trailing '/' slash".encode())
            if not prefix.startswith(readable):
                return Answer(403, b'{"error":"not authorized"}')
            return Answer(200, self.metrics_text().encode(), {"Content-Type": "text/plain; version=1.0.0"})
        if parts.path == "/api/v1/catalog/status":
            names = parse_qs(parts.query)["name"]
            known = {spec.name: spec for spec in self.specs}
            missing = [name for name in names if name not in known]
            if missing:
                return Answer(404, f"no live specs found for names: [{', '.join(missing)}]".encode())
            return Answer(200, json.dumps([known[name].status() for name in names]).encode())
        return Answer(404, b"not found")

    def metrics_text(self) -> str:
        lines = []
        for metric in dict.fromkeys([*HELP, *(name for name, _ in sorted(self.samples))]):
            kind = "gauge" if metric.endswith("_seconds") else "counter"
            lines += [f"# HELP {metric} {HELP.get(metric, 'What it counts')}", f"# TYPE {metric} {kind}"]
            for (name, labels), value in self.samples.items():
                if name == metric:
                    shown = ",".join(f'{label}="{text}"' for label, text in labels)
                    lines.append(f"{name}{{{shown}}} {value:.15g}")
        return "\n".join([*lines, "# EOF\n"])

    def post(self, path: str, question: dict[str, Any], readable: str | None) -> Answer:
        if path not in ("/api/graphql", "/authorize/user/collection"):
            return Answer(404, b"not found")
        if readable is None:
            return Answer(401, b'{"error":"invalid or expired bearer token"}')
        if path == "/authorize/user/collection":
            if not question["collection"].startswith(readable):
                return Answer(403, b'{"error":"not authorized"}')
            return Answer(200, self.data.authorization(question, self.url))
        root = {"alerts": self._alerts(readable), "liveSpecs": self._live_specs(readable)}
        result = graphql_sync(SCHEMA, question["query"], root, variable_values=question.get("variables"))
        return Answer(200, json.dumps(result.formatted).encode(), {"Content-Type": "application/json"})

    def _alerts(self, readable: str) -> Callable[..., Any]:
        def resolve(_info: Any, by: dict[str, Any], **page: Any) -> Any:
            _authorize(readable, by["prefix"])
            rows = sorted(
                (a for a in self.alerts if a["catalogName"].startswith(by["prefix"])),
                key=_alert_order,
                reverse=True,
            )
            if by.get("active") is not None:
                rows = [a for a in rows if (a["resolvedAt"] is None) == by["active"]]
            if page.get("after"):
                later = [a for a in rows if _alert_order(a) > tuple(page["after"].split(";"))]
                limit = page.get("first") or 20
                return _connection(later[-limit:], _alert_cursor, following=len(later) > limit)
            limit = page.get("last") or 20
            before = tuple(page["before"].split(";")) if page.get("before") else ("~",)
            earlier = [a for a in rows if _alert_order(a) < before]
            return _connection(earlier[:limit], _alert_cursor, preceding=len(earlier) > limit)

        return resolve

    def _live_specs(self, readable: str) -> Callable[..., Any]:
        def resolve(_info: Any, by: dict[str, Any], **page: Any) -> Any:
            _authorize(readable, by["prefix"])
            limit = page.get("first") or 50
            after = page.get("after") or ""
            named = sorted((s for s in self.specs if s.name.startswith(by["prefix"])), key=lambda spec: spec.name)
            taken = [spec.node() for spec in named if spec.name > after][:limit]
            # A full page promises another, which may be empty.
            return _connection(taken, lambda node: node["catalogName"], following=len(taken) == limit)

        return resolve


def _authorize(readable: str, prefix: str) -> None:
    if not prefix.startswith(readable):
        raise PermissionError(f"not authorized to access prefix or name '{prefix}' with required capability read")


def _alert_order(alert: dict[str, Any]) -> tuple[str, ...]:
    return (alert["firedAt"], alert["alertType"], alert["catalogName"])


def _alert_cursor(alert: dict[str, Any]) -> str:
    return ";".join(_alert_order(alert))


def _connection(
    nodes: list[Any],
    cursor: Callable[[Any], str] = lambda node: node["catalogName"],
    *,
    preceding: bool = False,
    following: bool = False,
) -> dict[str, Any]:
    edges = [{"cursor": cursor(node), "node": node} for node in nodes]
    ends = {"startCursor": edges[0]["cursor"], "endCursor": edges[-1]["cursor"]} if edges else {}
    return {"edges": edges, "pageInfo": {"hasNextPage": following, "hasPreviousPage": preceding, **ends}}


@contextmanager
def plane() -> Iterator[Plane]:
    """A control plane that is ended afterwards."""
    running = Plane()
    try:
        yield running
    finally:
        running.close()

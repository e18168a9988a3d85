"""The OpenAPI document of the intake."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sophia import __version__

_ID = {"X-Request-Id": {"description": "The caller's, or one made for it.", "schema": {"type": "string"}}}
_RETRY = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}}
_ERROR = {
    "type": "object",
    "properties": {"error": {"type": "string"}},
    "required": ["error"],
    "additionalProperties": False,
}
_DOCUMENTS = {
    "type": "array",
    "description": "Documents with `_meta.op`, `_meta.uuid` and the collection's key. What is anything else is parked.",
    "items": {
        "type": "object",
        "properties": {
            "_meta": {
                "type": "object",
                "properties": {
                    "op": {"enum": ["c", "u", "d"]},
                    "uuid": {"type": "string", "format": "uuid"},
                    "before": {"type": "object"},
                    "source": {"type": "object"},
                },
                "required": ["op", "uuid"],
            }
        },
        "required": ["_meta"],
    },
}
_EVENT = {
    "type": "object",
    "properties": {
        "materialization": {"type": "string"},
        "collections": {"type": "array", "items": {"type": "string"}, "minItems": 1},
        "publishedAtMin": {"type": "string", "format": "date-time"},
        "publishedAtMax": {"type": "string", "format": "date-time"},
    },
    "required": ["materialization", "collections", "publishedAtMin", "publishedAtMax"],
}


def document(names: Sequence[str], most_bytes: int, *, secured: bool) -> dict[str, Any]:
    """The document.

    Args:
        names: full Estuary names of the collections that are taken.
        secured: whether callers need a bearer token.
    """
    security: list[dict[str, Any]] = [{"bearer": []}] if secured else []
    taken = {"documents": {"type": "integer"}, "parked": {"type": "integer"}}
    recorded = {"recorded": {"type": "boolean"}}
    common = _refusals(secured=secured) | {
        "408": _error("The body did not come in time."),
        "413": _error(f"The body is larger than {most_bytes} bytes."),
        "500": _error("A fault of the service; its log names the place."),
    }
    paths: dict[str, Any] = {
        f"/estuary/{name}": {
            "post": {
                "operationId": f"documents_of_{name.replace('/', '_')}",
                "summary": f"Documents of {name}, as Estuary's webhook sends them",
                "requestBody": {"required": True, "content": {"application/json": {"schema": _DOCUMENTS}}},
                "responses": {
                    "200": _answer("They are in the inbox, or parked.", taken),
                    "503": _error("The database is away, or the process ends.", _RETRY),
                    **common,
                },
                "security": security,
            }
        }
        for name in names
    }
    paths["/estuary-events"] = {
        "post": {
            "operationId": "commit_event",
            "summary": "A commit event of a trigger",
            "requestBody": {"required": True, "content": {"application/json": {"schema": _EVENT}}},
            "responses": {
                "200": _answer("It is recorded, or parked.", recorded),
                "202": _answer("It is recorded once the database is back.", recorded),
                **common,
            },
            "security": security,
        }
    }
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "Sophia intake",
            "version": __version__,
            "description": "What Estuary's webhook and triggers send.",
        },
        "paths": paths,
    }
    if secured:
        document["components"] = {"securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}}}
    return document


def _refusals(*, secured: bool) -> dict[str, Any]:
    if secured:
        return {"401": _error("The bearer token is missing or does not open this.")}
    return {"415": _error("The body is not declared as JSON.")}


def _answer(text: str, properties: dict[str, Any]) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"description": text, "headers": _ID, "content": {"application/json": {"schema": schema}}}


def _error(text: str, headers: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "description": text,
        "headers": _ID | (headers or {}),
        "content": {"application/json": {"schema": _ERROR}},
    }

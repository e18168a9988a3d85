"""The OpenAPI document: schemas from the pydantic models that check the bodies, the rest from the table of routes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from sophia import __version__
from sophia.services.inference.api import EVENT_STREAM
from sophia.services.inference.errors import OPENAI_PREFIX
from sophia.services.inference.operations import Operation
from sophia.services.inference.schemas import ErrorBody, OpenAIErrorBody, StatusBody

REF = "#/components/schemas/{model}"
_TEXTS = {
    400: "The body is no JSON.",
    401: "The bearer token is missing or not accepted.",
    404: "The name is not known.",
    408: "The body did not come in time.",
    413: "The body is larger than the limit.",
    415: "The body is not declared as JSON.",
    422: "A field is not as it must be; the answer names it by its path.",
    429: "Too much waits already; `Retry-After` says when to try again.",
    500: "A fault of the service; its log names the place.",
    503: "The models are being loaded, or something is not configured or away; the answer says which.",
    504: "The answer was not ready in time.",
}
_RETRY = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}}
_ID = {"X-Request-Id": {"description": "The caller's, or one made for it.", "schema": {"type": "string"}}}


def document(operations: Sequence[Operation], *, secured: bool) -> dict[str, Any]:
    """The document.

    Args:
        secured: whether callers need a bearer token.
    """
    models: set[type[BaseModel]] = {ErrorBody, OpenAIErrorBody, StatusBody}
    models |= {model for each in operations for model in (each.request, each.response)}
    listed = sorted(models, key=lambda model: model.__name__)
    _, schemas = models_json_schema([(model, "validation") for model in listed], ref_template=REF)
    components: dict[str, Any] = {"schemas": schemas["$defs"]}
    if secured:
        components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Sophia inference",
            "version": __version__,
            "description": "Embedding, sentiment, classification, summaries and text generation.",
        },
        "paths": {each.path: {"post": _post(each, secured=secured)} for each in operations} | _open_paths(),
        "components": components,
    }


def _post(operation: Operation, *, secured: bool) -> dict[str, Any]:
    body, result = operation.example
    content: dict[str, Any] = {"application/json": {"schema": _ref(operation.response), "example": result}}
    if operation.streams:
        # Without a schema: each event is `{"text": …}`, then comes one `done` or one `error`.
        content[EVENT_STREAM] = {"example": 'data: {"text":"Blue"}\n\nevent: done\ndata: {}\n\n'}
    return {
        "operationId": operation.path.strip("/").replace("/", "_"),
        "summary": operation.summary,
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _ref(operation.request), "example": body}},
        },
        "responses": {"200": {"description": "Done.", "headers": _ID, "content": content}}
        | {str(status): _error(status, operation.path) for status in _statuses(operation, secured=secured)},
        "security": [{"bearer": []}] if secured else [],
    }


def _statuses(operation: Operation, *, secured: bool) -> list[int]:
    left_out = set() if operation.unknown else {404}
    if not secured:
        left_out.add(401)
    if operation.path.startswith(OPENAI_PREFIX):
        left_out.add(422)
    return [status for status in _TEXTS if status not in left_out]


def _error(status: int, path: str) -> dict[str, Any]:
    headers = _ID | _RETRY if status in (429, 503) else _ID
    model = OpenAIErrorBody if path.startswith(OPENAI_PREFIX) else ErrorBody
    text = _TEXTS[status]
    if status == 400 and model is OpenAIErrorBody:
        text += " Or a field is not as it must be; `param` names it."
    return {"description": text, "headers": headers, "content": {"application/json": {"schema": _ref(model)}}}


def _open_paths() -> dict[str, Any]:
    """What needs no token: monitoring and this document."""
    status = {"application/json": {"schema": _ref(StatusBody)}}
    not_ready = {"description": "Models are loading, or the process ends.", "headers": _ID | _RETRY, "content": status}
    paths = {
        "/health": ("The process is up", status, {}),
        "/ready": ("It takes requests", status, {"503": not_ready}),
        "/metrics": ("Metrics of Prometheus", {"text/plain": {"schema": {"type": "string"}}}, {}),
        "/openapi.json": ("This document", {"application/json": {"schema": {"type": "object"}}}, {}),
    }
    return {
        path: {
            "get": {
                "operationId": path.strip("/").replace(".", "_"),
                "summary": summary,
                "responses": {"200": {"description": "Done.", "headers": _ID, "content": content}} | more,
                "security": [],
            }
        }
        for path, (summary, content, more) in paths.items()
    }


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": REF.format(model=model.__name__)}

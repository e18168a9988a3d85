"""Bodies of the stand-in's requests and answers, and the requests that are to fail."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson
from starlette.responses import Response

from tests.pinecone_stand_in import rules
from tests.pinecone_stand_in.rules import Fault


@dataclass
class Trouble:
    """Some requests that are answered with an error; see `StandIn.trouble`."""

    status: int
    times: int
    retry_after: float | None
    path: str
    late: bool


def as_object(body: bytes) -> dict[str, Any]:
    """A body that is a JSON object."""
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Fault(400, rules.INVALID_ARGUMENT, "The body is not JSON") from error
    if not isinstance(found, dict):
        raise Fault(400, rules.INVALID_ARGUMENT, "The body is not an object")
    return found


def as_record(name: str, record: dict[str, Any]) -> dict[str, Any]:
    """A record as a fetch shows it."""
    return {"id": name, "values": record["values"], "metadata": record["metadata"]}


def answer_of(status: int, content: Any, headers: dict[str, str] | None = None) -> Response:
    """An answer in JSON; of float32 the fewest digits that read back as the same float32."""
    data = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(data, status, headers, "application/json")

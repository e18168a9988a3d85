"""`POST /v1/embeddings` as OpenAI has it: whoever speaks to OpenAI speaks to this service by another base URL."""

from __future__ import annotations

import base64

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from sophia.embedding import Vectors
from sophia.services.inference.api import FastJson, vectors_of
from sophia.services.inference.errors import FaultsError
from sophia.services.inference.models import Functions
from sophia.services.inference.schemas import OpenAIEmbeddingsRequest


async def embeddings(request: Request, functions: Functions, asked: OpenAIEmbeddingsRequest) -> Response:
    """Vectors of texts, as documents."""
    model, dimension = functions.model.name, functions.scheduler.dimension
    if asked.model != model:
        fault = ("model", f"the model `{asked.model}` is not served here; this is `{model}`")
        raise FaultsError([fault], status=404, code="model_not_found")
    if asked.dimensions not in (None, dimension):
        raise FaultsError([("dimensions", f"the vectors of `{model}` have {dimension} dimensions, no other number")])
    vectors, tokens = await vectors_of(request, functions, asked.input, "document", lambda place: f"input.{place}")
    encoded = _base64(vectors) if asked.encoding_format == "base64" else list(vectors)
    return FastJson(
        {
            "object": "list",
            "data": [{"object": "embedding", "index": i, "embedding": each} for i, each in enumerate(encoded)],
            "model": model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


def _base64(vectors: Vectors) -> list[str]:
    """The bytes of each vector, as little-endian float32 whatever this machine has."""
    return [base64.b64encode(row).decode() for row in np.ascontiguousarray(vectors, dtype="<f4")]

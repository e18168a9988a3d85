"""The routes, each with its schemas and examples: the router and the OpenAPI document are both made of this table."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from sophia.catalog.models import EmbeddingModel
from sophia.services.inference import api, openai_api, schemas
from sophia.services.inference.models import Functions
from sophia.settings import InferenceSettings

Handler = Callable[[Request, Functions, Any], Coroutine[Any, Any, Response]]
_SCORES = {"positive": 0.7, "neutral": 0.3, "negative": 0.0}


@dataclass(frozen=True, slots=True)
class Operation:
    """A function of the service.

    Attributes:
        request: model of its body.
        response: model of its answer.
        example: a body, and what it is answered.
        streams: whether it may answer by server-sent events.
        unknown: whether it answers 404 to a name that it does not know.
        kept: whether its answers are kept in Redis.
    """

    path: str
    summary: str
    handler: Handler
    request: type[BaseModel]
    response: type[BaseModel]
    example: tuple[dict[str, Any], dict[str, Any]]
    streams: bool = False
    unknown: bool = False
    kept: bool = False


def operations(settings: InferenceSettings, served: EmbeddingModel) -> list[Operation]:
    """All functions, with the settings' limits in their schemas."""
    requests = schemas.limited(settings, served)
    model, precision = served.name, settings.precision
    return [
        Operation(
            "/embed",
            "Vectors of texts",
            api.embed,
            requests.embed,
            schemas.EmbedResponse,
            (
                {"texts": ["A quick brown fox.", "A slow red hen."], "kind": "document"},
                {
                    "model": model,
                    "precision": precision,
                    "dimension": 3,
                    "vectors": [[0.6, 0.8, 0.0], [0.0, 0.6, 0.8]],
                    "tokens": 14,
                },
            ),
        ),
        Operation(
            "/analyze",
            "Sentiment of texts",
            api.analyze,
            requests.analyze,
            schemas.AnalyzeResponse,
            (
                {"text": "A wonderful day."},
                {"model": "vader", "results": [{"label": "positive", "score": 0.57, "scores": _SCORES}]},
            ),
            kept=True,
        ),
        Operation(
            "/classify",
            "The label that fits each text best",
            api.classify_texts,
            requests.classify,
            schemas.ClassifyResponse,
            (
                {"text": "The team won the final.", "labels": ["sport", "politics"]},
                {
                    "model": model,
                    "results": [{"label": "sport", "score": 0.9, "scores": {"sport": 0.9, "politics": 0.1}}],
                    "tokens": 27,
                },
            ),
            kept=True,
        ),
        Operation(
            "/summarize",
            "A summary of a text",
            api.summarize,
            requests.summarize,
            schemas.SummarizeResponse,
            (
                {"text": "It rained. The river rose. The bridge was closed.", "sentences": 1},
                {
                    "model": model,
                    "method": "extractive",
                    "summary": "The river rose.",
                    "places": [1],
                    "tokens": 16,
                },
            ),
            kept=True,
        ),
        Operation(
            "/generate",
            "Text that a language model writes",
            api.generation(settings.timeout_seconds),
            requests.generate,
            schemas.GenerateResponse,
            (
                {"prompt": "Name a colour.", "max_tokens": 8, "temperature": 0},
                {
                    "model": "a-model",
                    "text": "Blue.",
                    "finish_reason": "stop",
                    "prompt_tokens": 4,
                    "completion_tokens": 2,
                },
            ),
            streams=True,
        ),
        Operation(
            "/v1/embeddings",
            "Vectors of texts, as OpenAI has it",
            openai_api.embeddings,
            requests.openai,
            schemas.OpenAIEmbeddingsResponse,
            (
                {"input": "A quick brown fox.", "model": model, "encoding_format": "float"},
                {
                    "object": "list",
                    "data": [{"object": "embedding", "index": 0, "embedding": [0.6, 0.8, 0.0]}],
                    "model": model,
                    "usage": {"prompt_tokens": 7, "total_tokens": 7},
                },
            ),
            unknown=True,
        ),
    ]

"""The functions as HTTP handlers: each takes a checked body and answers in the shape that its schema says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from threading import Event
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from sophia.embedding.base import Kind, RefusedTextsError, Vectors
from sophia.errors import ConfigurationError, SophiaError
from sophia.services.access import note
from sophia.services.inference import schemas
from sophia.services.inference.classify import classify, hypothesis
from sophia.services.inference.errors import FaultsError
from sophia.services.inference.models import Functions
from sophia.services.inference.summarize import extract, sentences
from sophia.services.web import Json

EVENT_STREAM = "text/event-stream"


class FastJson(Json):
    """JSON of numpy arrays and floats, written by orjson: a vector of 384 numbers in 7 µs instead of hundreds."""

    def render(self, content: Any) -> bytes:
        """UTF-8."""
        return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


async def vectors_of(
    request: Request, functions: Functions, texts: Sequence[str], kind: Kind, field: Callable[[int], str]
) -> tuple[Vectors, int]:
    """(vectors of shape (texts, dimension), tokens), noted for the log.

    Args:
        field: the path in the body where the text of a place was sent.

    Raises:
        FaultsError: some texts cannot be embedded; it names the place of each.
        OverloadedError: the lane is full.
    """
    kept = note(request)
    kept.add("texts", len(texts))
    try:
        vectors, tokens = await functions.embed(texts, kind)
    except RefusedTextsError as error:
        raise FaultsError([(field(place), reason) for place, reason in error.reasons.items()]) from None
    kept.add("tokens", tokens)
    return vectors, tokens


async def embed(request: Request, functions: Functions, asked: schemas.EmbedRequest) -> Response:
    """Vectors of texts."""
    vectors, tokens = await vectors_of(request, functions, asked.given, asked.kind, asked.field)
    scheduler = functions.scheduler
    return FastJson(
        {
            "model": functions.model.name,
            "precision": scheduler.precision,
            "dimension": scheduler.dimension,
            "vectors": vectors,
            "tokens": tokens,
        }
    )


async def analyze(request: Request, functions: Functions, asked: schemas.AnalyzeRequest) -> Response:
    """Sentiment of texts."""
    note(request).add("texts", len(asked.given))
    stopped = Event()
    try:
        found = await functions.helper.run(functions.sentiment.analyze, asked.given, stopped.is_set)
    finally:
        # Whoever left or waited too long does not keep the thread from others.
        stopped.set()
    results = [{"label": each.label, "score": each.score, "scores": each.scores} for each in found]
    return FastJson({"model": functions.sentiment.name, "results": results})


async def classify_texts(request: Request, functions: Functions, asked: schemas.ClassifyRequest) -> Response:
    """The label that fits each text best, by its similarity to a sentence of each label."""
    texts = asked.given
    hypotheses = [hypothesis(label, asked.template) for label in asked.labels]

    def field(place: int) -> str:
        return asked.field(place) if place < len(texts) else f"labels.{place - len(texts)}"

    vectors, tokens = await vectors_of(request, functions, [*texts, *hypotheses], "document", field)
    probabilities = classify(vectors[: len(texts)], vectors[len(texts) :])
    best = probabilities.argmax(axis=1)
    results = [
        {
            "label": asked.labels[best[i]],
            "score": float(row[best[i]]),
            "scores": dict(zip(asked.labels, row.tolist(), strict=True)),
        }
        for i, row in enumerate(probabilities)
    ]
    return FastJson({"model": functions.model.name, "results": results, "tokens": tokens})


async def summarize(request: Request, functions: Functions, asked: schemas.SummarizeRequest) -> Response:
    """A summary: written where a text model is asked for or configured, else made of the text's own sentences."""
    wanted = asked.model_fields_set
    if "max_tokens" in wanted or ("sentences" not in wanted and functions.summarizer is not None):
        return await _written_summary(request, functions, asked)
    found = await functions.helper.run(sentences, asked.text)
    vectors, tokens = await vectors_of(request, functions, found, "document", lambda place: "text")
    places = await functions.helper.run(extract, found, vectors, asked.sentences)
    return FastJson(
        {
            "model": functions.model.name,
            "method": "extractive",
            "summary": " ".join(found[place] for place in places),
            "places": places,
            "tokens": tokens,
        }
    )


async def _written_summary(request: Request, functions: Functions, asked: schemas.SummarizeRequest) -> Response:
    summarizer = functions.summarizer
    if summarizer is None:
        raise ConfigurationError(
            "no text model writes summaries here: set SOPHIA_INFERENCE__SUMMARY_MODEL, or ask for `sentences`"
        )
    note(request).add("texts", 1)
    stopped = Event()
    try:
        summary = await functions.writer.run(summarizer.summarize, asked.text, asked.max_tokens, stopped.is_set)
    finally:
        # Whoever left or waited too long does not keep the model busy.
        stopped.set()
    return FastJson({"model": summarizer.name, "method": "abstractive", "summary": summary, "places": [], "tokens": 0})


def generation(seconds: float) -> Callable[[Request, Functions, schemas.GenerateRequest], Any]:
    """The handler of /generate.

    Args:
        seconds: longest time between two pieces of a stream.
    """

    async def generate(request: Request, functions: Functions, asked: schemas.GenerateRequest) -> Response:
        """Text that a language model writes, whole or as a stream."""
        generator = functions.generator
        if generator is None:
            raise ConfigurationError(
                "nothing generates text here: set SOPHIA_INFERENCE__GENERATE_URL to an OpenAI-compatible server, "
                "or SOPHIA_INFERENCE__GENERATE_MODEL to a local model"
            )
        note(request).add("texts", len(asked.messages) or 1)
        if asked.stream:
            pieces = generator.stream(asked)
            # What fails before the first piece gets a status of its own.
            first = await anext(pieces, None)
            return StreamingResponse(
                _events(first, pieces, seconds),
                media_type=EVENT_STREAM,
                headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
            )
        result = await generator.generate(asked)
        note(request).add("tokens", (result.prompt_tokens or 0) + (result.completion_tokens or 0))
        return FastJson(
            {
                "model": generator.name,
                "text": result.text,
                "finish_reason": result.finish_reason,
                "prompt_tokens": result.prompt_tokens,
                "completion_tokens": result.completion_tokens,
            }
        )

    return generate


async def _events(first: str | None, pieces: AsyncGenerator[str, None], seconds: float) -> AsyncIterator[bytes]:
    """Server-sent events: `{"text": …}` a piece, then `done`, or `error` when it breaks off."""
    async with aclosing(pieces):
        piece = first
        try:
            while piece is not None:
                yield _event(None, {"text": piece})
                async with asyncio.timeout(seconds):
                    piece = await anext(pieces, None)
        except SophiaError as error:
            yield _event("error", {"error": str(error)})
        except TimeoutError:
            yield _event("error", {"error": f"nothing came for {seconds:g} s"})
        else:
            yield _event("done", {})


def _event(name: str | None, data: Any) -> bytes:
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + orjson.dumps(data) + b"\n\n"

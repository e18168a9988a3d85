"""Embedding by an OpenAI-compatible endpoint (`POST {url}/embeddings`)."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import httpx
import numpy as np
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from sophia.catalog.models import EmbeddingModel, Precision
from sophia.embedding.base import EmbeddingFigures, Kind, Vectors, nothing
from sophia.embedding.packing import pack
from sophia.errors import ConfigurationError, TemporaryError
from sophia.settings import Settings

# Providers bound a request; 16 k estimated tokens stay below the smallest limit in use.
BUDGET = 16_384
_REFUSED = frozenset({400, 422})
_RETRIED_STATUS = frozenset({408, 409, 429, 500, 502, 503, 504})


class EndpointEmbedder:
    """A model behind HTTP. Tokens are estimated (four characters each), since the tokenizer is not ours."""

    tokenizer: Any = None

    def __init__(self, model: EmbeddingModel, precision: Precision, fingerprint: str, settings: Settings) -> None:
        self.fingerprint = fingerprint
        self.precision = precision
        # Without its address, which may be a secret.
        self.backend = f"endpoint {model.model}"
        self.dimension = model.dimension
        self.max_tokens = model.max_tokens
        self.figures = EmbeddingFigures()
        self.pass_tokens: int | None = None
        self._base64 = True
        self._model = model
        headers = {}
        if model.key_env:
            key = settings.secret(model.key_env)
            if key is None:
                raise ConfigurationError(f"model {model.name!r}: {model.key_env} is not set")
            headers["Authorization"] = f"Bearer {key}"
        self._client = httpx.Client(
            base_url=str(model.url).rstrip("/") + "/", headers=headers, timeout=httpx.Timeout(60, connect=5)
        )

    def embed(self, texts: Sequence[str], between: Callable[[], None] = nothing, *, kind: Kind = "document") -> Vectors:
        """See `Embedder.embed`."""
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        prefix = self._model.query_prefix if kind == "query" else self._model.document_prefix
        prefixed = [prefix + text for text in texts]
        # Estimated: the tokenizer is not ours.
        counts = [len(text) // 4 + 2 for text in prefixed]
        for batch in pack(counts, lambda: min(BUDGET, self.pass_tokens or BUDGET), between):
            started = perf_counter()
            vectors[batch] = self._request([prefixed[i] for i in batch])
            self.figures.seconds += perf_counter() - started
            self.figures.passes += 1
        self.figures.texts += len(texts)
        self.figures.tokens += sum(counts)
        return vectors

    def embed_query(self, text: str) -> Vectors:
        """Vector of a query, shape (dimension,)."""
        vector: Vectors = self.embed([text], kind="query")[0]
        return vector

    @retry(
        retry=retry_if_exception_type(TemporaryError),
        stop=stop_after_attempt(4),
        wait=wait_random_exponential(multiplier=0.2, max=5),
        reraise=True,
    )
    def _request(self, texts: list[str]) -> Vectors:
        name = self._model.name
        asked = {"encoding_format": "base64"} if self._base64 else {}
        try:
            response = self._client.post("embeddings", json={"model": self._model.model, "input": texts} | asked)
        except httpx.TransportError as error:
            raise TemporaryError(f"model {name!r}: the endpoint does not answer: {error}") from error
        if response.status_code in _RETRIED_STATUS:
            raise TemporaryError(f"model {name!r}: the endpoint answers {response.status_code}")
        if response.status_code in _REFUSED and self._base64:
            # A server that does not know the format; with plain numbers it may well answer.
            self._base64 = False
            return self._request(texts)
        if response.is_error:
            raise ConfigurationError(f"model {name!r}: the endpoint refuses with {response.status_code}")
        try:
            data = sorted(response.json()["data"], key=lambda item: item["index"])
            vectors = np.array([_decoded(item["embedding"]) for item in data], dtype=np.float32)
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(f"model {name!r}: the endpoint's answer is no embedding list: {error}") from error
        if vectors.shape != (len(texts), self.dimension):
            raise ConfigurationError(
                f"model {name!r}: expected {len(texts)} vectors of {self.dimension}, got shape {vectors.shape}"
            )
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit: Vectors = (vectors / np.where(norms == 0, 1, norms)).astype(np.float32)
        return unit


def _decoded(embedding: Any) -> Any:
    """Numbers, or base64 of little-endian float32: asked for, since a list of numbers is slow to read as JSON, but not
    every server knows it."""
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), dtype="<f4")
    return embedding

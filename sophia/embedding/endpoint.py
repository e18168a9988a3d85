"""Embedding by an OpenAI-compatible endpoint (`POST {url}/embeddings`).

A provider refuses a whole request for the sake of one text, and does not say which. Such a request is split until the
text is found, which is refused with the provider's status, and the others go on. Before a text is blamed, a text that
every model takes is asked for: where that is refused too, it is the account, the model's name or the request itself,
and nothing is split.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from time import perf_counter, sleep
from typing import Any

import httpx
import msgspec
import numpy as np
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from sophia.catalog.models import EmbeddingModel, Precision
from sophia.embedding.base import EmbeddingFigures, Engine, Kind, RefusedTextsError, Vectors, nothing
from sophia.embedding.packing import pack
from sophia.errors import ConfigurationError, TemporaryError
from sophia.retry_after import asked_pause
from sophia.settings import Settings

# Providers bound a request; 16 k estimated tokens stay below the smallest limit in use.
BUDGET = 16_384
# Providers bound the number of its texts, too: to 2,048, if none counts for less than this.
LEAST_TOKENS = 8
# Taken by every model.
PLAIN_TEXT = "a"
ATTEMPTS = 4
# A provider may ask for minutes; a writer that waits renews no lease, and whoever called can wait better.
LONGEST_PAUSE_SECONDS = 8.0
PROBE_SECONDS = 10.0
_REFUSED = frozenset({400, 413, 422})
_RETRIED_STATUS = frozenset({408, 409, 429, 500, 502, 503, 504})
_backoff = wait_random_exponential(multiplier=0.2, max=5)


class EndpointBusyError(TemporaryError):
    """The endpoint answers that it cannot now. `pause`: seconds that it asks to wait, if it says so."""

    def __init__(self, message: str, pause: float | None) -> None:
        super().__init__(message)
        self.pause = pause


class _Item(msgspec.Struct):
    """A vector of an answer: base64 of little-endian float32, which msgspec reads in a fifth of the time of `json`."""

    index: int
    embedding: bytes


class _Answer(msgspec.Struct):
    data: list[_Item]


_decode = msgspec.json.Decoder(_Answer).decode


class _Refusal(Exception):
    """The endpoint refuses a request for what is in it."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class EndpointEmbedder:
    """A model behind HTTP. Tokens are estimated (four characters each), since the tokenizer is not ours."""

    tokenizer: Any = None
    engine: Engine | None = None

    def __init__(self, model: EmbeddingModel, precision: Precision, fingerprint: str, settings: Settings) -> None:
        self.fingerprint = fingerprint
        self.precision = precision
        # Without its address, which may be a secret.
        self.backend = f"endpoint {model.model}"
        self.dimension = model.dimension
        self.max_tokens = model.max_tokens
        self.figures = EmbeddingFigures()
        self.pass_tokens: int | None = None
        # Asked for, since a list of numbers is slow to read as JSON; but not every server knows it.
        self._base64 = True
        self._accepted = False
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
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        prefix = self._model.query_prefix if kind == "query" else self._model.document_prefix
        prefixed = [prefix + text for text in texts]
        tokens = [len(text) // 4 + 2 for text in prefixed]
        reasons: dict[int, str] = {}
        self.figures.texts += len(texts)
        for batch in pack(
            [max(LEAST_TOKENS, count) for count in tokens], lambda: min(BUDGET, self.pass_tokens or BUDGET), between
        ):
            self._take(batch, prefixed, tokens, vectors, reasons, between)
        if reasons:
            self.figures.refused += len(reasons)
            raise RefusedTextsError(vectors, reasons)
        return vectors

    def embed_query(self, text: str) -> Vectors:
        """Vector of a query, shape (dimension,)."""
        vector: Vectors = self.embed([text], kind="query")[0]
        return vector

    def probe(self, texts: Sequence[str]) -> Vectors:
        """See `Embedder.probe`: one request, which is not repeated."""
        try:
            return _unit(self._post(texts, PROBE_SECONDS))
        except _Refusal:
            self._require_plain_text()
        try:
            return _unit(self._post(texts, PROBE_SECONDS))
        except _Refusal as refusal:
            raise self._configuration(refusal.status) from refusal

    def _take(
        self,
        batch: list[int],
        texts: Sequence[str],
        tokens: Sequence[int],
        vectors: Vectors,
        reasons: dict[int, str],
        between: Callable[[], None],
    ) -> None:
        """Write the vectors of a batch and the reasons of those of its texts that are refused."""
        # Halves that wait for their turn, the next one last.
        waiting = [batch]
        asked = False
        while waiting:
            part = waiting.pop()
            if part is not batch:
                between()
            started = perf_counter()
            try:
                found = self._request([texts[i] for i in part])
            except _Refusal as refusal:
                if not self._accepted:
                    # Perhaps it was the format of the answer, which is settled by this.
                    self._require_plain_text()
                    waiting.append(part)
                elif len(part) > 1:
                    middle = len(part) // 2
                    waiting += [part[middle:], part[:middle]]
                else:
                    if not asked:
                        self._require_plain_text()
                        asked = True
                    reasons[part[0]] = f"the endpoint refuses it with {refusal.status}"
                continue
            finally:
                self.figures.seconds += perf_counter() - started
            self.figures.passes += 1
            self.figures.tokens += sum(tokens[i] for i in part)
            unit = _unit(found)
            finite: Any = np.isfinite(unit).all(axis=1)
            vectors[part] = np.where(finite[:, None], unit, 0)
            for row in np.flatnonzero(~finite):
                reasons[part[row]] = "the endpoint's vector holds a value that is no number, or only zeros"

    def _require_plain_text(self) -> None:
        """Have a text embedded that every model takes, with whatever format of the answer the endpoint knows.

        Raises:
            ConfigurationError: it is refused.
        """
        try:
            self._request([PLAIN_TEXT])
        except _Refusal as refusal:
            if self._accepted or not self._base64:
                raise self._configuration(refusal.status) from refusal
            # A server that does not know the format; with plain numbers it may well answer.
            self._base64 = False
            try:
                self._request([PLAIN_TEXT])
            except _Refusal:
                self._base64 = True
                raise self._configuration(refusal.status) from refusal

    def _request(self, texts: Sequence[str]) -> Vectors:
        """`_post`, again after what passes by itself."""
        return Retrying(
            retry=retry_if_exception_type(TemporaryError),
            stop=stop_after_attempt(ATTEMPTS),
            wait=_pause,
            sleep=sleep,
            reraise=True,
        )(self._post, texts)

    def _post(self, texts: Sequence[str], seconds: float | None = None) -> Vectors:
        """The endpoint's vectors as they come, shape (texts, dimension); not of length 1, perhaps not finite.

        Args:
            seconds: time-out, if not the usual one.

        Raises:
            _Refusal: of the request for what is in it.
        """
        name = self._model.name
        body = {"model": self._model.model, "input": list(texts)}
        if self._base64:
            body["encoding_format"] = "base64"
        timeout = self._client.timeout if seconds is None else httpx.Timeout(seconds, connect=5)
        try:
            # Read by hand: a response is garbage of a cycle, and would keep megabytes until the collector comes.
            with self._client.stream("POST", "embeddings", json=body, timeout=timeout) as response:
                content = b"".join(response.iter_bytes())
        except httpx.RequestError as error:
            raise TemporaryError(f"model {name!r}: the endpoint does not answer: {error}") from error
        if response.status_code in _RETRIED_STATUS:
            raise EndpointBusyError(
                f"model {name!r}: the endpoint answers {response.status_code}",
                asked_pause(response.headers.get("Retry-After")),
            )
        if response.status_code in _REFUSED:
            raise _Refusal(response.status_code)
        if response.is_error:
            raise self._configuration(response.status_code)
        try:
            vectors = _vectors(content)
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(f"model {name!r}: the endpoint's answer is no embedding list: {error}") from error
        if vectors.shape != (len(texts), self.dimension):
            raise ConfigurationError(
                f"model {name!r}: expected {len(texts)} vectors of {self.dimension}, got shape {vectors.shape}"
            )
        self._accepted = True
        return vectors

    def _configuration(self, status: int) -> ConfigurationError:
        return ConfigurationError(f"model {self._model.name!r}: the endpoint refuses with {status}")


def _pause(state: RetryCallState) -> float:
    """Seconds until the next attempt: what the endpoint asks for, within bounds, else a random and growing time."""
    error = state.outcome.exception() if state.outcome is not None else None
    if isinstance(error, EndpointBusyError) and error.pause is not None:
        return min(error.pause, LONGEST_PAUSE_SECONDS)
    return _backoff(state)


def _unit(vectors: Vectors) -> Vectors:
    """The vectors at length 1; those without a direction become no numbers."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    # Of infinite length, not zero.
    unit[~unit.any(axis=1)] = np.nan
    return unit


def _vectors(content: bytes) -> Vectors:
    """The vectors of an answer, by their indices. Raises ValueError, KeyError or TypeError if it holds none."""
    try:
        items = sorted(_decode(content).data, key=lambda item: item.index)
    except msgspec.DecodeError:
        # Numbers, or JSON that only Python reads.
        data = sorted(json.loads(content)["data"], key=lambda item: item["index"])
        return np.array([_decoded(item["embedding"]) for item in data], dtype=np.float32)
    return np.array([np.frombuffer(item.embedding, dtype="<f4") for item in items], dtype=np.float32)


def _decoded(embedding: Any) -> Any:
    """Numbers, or base64 of little-endian float32."""
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), dtype="<f4")
    return embedding

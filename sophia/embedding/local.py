"""The engine: a model on this machine's CPU or GPU, whatever backend computes it.

Texts are tokenised a window at a time in a helper thread, equal ones once; a window is sorted by length and cut into
forward passes of a token budget. Two passes are in flight, so that the device has work while results are fetched. A
pass that does not fit into memory is split, and a text that fails alone is refused while the others go on.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np

from sophia.catalog.models import EmbeddingModel, Precision
from sophia.embedding.base import (
    Backend,
    DeviceMemoryError,
    EmbeddingFigures,
    Ids,
    Kind,
    RefusedTextsError,
    Vectors,
    nothing,
)
from sophia.embedding.budget import TokenBudget
from sophia.embedding.packing import pack
from sophia.embedding.tokens import TextTokenizer

logger = logging.getLogger("sophia.embedding")
# Passes between start and fetch on a device that computes aside. A CPU computes at once.
IN_FLIGHT = {"cpu": 1, "cuda": 2}
# Fewer tokens than this are not worth the search for the best budget.
SEARCH_TOKENS = 20_000
# Passes of the search, of which the fastest counts: a machine that others use too is slow now and then.
SEARCH_PASSES = 3


class LocalEmbedder:
    """Implements `Embedder` with a backend.

    Args:
        tokenizer: the model's `tokenizers.Tokenizer`, without padding or truncation.
        budget: tokens of a forward pass; found by measuring when bulk work begins if None.
    """

    def __init__(
        self,
        model: EmbeddingModel,
        precision: Precision,
        fingerprint: str,
        backend: Backend,
        tokenizer: Any,
        max_tokens: int,
        budget: int | None = None,
    ) -> None:
        self.fingerprint = fingerprint
        self.precision = precision
        self.backend = backend.name
        self.dimension = model.dimension
        self.max_tokens = max_tokens
        self.tokenizer = tokenizer
        self.figures = EmbeddingFigures()
        self.pass_tokens: int | None = None
        self._prefixes: dict[Kind, str] = {"document": model.document_prefix, "query": model.query_prefix}
        self._backend = backend
        self._front = TextTokenizer(tokenizer, max_tokens)
        self._budget = TokenBudget(budget or backend.first_budget)
        self._searched = budget is not None

    def embed(self, texts: Sequence[str], between: Callable[[], None] = nothing, *, kind: Kind = "document") -> Vectors:
        """See `Embedder.embed`."""
        prefix = self._prefixes[kind]
        places: dict[str, list[int]] = {}
        for place, text in enumerate(texts):
            places.setdefault(text, []).append(place)
        distinct = list(places)
        found = np.zeros((len(distinct), self.dimension), dtype=np.float32)
        reasons: dict[int, str] = {}
        self.figures.texts += len(texts)
        self.figures.duplicates += len(texts) - len(distinct)
        for start, ids in self._front.windows([prefix + text for text in distinct] if prefix else distinct):
            if start:
                between()
            faults = self._compute(ids, found[start : start + len(ids)], between)
            reasons |= {start + i: reason for i, reason in faults.items()}
        vectors = found if len(distinct) == len(texts) else np.empty((len(texts), self.dimension), dtype=np.float32)
        if vectors is not found:
            for i, text in enumerate(distinct):
                vectors[places[text]] = found[i]
        if reasons:
            self.figures.refused += len(reasons)
            raise RefusedTextsError(
                vectors, {place: reason for i, reason in reasons.items() for place in places[distinct[i]]}
            )
        return vectors

    def embed_query(self, text: str) -> Vectors:
        """Vector of a query, shape (dimension,)."""
        vector: Vectors = self.embed([text], kind="query")[0]
        return vector

    def probe(self, texts: Sequence[str]) -> Vectors:
        """Vectors of texts without any prefix, in one forward pass, and counted nowhere."""
        return self._backend.start(self._front.encode(texts))()

    def warm_up(self, between: Callable[[], None] = nothing) -> None:
        """Find the best budget by passes of made-up texts, which warms the device too; once, and only while nobody
        has more urgent work."""
        if self._searched:
            return
        self._searched = True
        self._budget.find(self._backend.largest_budget, partial(self._rate, between))
        logger.info("%s: %d tokens a forward pass", self.backend, self._budget.tokens)

    def _rate(self, between: Callable[[], None], tokens: int) -> float:
        """Tokens per second of passes of that many tokens, in texts of an eighth of the model's length."""
        length = max(8, self.max_tokens // 8)
        ids = np.full(length, self.tokenizer.encode("a", add_special_tokens=False).ids[0], dtype=np.int32)
        batch = [ids] * max(1, tokens // length)
        try:
            self._backend.start(batch)()
            best = float("inf")
            for _ in range(SEARCH_PASSES):
                between()
                if self.pass_tokens is not None:
                    return 0.0
                started = perf_counter()
                self._backend.start(batch)()
                best = min(best, perf_counter() - started)
        except DeviceMemoryError:
            return 0.0
        return length * len(batch) / best

    def _compute(self, ids: Sequence[Ids], into: Vectors, between: Callable[[], None]) -> dict[int, str]:
        """Write the vectors of a window. Returns the reasons of texts that cannot be embedded, by place."""
        lengths = [len(each) for each in ids]
        if not self._searched and sum(lengths) >= SEARCH_TOKENS and self.pass_tokens is None:
            self.warm_up(between)
        reasons: dict[int, str] = {}
        flying: deque[tuple[list[int], Callable[[], Vectors] | None, float]] = deque()
        free = perf_counter()

        def land() -> None:
            """Wait for the oldest pass in flight and take its vectors."""
            nonlocal free
            places, wait, started = flying.popleft()
            try:
                if wait is None:
                    raise DeviceMemoryError
                vectors = wait()
            except DeviceMemoryError:
                self._split(places, ids, into, reasons, between)
                free = perf_counter()
                return
            now = perf_counter()
            # Passes in flight overlap: a pass is charged for the time since the one before it had ended.
            self.figures.seconds += now - max(started, free)
            free = now
            self._take(places, vectors, lengths, into, reasons)

        for places in pack(lengths, self._room, between, padded=self._backend.padded):
            started = perf_counter()
            try:
                wait = self._backend.start([ids[i] for i in places])
            except DeviceMemoryError:
                wait = None
            flying.append((places, wait, started))
            if len(flying) >= IN_FLIGHT[self._backend.device]:
                land()
        while flying:
            land()
        return reasons

    def _room(self) -> int:
        return min(self._budget.tokens, self.pass_tokens or self._budget.tokens)

    def _take(
        self, places: list[int], vectors: Vectors, lengths: Sequence[int], into: Vectors, reasons: dict[int, str]
    ) -> None:
        tokens = sum(lengths[i] for i in places)
        self.figures.passes += 1
        self.figures.tokens += tokens
        if self._backend.padded:
            self.figures.padding += lengths[places[0]] * len(places) - tokens
        self._budget.fit()
        sound = [bool(each) for each in np.isfinite(vectors).all(axis=1)]
        for row, place in enumerate(places):
            if sound[row]:
                into[place] = vectors[row]
            else:
                reasons[place] = "the model's vector holds a value that is no number"

    def _split(
        self,
        places: list[int],
        ids: Sequence[Ids],
        into: Vectors,
        reasons: dict[int, str],
        between: Callable[[], None],
    ) -> None:
        """The texts of a pass that did not fit, again in halves."""
        tokens = sum(len(ids[i]) for i in places)
        self.figures.out_of_memory += 1
        self._budget.lack(tokens)
        if len(places) == 1:
            reasons[places[0]] = f"its {tokens} tokens do not fit into the memory of {self._backend.device}"
            return
        logger.warning("%s: %d tokens do not fit into memory; now %d", self.backend, tokens, self._budget.tokens)
        between()
        middle = len(places) // 2
        lengths = [len(each) for each in ids]
        for half in (places[:middle], places[middle:]):
            started = perf_counter()
            try:
                vectors = self._backend.start([ids[i] for i in half])()
            except DeviceMemoryError:
                self._split(half, ids, into, reasons, between)
            else:
                self.figures.seconds += perf_counter() - started
                self._take(half, vectors, lengths, into, reasons)

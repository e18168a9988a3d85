"""The engine: a model on this machine's CPU or GPU, whatever backend computes it.

Texts are tokenised a window at a time in a helper thread, equal ones once; a window is sorted by length and cut into
forward passes of a token budget. Two passes are in flight, so that the device has work while results are fetched. A
pass that does not fit into memory is split, and a text that fails alone is refused while the others go on.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from time import perf_counter, process_time
from typing import Any

import numpy as np

from sophia.catalog.models import EmbeddingModel, Precision
from sophia.embedding.base import (
    Backend,
    DeviceMemoryError,
    EmbeddingFigures,
    Ids,
    Kind,
    Vectors,
    nothing,
)
from sophia.embedding.budget import TokenBudget
from sophia.embedding.ceiling import TransformerCost, number_format
from sophia.embedding.duplicates import Distinct
from sophia.embedding.packing import pack
from sophia.embedding.tokens import TextTokenizer

logger = logging.getLogger("sophia.embedding")
# Passes between start and fetch on a device that computes aside. A CPU computes at once.
IN_FLIGHT = {"cpu": 1, "cuda": 2}
# Fewer tokens than this are not worth the search for the best budget.
SEARCH_TOKENS = 20_000
# Passes of the search, of which the fastest counts: a machine that others use too is slow now and then.
SEARCH_PASSES = 3
# A text of so many tokens alone is what a backend may compute by means of its own, which the first one makes.
LONG_TOKENS = 256
# A device that has no memory for so many has none for any text.
FEW_TOKENS = 4


class LocalEmbedder:
    """Implements `Embedder` with a backend.

    Args:
        tokenizer: the model's `tokenizers.Tokenizer`, without padding or truncation.
        budget: tokens of a forward pass; found by measuring when bulk work begins if None.
        cost: of the model's matrix products, if known.
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
        cost: TransformerCost | None = None,
    ) -> None:
        self.fingerprint = fingerprint
        self.precision = precision
        self.backend = backend.name
        self.device = backend.device
        self.number = number_format(backend.name)
        self.dimension = model.dimension
        self.max_tokens = max_tokens
        self.tokenizer = tokenizer
        self.figures = EmbeddingFigures()
        self.pass_tokens: int | None = None
        self._prefixes: dict[Kind, str] = {"document": model.document_prefix, "query": model.query_prefix}
        self._backend = backend
        self._cost = cost
        self._probed: tuple[tuple[str, ...], Vectors] | None = None
        self._front = TextTokenizer(tokenizer, max_tokens)
        self._budget = TokenBudget(budget or backend.first_budget)
        self._searched = budget is not None
        self._warm = False
        self._landed = 0.0

    @property
    def engine(self) -> LocalEmbedder:
        """See `Embedder.engine`: this one."""
        return self

    @property
    def budget_tokens(self) -> int:
        """See `Engine.budget_tokens`."""
        return self._budget.tokens

    def flop_per_token(self, length: float) -> float | None:
        """See `Engine.flop_per_token`."""
        return self._cost.flop_per_token(length) if self._cost is not None else None

    def embed(self, texts: Sequence[str], between: Callable[[], None] = nothing, *, kind: Kind = "document") -> Vectors:
        """See `Embedder.embed`."""
        prefix = self._prefixes[kind]
        distinct = Distinct(texts)
        found = np.zeros((len(distinct.texts), self.dimension), dtype=np.float32)
        reasons: dict[int, str] = {}
        self.figures.texts += len(texts)
        self.figures.duplicates += distinct.duplicates
        for start, ids in self._front.windows([prefix + text for text in distinct.texts]):
            if start:
                between()
            faults = self._compute(ids, found[start : start + len(ids)], between)
            reasons |= {start + i: reason for i, reason in faults.items()}
        self.figures.refused += len(reasons)
        return distinct.outcome(found, reasons)

    def embed_query(self, text: str) -> Vectors:
        """Vector of a query, shape (dimension,)."""
        vector: Vectors = self.embed([text], kind="query")[0]
        return vector

    def probe(self, texts: Sequence[str]) -> Vectors:
        """See `Embedder.probe`: in one forward pass, once for the same texts."""
        if self._probed is None or self._probed[0] != tuple(texts):
            self._probed = tuple(texts), self._backend.start(self._front.encode(texts))()
        return self._probed[1]

    def warm_up(self, between: Callable[[], None] = nothing) -> None:
        """Find the best budget by passes of made-up texts, and compute one of many tokens: both warm the device too.
        Once, and only while nobody has more urgent work."""
        if not self._searched:
            # Also while it searches: `between` may embed.
            self._searched = True
            self._budget.find(self._backend.largest_budget, partial(self._rate, between))
            # Interrupted, it is begun again with the next bulk work.
            self._searched = self.pass_tokens is None
            logger.info("%s: %d tokens a forward pass", self.backend, self._budget.tokens)
        if not self._warm and self.pass_tokens is None:
            self._warm = True
            self._fits(np.zeros(min(self.max_tokens, LONG_TOKENS), dtype=np.int32))

    def _rate(self, between: Callable[[], None], tokens: int) -> float:
        """Tokens per second of passes of that many tokens, in texts of an eighth of the model's length. On a CPU the
        seconds are of its own time: what others take of a busy machine says nothing of a budget."""
        length = max(8, self.max_tokens // 8)
        # The first token of the vocabulary: which one does not matter.
        batch = [np.zeros(length, dtype=np.int32)] * max(1, tokens // length)
        clock = process_time if self.device == "cpu" else perf_counter
        try:
            self._backend.start(batch)()
            best = float("inf")
            for _ in range(SEARCH_PASSES):
                between()
                if self.pass_tokens is not None:
                    return 0.0
                started = clock()
                self._backend.start(batch)()
                best = min(best, clock() - started)
        except DeviceMemoryError:
            return 0.0
        return length * len(batch) / best

    def _compute(self, ids: Sequence[Ids], into: Vectors, between: Callable[[], None]) -> dict[int, str]:
        """Write the vectors of a window. Returns the reasons of texts that cannot be embedded, by place."""
        sizes = {place: len(each) for place, each in enumerate(ids)}
        if not self._searched and sum(sizes.values()) >= SEARCH_TOKENS and self.pass_tokens is None:
            self.warm_up(between)
        # A pooling would take the vector of a text without tokens from another text.
        reasons = {place: "the model's tokenizer finds nothing in it" for place, size in sizes.items() if not size}
        self._passes([place for place, size in sizes.items() if size], ids, into, reasons, between)
        return reasons

    def _passes(
        self,
        places: Sequence[int],
        ids: Sequence[Ids],
        into: Vectors,
        reasons: dict[int, str],
        between: Callable[[], None],
    ) -> None:
        """Compute some texts of a window, by their places in it, in as many passes as the budget wants."""
        flying: deque[tuple[list[int], Callable[[], Vectors] | None, float]] = deque()

        def land() -> None:
            """Wait for the oldest pass in flight and take its vectors."""
            batch, wait, started = flying.popleft()
            vectors = None
            if wait is not None:
                with suppress(DeviceMemoryError):
                    vectors = wait()
            now = perf_counter()
            # Passes in flight overlap: each is charged for the time since the one before it had ended.
            self.figures.seconds += now - max(started, self._landed)
            self._landed = now
            if vectors is not None:
                self._take(batch, vectors, ids, into, reasons)
            else:
                self._again(batch, ids, into, reasons, between)

        for chosen in pack([len(ids[i]) for i in places], self._room, between, padded=self._backend.padded):
            batch = [places[i] for i in chosen]
            started = perf_counter()
            wait = None
            with suppress(DeviceMemoryError):
                wait = self._backend.start([ids[i] for i in batch])
            flying.append((batch, wait, started))
            if len(flying) >= IN_FLIGHT[self._backend.device]:
                land()
        while flying:
            land()

    def _room(self) -> int:
        return min(self._budget.tokens, self.pass_tokens or self._budget.tokens)

    def _take(
        self, batch: list[int], vectors: Vectors, ids: Sequence[Ids], into: Vectors, reasons: dict[int, str]
    ) -> None:
        sizes = [len(ids[i]) for i in batch]
        self.figures.passes += 1
        self.figures.tokens += sum(sizes)
        if self._backend.padded:
            self.figures.padding += max(sizes) * len(batch) - sum(sizes)
        self._budget.fit()
        finite: Any = np.isfinite(vectors)
        for row, place in enumerate(batch):
            if finite[row].all():
                into[place] = vectors[row]
            else:
                reasons[place] = "the model's vector holds a value that is no number"

    def _fits(self, ids: Ids) -> bool:
        try:
            self._backend.start([ids])()
        except DeviceMemoryError:
            return False
        return True

    def _again(
        self,
        batch: list[int],
        ids: Sequence[Ids],
        into: Vectors,
        reasons: dict[int, str],
        between: Callable[[], None],
    ) -> None:
        """The texts of a pass that did not fit, in halves at most."""
        tokens = sum(len(ids[i]) for i in batch)
        self.figures.out_of_memory += 1
        self._budget.lack(tokens)
        if len(batch) == 1:
            if not self._fits(ids[batch[0]][:FEW_TOKENS]):
                # No fault of the text: others use up the device, and would have all texts refused.
                raise DeviceMemoryError(f"{self.backend}: no memory for a forward pass; what else uses the device?")
            reasons[batch[0]] = f"its {tokens} tokens do not fit into the memory of {self._backend.device}"
            return
        logger.warning("%s: %d tokens do not fit into memory; now %d", self.backend, tokens, self._budget.tokens)
        middle = len(batch) // 2
        for half in (batch[:middle], batch[middle:]):
            between()
            self._passes(half, ids, into, reasons, between)

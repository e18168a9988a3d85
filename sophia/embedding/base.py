"""The protocol of an embedder, and how texts are cut into batches by a token budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

# Shape (texts, dimension), float32, each row of length 1.
Vectors = npt.NDArray[np.float32]


def _nothing() -> None:
    """The default of `between`."""


class Embedder(Protocol):
    """Turns texts into unit vectors. One instance serves one thread.

    Attributes:
        fingerprint: identifies weights, pooling, lengths and prompts; another fingerprint is another model.
        dimension: length of a vector.
        max_tokens: what lies beyond is not seen by the model.
        tokenizer: the model's `tokenizers.Tokenizer` without truncation, or None where it is not ours to have.
        tokens_seen: tokens of all documents that were embedded so far.
        pass_tokens: most tokens of a forward pass, None for as many as are computed fastest. Whoever has more urgent
            work than a bulk embedding lowers it, also from within `between`.
    """

    fingerprint: str
    dimension: int
    max_tokens: int
    pass_tokens: int | None

    @property
    def tokens_seen(self) -> int: ...

    @property
    def tokenizer(self) -> Any: ...

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, specials included, before any truncation."""
        ...

    def embed(self, texts: Sequence[str], between: Callable[[], None] = _nothing) -> Vectors:
        """Vectors of documents, in the order given. `between` is called between two forward passes.

        Raises:
            TemporaryError: the endpoint is away or overloaded.
            ConfigurationError: the model answers with another dimension than configured.
        """
        ...

    def embed_query(self, text: str) -> Vectors:
        """Vector of a query, shape (dimension,)."""
        ...


def pack(lengths: Sequence[int], budget: Callable[[], int], between: Callable[[], None]) -> Iterator[list[int]]:
    """Batches of indices, longest texts first, each holding at most `budget()` tokens once padded.

    Sorting by length keeps padding small: a batch costs its longest text times its number. A text longer than
    the budget is a batch of its own. Longest first, so that a lack of memory shows at once. Between two batches
    `between` is called, and then the budget is asked for again: it may have become smaller.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    start = 0
    while start < len(order):
        if start:
            between()
        fits = budget() // max(1, lengths[order[start]])
        batch = order[start : start + max(1, fits)]
        yield batch
        start += len(batch)

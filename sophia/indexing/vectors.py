"""Embeds the chunks of a batch, and tells its own cost from that of what is embedded in between."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sophia.embedding import Embedder, RefusedTextsError, Vectors
from sophia.embedding.base import nothing


@dataclass(frozen=True, slots=True)
class Embedded:
    """The vectors of texts by content hash, and the reasons of those that cannot be embedded.

    `tokens` and `seconds` are what these texts cost.
    """

    vectors: dict[bytes, Vectors]
    refused: dict[bytes, str]
    tokens: int
    seconds: float


def embed_chunks(embedder: Embedder, texts: Mapping[bytes, str], between: Callable[[], None] = nothing) -> Embedded:
    """Embed texts by content hash.

    Args:
        between: called between two forward passes; what it embeds with the same embedder is not counted here.
    """
    elsewhere_tokens, elsewhere_seconds = 0, 0.0

    def other_work() -> None:
        nonlocal elsewhere_tokens, elsewhere_seconds
        tokens, began = embedder.figures.tokens, time.perf_counter()
        between()
        elsewhere_tokens += embedder.figures.tokens - tokens
        elsewhere_seconds += time.perf_counter() - began

    seen, started = embedder.figures.tokens, time.perf_counter()
    reasons: dict[int, str] = {}
    try:
        computed = embedder.embed(list(texts.values()), other_work)
    except RefusedTextsError as error:
        computed, reasons = error.vectors, error.reasons
    hashes = list(texts)
    return Embedded(
        vectors={content_hash: computed[i] for i, content_hash in enumerate(hashes) if i not in reasons},
        refused={hashes[i]: reason for i, reason in reasons.items()},
        tokens=embedder.figures.tokens - seen - elsewhere_tokens,
        seconds=time.perf_counter() - started - elsewhere_seconds,
    )

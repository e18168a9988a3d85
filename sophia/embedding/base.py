"""The protocols of an embedder and of the backend that computes for it, and the figures that both report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from sophia.catalog.models import Precision
from sophia.errors import SophiaError, TemporaryError

# Shape (texts, dimension), float32, each row of length 1.
Vectors = npt.NDArray[np.float32]
# Token ids of one text, specials included; shape (tokens,).
Ids = npt.NDArray[np.int32]
# A query's text gets the model's query prefix, a document's the document prefix.
Kind = Literal["document", "query"]


def nothing() -> None:
    """The default of `between`."""


class RefusedTextsError(SophiaError):
    """Some texts of a batch cannot be embedded; the others were.

    Attributes:
        vectors: shape (texts, dimension); the rows of refused texts are zero.
        reasons: why, by place in the batch.
    """

    def __init__(self, vectors: Vectors, reasons: Mapping[int, str]) -> None:
        super().__init__(f"{len(reasons)} of {len(vectors)} texts cannot be embedded: {next(iter(reasons.values()))}")
        self.vectors = vectors
        self.reasons = dict(reasons)


class DeviceMemoryError(TemporaryError):
    """A forward pass did not fit into the device's memory; a smaller one may."""


@dataclass(slots=True)
class EmbeddingFigures:
    """What embedding cost, counted up since the embedder was made.

    Attributes:
        texts: texts asked for.
        tokens: tokens computed, specials included; neither padding nor what came from the cache or was equal.
        padding: tokens computed in vain, to make the texts of a pass equally long.
        passes: forward passes.
        seconds: time of these passes.
        duplicates: texts that equalled another of the same call.
        cache_hits: texts answered by the cache.
        refused: texts that cannot be embedded.
        out_of_memory: passes that had to be split.
    """

    texts: int = 0
    tokens: int = 0
    padding: int = 0
    passes: int = 0
    seconds: float = 0.0
    duplicates: int = 0
    cache_hits: int = 0
    refused: int = 0
    out_of_memory: int = 0

    def since(self, earlier: EmbeddingFigures) -> EmbeddingFigures:
        """The difference from an earlier copy."""
        return EmbeddingFigures(*(getattr(self, f.name) - getattr(earlier, f.name) for f in fields(self)))

    @property
    def tokens_per_second(self) -> float:
        """Tokens of a second of computing; 0 before the first pass."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def padding_share(self) -> float:
        """Share of the computed tokens that were padding, 0 to 1."""
        return self.padding / (self.tokens + self.padding) if self.padding else 0.0


class Engine(Protocol):
    """What computes an embedder's vectors, where that is in this process.

    Attributes:
        device: `cpu` or `cuda`.
        number: the number format of its matrix products, as torch calls it; None if that cannot be told.
    """

    device: Literal["cpu", "cuda"]
    number: str | None

    @property
    def budget_tokens(self) -> int:
        """Tokens of a forward pass, as found best or lowered since for lack of memory."""
        ...

    def warm_up(self, between: Callable[[], None] = nothing) -> None:
        """Find the best budget by passes of made-up texts, which warms the device too; once. Bulk work begins with it
        by itself, unless `pass_tokens` says that somebody has more urgent work."""
        ...

    def flop_per_token(self, length: float) -> float | None:
        """Floating-point operations of a token in texts of that many tokens; None for a model of another kind."""
        ...


class Embedder(Protocol):
    """Turns texts into unit vectors. One instance serves one thread; `Scheduler` shares one between many.

    Attributes:
        fingerprint: identifies weights, pooling, lengths, prompts and precision class; another one is another model.
        precision: the class of numeric precision that is promised.
        backend: what computes, with version, device and number format. Provenance, not identity.
        dimension: length of a vector.
        max_tokens: what lies beyond is not seen by the model.
        tokenizer: the model's `tokenizers.Tokenizer` without truncation, or None where it is not ours to have.
        figures: what embedding cost so far.
        pass_tokens: most tokens of a forward pass, None for as many as are computed fastest. Whoever has more urgent
            work than a bulk embedding lowers it, also from within `between`.
    """

    fingerprint: str
    precision: Precision
    backend: str
    dimension: int
    max_tokens: int
    figures: EmbeddingFigures
    pass_tokens: int | None

    @property
    def tokenizer(self) -> Any: ...

    @property
    def engine(self) -> Engine | None:
        """What computes here; None where an endpoint does."""
        ...

    def embed(self, texts: Sequence[str], between: Callable[[], None] = nothing, *, kind: Kind = "document") -> Vectors:
        """Vectors of texts, in the order given. `between` is called between two forward passes, and may embed too.

        Raises:
            RefusedTextsError: some of the texts cannot be embedded; it holds the vectors of the others.
            TemporaryError: the endpoint is away or overloaded, or the device has no memory left at all.
            ConfigurationError: the model answers with another dimension than configured.
        """
        ...

    def embed_query(self, text: str) -> Vectors:
        """Vector of a query, shape (dimension,)."""
        ...

    def probe(self, texts: Sequence[str]) -> Vectors:
        """Vectors of a few short texts without any prefix, computed by this process: no cache, no count.

        Raises:
            TemporaryError: what computes them is away or overloaded.
        """
        ...


class Backend(Protocol):
    """Computes forward passes of one model, on one device, in one number format.

    Attributes:
        name: library, version, device and number format, such as `torch 2.15.0 cpu float32 packed`.
        device: `cpu` or `cuda`.
        padded: whether the texts of a pass are padded to the longest, so that a pass costs longest times number.
        first_budget: tokens of a pass with which the search for the best budget begins.
        largest_budget: tokens of a pass beyond which it does not look.
    """

    name: str
    device: Literal["cpu", "cuda"]
    padded: bool
    first_budget: int
    largest_budget: int

    def start(self, batch: Sequence[Ids]) -> Callable[[], Vectors]:
        """Begin a forward pass. What is returned waits for its vectors, shape (batch, dimension), of length 1.

        Raises:
            DeviceMemoryError: here or when waited for.
        """
        ...

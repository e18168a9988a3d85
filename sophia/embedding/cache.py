"""The cache of embeddings: a text that a model has embedded is not embedded again, in whatever job or process.

Invariants, each with a test:

* A vector answers only for its model's fingerprint, which holds the precision class, and for exactly the text that is
  embedded, prefix included. Which backend or device computed it is not part of that: they agree within the class.
* A cache that is away, slow, full or corrupt makes nothing fail and nothing wait longer than the time-outs of its
  store, once in `PAUSE_SECONDS`. What is no unit vector of the model's dimension is embedded again and replaced.
* What was computed from a text that was erased meanwhile is not stored. Entries are written under the epoch of their
  model, which every erasure changes, and a call writes only under the epoch that was known before it began. So it must
  have read its texts after the embedder was made and after its former call, as whoever reads, embeds and writes in one
  thread does.

Short calls pass by: the few texts of a live change or a query are new nearly always, so that a look-up and a write
would be in vain, on the way where latency counts and where a silent store must hold up nothing at all. Measured on one
machine, both together take 0.3 ms for one text and 0.6 ms for eight. A longer call asks for all of its texts, `BATCH`
in a round trip, at 10 to 40 us a text where embedding takes milliseconds.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from time import monotonic
from typing import Protocol, TypeVar

import numpy as np

from sophia.embedding.base import Embedder, Kind, RefusedTextsError, Vectors, nothing
from sophia.embedding.duplicates import Distinct
from sophia.embedding.wrapping import Wrapper
from sophia.errors import ConfigurationError, TemporaryError
from sophia.settings import Settings

logger = logging.getLogger("sophia.embedding")
T = TypeVar("T")
# Calls of at most so many texts pass by the cache.
SHORT_CALL = 8
# Entries of a round trip: 3 to 10 ms, after which more urgent work is looked at.
BATCH = 250
# How long a store that failed is left alone.
PAUSE_SECONDS = 60.0
# Between two log lines that say the same of a store.
LOG_SECONDS = 600.0
# How far a stored vector's length may be from 1.
_UNIT = 1e-3
_FLOAT = np.dtype("<f4")
_DIGEST_BYTES = 32


class VectorCache(Protocol):
    """Keeps vectors by model fingerprint and key. Every method may raise TemporaryError, and returns or raises within
    a bounded time.

    Attributes:
        name: of the store, for people.
    """

    name: str

    def epoch(self, model: str) -> str:
        """The model's epoch; made if it has none."""
        ...

    def read(self, model: str, keys: Sequence[bytes]) -> tuple[str, dict[bytes, bytes]]:
        """The model's epoch, and what there is of these keys. Notes their use, once a day at most."""
        ...

    def write(self, model: str, epoch: str, entries: Mapping[bytes, bytes]) -> None:
        """Store or replace entries, unless the epoch is over."""
        ...


class CachedEmbedder(Wrapper):
    """Implements `Embedder`: asks a cache first, and embeds what it lacks.

    Args:
        embedder: what computes. Its figures count what the cache answered, too.
        cache: owned by this embedder.
        prefixes: what the embedder puts before a text of each kind.
        pause: seconds in which a store that failed is left alone.
    """

    def __init__(
        self, embedder: Embedder, cache: VectorCache, prefixes: Mapping[Kind, str], pause: float = PAUSE_SECONDS
    ) -> None:
        super().__init__(embedder)
        self._cache = cache
        self._prefixes = dict(prefixes)
        # Apart: a store that is full or read-only still answers.
        self._reading = Attempts("embedding cache", cache.name, "answer", pause)
        self._writing = Attempts("embedding cache", cache.name, "take vectors", pause)
        # As of the last look: None if there was none, and then nothing is stored.
        self._epoch = self._reading.attempt(partial(cache.epoch, self.fingerprint))

    @property
    def pass_tokens(self) -> int | None:
        """See `Embedder`."""
        return self.inner.pass_tokens

    @pass_tokens.setter
    def pass_tokens(self, tokens: int | None) -> None:
        self.inner.pass_tokens = tokens

    def embed(self, texts: Sequence[str], between: Callable[[], None] = nothing, *, kind: Kind = "document") -> Vectors:
        """See `Embedder.embed`. `between` is also called between two round trips to the cache."""
        if len(texts) <= SHORT_CALL or self._reading.paused:
            return self.inner.embed(texts, between, kind=kind)
        distinct = Distinct(texts)
        prefix = self._prefixes[kind]
        keys = [_key(prefix + text) for text in distinct.texts]
        known = self._epoch
        vectors, missing, answered = self._look_up(keys, between)
        figures = self.figures
        # The embedder itself counts the texts that it is given.
        figures.texts += len(texts) - len(missing)
        figures.duplicates += distinct.duplicates
        figures.cache_hits += len(keys) - len(missing)
        reasons: dict[int, str] = {}
        if missing:
            try:
                vectors[missing] = self.inner.embed([distinct.texts[i] for i in missing], between, kind=kind)
            except RefusedTextsError as error:
                vectors[missing] = error.vectors
                reasons = {missing[place]: reason for place, reason in error.reasons.items()}
            # The store compares the epoch itself; another one here spares the round trips.
            if answered and known is not None and known == self._epoch:
                self._store(known, keys, vectors, [i for i in missing if i not in reasons], between)
        return distinct.outcome(vectors, reasons)

    def embed_query(self, text: str) -> Vectors:
        """See `Embedder.embed_query`."""
        return self.inner.embed_query(text)

    def probe(self, texts: Sequence[str]) -> Vectors:
        """See `Embedder.probe`."""
        return self.inner.probe(texts)

    def _look_up(self, keys: Sequence[bytes], between: Callable[[], None]) -> tuple[Vectors, list[int], bool]:
        """Vectors by place, the places without one, whose rows are zero, and whether the store answered to the end."""
        vectors = np.zeros((len(keys), self.dimension), dtype=np.float32)
        missing: list[int] = []
        for start, batch in _batches(keys, between):
            found = self._reading.attempt(partial(self._cache.read, self.fingerprint, batch))
            if found is None:
                return vectors, missing + list(range(start, len(keys))), False
            self._epoch, values = found
            sound = self._sound(values)
            for i, key in enumerate(batch, start):
                if key in sound:
                    vectors[i] = sound[key]
                else:
                    missing.append(i)
        return vectors, missing, True

    def _sound(self, values: Mapping[bytes, bytes]) -> dict[bytes, Vectors]:
        """The unit vectors of this model's dimension among what was read."""
        size = self.dimension * _FLOAT.itemsize
        keys = [key for key, value in values.items() if len(value) == size]
        if not keys:
            return {}
        read = np.frombuffer(b"".join(values[key] for key in keys), dtype=_FLOAT).reshape(len(keys), self.dimension)
        # False for what is no number, too.
        with np.errstate(over="ignore", invalid="ignore"):
            unit = np.abs(np.einsum("ij,ij->i", read, read) - 1) < 2 * _UNIT
        return {key: vector for key, vector, good in zip(keys, read, unit, strict=True) if good}

    def _store(
        self, epoch: str, keys: Sequence[bytes], vectors: Vectors, places: Sequence[int], between: Callable[[], None]
    ) -> None:
        for _, batch in _batches(places, between):
            if self._writing.paused:
                return
            entries = {keys[i]: vectors[i].astype(_FLOAT).tobytes() for i in batch}
            self._writing.attempt(partial(self._cache.write, self.fingerprint, epoch, entries))


class Attempts:
    """Tries a store, and leaves it alone for a while when it failed.

    Args:
        what: it is for people: "embedding cache".
        store: the kind of server: "Redis".
        does: what it is asked for: "answer".
        pause: seconds of such a while.
    """

    def __init__(self, what: str, store: str, does: str, pause: float) -> None:
        self._what = what
        self._store = store
        self._does = does
        self._pause = pause
        self._until = 0.0
        self._failing = False
        self._said_at = float("-inf")

    @property
    def paused(self) -> bool:
        """Whether the store is left alone now."""
        return monotonic() < self._until

    def attempt(self, action: Callable[[], T]) -> T | None:
        """The outcome of the action, or None if the store failed. Says so now and then."""
        try:
            outcome = action()
        except TemporaryError as error:
            now = monotonic()
            self._until = now + self._pause
            self._failing = True
            if now - self._said_at >= LOG_SECONDS:
                self._said_at = now
                logger.warning("the %s does not %s, going on without it: %s", self._what, self._does, error)
            return None
        if self._failing:
            self._failing = False
            self._said_at = float("-inf")
            logger.info("the %s in %s does %s again", self._what, self._store, self._does)
        return outcome


def open_cache(settings: Settings) -> VectorCache | None:
    """The cache that the settings name; nothing is connected yet.

    Raises:
        ConfigurationError: Redis has no URL, a malformed one, or no client is installed.
    """
    if settings.embedding.cache == "postgres":
        from sophia.embedding.postgres_cache import PostgresCache

        return PostgresCache.of(settings)
    if settings.embedding.cache == "redis":
        from sophia.embedding.redis_cache import redis_cache

        cache = redis_cache(settings)
        if cache is None:
            raise ConfigurationError("SOPHIA_EMBEDDING__CACHE is redis: set SOPHIA_EMBEDDING__REDIS_URL, too")
        return cache
    return None


def uncached(embedder: Embedder) -> Embedder:
    """The embedder without its cache: for whoever proves a stored vector by computing it anew."""
    return embedder.inner if isinstance(embedder, CachedEmbedder) else embedder


def _key(text: str) -> bytes:
    # Half a surrogate pair is no text for a model, but that is for the model to say.
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).digest()


def _batches(items: Sequence[T], between: Callable[[], None]) -> Iterator[tuple[int, Sequence[T]]]:
    """Parts of a round trip each, with the place of the first item; `between` is called between two."""
    for start in range(0, len(items), BATCH):
        if start:
            between()
        yield start, items[start : start + BATCH]

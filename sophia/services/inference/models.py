"""Everything that is loaded before the service is ready, in a thread of its own while the port is open already."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Thread

from sophia.catalog.models import EmbeddingModel, Precision
from sophia.embedding import Embedder, Vectors
from sophia.embedding.base import Kind, nothing
from sophia.embedding.scheduler import Lane, Scheduler
from sophia.embedding.tokens import TextTokenizer
from sophia.errors import ConfigurationError, SophiaError, TemporaryError
from sophia.services.inference.generate import Generator, load_generator
from sophia.services.inference.results import Results, open_results
from sophia.services.inference.sentiment import Sentiment, load_sentiment
from sophia.services.inference.summarize import AbstractiveSummarizer, load_summarizer
from sophia.services.inference.threads import OneThread
from sophia.settings import Settings

logger = logging.getLogger("sophia.inference")
LoadEmbedder = Callable[[EmbeddingModel, Precision, Settings], Embedder]
# A request with more than this is bulk work: it would hold up the short ones.
ONLINE_TEXTS = 32
ONLINE_LENGTHS = 4
# The tokens of fewer are counted at once: handing them to another thread takes longer. Not by what the model sees of
# them: without spaces all of a text is tokenised, which takes tenths of a second.
COUNT_INLINE_CHARS = 2_048
CLOSE_SECONDS = 2.0


class LoadingError(TemporaryError):
    """The models are not in memory yet."""


class Functions:
    """The loaded models, and what is asked of the embedding engine by every route.

    Attributes:
        model: the catalog's entry of the embedding model.
        scheduler: shares the embedder between requests.
        sentiment, summarizer, generator, results: see their modules; None where nothing is configured.
        helper: thread of what is not the engine's: sentiment, sentences.
        writer: thread of the summarizer.
    """

    def __init__(
        self,
        model: EmbeddingModel,
        scheduler: Scheduler,
        sentiment: Sentiment,
        summarizer: AbstractiveSummarizer | None,
        generator: Generator | None,
        results: Results | None,
    ) -> None:
        self.model = model
        self.scheduler = scheduler
        self.sentiment = sentiment
        self.summarizer = summarizer
        self.generator = generator
        self.results = results
        self.helper = OneThread("analysis")
        self.writer = OneThread("summaries")
        self._counter = ThreadPoolExecutor(1, thread_name_prefix="count")
        tokenizer = scheduler.tokenizer
        self._tokens = TextTokenizer(tokenizer, scheduler.max_tokens) if tokenizer is not None else None

    async def embed(self, texts: Sequence[str], kind: Kind) -> tuple[Vectors, int]:
        """(vectors of shape (texts, dimension), tokens that the model reads). Cancelling stops the computation.

        Raises:
            OverloadedError, RefusedTextsError, TemporaryError: see `Scheduler.submit`.
        """
        estimate = sum(min(len(text) // 4 + 2, self.scheduler.max_tokens) for text in texts)
        future = self.scheduler.submit(texts, kind=kind, lane=self._lane(len(texts), estimate))
        vectors = asyncio.wrap_future(future)
        try:
            tokens = await self._count(texts, kind, estimate)
            return await vectors, tokens
        finally:
            vectors.cancel()

    async def close(self) -> None:
        """Give up what nobody waits for any more, and free the models."""
        if self.generator is not None:
            await self.generator.close()
        if self.results is not None:
            self.results.close()
        self.helper.close()
        self.writer.close()
        self._counter.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self.scheduler.close, CLOSE_SECONDS)

    def _lane(self, texts: int, estimate: int) -> Lane:
        online = texts <= ONLINE_TEXTS and estimate <= ONLINE_LENGTHS * self.scheduler.max_tokens
        return "online" if online else "bulk"

    async def _count(self, texts: Sequence[str], kind: Kind, estimate: int) -> int:
        """Tokens that the model reads; four characters each where the tokenizer is not ours."""
        if self._tokens is None:
            return estimate
        prefix = self.model.query_prefix if kind == "query" else self.model.document_prefix
        prefixed = [prefix + text for text in texts] if prefix else texts
        if sum(map(len, prefixed)) <= COUNT_INLINE_CHARS:
            encoded = self._tokens.encode(prefixed)
        else:
            encoded = await asyncio.get_running_loop().run_in_executor(self._counter, self._tokens.encode, prefixed)
        return sum(len(ids) for ids in encoded)


class Loading:
    """Loads the functions in the background.

    Args:
        loaded: called when everything is loaded, before `done` says so.
    """

    def __init__(
        self, settings: Settings, model: EmbeddingModel, load: LoadEmbedder, loaded: Callable[[], None] = nothing
    ) -> None:
        self._error: SophiaError | None = None
        self._settings = settings
        self._model = model
        self._load_embedder = load
        self._loaded = loaded
        self._functions: Functions | None = None
        # A daemon: a process that is told to end does not wait for gigabytes of weights.
        self._thread = Thread(target=self._run, name="loading", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether everything is loaded."""
        return self._functions is not None

    @property
    def error(self) -> SophiaError | None:
        """Why they could not be loaded, or embed nothing any more, for the process to end with."""
        return self._error if self._functions is None else self._functions.scheduler.died

    @property
    def functions(self) -> Functions:
        """What was loaded; raises LoadingError before."""
        if self._functions is None:
            raise LoadingError("the models are being loaded; try again in a moment")
        return self._functions

    async def close(self, seconds: float) -> None:
        """Close what was loaded; loading that goes on is waited for that long, since it is deep in native code."""
        await asyncio.to_thread(self._thread.join, seconds)
        if self._functions is not None:
            await self._functions.close()

    def _run(self) -> None:
        try:
            functions = self._load()
            self._loaded()
            self._functions = functions
        except SophiaError as error:
            self._error = error
        except Exception as error:
            # Whatever a library says of files that it cannot use.
            self._error = ConfigurationError(f"a model cannot be loaded: {type(error).__name__}: {error}")

    def _load(self) -> Functions:
        settings, model = self._settings.inference, self._model
        sentiment = load_sentiment(self._settings)
        summarizer = load_summarizer(self._settings)
        generator = load_generator(self._settings)
        embedder = self._load_embedder(model, settings.precision, self._settings)
        if embedder.engine is not None:
            # While nobody waits yet: behind a scheduler the search would hold requests up, and is never begun.
            embedder.engine.warm_up()
        scheduler = Scheduler(embedder, online_tokens=settings.online_tokens, bulk_tokens=settings.bulk_tokens)
        logger.info("model %s by %s is ready", model.name, embedder.backend)
        depends = [scheduler.fingerprint, sentiment.name, summarizer.name if summarizer is not None else ""]
        return Functions(model, scheduler, sentiment, summarizer, generator, open_results(self._settings, depends))

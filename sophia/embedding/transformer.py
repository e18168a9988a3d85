"""Embedding with sentence-transformers: batches by token budget, sorted by length."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sophia.catalog.models import EmbeddingModel
from sophia.embedding.base import Vectors, _nothing, pack
from sophia.errors import ConfigurationError
from sophia.settings import Settings

logger = logging.getLogger("sophia.embedding")

# Tokens of one forward pass. On a CPU the activations of more than about 2,000 fall out of the cache.
CPU_BUDGET = 512
CUDA_BUDGET = 32_768


class TransformerEmbedder:
    """A model that sentence-transformers loads, from a folder, a pip package or (if allowed) a hub.

    Raises:
        ConfigurationError: it cannot be loaded, or its dimension is not the catalog's.
    """

    def __init__(self, model: EmbeddingModel, fingerprint: str, path: str, settings: Settings) -> None:
        self.fingerprint = fingerprint
        self.dimension = model.dimension
        self._query_prefix = model.query_prefix
        self._document_prefix = model.document_prefix
        if not settings.hub:
            # Read by huggingface_hub when it is imported, which is below.
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        # Threads that spin while they wait make a busy machine several times slower: measured 4x on two shared cores.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        import torch
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        try:
            self._model: Any = SentenceTransformer(path, device=settings.device, local_files_only=not settings.hub)
        except (OSError, ValueError, RuntimeError) as error:
            hint = "" if settings.hub else "; set SOPHIA_HUB=true to allow a download, or name a local folder"
            raise ConfigurationError(f"model {model.name!r} cannot be loaded from {path!r}: {error}{hint}") from error
        found = self._model.get_embedding_dimension()
        if found != model.dimension:
            raise ConfigurationError(
                f"model {model.name!r} yields {found} dimensions, the catalog says {model.dimension}; "
                f"set `dimension: {found}` in models.yaml"
            )
        self._model.eval()
        self.max_tokens = min(model.max_tokens, int(self._model.max_seq_length or model.max_tokens))
        self._model.max_seq_length = self.max_tokens
        # The Rust tokenizer, a copy without truncation, only to count.
        self._counter: Any = type(self._model.tokenizer.backend_tokenizer).from_str(
            self._model.tokenizer.backend_tokenizer.to_str()
        )
        self._counter.no_truncation()
        self._counter.no_padding()
        self._budget = CUDA_BUDGET if self._model.device.type == "cuda" else CPU_BUDGET
        logger.info("model %s on %s, %d torch threads", model.name, self._model.device, torch.get_num_threads())

    @property
    def tokenizer(self) -> Any:
        """The `tokenizers.Tokenizer` of the model, without truncation, for the chunker."""
        return self._counter

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, specials included."""
        return [len(encoding.ids) for encoding in self._counter.encode_batch_fast(list(texts))]

    def embed(self, texts: Sequence[str], between: Callable[[], None] = _nothing) -> Vectors:
        """Vectors of documents; see `Embedder.embed`."""
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        prefixed = [self._document_prefix + text for text in texts]
        lengths = [min(count, self.max_tokens) for count in self.token_counts(prefixed)]
        for number, batch in enumerate(pack(lengths, self._budget)):
            if number:
                between()
            vectors[batch] = self._forward([prefixed[i] for i in batch])
        return vectors

    def embed_query(self, text: str) -> Vectors:
        """Vector of a query, shape (dimension,)."""
        vector: Vectors = self._forward([self._query_prefix + text])[0]
        return vector

    def _forward(self, texts: list[str]) -> Vectors:
        vectors: Vectors = self._model.encode(
            texts,
            batch_size=len(texts),
            convert_to_numpy=True,
            normalize_embeddings=True,
            show_progress_bar=False,
        )
        return vectors

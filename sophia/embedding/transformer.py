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
# Largest difference of a component between our forward pass and sentence-transformers' `encode`, in float32.
AGREEMENT = 1e-4
_PROBES = ("one", "A row changes, and its text is embedded again: naïve, 日本語, 0.5 %.")


class TransformerEmbedder:
    """A model that sentence-transformers loads, from a folder, a pip package or (if allowed) a hub.

    Raises:
        ConfigurationError: it cannot be loaded, or its dimension is not the catalog's.
    """

    def __init__(self, model: EmbeddingModel, fingerprint: str, path: str, settings: Settings) -> None:
        self.fingerprint = fingerprint
        self.dimension = model.dimension
        self.tokens_seen = 0
        self.pass_tokens: int | None = None
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
        self._torch: Any = torch
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
        # And one that cuts at the model's length. Padding is ours, so that a batch is padded to its own longest text.
        self._cutter: Any = type(self._counter).from_str(self._counter.to_str())
        self._cutter.enable_truncation(self.max_tokens)
        pad = self._model.tokenizer.pad_token_id
        fields = {"input_ids": ("ids", pad), "attention_mask": ("attention_mask", 0), "token_type_ids": ("type_ids", 0)}
        self._inputs = [(name, *fields[name]) for name in self._model.tokenizer.model_input_names if name in fields]
        self._budget = CUDA_BUDGET if self._model.device.type == "cuda" else CPU_BUDGET
        self._check_agreement(model.name)
        logger.info("model %s on %s, %d torch threads", model.name, self._model.device, torch.get_num_threads())

    def _check_agreement(self, name: str) -> None:
        """Our way through the modules must give what sentence-transformers gives."""
        ours = np.stack([self._forward(self._encode([text]))[0] for text in _PROBES])
        theirs = self._model.encode(list(_PROBES), normalize_embeddings=True, show_progress_bar=False)
        difference = float(np.abs(ours - theirs).max())
        if difference > AGREEMENT:
            raise ConfigurationError(
                f"model {name!r}: vectors differ by {difference:.1e} from those of sentence-transformers; its modules "
                "or tokenizer are not supported here: serve it by an OpenAI-compatible endpoint instead"
            )

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
        encodings = self._encode([self._document_prefix + text for text in texts])
        lengths = [len(encoding.ids) for encoding in encodings]
        for batch in pack(lengths, lambda: min(self._budget, self.pass_tokens or self._budget), between):
            vectors[batch] = self._forward([encodings[i] for i in batch])
        self.tokens_seen += sum(lengths)
        return vectors

    def embed_query(self, text: str) -> Vectors:
        """Vector of a query, shape (dimension,)."""
        vector: Vectors = self._forward(self._encode([self._query_prefix + text]))[0]
        return vector

    def _encode(self, texts: list[str]) -> list[Any]:
        encodings: list[Any] = self._cutter.encode_batch_fast(texts)
        return encodings

    def _forward(self, encodings: Sequence[Any]) -> Vectors:
        """One forward pass through the model's modules.

        `SentenceTransformer.encode` does the same after tokenising once more and moving through several wrappers,
        which costs a short text as much again as the model itself.
        """
        torch = self._torch
        longest = max(len(encoding.ids) for encoding in encodings)
        features = {
            name: torch.tensor(
                [values + [pad] * (longest - len(values)) for values in (getattr(e, field) for e in encodings)],
                device=self._model.device,
            )
            for name, field, pad in self._inputs
        }
        with torch.inference_mode():
            vectors = self._model(features)["sentence_embedding"].float()
            unit = torch.nn.functional.normalize(vectors, dim=1)
        result: Vectors = unit.cpu().numpy()
        return result

"""Loads a model with sentence-transformers, which is the oracle of every backend and brings modules and tokenizer."""

from __future__ import annotations

import os
from typing import Any

from sophia.catalog.models import EmbeddingModel
from sophia.errors import ConfigurationError
from sophia.settings import Settings


def load_sentence_transformer(model: EmbeddingModel, path: str, settings: Settings) -> Any:
    """A `SentenceTransformer` in float32, with the length that the catalog asks for, or the model's own if shorter.

    Raises:
        ConfigurationError: it cannot be loaded, its dimension is not the catalog's, or its pooling leaves out prompts.
    """
    if not settings.hub:
        # Read by huggingface_hub when it is imported, which is below.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # Threads that spin while they wait make a busy machine several times slower: measured 4x on two shared cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    if settings.embedding.threads is not None:
        torch.set_num_threads(settings.embedding.threads)
    try:
        loaded: Any = SentenceTransformer(
            path,
            device=settings.device,
            local_files_only=not settings.hub,
            # Not the number format that the weights happen to be stored in.
            model_kwargs={"dtype": torch.float32},
        )
    except (OSError, ValueError, RuntimeError) as error:
        hint = "" if settings.hub else "; set SOPHIA_HUB=true to allow a download, or name a local folder"
        raise ConfigurationError(f"model {model.name!r} cannot be loaded from {path!r}: {error}{hint}") from error
    loaded.eval()
    # Prompts are the catalog's.
    loaded.default_prompt_name = None
    # Beside a CPU's passes tokenising costs nothing; a GPU is fed by all cores.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true" if loaded.device.type == "cuda" else "false")
    found = loaded.get_embedding_dimension()
    if found != model.dimension:
        raise ConfigurationError(
            f"model {model.name!r} yields {found} dimensions, the catalog says {model.dimension}; "
            f"set `dimension: {found}` in models.yaml"
        )
    if (model.query_prefix or model.document_prefix) and not all(
        getattr(module, "include_prompt", True) for module in loaded
    ):
        raise ConfigurationError(
            f"model {model.name!r} leaves prompts out of its pooling, which is not supported here: "
            "serve it by an OpenAI-compatible endpoint instead"
        )
    loaded.max_seq_length = min(model.max_tokens, int(loaded.max_seq_length or model.max_tokens))
    return loaded


def plain_tokenizer(loaded: Any) -> Any:
    """A copy of the model's Rust tokenizer, without truncation and padding.

    Raises:
        ConfigurationError: it has none, or one that leaves out the beginning of a long text.
    """
    tokenizer = getattr(loaded.tokenizer, "backend_tokenizer", None)
    if tokenizer is None or loaded.tokenizer.truncation_side != "right":
        raise ConfigurationError(
            f"the tokenizer {type(loaded.tokenizer).__name__} is not supported here: it must be a fast one that keeps "
            "the beginning of a long text; serve the model by an OpenAI-compatible endpoint instead"
        )
    copy = type(tokenizer).from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy

"""From a catalog entry to an embedder, and the fingerprint of its model.

A model's fingerprint hashes what decides the vectors: the files that sentence-transformers reads, or the
endpoint's model name and version, with prompts, length and precision class. It is computed without loading torch.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sophia.catalog.models import EmbeddingModel, Precision
from sophia.embedding.base import Backend, Embedder
from sophia.embedding.cache import CachedEmbedder, open_cache
from sophia.errors import ConfigurationError
from sophia.settings import Settings

if TYPE_CHECKING:
    from sophia.embedding.local import LocalEmbedder

logger = logging.getLogger("sophia.embedding")
_PACKAGE = "package:"
# What else lies in a model folder (readme, other formats) does not change a vector.
_MODEL_FILES = ("*.json", "*.txt", "*.safetensors", "*.model", "*/*.json", "*/*.safetensors")


def model_path(model: EmbeddingModel) -> str:
    """The folder of a local model, or the hub name of another.

    Raises:
        ConfigurationError: the package that should carry the weights is not installed.
    """
    path = model.path or ""
    if not path.startswith(_PACKAGE):
        return path
    package = path.removeprefix(_PACKAGE)
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ConfigurationError(
            f"model {model.name!r}: package {package!r} is not installed; run `pip install {package.replace('_', '-')}`"
        )
    return str(Path(spec.origin).parent / "model")


def model_fingerprint(model: EmbeddingModel, precision: Precision) -> str:
    """Sixteen hex digits that change whenever the model's vectors may change."""
    digest = hashlib.sha256()
    parts = [model.provider, model.version, model.dimension, model.max_tokens]
    parts += [model.query_prefix, model.document_prefix, precision, model.model or ""]
    digest.update(repr(parts).encode())
    if model.provider == "sentence-transformers":
        folder = Path(model_path(model))
        if folder.is_dir():
            for path in sorted({file for pattern in _MODEL_FILES for file in folder.glob(pattern)}):
                status = path.stat()
                digest.update(str(path.relative_to(folder)).encode())
                digest.update(_file_hash(path, status.st_size, status.st_mtime_ns))
        else:
            digest.update(str(model.path).encode())
    return digest.hexdigest()[:16]


@cache
def _file_hash(path: Path, size: int, modified_ns: int) -> bytes:
    """SHA-256 of a file, read once a process as long as it stays as it is: weights are hundreds of megabytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").digest()


def load_embedder(model: EmbeddingModel, precision: Precision, settings: Settings) -> Embedder:
    """Load a model, behind the cache that the settings name.

    Raises:
        ConfigurationError: it is not there, may not be downloaded, or has another dimension than the catalog says; or
            the cache lacks a setting.
    """
    cache = open_cache(settings)
    embedder = _load(model, precision, model_fingerprint(model, precision), settings)
    if cache is None:
        return embedder
    return CachedEmbedder(embedder, cache, {"document": model.document_prefix, "query": model.query_prefix})


def _load(model: EmbeddingModel, precision: Precision, fingerprint: str, settings: Settings) -> Embedder:
    if model.provider == "openai":
        from sophia.embedding.endpoint import EndpointEmbedder

        return EndpointEmbedder(model, precision, fingerprint, settings)
    from sophia.embedding.loading import load_sentence_transformer

    loaded = load_sentence_transformer(model, model_path(model), settings)
    return _local(model, precision, fingerprint, loaded, settings)


def _local(
    model: EmbeddingModel, precision: Precision, fingerprint: str, loaded: Any, settings: Settings
) -> LocalEmbedder:
    """The first way to compute a model that keeps the promise of its precision class."""
    from sophia.embedding.agreement import PROBES, Agreement
    from sophia.embedding.ceiling import transformer_cost
    from sophia.embedding.loading import plain_tokenizer
    from sophia.embedding.local import LocalEmbedder

    tokenizer, max_tokens = plain_tokenizer(loaded), loaded.max_seq_length
    # Asked first: a backend may change the model that it is given.
    oracle = loaded.encode(list(PROBES), normalize_embeddings=True, show_progress_bar=False)
    cost = transformer_cost(getattr(loaded[0], "model", None))
    budget = settings.embedding.budget_tokens
    refused = []
    for make in _ways(loaded, precision, fingerprint, settings):
        try:
            backend = make()
            embedder = LocalEmbedder(model, precision, fingerprint, backend, tokenizer, max_tokens, budget, cost)
            agreement = Agreement.of(embedder.probe(PROBES), oracle)
        except Exception as error:
            # Whatever a library says of a model that it does not know; another way may do.
            refused.append(f"{type(error).__name__}: {error}")
            continue
        if agreement.keeps(precision):
            level = logging.WARNING if precision == "int8" else logging.INFO
            logger.log(level, "model %s by %s: %s", model.name, backend.name, agreement)
            if refused:
                # What was passed over may have been the fast way.
                logger.warning("model %s: not used: %s", model.name, "; ".join(refused))
            return embedder
        refused.append(f"{backend.name}: {agreement}")
    raise ConfigurationError(
        f"model {model.name!r} cannot be computed here with precision {precision!r}: {'; '.join(refused)}; "
        "serve it by an OpenAI-compatible endpoint instead"
    )


def _ways(loaded: Any, precision: Precision, fingerprint: str, settings: Settings) -> Iterator[Callable[[], Backend]]:
    """Backends in the order in which they are tried.

    Raises:
        ConfigurationError: the one that the settings or the precision class ask for cannot be had.
    """
    from sophia.embedding import conversion
    from sophia.embedding.torch_backend import TorchBackend

    wanted = settings.embedding.backend
    if precision == "int8":
        if loaded.device.type != "cpu" or wanted == "torch":
            raise ConfigurationError(
                "precision int8 is computed by OpenVINO on a CPU: "
                "set SOPHIA_DEVICE=cpu and SOPHIA_EMBEDDING__BACKEND=auto"
            )
        wanted = "openvino"
    if loaded.device.type == "cpu" and wanted != "torch":
        if conversion.installed(quantizer=precision == "int8"):
            from sophia.embedding.openvino_backend import OpenVinoBackend

            yield lambda: OpenVinoBackend(loaded, precision, fingerprint, settings)
        elif wanted == "openvino":
            asker = "precision int8" if precision == "int8" else "SOPHIA_EMBEDDING__BACKEND=openvino"
            raise ConfigurationError(f"{asker} needs OpenVINO: {conversion.INSTALL}")
        if wanted == "openvino":
            return
    yield lambda: TorchBackend(loaded, precision)
    yield lambda: TorchBackend(loaded, precision, packed=False)
    if precision == "fast":
        # A model that bfloat16 takes too far is computed in float32, which keeps the promise as well.
        yield lambda: TorchBackend(loaded, "exact")

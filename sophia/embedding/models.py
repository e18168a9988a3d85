"""From a catalog entry to an embedder, and the fingerprint of its model.

A model's fingerprint hashes what decides the vectors: the files that sentence-transformers reads, or the
endpoint's model name and version, with prompts, length and precision class. It is computed without loading torch.
"""

from __future__ import annotations

import hashlib
import importlib.util
from functools import cache
from pathlib import Path

from sophia.catalog.models import EmbeddingModel, Precision
from sophia.embedding.base import Embedder
from sophia.errors import ConfigurationError
from sophia.settings import Settings

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
    """Load a model.

    Raises:
        ConfigurationError: it is not there, may not be downloaded, or has another dimension than the catalog says.
    """
    fingerprint = model_fingerprint(model, precision)
    if model.provider == "openai":
        from sophia.embedding.endpoint import EndpointEmbedder

        return EndpointEmbedder(model, fingerprint, settings)
    if precision != "exact":
        raise ConfigurationError(
            f"model {model.name!r}: precision {precision!r} is not supported by the sentence-transformers backend; "
            "use `exact`"
        )
    from sophia.embedding.transformer import TransformerEmbedder

    return TransformerEmbedder(model, fingerprint, model_path(model), settings)

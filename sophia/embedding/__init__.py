"""Text to vectors: the `Embedder` protocol and the ways to get one.

Callers hold an `Embedder` and know nothing of models, devices or endpoints, so the engine behind it can be
replaced. Heavy libraries are imported when a model is loaded, never before.
"""

from sophia.embedding.base import Embedder, RefusedTextsError, Vectors
from sophia.embedding.models import load_embedder, model_fingerprint

__all__ = ["Embedder", "RefusedTextsError", "Vectors", "load_embedder", "model_fingerprint"]

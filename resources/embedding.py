"""Embedders of index versions, loaded when first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dagster as dg
from pydantic import PrivateAttr

from sophia.settings import load_settings

if TYPE_CHECKING:
    from sophia.embedding import Embedder
    from sophia.indexing.versions import IndexVersion


class EmbeddingResource(dg.ConfigurableResource):
    """Loads each model once a process step."""

    _loaded: dict[tuple[str, str], Embedder] = PrivateAttr(default_factory=dict)

    def of(self, version: IndexVersion) -> Embedder:
        """The embedder that a version's documents and queries need."""
        from sophia.embedding import load_embedder

        # By the whole entry: two versions may differ in their model and not in its name.
        key = (version.model.model_dump_json(), version.index.precision)
        if key not in self._loaded:
            self._loaded[key] = load_embedder(version.model, version.index.precision, load_settings())
        return self._loaded[key]

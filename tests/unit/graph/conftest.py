"""The graph of this checkout's catalog, in both profiles; building one takes about a second."""

from __future__ import annotations

import dagster as dg
import pytest
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph

from sophia.catalog import Catalog
from sophia_assets.definitions import build_definitions


@pytest.fixture(scope="session")
def definitions(catalog: Catalog) -> dg.Definitions:
    return build_definitions(catalog, "local")


@pytest.fixture(scope="session")
def cluster_definitions(catalog: Catalog) -> dg.Definitions:
    return build_definitions(catalog, "cluster")


@pytest.fixture(scope="session")
def graph(definitions: dg.Definitions) -> AssetGraph:
    return definitions.resolve_asset_graph()

"""Stands of the stores outside of the database."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg.rows import TupleRow

from sophia.catalog import Catalog
from sophia.settings import Settings
from tests.integration.stores.weaviate_stand import URL, WeaviateStand, weaviate_settings


@pytest.fixture
def weaviate(connection: psycopg.Connection[TupleRow], catalog: Catalog, settings: Settings) -> Iterator[WeaviateStand]:
    """Classes of the test's own in the server of SOPHIA_TEST_WEAVIATE_URL."""
    if URL is None:
        pytest.skip("set SOPHIA_TEST_WEAVIATE_URL; `docker compose -f deploy/compose/weaviate.yaml up` starts a server")
    stand = WeaviateStand(connection, catalog, weaviate_settings(settings))
    yield stand
    stand.clear()

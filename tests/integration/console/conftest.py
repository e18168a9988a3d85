"""The console's fixtures: an index with a few documents, and a server in front of it."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import psycopg
import pytest
from psycopg.rows import TupleRow

from sophia.catalog import Catalog
from sophia.database import Database
from sophia.settings import Settings
from tests.console import Documents, console
from tests.waiting import until


@pytest.fixture
def documents(connection: psycopg.Connection[TupleRow], catalog: Catalog) -> Documents:
    """The index `documents`, empty."""
    return Documents(connection, catalog)


@pytest.fixture
def address(settings: Settings, database: Database, catalog: Catalog, documents: Documents) -> Iterator[str]:
    """The address of a console that is ready to search."""
    with console(settings, database, catalog) as address:
        yield address


@pytest.fixture
def client(address: str, documents: Documents) -> Iterator[httpx.Client]:
    """An HTTP client of that console, whose model is loaded."""
    with httpx.Client(base_url=address, timeout=60) as client:
        body = {"index": "documents", "text": "warm"}
        until(lambda: client.post("/api/search", json=body).status_code == 200, "the model")
        yield client

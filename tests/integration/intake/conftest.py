"""Fixtures of the intake: what reads the deliveries, and a service that takes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import psycopg
import pytest
from psycopg.rows import TupleRow

from sophia.catalog import Catalog
from sophia.database import Database
from sophia.settings import Settings
from tests.intake import fed_catalog, intake
from tests.integration.intake.inbox_view import Deliveries

Serve = Callable[..., httpx.Client]


@pytest.fixture
def deliveries(connection: psycopg.Connection[TupleRow]) -> Deliveries:
    """The collection `documents`, fed directly."""
    return Deliveries(connection)


@pytest.fixture
def fed(catalog: Catalog) -> Catalog:
    """A catalog with one collection that comes from Estuary."""
    return fed_catalog(catalog)


@pytest.fixture
def served(settings: Settings, fed: Catalog, database: Database) -> Iterator[Serve]:
    """Starts a service with the given settings of its group, and returns a client of it."""
    with ExitStack() as stack:

        def start(catalog: Catalog = fed, **group: Any) -> httpx.Client:
            address = stack.enter_context(intake(settings, catalog, database, **group))
            headers = {"Content-Type": "application/json"}
            return stack.enter_context(httpx.Client(base_url=address, timeout=60, headers=headers))

        yield start

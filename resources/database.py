"""Sophia's database, embedded or by URL, as the settings say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import PrivateAttr

from sophia.settings import load_settings

if TYPE_CHECKING:
    import psycopg
    from psycopg.rows import TupleRow

    from sophia.database import Database


class DatabaseResource(dg.ConfigurableResource):
    """Opens Sophia's database once a process step and hands out connections in autocommit mode."""

    _database: Database | None = PrivateAttr(default=None)

    def get(self) -> Database:
        """The database, started and migrated if need be."""
        if self._database is None:
            from sophia.database import open_database

            self._database = open_database(load_settings())
        return self._database

    @contextmanager
    def connect(self) -> Iterator[psycopg.Connection[TupleRow]]:
        """A connection that is closed afterwards."""
        with self.get().connect("sophia-dagster") as connection:
            yield connection

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        """Give up the hold on the embedded server."""
        if self._database is not None:
            self._database.release()
            self._database = None

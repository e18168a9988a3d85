"""The beginning of a version: its row in the database, and its table, class or namespace in the store.

Invariants:

* no version is ever without its store, also not after a death in between;
* nothing waits for a store outside of the database while a collection is locked: whoever creates a version holds up the
  inbox until the commit, and a store that hangs would hold up the capture and with it every other index.
"""

from __future__ import annotations

import psycopg
from psycopg.rows import TupleRow

from sophia.catalog import Catalog
from sophia.catalog.models import Index
from sophia.errors import TemporaryError
from sophia.indexing.versions import IndexVersion, ensure_version
from sophia.settings import Profile
from sophia.stores import Store, Stores

Connection = psycopg.Connection[TupleRow]


def begin_version(
    connection: Connection, catalog: Catalog, index: Index, profile: Profile, stores: Stores
) -> tuple[IndexVersion, Store]:
    """The version of the index as the catalog has it now, its store made ready.

    Args:
        connection: in autocommit mode.

    Raises:
        ConfigurationError: the index has no store in this profile, or the store's settings are missing, or it refuses.
        TemporaryError: the store is away, or another process began a version at the same moment; nothing was begun.
    """
    with connection.transaction():
        planned = ensure_version(connection, catalog, index, profile)
        store = stores.of(planned)
        if store.transactional:
            store.ensure(connection, planned)
            return planned, store
        # A rehearsal: it tells name and state that the version is going to have.
        raise psycopg.Rollback
    # What is left of this after a death is found by the next try.
    store.ensure(connection, planned)
    with connection.transaction():
        version = ensure_version(connection, catalog, index, profile)
        if version.store_name != planned.store_name:
            raise TemporaryError(f"{version.label}: another process began a version at the same moment; try again")
    return version, store

"""The public name of an index, and the end of a version, in stores outside of the database.

Such a store is no part of the transaction that decides, so what is to be done there is written down in it, done
afterwards, and struck out. Invariants:

* searches through Sophia ask the database which version serves: they are right from the switch on, whatever the public
  name in the store says until it is moved;
* what was written down is done by whoever comes next: the switch itself, the indexer, the next promotion or repair;
* a version is ended only when the public name is where it belongs, and built anew only when nothing of it is left;
* what is wrong with one version (a name that is taken, a shard that is busy) holds up no other.
"""

from __future__ import annotations

from collections.abc import Callable

import psycopg
from psycopg.rows import TupleRow, class_row

from sophia import sql
from sophia.errors import BusyError, ConfigurationError, FencedError, SophiaError, TemporaryError
from sophia.failpoints import failpoint
from sophia.indexing.removal import drop_left
from sophia.indexing.versions import IndexVersion
from sophia.stores import Store, Stores

Connection = psycopg.Connection[TupleRow]
Q = sql.load("publication")


def intend(connection: Connection, version: IndexVersion, store: Store) -> None:
    """In the transaction that lets `version` serve: note that the public name is to follow, or is where it belongs."""
    params = {"name": version.index_name, "version_id": version.id, "done": store.transactional}
    connection.execute(Q["intend"], params)


def publish(connection: Connection, version: IndexVersion, store: Store) -> None:
    """Move the public name, if that is still to be done. May be repeated.

    Raises:
        TemporaryError: the store is away; it stays to be done.
    """
    params = {"name": version.index_name, "version_id": version.id}
    with connection.transaction():
        # One at a time: two calls that overtake each other would leave the older name.
        connection.execute(sql.load("versions")["lock_index"], params)
        if connection.execute(Q["is_open"], params).fetchone() is None:
            return
        failpoint("publication.before")
        store.publish(connection, version)
        failpoint("publication.after")
        connection.execute(Q["published"], params)


def refuse_open(connection: Connection, version: IndexVersion) -> None:
    """Check, in the transaction that ends a version, that the public name does not still point at it.

    Raises:
        TemporaryError: it may.
    """
    if _versions(connection, "open", version.index_name, None):
        raise TemporaryError(
            f"{version.label} cannot end yet: the store's public name of {version.index_name!r} has still to be moved "
            "to the version that serves; the indexer does that when the store answers"
        )


def settle(connection: Connection, stores: Stores, *, name: str | None = None, kind: str | None = None) -> None:
    """Do what is still to be done in the stores, for one index and one kind of store, or for all.

    Raises:
        ConfigurationError: a store's settings are missing, or it refuses; the rest was done.
        TemporaryError: a store is away; what is left stays to be done. Of one version only: the rest was done.
    """
    faults = _each(
        _versions(connection, "open", name, kind), lambda version: publish(connection, version, stores.of(version))
    )
    faults += _drop_each(connection, stores, name, kind)
    if faults:
        raise faults[0]


def unsettled_kinds(connection: Connection) -> set[str]:
    """The kinds of stores in which something is still to be done."""
    return {version.store for query in ("open", "undropped") for version in _versions(connection, query, None, None)}


def finish_drops(connection: Connection, stores: Stores, *, name: str) -> None:
    """Drop what versions of an index that have ended left in the stores. Raises as `settle` does."""
    if faults := _drop_each(connection, stores, name, None):
        raise faults[0]


def _drop_each(connection: Connection, stores: Stores, name: str | None, kind: str | None) -> list[SophiaError]:
    return _each(
        _versions(connection, "undropped", name, kind),
        lambda version: drop_left(connection, version, stores.of(version)),
    )


def _each(versions: list[IndexVersion], work: Callable[[IndexVersion], None]) -> list[SophiaError]:
    """Faults of single versions. A store that is away is none, and ends it: the next version would wait as long."""
    faults: list[SophiaError] = []
    for version in versions:
        try:
            work(version)
        except (ConfigurationError, BusyError, FencedError) as error:
            faults.append(error)
    return faults


def _versions(connection: Connection, query: str, name: str | None, kind: str | None) -> list[IndexVersion]:
    with connection.cursor(row_factory=class_row(IndexVersion)) as cursor:
        return cursor.execute(Q[query], {"name": name, "kind": kind}).fetchall()

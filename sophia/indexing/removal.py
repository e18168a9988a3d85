"""Removing from stores outside of the database: a version that ended, a document that is erased.

Both are noted in the database first, done in the store under the leases of the shards, so that no write of a dead or
paused writer comes behind them, looked at, and struck out then. A process that dies in between leaves the note, and the
same work may be done again.
"""

from __future__ import annotations

import time

import psycopg
from psycopg.rows import TupleRow

from sophia import sql
from sophia.documents import Clock, Key, bucket_of
from sophia.errors import TemporaryError
from sophia.failpoints import failpoint
from sophia.indexing.shards import (
    HELD_SECONDS,
    MARGIN_SECONDS,
    HeldError,
    ShardLeases,
    all_shards,
    shards_of,
    take,
    turn,
)
from sophia.indexing.versions import IndexVersion
from sophia.stores import Scope, Store

Connection = psycopg.Connection[TupleRow]
PUBLICATION = sql.load("publication")
ERASURE = sql.load("erasure")
# A store may show for a moment what it has removed already.
LOOK_SECONDS = 0.5
LOOKS = 20


def drop_left(connection: Connection, version: IndexVersion, store: Store) -> None:
    """Drop a retired version's store, if that is still to be done.

    Raises:
        HeldError: a write of a dead writer may still be under way; its message says for how long.
        TemporaryError: the store is away.
    """
    params = {"version_id": version.id}
    with turn(connection, all_shards(version)):
        with connection.transaction():
            if connection.execute(PUBLICATION["is_undropped"], params).fetchone() is None:
                return
            taken = take(connection, all_shards(version), version.label, store.write_seconds + MARGIN_SECONDS)
        with taken.freed_if_unreached(connection):
            # The version may have been begun anew meanwhile, under the same name.
            taken.refuse_halted()
            store.drop(connection, version)
        failpoint("drop.after")
        with connection.transaction():
            taken.give_back(connection)
            connection.execute(PUBLICATION["mark_undropped"], params | {"undropped": False})


def erase_left(
    connection: Connection, version: IndexVersion, store: Store, key: Key, clock: Clock, patience: float
) -> int:
    """Remove a key, whose ledger row was marked at `clock` to be erased, from the store, look, and forget the row.

    A newer document of the key that came meanwhile has taken the row over, and its write has replaced the former
    chunks, or will.

    Args:
        patience: seconds to wait for a writer that is gone.

    Returns: chunks removed.

    Raises:
        TemporaryError: the store is away, or still shows the key; the same call does the rest.
    """
    names = shards_of(version, [bucket_of(key)])
    params = {"version_id": version.id, "key": key, "clock": clock.literal}
    with turn(connection, names):
        taken = _take_patiently(connection, names, version, store, patience)
        if connection.execute(ERASURE["is_marked"], params).fetchone() is None:
            with connection.transaction():
                taken.give_back(connection)
            return 0
        with taken.freed_if_unreached(connection):
            # The key may have come anew meanwhile, with the same ids.
            taken.refuse_halted()
            removed = store.erase(connection, version, [key])
            failpoint("erase.outside")
            _require_gone(connection, version, store, key)
        with connection.transaction():
            taken.give_back(connection)
            connection.execute(ERASURE["forget_marked"], params)
    return removed


def _take_patiently(
    connection: Connection, names: list[str], version: IndexVersion, store: Store, patience: float
) -> ShardLeases:
    deadline = time.monotonic() + patience
    while True:
        try:
            with connection.transaction():
                return take(connection, names, version.label, store.write_seconds + MARGIN_SECONDS)
        except HeldError as error:
            if time.monotonic() + error.seconds > deadline:
                raise
            time.sleep(min(error.seconds, HELD_SECONDS))


def _require_gone(connection: Connection, version: IndexVersion, store: Store, key: Key) -> None:
    for _ in range(LOOKS):
        if not any(store.inventory(connection, version, Scope(keys=(key,)))):
            return
        time.sleep(LOOK_SECONDS)
    raise TemporaryError(f"{version.label}: the store still shows what was erased; run this again")

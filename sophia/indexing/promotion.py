"""Which version serves: the switch, the way back, and the end of a version.

Invariants, each with a test:

* One transaction switches state and public view. Both versions' rows are locked, so neither position moves, and the
  new version must not be behind the old one in either lane: search never goes back in time, also not by a rollback.
* A version that stops serving goes on being fed ("retiring"), so that a rollback loses nothing.
* A reader that takes long never makes others wait for us: the view's lock is asked for in short turns.
* A version that ends takes its store with it in one transaction, in which its writers are fenced; a store outside of
  the database follows it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

import psycopg
from psycopg.rows import TupleRow, class_row

from sophia import sql
from sophia.errors import BusyError, ConfigurationError, SophiaError, TemporaryError
from sophia.failpoints import failpoint
from sophia.indexing import publication
from sophia.indexing.removal import drop_left
from sophia.indexing.versions import IndexVersion, numbered_version, serving_version
from sophia.stores import IN_DATABASE, Store, Stores

logger = logging.getLogger("sophia.promotion")
Connection = psycopg.Connection[TupleRow]
Q = sql.load("versions")
T = TypeVar("T")
# How long one turn waits for a lock; new readers wait behind us for as long.
TURN_MS = 100
# Between two turns, those readers go first.
PAUSE_SECONDS = 0.2
# How long a switch keeps trying: the live lane needs a moment to bring a version up to another.
PATIENCE_SECONDS = 20.0
LEDGER_BATCH = 10_000


@dataclass(frozen=True, slots=True)
class Switch:
    """What a promotion or rollback did: version numbers; `before` is None when nothing served."""

    index: str
    before: int | None
    now: int

    @property
    def switched(self) -> bool:
        """Whether another version serves than before."""
        return self.before != self.now


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One version of an index, retired ones included. `documents` counts what its ledger holds as indexed."""

    version: int
    state: str
    model: str
    dimension: int
    fingerprint: str
    position: int
    documents: int
    created_at: datetime
    promoted_at: datetime | None
    superseded_at: datetime | None


class BehindError(TemporaryError):
    """The version lacks something that the serving one has; the lanes will bring it."""


def promote(
    connection: Connection, version: IndexVersion, store: Store, *, patience: float = PATIENCE_SECONDS
) -> Switch:
    """Make `version` the one that serves, in one transaction; nothing if it does already.

    The public name in a store outside of the database follows that transaction; see `sophia.indexing.publication`.

    Args:
        connection: in autocommit mode.
        patience: seconds to wait for long readers of the view, and for the lanes to bring the version up.

    Raises:
        BehindError: the version is behind the serving one in the live or the bulk lane, and did not catch up.
        BusyError: someone reads the view without end; the message names the session.
        SophiaError: the version was retired.
        ConfigurationError: other objects depend on the view and it must be made anew.
    """
    switch = _in_turns(connection, store, version, patience, lambda: _switch(connection, version, store))
    failpoint("promote.after_commit")
    if not store.transactional:
        try:
            publication.publish(connection, version, store)
        except (ConfigurationError, TemporaryError) as error:
            # The switch is done: an error would say that it is not.
            logger.warning(
                "%s serves; the store's public name is moved by the indexer when the store answers: %s",
                *(version.label, error),
            )
    return switch


def rollback(
    connection: Connection, name: str, *, stores: Stores = IN_DATABASE, patience: float = PATIENCE_SECONDS
) -> Switch:
    """Let the version serve again that stopped last, once the lanes have brought it up to the present.

    Raises:
        SophiaError: there is none to go back to.
        BehindError: it is behind and did not catch up in time; nothing was changed.
        BusyError: as of `promote`.
    """
    serving_version(connection, name)
    row = connection.execute(Q["superseded"], {"name": name}).fetchone()
    if row is None:
        raise SophiaError(f"index {name!r} has no earlier version to go back to; `sophia versions {name}` lists them")
    version = numbered_version(connection, name, row[0])
    return promote(connection, version, stores.of(version), patience=patience)


def retire(connection: Connection, version: IndexVersion, store: Store, *, patience: float = PATIENCE_SECONDS) -> int:
    """End a version: its store, its shards and its ledger go. Returns the ledger rows removed.

    Store and state change in one transaction, behind which a store outside of the database follows. The ledger goes in
    batches; what a killed process left of it is removed by retention, or forgotten when the version is built again.

    Raises:
        SophiaError: the version serves.
        BusyError: someone reads its table without end.
        TemporaryError: a store outside of the database is away. The version has ended all the same, and the indexer
            drops what is left of it there.
    """
    _in_turns(connection, store, version, patience, lambda: _end(connection, version, store))
    failpoint("retire.after_drop")
    if not store.transactional:
        drop_left(connection, version, store)
    removed = 0
    while True:
        with connection.transaction():
            connection.execute(Q["lock_index"], {"name": version.index_name})
            # The catalog may ask for the same version again meanwhile.
            row = connection.execute(Q["find"], {"name": version.index_name, "fingerprint": version.fingerprint})
            found = row.fetchone()
            if found is None or found[1] != "retired":
                return removed
            count = connection.execute(Q["forget_some"], {"version_id": version.id, "limit": LEDGER_BATCH}).rowcount
        removed += count
        if count < LEDGER_BATCH:
            return removed


def versions_over_time(connection: Connection, days: int) -> list[int]:
    """Ids of the versions that stopped serving more than `days` days ago and are still fed."""
    return [row[0] for row in connection.execute(Q["over_time"], {"days": days})]


def version_records(connection: Connection, name: str) -> list[VersionRecord]:
    """Every version of an index, the newest first.

    Raises:
        SophiaError: no such index.
    """
    with connection.cursor(row_factory=class_row(VersionRecord)) as cursor:
        found = cursor.execute(Q["every"], {"name": name}).fetchall()
    if not found:
        serving_version(connection, name)
    return found


def _switch(connection: Connection, version: IndexVersion, store: Store) -> Switch:
    connection.execute(Q["lock_index"], {"name": version.index_name})
    rows = connection.execute(Q["lock_versions"], {"name": version.index_name}).fetchall()
    ours = next((row for row in rows if row[0] == version.id), None)
    if ours is None:
        raise SophiaError(f"{version.label} was retired; it must be built again before it can serve")
    old = next((row for row in rows if row[2] == "serving"), None)
    if ours is old:
        return Switch(version.index_name, version.number, version.number)
    if old is not None:
        _refuse_behind(version, ours, old)
    failpoint("promote.before_switch")
    if old is not None:
        connection.execute(Q["switch"], {"version_id": old[0], "state": "retiring"})
    connection.execute(Q["switch"], {"version_id": version.id, "state": "serving"})
    publication.intend(connection, version, store)
    if store.transactional:
        store.publish(connection, version)
    failpoint("promote.before_commit")
    return Switch(version.index_name, old[1] if old is not None else None, version.number)


def _refuse_behind(version: IndexVersion, ours: TupleRow, old: TupleRow) -> None:
    _, _, _, position, least, _, bulk_position = ours
    _, number, _, old_position, _, old_most, _ = old
    if position < old_position:
        raise BehindError(
            f"{version.label} is at position {position}, the serving v{number} at {old_position}; try again when the "
            "indexer has caught up (`sophia status` shows whether one runs)"
        )
    # What the serving version may have of the bulk lane, the new one must have for certain.
    if least < min(bulk_position, old_most):
        raise BehindError(
            f"shards of {version.label} are compared up to position {least} only, those of the serving v{number} up to "
            f"{min(bulk_position, old_most)}; run `sophia repair` or wait for the indexer"
        )


def _end(connection: Connection, version: IndexVersion, store: Store) -> None:
    connection.execute(Q["lock_index"], {"name": version.index_name})
    # First: waits for the writers that are at it, and those that come later find another epoch.
    connection.execute(Q["fence"], {"version_id": str(version.id)})
    rows = connection.execute(Q["lock_versions"], {"name": version.index_name}).fetchall()
    ours = next((row for row in rows if row[0] == version.id), None)
    if ours is None:
        return
    if ours[2] == "serving":
        raise SophiaError(f"{version.label} serves; promote another version before it can be retired")
    connection.execute(Q["retire"], {"version_id": version.id})
    connection.execute(Q["drop_shards"], {"version_id": version.id})
    failpoint("retire.before_drop")
    if store.transactional:
        store.drop(connection, version)
    else:
        publication.refuse_open(connection, version)
        connection.execute(publication.Q["mark_undropped"], {"version_id": version.id, "undropped": True})


def _in_turns(connection: Connection, store: Store, version: IndexVersion, patience: float, work: Callable[[], T]) -> T:
    """Do `work` in a transaction that waits for any lock for a moment only, again and again until `patience` is over.

    An exclusive lock that waits makes every later reader wait behind it. So it waits for one turn, then lets them by.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            with connection.transaction():
                connection.execute("SELECT set_config('lock_timeout', %s, true)", [f"{TURN_MS}ms"])
                return work()
        except BehindError:
            if time.monotonic() >= deadline:
                raise
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
            if time.monotonic() >= deadline:
                busy = store.holders(connection, version)
                raise BusyError(
                    f"{version.label}: the lock did not come free in {patience:g} s; nothing was changed. "
                    f"Busy: {busy or 'unknown'}; end that session or try again"
                ) from error
        time.sleep(PAUSE_SECONDS)

"""Leases of key shards: who may write which keys of a version in a store outside of the database.

PostgreSQL cannot undo what was sent to another system, nor hold it back. So:

* whoever writes such a store holds the leases of the keys' shards, for longer than the write can take;
* a lease is free when it was given back or when its time is over, and not before: neither the end of the holder's
  session nor its death ends a request that is under way;
* those who wait do so in a line of the database's locks, first come, first served, so that short writes of the live
  lane do not starve behind those of a repair.

The epoch of a lease moves on with every taking. A writer that was silent for too long finds that out when it gives its
leases back, in the transaction that would have said `applied`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import psycopg
from psycopg.rows import TupleRow

from sophia import sql
from sophia.documents import BUCKETS
from sophia.errors import BusyError, FencedError, UnreachableError
from sophia.indexing.versions import IndexVersion

Connection = psycopg.Connection[TupleRow]
Q = sql.load("external")
# More would only make a batch take more leases: writes of one shard follow each other, and a batch has several shards.
MOST_SHARDS = 16
# What a lease lasts beyond the longest write: time between the two transactions that is not the store's.
MARGIN_SECONDS = 5.0
# Between two tries of a lease whose time is not over: its holder may give it back before.
HELD_SECONDS = 1.0
# How long a turn is waited for, whatever the number of shards. Who is before us writes one batch, or is halted.
TURN_MS = 3_000


class HeldError(BusyError):
    """A writer that is gone, or silent, may still have a request under way; `seconds` from now it cannot."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


@dataclass(frozen=True, slots=True)
class ShardLeases:
    """Leases that were taken: names and epochs, and when they were asked for, on the clock of `time.monotonic`."""

    label: str
    names: tuple[str, ...]
    epochs: tuple[int, ...]
    asked: float

    def refuse_halted(self) -> None:
        """Check, right before the store is asked, that this process was not halted since it took them.

        Raises:
            UnreachableError: it was, and what it would send now might outlast them; nothing was sent.
        """
        if time.monotonic() - self.asked > MARGIN_SECONDS:
            raise UnreachableError(
                f"{self.label}: this process was halted for so long that a write might outlast its lease; it is tried "
                "again"
            )

    def give_back(self, connection: Connection) -> None:
        """Give them back, in the transaction that stands on them.

        Raises:
            FencedError: another writer has taken one of them.
        """
        cursor = connection.execute(Q["give_shards"], {"names": list(self.names), "epochs": list(self.epochs)})
        if cursor.rowcount != len(self.names):
            raise FencedError(f"shards of {self.label} were taken over while this process was silent")

    def free(self, connection: Connection) -> None:
        """Give them back early: nothing of ours is under way. Whoever fails here leaves them to their time."""
        if connection.closed or connection.broken:
            return
        with contextlib.suppress(FencedError, psycopg.Error), connection.transaction():
            self.give_back(connection)

    @contextlib.contextmanager
    def freed_if_unreached(self, connection: Connection) -> Iterator[None]:
        """Around a call of the store: give them back early if it was not reached."""
        try:
            yield
        except UnreachableError:
            self.free(connection)
            raise


def shards_of(version: IndexVersion, buckets: Iterable[int]) -> list[str]:
    """Names of the leases that writing keys of these buckets needs, in the order of taking them."""
    width = BUCKETS // min(version.index.shards, MOST_SHARDS)
    return [f"shard/{version.id}/{number}" for number in sorted({bucket // width for bucket in buckets})]


def all_shards(version: IndexVersion) -> list[str]:
    """Names of the leases of all keys."""
    shards = min(version.index.shards, MOST_SHARDS)
    return [f"shard/{version.id}/{number}" for number in range(shards)]


@contextlib.contextmanager
def turn(connection: Connection, names: Sequence[str]) -> Iterator[None]:
    """Wait in line for shards, and stay at its head meanwhile.

    The line is a courtesy and the leases are the right: behind a process that was halted, whose session lives on, the
    wait ends all the same, and `take` tells whether its time is over.
    """
    params = {"names": list(names)}
    try:
        # On a timeout: who has what of these locks does not matter to `take`.
        with (
            contextlib.suppress(psycopg.errors.QueryCanceled, psycopg.errors.DeadlockDetected),
            connection.transaction(),
        ):
            # Not the time of a lock: that counts anew for each of them.
            connection.execute("SELECT set_config('statement_timeout', %s, true)", [f"{TURN_MS}ms"])
            connection.execute(Q["lock_shards"], params)
        yield
    finally:
        if not connection.closed:
            # Also of those that were got before the wait for another was too long.
            connection.execute(Q["unlock_shards"], params)


def take(connection: Connection, names: Sequence[str], label: str, seconds: float) -> ShardLeases:
    """The leases of shards for so many seconds, in the caller's transaction and turn.

    Raises:
        HeldError: the time of a writer that did not give one back is not over.
    """
    asked = time.monotonic()
    holder = f"{socket.gethostname()}:{os.getpid()}"
    rows = connection.execute(Q["take_shards"], {"names": list(names), "holder": holder, "seconds": seconds}).fetchall()
    if len(rows) < len(names):
        row = connection.execute(Q["shards_left"], {"names": list(names)}).fetchone()
        left = float(row[0]) if row else 0.0
        raise HeldError(
            f"a writer of {label} is at it, or has not said how its last write ended; that is over in {left:.0f} s",
            left,
        )
    return ShardLeases(label, tuple(row[0] for row in rows), tuple(int(row[1]) for row in rows), asked)

"""Leases with a fencing epoch: one writer a lane of an index version, whoever wakes up late writes nothing.

A lease is free when nobody holds it, when the holder's database session has ended (a killed process frees it at
once), or when the holder was silent for the lease time (a paused process). Taking it raises the epoch. `check`
belongs into the transaction that writes: its row lock makes a successor wait until that transaction has ended, so
either the write is before the take-over, or the check fails.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence

import psycopg
from psycopg.rows import TupleRow

from sophia import sql
from sophia.errors import FencedError

Connection = psycopg.Connection[TupleRow]
Q = sql.load("indexing")


class Lease:
    """The right to write under `name`, held by this connection's session.

    Use `try_take` to get one.
    """

    def __init__(self, name: str, epoch: int, seconds: float) -> None:
        self.name = name
        self.epoch = epoch
        self._seconds = seconds
        self._renew_at = time.monotonic() + seconds / 3

    @classmethod
    def try_take(cls, connection: Connection, name: str, seconds: float) -> Lease | None:
        """The lease, or None while another session holds it."""
        row = connection.execute(
            Q["take_lease"], {"name": name, "holder": f"{socket.gethostname()}:{os.getpid()}", "seconds": seconds}
        ).fetchone()
        return cls(name, int(row[0]), seconds) if row else None

    def check(self, connection: Connection) -> Callable[[], None]:
        """Ask, inside the writing transaction, whether the lease is still ours; call the result to find out.

        Asking and finding out are apart, so that a pipeline can send other commands between them. The result raises
        FencedError if another holder has a newer epoch.
        """
        cursor = connection.execute(Q["check_lease"], {"name": self.name, "epoch": self.epoch}, prepare=True)

        def held() -> None:
            if cursor.fetchone() is None:
                raise FencedError(f"the lease {self.name!r} was taken over; nothing was written")

        return held

    def renew(self, connection: Connection) -> None:
        """Extend the lease, if a third of its time has passed.

        Raises:
            FencedError: another holder has a newer epoch.
        """
        if time.monotonic() < self._renew_at:
            return
        cursor = connection.execute(
            Q["renew_lease"], {"name": self.name, "epoch": self.epoch, "seconds": self._seconds}
        )
        if cursor.rowcount == 0:
            raise FencedError(f"the lease {self.name!r} was taken over")
        self._renew_at = time.monotonic() + self._seconds / 3

    def release(self, connection: Connection) -> None:
        """Give the lease up, so that a successor need not wait."""
        connection.execute(Q["release_lease"], {"name": self.name, "epoch": self.epoch})


class Leases(Lease):
    """Several leases that are held as one: lost as soon as one of them is."""

    def __init__(self, held: Sequence[Lease]) -> None:
        self._held = held

    @classmethod
    def try_take_all(cls, connection: Connection, names: Sequence[str], seconds: float) -> Leases | None:
        """All of them, or None, and none is taken, while another session holds one."""
        held: list[Lease] = []
        for name in names:
            lease = Lease.try_take(connection, name, seconds)
            if lease is None:
                cls(held).release(connection)
                return None
            held.append(lease)
        return cls(held)

    def check(self, connection: Connection) -> Callable[[], None]:
        """As `Lease.check`."""
        checks = [lease.check(connection) for lease in self._held]

        def all_held() -> None:
            for held in checks:
                held()

        return all_held

    def renew(self, connection: Connection) -> None:
        """As `Lease.renew`."""
        for lease in self._held:
            lease.renew(connection)

    def release(self, connection: Connection) -> None:
        """As `Lease.release`."""
        for lease in self._held:
            lease.release(connection)

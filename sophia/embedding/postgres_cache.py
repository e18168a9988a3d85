"""The embedding cache in Sophia's own database: `sophia.embedding_cache`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any, TypeVar
from uuid import UUID

import psycopg
from psycopg.abc import PQGen
from psycopg.rows import TupleRow

from sophia import sql
from sophia.database.connect import DATABASE_NAME
from sophia.database.embedded import running_url
from sophia.errors import TemporaryError
from sophia.settings import Settings

Q = sql.load("cache")
# A look-up takes milliseconds. The server ends what takes longer than the first; where it is silent, we leave.
STATEMENT_SECONDS = 1.0
WAIT_SECONDS = 2
T = TypeVar("T")


class PostgresCache:
    """Implements `VectorCache` on a connection of its own, which is opened when it is needed, and again when it broke.

    Args:
        url: says where the database is; raises TemporaryError while it is nowhere. It may contain a password.
    """

    name = "PostgreSQL"

    def __init__(self, url: Callable[[], str]) -> None:
        self._url = url
        self._connection: _BoundedConnection | None = None

    @classmethod
    def of(cls, settings: Settings) -> PostgresCache:
        """In the database that the settings name. An embedded server is used while it runs, and never started."""

        def url() -> str:
            if settings.database_url is not None:
                return settings.database_url.get_secret_value()
            running = running_url(settings.pgdata, DATABASE_NAME)
            if running is None:
                raise TemporaryError("the embedded PostgreSQL does not run")
            return running

        return cls(url)

    def epoch(self, model: str) -> str:
        """See `VectorCache.epoch`."""

        def ask(connection: _BoundedConnection) -> str:
            connection.execute(Q["begin"], {"model": model})
            row = connection.execute(Q["epoch"], {"model": model}).fetchone()
            assert row is not None  # noqa: S101
            return str(row[0])

        return self._run(ask)

    def read(self, model: str, keys: Sequence[bytes]) -> tuple[str, dict[bytes, bytes]]:
        """See `VectorCache.read`."""

        def ask(connection: _BoundedConnection) -> tuple[UUID | None, dict[bytes, bytes]]:
            # Binary, and prepared at once: parsing and planning cost as much as the reading.
            with connection.cursor(binary=True) as cursor:
                rows = cursor.execute(Q["read"], {"model": model, "hashes": list(keys)}, prepare=True).fetchall()
            old = [key for _, key, _, old in rows if old]
            if old:
                connection.execute(Q["refresh"], {"model": model, "hashes": old})
            return rows[0][0] if rows else None, {key: vector for _, key, vector, _ in rows if key is not None}

        epoch, found = self._run(ask)
        return str(epoch) if epoch is not None else self.epoch(model), found

    def write(self, model: str, epoch: str, entries: Mapping[bytes, bytes]) -> None:
        """See `VectorCache.write`."""
        params = {"model": model, "epoch": epoch, "hashes": list(entries), "vectors": list(entries.values())}
        self._run(lambda connection: connection.execute(Q["write"], params, prepare=True))

    def _run(self, ask: Callable[[_BoundedConnection], T]) -> T:
        """The outcome of a few statements; once more on a new connection if an old one turns out to be broken."""
        for again in (self._connection is not None, False):
            try:
                if self._connection is None:
                    self._connection = self._connect()
                return ask(self._connection)
            except (psycopg.Error, TimeoutError) as error:
                broken = self._connection is not None and self._connection.closed
                self._close()
                if not (again and broken):
                    raise TemporaryError(f"its database: {str(error).strip() or 'no answer'}") from error
        raise AssertionError("unreachable")

    def _connect(self) -> _BoundedConnection:
        connection = _BoundedConnection.connect(
            self._url(), autocommit=True, application_name="sophia-embedding-cache", connect_timeout=WAIT_SECONDS
        )
        connection.execute(Q["limits"], {"milliseconds": str(int(STATEMENT_SECONDS * 1000))})
        return connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def erase_vectors(connection: psycopg.Connection[TupleRow], models: Sequence[str] | None) -> tuple[int, int]:
    """Remove all vectors of these models, or of all if None, and see to it that nobody stores one of before.

    Args:
        connection: in autocommit mode.

    Returns:
        How many, and the 64-bit id of the transaction that did it.
    """
    params = {"models": list(models) if models is not None else None}
    with connection.transaction():
        connection.execute(Q["raise_epochs"], params)
        removed = connection.execute(Q["erase"], params).rowcount
        row = connection.execute(Q["transaction_id"]).fetchone()
    return removed, int(row[0]) if row else 0


class _BoundedConnection(psycopg.Connection[TupleRow]):
    """A connection that waits for its server no longer than `WAIT_SECONDS`, whatever becomes of it or the network."""

    def wait(self, gen: PQGen[T], *args: Any, **options: Any) -> T:
        """As `psycopg.Connection.wait`.

        Raises:
            TimeoutError: the connection cannot be used any more.
        """
        return super().wait(_bounded(gen), *args, **options)


def _bounded(gen: PQGen[T]) -> PQGen[T]:
    """psycopg resumes it at every tenth of a second, also when nothing came."""
    deadline = monotonic() + WAIT_SECONDS
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if not ready and monotonic() > deadline:
                raise TimeoutError(f"no answer in {WAIT_SECONDS} s")
            wanted = gen.send(ready)
    except StopIteration as end:
        outcome: T = end.value
        return outcome

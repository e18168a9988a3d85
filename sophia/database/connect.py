"""Connections to Sophia's own database, embedded or by URL."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql
from psycopg.rows import TupleRow

from sophia.database.embedded import EmbeddedPostgres
from sophia.database.migrate import migrate
from sophia.errors import ConfigurationError, TemporaryError
from sophia.settings import Settings

DATABASE_NAME = "sophia"
# A number of jsonb has up to so many digits, and comes as a Python integer, which by default has at most 4,300.
MOST_DIGITS = 131_072 + 16_383
MINIMUM_SERVER_VERSION = 140000
MINIMUM_VECTOR = "0.8"


class Database:
    """Where Sophia's tables live. Holds the embedded server, if it is one, for as long as it lives.

    Attributes:
        url: connection URL. It may contain a password: never log it, use `shown`.
        embedded: the embedded server, or None when `SOPHIA_DATABASE_URL` names another one.
    """

    def __init__(self, url: str, embedded: EmbeddedPostgres | None = None) -> None:
        self.url = url
        self.embedded = embedded

    @property
    def shown(self) -> str:
        """The URL without its password."""
        return without_password(self.url)

    def connect(self, application: str = "sophia", *, autocommit: bool = True) -> psycopg.Connection[TupleRow]:
        """Open a connection. An embedded server that has crashed or was killed is started again.

        Raises:
            TemporaryError: the server does not answer or refuses.
        """
        try:
            return connect(self.url, application, autocommit=autocommit)
        except TemporaryError:
            if self.embedded is None:
                raise
            self.embedded.ensure_running()
            return connect(self.url, application, autocommit=autocommit)

    def release(self) -> None:
        """Give up the hold on the embedded server, if it is one."""
        if self.embedded is not None:
            self.embedded.release()


def without_password(url: str) -> str:
    """`url` with its password replaced, fit for logs and metadata."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username}:***@{host}"))


def connect(url: str, application: str, *, autocommit: bool = True, **options: Any) -> psycopg.Connection[TupleRow]:
    """Open a psycopg connection with time-outs and TCP keepalives that notice a dead peer within half a minute.

    Raises:
        TemporaryError: the server does not answer or refuses; the message carries no password.
    """
    sys.set_int_max_str_digits(MOST_DIGITS)
    try:
        return psycopg.connect(
            url,
            autocommit=autocommit,
            application_name=application,
            connect_timeout=10,
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
            **options,
        )
    except psycopg.OperationalError as error:
        raise TemporaryError(f"cannot connect to {without_password(url)}: {error}") from error


@contextlib.contextmanager
def pipelined_transaction(connection: psycopg.Connection[TupleRow]) -> Iterator[None]:
    """A transaction in pipeline mode; psycopg's own would wait for BEGIN and for COMMIT alone."""
    try:
        with connection.pipeline():
            connection.execute("BEGIN")
            yield
            connection.execute("COMMIT")
    except BaseException:
        # Of a connection that broke nothing is left to roll back.
        with contextlib.suppress(psycopg.Error):
            connection.rollback()
        raise


def open_database(settings: Settings, *, upgrade: bool = True) -> Database:
    """The database that the settings name, started if it is the embedded one, with its schema up to date.

    Raises:
        ConfigurationError: the server is too old or has no pgvector.
        TemporaryError: the server does not answer.
    """
    if settings.database_url is not None:
        database = Database(settings.database_url.get_secret_value())
    else:
        server = EmbeddedPostgres(settings.pgdata)
        ensure_database(server.url(), DATABASE_NAME)
        database = Database(server.url(DATABASE_NAME), server)
    if upgrade:
        _check_server(database)
        migrate(database.url)
    return database


def ensure_database(maintenance_url: str, name: str) -> None:
    """Create a database on the server of that URL unless it is there."""
    with connect(maintenance_url, "sophia-setup") as connection:
        if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone() is None:
            # Another process may be faster.
            with contextlib.suppress(psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))


def _check_server(database: Database) -> None:
    with database.connect("sophia-setup") as connection:
        if connection.info.server_version < MINIMUM_SERVER_VERSION:
            raise ConfigurationError(
                f"PostgreSQL {connection.info.parameter_status('server_version')} is too old; 14 or newer is needed"
            )
        row = connection.execute(
            "SELECT default_version, installed_version FROM pg_available_extensions WHERE name = 'vector'"
        ).fetchone()
        if fault := vector_fault(row[0] if row else None, row[1] if row else None):
            raise ConfigurationError(f"{database.shown} {fault}")


def vector_fault(available: str | None, installed: str | None) -> str | None:
    """Why a server's pgvector will not do, with the fix, or None. Searches behind filters need its iterative scans.

    Args:
        available: the version that the server would install; None if it has no pgvector.
        installed: the version that the database has; None before the first migration.
    """
    if available is None:
        return f"has no pgvector; install the extension `vector` (>= {MINIMUM_VECTOR}) on that server"
    if _numbers(available) < _numbers(MINIMUM_VECTOR):
        return f"has pgvector {available}; install {MINIMUM_VECTOR} or newer on that server"
    if installed is not None and _numbers(installed) < _numbers(MINIMUM_VECTOR):
        return f"still has pgvector {installed}; run `ALTER EXTENSION vector UPDATE` there"
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))

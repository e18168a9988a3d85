"""Versioned schema migrations, by Alembic.

Each revision is a pair `NNNN_name.py` / `NNNN_name.sql`. Any number of processes may call `migrate` at the
same time: an advisory lock lets one of them work, the others then find nothing to do.
"""

from __future__ import annotations

from pathlib import Path

import psycopg

FOLDER = Path(__file__).parent / "migrations"
# An arbitrary constant of our own, so that two migrating processes meet at the same lock.
LOCK_KEY = 0x5094_1A5C
VERSION_TABLE = "schema_version"


def head() -> str:
    """The newest revision that this code knows."""
    return max(path.name[:4] for path in (FOLDER / "versions").glob("[0-9][0-9][0-9][0-9]_*.py"))


def current(connection: psycopg.Connection[tuple[object, ...]]) -> str | None:
    """The revision that the database is at, or None before the first."""
    exists = connection.execute("SELECT to_regclass(%s)", [f"sophia.{VERSION_TABLE}"]).fetchone()
    if exists is None or exists[0] is None:
        return None
    row = connection.execute(f"SELECT version_num FROM sophia.{VERSION_TABLE}").fetchone()  # noqa: S608
    return str(row[0]) if row else None


def migrate(url: str) -> bool:
    """Bring the schema to the newest revision. Returns whether anything was done."""
    with psycopg.connect(url, autocommit=True, application_name="sophia-migrate") as connection:
        # Checked first without the lock and without importing Alembic: every process start pays this.
        if current(connection) == head():
            return False
        connection.execute("SELECT pg_advisory_lock(%s)", [LOCK_KEY])
        if current(connection) == head():
            return False
        connection.execute("CREATE SCHEMA IF NOT EXISTS sophia")
        _upgrade(url)
        return True


def _upgrade(url: str) -> None:
    from alembic import command
    from alembic.config import Config
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    engine = create_engine(
        url.replace("postgres://", "postgresql://", 1).replace("://", "+psycopg://", 1), poolclass=NullPool
    )
    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    config.set_main_option("path_separator", "os")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")

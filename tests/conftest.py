"""Shared fixtures: one embedded PostgreSQL a session, one migrated template database, one clone a test."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from psycopg import sql
from psycopg.rows import TupleRow

from sophia.catalog import Catalog, load
from sophia.catalog.loader import default_path
from sophia.database import Database, migrate
from sophia.database.embedded import EmbeddedPostgres
from sophia.settings import PREFIX, Settings, load_settings
from tests.embedders import HashEmbedder
from tests.waiting import until

TEMPLATE = "sophia_template"
_numbers = itertools.count(1)
# The same examples in every run, however slow the machine is that runs them.
hypothesis_settings.register_profile(
    "steady", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
hypothesis_settings.load_profile("steady")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadfile`: the files that share the demo's home go to one worker, so that it is filled once."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByFileAndHome(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return "tests/e2e" if file in ("tests/e2e/test_demo.py", "tests/e2e/test_up_and_ui.py") else file

    return ByFileAndHome(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes minutes runs when it is asked for."""
    if "slow" not in config.option.markexpr:
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="takes minutes; run `pytest -m slow`"))


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own SOPHIA_ variables decide no test."""
    for name in list(os.environ):
        if name.startswith(PREFIX) and not name.startswith(f"{PREFIX}TEST_"):
            monkeypatch.delenv(name)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder with a short name: a unix socket's path may have 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="st", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    until(lambda: _removed(folder), "the end of the watcher that writes below")


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedPostgres]:
    """The test session's PostgreSQL. It does not sync to disk; whoever tests durability starts its own."""
    folder = Path(tempfile.mkdtemp(prefix="st", dir="/tmp"))
    folder.chmod(0o755)
    server = EmbeddedPostgres(folder / "postgres")
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("SELECT pg_reload_conf()")
    yield server
    # An immediate stop: nothing of this server is needed again. Its watcher ends once the data folder is gone.
    pid = server.pid()
    os.kill(pid, signal.SIGQUIT)
    until(lambda: not _running(pid), "the server's end")
    server.release()
    until(lambda: _removed(folder), "the end of the watcher that writes below")


def _removed(folder: Path) -> bool:
    shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


def _running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture(scope="session")
def template(server: EmbeddedPostgres) -> str:
    """Name of a database with the newest schema and nothing in it."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(TEMPLATE)))
    migrate(server.url(TEMPLATE))
    return TEMPLATE


@pytest.fixture
def database(server: EmbeddedPostgres, template: str) -> Iterator[Database]:
    """A database of the test's own, with the newest schema."""
    name = f"t{next(_numbers)}"
    with psycopg.connect(server.url(), autocommit=True) as maintenance:
        maintenance.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
        )
    yield Database(server.url(name))
    with psycopg.connect(server.url(), autocommit=True) as maintenance:
        drop_database(maintenance, name)


def drop_database(maintenance: psycopg.Connection[TupleRow], name: str) -> None:
    """Drop a database with its sessions and slots."""
    maintenance.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", [name])
    maintenance.execute(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = %s", [name]
    )
    maintenance.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def connection(database: Database) -> Iterator[psycopg.Connection[TupleRow]]:
    """An autocommit connection to the test's database."""
    with database.connect("sophia-test") as connection:
        yield connection


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Defaults, with a home of the test's own."""
    return load_settings(home=tmp_path / "home")


@pytest.fixture(scope="session")
def catalog() -> Catalog:
    """The catalog of this checkout."""
    return load(default_path())


@pytest.fixture
def hash_embedder() -> HashEmbedder:
    """A cheap embedder of MiniLM's dimension that counts what it embeds."""
    return HashEmbedder()

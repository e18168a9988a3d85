"""The schema's migrations and the embedded server's life."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from sophia.capture import Capture
from sophia.database import Database, migrate, open_database
from sophia.database.embedded import EmbeddedPostgres
from sophia.database.migrate import FOLDER, current, head
from sophia.errors import ConfigurationError, TemporaryError
from sophia.settings import load_settings
from tests.conftest import drop_database
from tests.integration.conftest import QUICK, Captures, Running
from tests.waiting import until

# ---- migrations --------------------------------------------------------------------------------------------


@pytest.fixture
def empty(server: EmbeddedPostgres) -> Iterator[str]:
    """The URL of a database without Sophia's schema."""
    with psycopg.connect(server.url(), autocommit=True) as maintenance:
        maintenance.execute(sql.SQL("CREATE DATABASE empty"))
        yield server.url("empty")
        drop_database(maintenance, "empty")


def test_migrating_twice_does_it_once(empty: str) -> None:
    assert migrate(empty) is True
    assert migrate(empty) is False
    with psycopg.connect(empty) as connection:
        assert current(connection) == head()


def test_processes_that_migrate_at_once_do_it_once(empty: str) -> None:
    code = "import sys; from sophia.database import migrate; print(migrate(sys.argv[1]))"
    processes = [
        subprocess.Popen([sys.executable, "-c", code, empty], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    outputs = [process.communicate(timeout=120)[0].strip() for process in processes]
    assert sorted(outputs) == ["False", "False", "True"]


def test_failed_migration_leaves_nothing(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with psycopg.connect(empty, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA indexes; CREATE SCHEMA sophia; CREATE TABLE sophia.dead_letters (x int)")
        with pytest.raises(Exception, match="dead_letters"):
            migrate(empty)
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'sophia'").fetchall()
        assert tables == [("dead_letters",)]
        connection.execute("DROP TABLE sophia.dead_letters")
    assert migrate(empty) is True


def test_every_revision_has_its_pair() -> None:
    versions = FOLDER / "versions"
    python = {path.stem for path in versions.glob("[0-9]*.py")}
    assert python == {path.stem for path in versions.glob("[0-9]*.sql")}
    assert head() == max(name[:4] for name in python)


# ---- by URL ------------------------------------------------------------------------------------------------


def test_database_by_url_is_migrated(empty: str) -> None:
    database = open_database(load_settings(database_url=empty))
    with database.connect() as connection:
        assert current(connection) == head()
    assert database.embedded is None


def test_password_is_in_no_message() -> None:
    database = Database("postgresql://user:hunter2@127.0.0.1:1/db")
    assert database.shown == "postgresql://user:***@127.0.0.1:1/db"
    with pytest.raises(TemporaryError) as error:
        database.connect()
    assert "hunter2" not in str(error.value)
    assert "127.0.0.1" in str(error.value)


def test_old_server_is_refused(server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sophia.database.connect.MINIMUM_SERVER_VERSION", 10**6)
    with pytest.raises(ConfigurationError, match="too old"):
        open_database(load_settings(database_url=server.url()))


# ---- the embedded server -----------------------------------------------------------------------------------

HOLDER = """
import sys, threading
from pathlib import Path
from sophia.database.embedded import EmbeddedPostgres
server = EmbeddedPostgres(Path(sys.argv[1]))
print(server.pid(), server.url(), flush=True)
threading.Event().wait()
"""


class Holder:
    """A process that uses the embedded server of a home."""

    def __init__(self, home: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(home / "postgres")], stdout=subprocess.PIPE, text=True
        )

    def started(self) -> tuple[int, str]:
        assert self.process.stdout is not None
        pid, url = self.process.stdout.readline().split()
        return int(pid), url

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


@pytest.fixture
def hold(short_path: Path) -> Iterator[Callable[[str], Holder]]:
    """Starts holders of homes below one folder; at the end every server is gone."""
    holders: list[Holder] = []

    def start(home: str) -> Holder:
        holder = Holder(short_path / home)
        holders.append(holder)
        return holder

    yield start
    for holder in holders:
        holder.kill()
    stop_server(short_path)


def stop_server(folder: Path) -> None:
    """Stop every server below a folder at once."""
    for pid_file in folder.glob("*/postgres/postmaster.pid"):
        pid = int(pid_file.read_text().split(maxsplit=1)[0])
        if alive(pid):
            os.kill(pid, signal.SIGQUIT)
            until(partial(lambda pid: not alive(pid), pid), "the server's end")


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_server_outlives_nobody(hold: Callable[[str], Holder]) -> None:
    """Two processes share it; it stops after the second was killed, not after the first."""
    first = hold("a")
    pid, url = first.started()
    second = hold("a")
    assert second.started() == (pid, url)
    first.kill()
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    second.kill()
    until(lambda: not alive(pid), "the server's end")


def test_two_homes_side_by_side(hold: Callable[[str], Holder]) -> None:
    first, second = hold("a"), hold("b")
    (pid_a, url_a), (pid_b, url_b) = first.started(), second.started()
    assert pid_a != pid_b
    assert url_a != url_b
    for url in (url_a, url_b):
        with psycopg.connect(url) as connection:
            assert connection.execute("SHOW listen_addresses").fetchone() == ("",), "a port could collide"


def test_killed_server_is_started_again_with_what_was_committed(short_path: Path) -> None:
    server = EmbeddedPostgres(short_path / "home" / "postgres")
    try:
        with psycopg.connect(server.url(), autocommit=True) as connection:
            assert connection.execute("SHOW fsync").fetchone() == ("on",)
            assert connection.execute("SHOW wal_level").fetchone() == ("logical",)
            connection.execute("CREATE TABLE t AS SELECT 1 AS x")
            pid = server.pid()
            os.kill(pid, signal.SIGKILL)
        until(lambda: not alive(pid), "the server's end")
        again = EmbeddedPostgres(short_path / "home" / "postgres")
        try:
            assert again.pid() != pid
            with psycopg.connect(again.url()) as connection:
                assert connection.execute("SELECT x FROM t").fetchone() == (1,)
        finally:
            stop_server(short_path)
            again.release()
    finally:
        server.release()


# Whether the collection equals its table.
LEVEL = """
SELECT (SELECT jsonb_object_agg(key, body) FROM sophia.documents WHERE NOT deleted)
     = (SELECT jsonb_object_agg('[' || id || ']', to_jsonb(i)) FROM items i)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["stopped", "crashed"])
def test_capture_survives_a_restart_of_the_server(short_path: Path, how: signal.Signals) -> None:
    """The caller runs it again on TemporaryError; nothing is lost, and nothing is copied again."""
    database = open_database(load_settings(home=short_path / "home"))
    server = database.embedded
    assert server is not None
    with database.connect() as connection:
        connection.execute("CREATE TABLE items (id int PRIMARY KEY, body text); INSERT INTO items VALUES (1, 'a')")
    # No status of its own accord: a server that stops waits for its reply to be answered.
    settings = QUICK.model_copy(update={"status_seconds": 60.0, "catalog_check_seconds": 60.0})
    capture = Capture(Captures(database).source("public.items"), database, settings)
    running = Running(capture)
    again: EmbeddedPostgres | None = None
    try:
        running.ready()
        with database.connect() as connection:
            before = connection.execute("SELECT completed_at FROM sophia.captured_tables").fetchone()
            connection.execute("INSERT INTO items VALUES (2, 'b')")
            until(lambda: connection.execute(LEVEL).fetchone() == (True,), "the documents")
            connection.execute("CREATE TABLE noise AS SELECT generate_series(1, 10000)")
        pid = server.pid()
        os.kill(pid, how)
        assert isinstance(running.failed(), TemporaryError)
        until(lambda: not alive(pid), "the server's end")
        again = EmbeddedPostgres(server.pgdata)
        with database.connect() as connection:
            connection.execute("UPDATE items SET body = body || 'x'")
            running = Running(capture)
            until(lambda: connection.execute(LEVEL).fetchone() == (True,), "the documents")
            assert connection.execute("SELECT completed_at FROM sophia.captured_tables").fetchone() == before
        running.stop()
    finally:
        running.stop_event.set()
        until(lambda: running.ended, "the capture's end")
        stop_server(short_path)
        for held in (server, again):
            if held is not None:
                held.release()


def test_many_processes_open_a_new_home_at_once(hold: Callable[[str], Holder]) -> None:
    holders = [hold("a") for _ in range(3)]
    assert len({holder.started() for holder in holders}) == 1


def test_opening_twice_in_one_process_is_one_server(short_path: Path) -> None:
    settings = load_settings(home=short_path / "home")
    opened: list[Database] = []
    threads = [threading.Thread(target=lambda: opened.append(open_database(settings))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    try:
        pids = {database.embedded.pid() for database in opened if database.embedded}
        assert len(opened) == 2
        assert len(pids) == 1
    finally:
        stop_server(short_path)
        for database in opened:
            database.release()

"""fakesnow behind the stream shim, on loopback; tables of a database of the test's own; captures of them."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import fakesnow.server
import psycopg
import pytest
import uvicorn
from fakesnow.instance import FakeSnow
from psycopg.rows import TupleRow

from sophia import failpoints
from sophia.capture.snowflake import Account, Binding, SnowflakeCapture, SnowflakeSource
from sophia.catalog.models import SnowflakeTable
from sophia.database import Database
from sophia.settings import CaptureSettings, SnowflakeSettings
from tests.integration.conftest import Running
from tests.integration.snowflake.stream_shim import StreamShim
from tests.waiting import WAIT_SECONDS, until

Connection = psycopg.Connection[TupleRow]
_databases = itertools.count(1)
QUICK = SnowflakeSettings(login_seconds=5, statement_seconds=30)


@dataclass
class Snow:
    """A database of the fake server, and the captures of its tables."""

    shim: StreamShim
    port: int
    own: Connection
    database: Database
    name: str
    running: list[Running] = field(default_factory=list)
    _connection: Any = None

    @property
    def account(self) -> Account:
        options = {"host": "127.0.0.1", "port": str(self.port), "protocol": "http", "warehouse": "LOADING"}
        return Account("example-account", self.name, "sophia", options, password="snow")

    def run(self, statement: str) -> list[Any]:
        """Run a statement as someone who works in Snowflake."""
        import snowflake.connector

        if self._connection is None:
            self._connection = snowflake.connector.connect(
                account="example-account",
                user="people",
                password="snow",
                host="127.0.0.1",
                port=self.port,
                protocol="http",
                database=self.name,
                schema="PUBLIC",
                platform_detection_timeout_seconds=0,
                session_parameters={"CLIENT_TELEMETRY_ENABLED": False},
            )
        with contextlib.closing(self._connection.cursor()) as cursor:
            return list(cursor.execute(statement).fetchall())

    def items(self, *rows: str) -> None:
        """A table ITEMS (ID, BODY, UPDATED_AT) with these rows, each as `1, 'text', '2026-01-01'`."""
        self.run("CREATE TABLE ITEMS (ID NUMBER(38,0) PRIMARY KEY, BODY VARCHAR, UPDATED_AT TIMESTAMP_NTZ)")
        self.insert(*rows)

    def insert(self, *rows: str) -> None:
        if rows:
            self.run("INSERT INTO ITEMS VALUES " + ", ".join(f"({row})" for row in rows))

    def source(self, *bindings: Binding) -> SnowflakeSource:
        return SnowflakeSource("snow", self.account, "SOPHIA_STAGING", bindings)

    def capture(self, *bindings: Binding, batch: int = 2_000, bulk: int = 1_000) -> SnowflakeCapture:
        settings = QUICK.model_copy(update={"batch_documents": batch})
        return SnowflakeCapture(self.source(*bindings), self.database, settings, CaptureSettings(bulk_transaction=bulk))

    def start(self, *bindings: Binding, wait: bool = True, **more: Any) -> Running:
        running = Running(self.capture(*bindings, **more))
        self.running.append(running)
        if wait:
            running.ready()
        return running

    def once(self, *bindings: Binding, **more: Any) -> None:
        """One look at each table, as a process that starts, looks and stops."""
        stop = threading.Event()
        capture = self.capture(*bindings, **more)
        looked = capture._round

        def look(*args: Any) -> None:
            looked(*args)
            stop.set()

        capture._round = look  # type: ignore[method-assign]
        capture.run(stop)

    # ---- what is in the inbox --------------------------------------------------------------------------------

    def documents(self, collection: str = "items") -> dict[str, Any]:
        """Whole documents by key."""
        return dict(
            self.own.execute(
                "SELECT d.key, d.body FROM sophia.documents d JOIN sophia.collections c ON c.id = d.collection_id "
                "WHERE c.name = %s AND NOT d.deleted AND d.missing = '{}' ORDER BY d.key",
                [collection],
            ).fetchall()
        )

    def bodies(self, collection: str = "items") -> dict[int, str]:
        """Text by number, of the table ITEMS."""
        return {body["id"]: body["body"] for body in self.documents(collection).values()}

    def changes(self) -> list[tuple[str, str]]:
        """(key, op) of what the inbox took after the first copy, in order."""
        return [(key, op) for key, op in self.own.execute("SELECT key, op::text FROM sophia.inbox ORDER BY id")]

    def letters(self) -> list[str]:
        return [row[0] for row in self.own.execute("SELECT reason FROM sophia.dead_letters ORDER BY id")]

    def level(self, collection: str = "items", table: str = "ITEMS", seconds: float = WAIT_SECONDS) -> None:
        """Wait until the inbox holds what the table has."""
        want = {int(number): text for number, text in self.run(f"SELECT ID, BODY FROM {table}")}
        last: dict[int, str] = {}

        def equal() -> bool:
            nonlocal last
            for running in self.running:
                if running.error is not None:
                    raise running.error
            last = self.bodies(collection)
            return last == want

        try:
            until(equal, "the rows of the table", seconds)
        except AssertionError as error:
            raise AssertionError(f"{last} is not {want}; {self.letters()}") from error


@pytest.fixture(scope="session")
def shim_server() -> Iterator[tuple[StreamShim, int]]:
    """The fake server, once a session, on a port of its own."""
    shim = StreamShim()
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(shim, log_config=None, log_level="critical"))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        until(lambda: server.started, "the fake server")
        yield shim, port
        server.should_exit = True
        thread.join(60)


@pytest.fixture
def snow(shim_server: tuple[StreamShim, int], connection: Connection, database: Database) -> Iterator[Snow]:
    shim, port = shim_server
    # A server without the databases of other tests, which its catalog would go on showing.
    fakesnow.server.shared_fs = FakeSnow()
    snow = Snow(shim, port, connection, database, f"SNOW{next(_databases)}")
    yield snow
    for running in snow.running:
        with contextlib.suppress(BaseException):
            running.stop()
    shim.tables.clear()
    shim.stale.clear()
    shim.faults.clear()
    shim.hooks.clear()
    shim.statements.clear()


class Died(BaseException):
    """In place of SIGKILL: nothing of the code handles it."""


@contextlib.contextmanager
def dies_at(point: str, hits: int = 1) -> Iterator[None]:
    """The capture dies when it reaches the point for the n-th time; it must reach it."""
    left = hits

    def die(name: str) -> None:
        nonlocal left
        if name == point:
            left -= 1
            if left == 0:
                raise Died(point)

    failpoints.arm(die)
    try:
        with pytest.raises(Died):
            yield
    finally:
        failpoints.arm(None)


def by_cursor(collection: str = "items", table: str = "public.items", **options: Any) -> Binding:
    values = {"method": "cursor", "cursor": "updated_at", "poll_seconds": 0.05, "look_back": 0} | options
    return Binding(table, collection, (), SnowflakeTable(**values))


def by_stream(collection: str = "items", table: str = "public.items", key: tuple[str, ...] = ()) -> Binding:
    return Binding(table, collection, key, SnowflakeTable(method="stream", poll_seconds=0.05))

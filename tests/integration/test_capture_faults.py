"""What goes wrong around a capture: cut connections, time-outs, death, tables and publications that change."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import psycopg
import pytest
from psycopg.rows import TupleRow

from sophia.capture import Binding, health
from sophia.capture.health import capture_health
from sophia.capture.replication import ReplicationConnection
from sophia.catalog import Catalog
from sophia.database import Database
from sophia.errors import FencedError, SourceError, TemporaryError
from sophia.failpoints import arm
from sophia.settings import CaptureSettings, Settings
from tests.integration.conftest import QUICK, Captures, current
from tests.integration.source_items import confirmed, generation, level, make_items, snapshots, truth, wal_position
from tests.proxy import Lost, Proxy
from tests.waiting import until

Connection = psycopg.Connection[TupleRow]


class Killed(BaseException):
    """The process ended here."""


@pytest.fixture(autouse=True)
def items(connection: Connection) -> Iterator[None]:
    """A table `items` of three rows."""
    make_items(connection)
    yield
    arm(None)


@pytest.fixture
def proxy(database: Database) -> Iterator[Proxy]:
    """A proxy before the test's database."""
    proxy = Proxy(database.url)
    yield proxy
    proxy.close()


@pytest.fixture
def through(captures: Captures, proxy: Proxy) -> Captures:
    """Captures that reach Sophia's own database through the proxy, and the source directly."""
    captures.database = Database(proxy.url())
    return captures


def logged(connection: Connection, key: str) -> int:
    row = connection.execute("SELECT count(*) FROM sophia.inbox WHERE key = %s", [key]).fetchone()
    assert row is not None
    return int(row[0])


# ---- connections -------------------------------------------------------------------------------------------


def test_flush_waits_for_the_database_twice(
    connection: Connection, through: Captures, proxy: Proxy, database: Database
) -> None:
    quiet = CaptureSettings(status_seconds=600, catalog_check_seconds=600)
    through.start("public.items", settings=quiet, url=database.url)
    proxy.hold_seconds = 0.03
    numbers = itertools.count(10)

    def waits() -> int:
        before, number = proxy.turns, next(numbers)
        connection.execute("INSERT INTO items VALUES (%s, 'x')", [number])
        until(lambda: logged(connection, f"[{number}]"), "the row")
        until(lambda: proxy.turns >= before + 2, "both waits")
        return proxy.turns - before

    # The first ones meet what a capture does when it starts. A busy machine may hold up what is sent together.
    until(lambda: waits() == 2, "a flush of two waits", 20)


@pytest.mark.parametrize("lost", ["request", "reply"])
def test_connection_cut_at_the_commit_of_a_flush(
    connection: Connection, through: Captures, proxy: Proxy, database: Database, lost: Lost
) -> None:
    """Whether the commit was lost or only its confirmation: taken once, and acknowledged after that."""
    running = through.start("public.items", url=database.url)
    connection.execute("INSERT INTO items VALUES (4, 'before')")
    level(connection)
    position = wal_position(connection)
    proxy.cut_at("COMMIT", lost)
    connection.execute("INSERT INTO items VALUES (5, 'in the flush')")
    assert isinstance(running.failed(), TemporaryError)
    assert (logged(connection, "[5]"), confirmed(connection)[0] > position) == (
        (0, False) if lost == "request" else (1, True)
    )
    assert confirmed(connection)[1] <= position, "acknowledged without an answer"
    copied = snapshots(connection)
    through.start("public.items", url=database.url)
    level(connection)
    assert logged(connection, "[5]") == 1
    assert snapshots(connection) == copied


def test_replication_connection_cut_while_changes_flow(
    connection: Connection, captures: Captures, proxy: Proxy
) -> None:
    running = captures.start("public.items", url=proxy.url())
    copied = snapshots(connection)
    for number in range(60):
        connection.execute("INSERT INTO items VALUES (%s, %s)", [100 + number, "x" * 2_000])
        if number % 20 == 10:
            proxy.cut()
            assert isinstance(running.failed(), TemporaryError)
            running = captures.start("public.items", url=proxy.url())
    level(connection)
    assert proxy.cuts
    assert snapshots(connection) == copied


def test_statement_timeout_of_our_own_database(
    connection: Connection, captures: Captures, proxy: Proxy, database: Database
) -> None:
    """Somebody holds the collection's lock for longer than a statement may take."""
    captures.database = Database(proxy.url("-c%20statement_timeout%3D2000"))
    running = captures.start("public.items", url=database.url)
    with database.connect("holder") as holder, holder.transaction():
        holder.execute("SELECT FROM sophia.collections FOR UPDATE")
        connection.execute("INSERT INTO items VALUES (4, 'x')")
        assert isinstance(running.failed(), TemporaryError)
        assert "[4]" not in current(connection, "items")
    captures.start("public.items", url=database.url)
    level(connection)


def test_snapshot_that_went_with_its_connection_is_made_again(connection: Connection, captures: Captures) -> None:
    """The sender that exported it ended between the making of the slot and the copy."""

    def end_sender(name: str) -> None:
        if name == "capture.generation_begun":
            arm(None)
            ended = connection.execute(
                "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walsender' AND datname = current_database()"
            ).fetchall()
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM unnest(%s::int[]) pid", [[p for (p,) in ended]]
            )

    arm(end_sender)
    running = captures.start("public.items", wait=False)
    error = running.failed()
    assert isinstance(error, TemporaryError)
    captures.start("public.items")
    level(connection)


def test_slot_that_another_process_made_first_is_no_end(
    connection: Connection, captures: Captures, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = ReplicationConnection.create_slot

    def late(self: ReplicationConnection, slot: str, *, temporary: bool) -> tuple[int, str]:
        connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [slot])
        return make(self, slot, temporary=temporary)

    monkeypatch.setattr(ReplicationConnection, "create_slot", late)
    assert isinstance(captures.fails("public.items"), TemporaryError)
    monkeypatch.undo()
    captures.start("public.items")
    level(connection)


def test_table_that_another_process_published_again_is_copied_again(connection: Connection, captures: Captures) -> None:
    """A second capture mends the publication before the first one looks, and ends since the slot is in use."""
    seldom = CaptureSettings(status_seconds=0.2, catalog_check_seconds=1.5)
    captures.start("public.items", settings=seldom)
    connection.execute("INSERT INTO items VALUES (4, 'before')")
    level(connection)
    with connection.transaction():
        connection.execute("ALTER PUBLICATION test_publication DROP TABLE items")
        connection.execute("INSERT INTO items VALUES (5, 'in no stream')")
    # What a second capture does before it finds the slot in use.
    with connection.transaction():
        connection.execute("UPDATE sophia.captured_tables SET complete = false, last_key = NULL")
        connection.execute("ALTER PUBLICATION test_publication ADD TABLE items")
    level(connection)


# ---- death and fences --------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["capture.flush.before_commit", "capture.flush.after_commit", "capture.acknowledged"])
def test_death_in_a_flush_takes_each_change_once(connection: Connection, captures: Captures, point: str) -> None:
    running = captures.start("public.items")
    copied = snapshots(connection)

    def action(name: str) -> None:
        if name == point:
            arm(None)
            raise Killed(name)

    arm(action)
    connection.execute("INSERT INTO items VALUES (4, 'x')")
    connection.execute("DELETE FROM items WHERE id = 1")
    assert isinstance(running.failed(), Killed)
    captures.start("public.items")
    level(connection)
    assert logged(connection, "[4]") == 1
    assert snapshots(connection) == copied


@pytest.mark.parametrize("point", ["capture.reread.before_commit", "capture.reread.after_commit"])
def test_death_of_the_rereader_leaves_the_row_wanted_or_whole(
    connection: Connection, captures: Captures, point: str
) -> None:
    hits: list[str] = []

    def action(name: str) -> None:
        if name == point and not hits:
            hits.append(name)
            raise psycopg.OperationalError("cut")

    captures.start("public.items")
    arm(action)
    connection.execute("UPDATE sophia.documents SET body = body - 'body', missing = '{body}'")
    until(lambda: hits, "the point")
    level(connection)


def test_flush_of_a_fenced_capture_commits_nothing(connection: Connection, captures: Captures) -> None:
    """Nothing but the flush itself asks whether a successor has started."""
    quiet = CaptureSettings(status_seconds=600, catalog_check_seconds=600)
    running = captures.start("public.items", settings=quiet)
    connection.execute("INSERT INTO items VALUES (4, 'before')")
    level(connection)
    before = connection.execute("UPDATE sophia.captures SET epoch = epoch + 1 RETURNING confirmed_lsn").fetchone()
    connection.execute("INSERT INTO items VALUES (5, 'x')")
    assert isinstance(running.failed(), FencedError)
    assert logged(connection, "[5]") == 0
    assert connection.execute("SELECT confirmed_lsn FROM sophia.captures").fetchone() == before


# ---- tables and publications -------------------------------------------------------------------------------


def test_table_dropped_for_good_does_not_stop_the_others_at_a_restart(
    connection: Connection, captures: Captures
) -> None:
    connection.execute("CREATE TABLE others (id int PRIMARY KEY, body text); INSERT INTO others VALUES (1, 'x')")
    captures.start("public.items", "public.others").stop()
    connection.execute("DROP TABLE others; INSERT INTO items VALUES (4, 'x')")
    running = captures.start("public.items", "public.others")
    level(connection)
    row = connection.execute("SELECT reason FROM sophia.dead_letters WHERE key IS NULL").fetchone()
    assert row is not None
    assert "public.others: does not exist in the source; create it or take it out of the catalog" in row[0]
    connection.execute("CREATE TABLE others (id int PRIMARY KEY, body text); INSERT INTO others VALUES (2, 'new')")
    level(connection, "others")
    assert not running.ended
    assert connection.execute("SELECT count(*) FROM sophia.dead_letters").fetchone() == (0,)


def test_table_that_was_away_when_a_generation_began_joins_it(connection: Connection, captures: Captures) -> None:
    """On a replaced server its positions are lower than before; in its old generation they would be void."""
    connection.execute("CREATE TABLE others (id int PRIMARY KEY, body text); INSERT INTO others VALUES (1, 'x')")
    captures.start("public.items", "public.others").stop()
    connection.execute("DROP TABLE others")
    connection.execute("UPDATE sophia.captures SET system_identifier = 'another'")
    connection.execute("UPDATE sophia.collections SET floor = '{2,9000000000000,0}' WHERE name = 'others'")
    captures.start("public.items", "public.others")
    assert generation(connection, "others") < generation(connection) == 3
    connection.execute("CREATE TABLE others (id int PRIMARY KEY, body text); INSERT INTO others VALUES (2, 'new')")
    level(connection, "others")
    connection.execute("UPDATE others SET body = 'streamed'")
    level(connection, "others")


def test_no_table_left_is_a_fault(connection: Connection, captures: Captures) -> None:
    captures.start("public.items").stop()
    connection.execute("DROP TABLE items")
    error = captures.fails("public.items")
    assert isinstance(error, SourceError)
    assert "public.items: does not exist" in str(error)


def test_table_that_never_was_is_a_fault(captures: Captures) -> None:
    error = captures.fails("public.items", "public.itmes")
    assert isinstance(error, SourceError)
    assert "public.itmes: does not exist" in str(error)


@pytest.mark.parametrize("restriction", ["items (id)", "items WHERE (id > 1)"], ids=["columns", "rows"])
def test_publication_that_leaves_out_rows_or_columns_is_refused_until_it_is_mended(
    connection: Connection, captures: Captures, restriction: str
) -> None:
    running = captures.start("public.items")
    connection.execute("ALTER PUBLICATION test_publication DROP TABLE items")
    connection.execute(f"ALTER PUBLICATION test_publication ADD TABLE {restriction}")
    connection.execute("INSERT INTO items VALUES (-4, 'left out')")
    error = running.failed()
    assert isinstance(error, SourceError)
    assert "leaves out rows or columns of public.items" in str(error)
    for statement in ("DROP TABLE public.items", "ADD TABLE public.items"):
        assert f"`ALTER PUBLICATION test_publication {statement}`" in str(error)
        connection.execute(f"ALTER PUBLICATION test_publication {statement}".encode())
    captures.start("public.items")
    level(connection)
    assert "[-4]" in truth(connection)


def test_large_truncate_takes_the_bulk_lane(connection: Connection, captures: Captures) -> None:
    captures.start("public.items", settings=QUICK.model_copy(update={"bulk_transaction": 20}))
    connection.execute("TRUNCATE items")
    level(connection)
    assert connection.execute("SELECT bool_or(bulk) FROM sophia.documents").fetchone() == (False,)
    connection.execute("INSERT INTO items SELECT n, 'x' FROM generate_series(1, 15) n")
    connection.execute("INSERT INTO items SELECT n, 'x' FROM generate_series(16, 30) n")
    level(connection)
    connection.execute("TRUNCATE items")
    level(connection)
    assert connection.execute("SELECT bool_and(bulk), count(*) FROM sophia.documents WHERE deleted").fetchone() == (
        True,
        30,
    )


def test_key_too_long_for_an_index_is_parked(connection: Connection, captures: Captures) -> None:
    connection.execute("CREATE TABLE wide (id text, n int, PRIMARY KEY (n)); ALTER TABLE wide REPLICA IDENTITY FULL")
    connection.execute("INSERT INTO wide VALUES (repeat('é', 2000), 1), ('short', 2)")
    captures.start(Binding("public.wide", "wide", ("id",)))
    connection.execute("UPDATE wide SET id = repeat('x', 3000) WHERE n = 2; INSERT INTO wide VALUES ('later', 3)")
    until(lambda: set(current(connection, "wide")) == {'["later"]'}, "the short keys")
    row = connection.execute("SELECT key, reason FROM sophia.dead_letters").fetchone()
    assert row is not None
    assert row[0] is None
    assert "bytes; at most 2,000 can be indexed" in row[1]
    assert "xxx" not in row[1]


# ---- health ------------------------------------------------------------------------------------------------


def test_health_says_how_much_log_a_slot_may_still_hold(
    connection: Connection,
    captures: Captures,
    catalog: Catalog,
    settings: Settings,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    captures.start("public.items").stop()
    source = captures.source("public.items")
    monkeypatch.setattr(health, "postgres_sources", lambda *_: [source])

    def look() -> health.CaptureHealth:
        return capture_health(catalog, settings, database, connection, "test", "items")

    connection.execute("ALTER SYSTEM SET max_slot_wal_keep_size = -1")
    connection.execute("SELECT pg_reload_conf()")
    try:
        until(lambda: look().unlimited, "the setting")
        assert look().safe_bytes is None
        connection.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '10GB'")
        connection.execute("SELECT pg_reload_conf()")
        until(lambda: not look().unlimited, "the setting")
        safe = look().safe_bytes
        assert safe is not None
        assert safe > 1_000_000_000
        assert not look().at_risk
    finally:
        connection.execute("ALTER SYSTEM RESET max_slot_wal_keep_size")
        connection.execute("SELECT pg_reload_conf()")

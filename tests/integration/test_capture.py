"""The capture process against a real source: snapshot, stream, restart, faults."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import TupleRow

from sophia import inbox
from sophia.capture import Binding
from sophia.capture import postgres as capture_module
from sophia.database import Database
from sophia.errors import FencedError, SourceError, TemporaryError
from sophia.settings import CaptureSettings
from tests.integration.conftest import QUICK, Captures, current
from tests.integration.source_items import BIG, confirmed, generation, level, make_items, snapshots, truth, wal_position
from tests.waiting import until

Connection = psycopg.Connection[TupleRow]
Documents = Callable[[str], dict[str, Any]]


@pytest.fixture
def items(connection: Connection) -> None:
    """A table `items` of three rows."""
    make_items(connection)


# ---- snapshot and stream -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("items")
def test_snapshot_then_stream(connection: Connection, captures: Captures, documents_of: Documents) -> None:
    captures.start("public.items")
    assert documents_of("items") == truth(connection)
    connection.execute("INSERT INTO items VALUES (4, NULL)")
    connection.execute("UPDATE items SET body = 'changed' WHERE id = 1")
    connection.execute("DELETE FROM items WHERE id = 2")
    level(connection)
    rows = connection.execute(
        "SELECT key, bulk, clock, lsn IS NOT NULL, txid IS NOT NULL FROM sophia.documents"
    ).fetchall()
    live = {row[0] for row in rows if not row[1]}
    assert live == {"[1]", "[2]", "[4]"}, "the stream is live work, the snapshot is bulk work"
    assert all(row[3] for row in rows)
    assert {row[0] for row in rows if row[4]} == live


@pytest.mark.usefixtures("items")
def test_rows_changed_while_the_snapshot_runs(connection: Connection, captures: Captures) -> None:
    """Changes commit between two batches of the copy, before and behind where it is."""
    connection.execute("INSERT INTO items SELECT n, 'row ' || n FROM generate_series(4, 40) n")
    steps = iter(
        [
            "UPDATE items SET body = 'behind' WHERE id = 1",
            "UPDATE items SET body = 'ahead' WHERE id = 40",
            "DELETE FROM items WHERE id IN (2, 39)",
            "UPDATE items SET id = id + 100 WHERE id IN (3, 38)",
            "INSERT INTO items VALUES (500, 'new')",
            "DELETE FROM items WHERE id = 500; INSERT INTO items VALUES (2, 'again')",
        ]
    )

    def progress(_collection: str, _rows: int, _estimate: int) -> None:
        if statement := next(steps, None):
            connection.execute(statement)

    captures.start("public.items", settings=QUICK.model_copy(update={"batch_documents": 5}), progress=progress)
    assert next(steps, None) is None
    level(connection)


@pytest.mark.usefixtures("items")
def test_truncate_and_refill(connection: Connection, captures: Captures) -> None:
    captures.start("public.items")
    with connection.transaction():
        connection.execute("INSERT INTO items VALUES (9, 'lost')")
        connection.execute("TRUNCATE items")
        connection.execute("INSERT INTO items VALUES (1, 'kept')")
    level(connection)
    assert truth(connection) == {"[1]": {"id": 1, "body": "kept"}}


@pytest.mark.usefixtures("items")
def test_unchanged_large_column_survives_an_update_and_a_key_change(connection: Connection, captures: Captures) -> None:
    connection.execute("ALTER TABLE items ADD big text; ALTER TABLE items ALTER big SET STORAGE EXTERNAL")
    connection.execute("UPDATE items SET big = %s || id", [BIG])
    captures.start("public.items")
    connection.execute("UPDATE items SET body = 'changed' WHERE id = 1")
    connection.execute("UPDATE items SET id = 7 WHERE id = 2")
    with connection.transaction():
        connection.execute("UPDATE items SET id = 8 WHERE id = 3")
        connection.execute("INSERT INTO items VALUES (3, 'new', 'small')")
    level(connection)
    assert connection.execute("SELECT count(*) FROM sophia.documents WHERE missing <> '{}'").fetchone() == (0,)


def test_composite_text_and_unicode_keys(connection: Connection, captures: Captures) -> None:
    connection.execute('CREATE TABLE "Odd" (n int, "Näme" text, v text, PRIMARY KEY ("Näme", n))')
    connection.execute("""INSERT INTO "Odd" VALUES (1, 'ü"\\', 'a'), (2, '', 'b')""")
    captures.start(Binding('public."Odd"', "odd"))
    connection.execute("""UPDATE "Odd" SET "Näme" = '雪' WHERE n = 2""")
    connection.execute("""DELETE FROM "Odd" WHERE n = 1""")
    until(lambda: set(current(connection, "odd")) == {'["雪",2]'}, "the composite key")
    assert connection.execute("SELECT key_fields FROM sophia.collections").fetchone() == (["Näme", "n"],)
    assert connection.execute("SELECT key FROM sophia.documents WHERE deleted ORDER BY 1").fetchall() == [
        ('["",2]',),
        ('["ü\\"\\\\",1]',),
    ]


@pytest.mark.parametrize("identity", ["FULL", "USING INDEX items_code"])
@pytest.mark.usefixtures("items")
def test_replica_identities(connection: Connection, captures: Captures, identity: str) -> None:
    connection.execute("ALTER TABLE items ADD code text; UPDATE items SET code = 'c' || id")
    connection.execute("ALTER TABLE items ALTER code SET NOT NULL; CREATE UNIQUE INDEX items_code ON items (code)")
    connection.execute(f"ALTER TABLE items REPLICA IDENTITY {identity}")
    captures.start(Binding("public.items", "items", ("code",)))
    connection.execute("UPDATE items SET code = 'moved' WHERE id = 1")
    connection.execute("DELETE FROM items WHERE id = 2")
    until(lambda: set(current(connection, "items")) == {'["moved"]', '["c3"]'}, "the keys")


def test_partitioned_table(connection: Connection, captures: Captures) -> None:
    connection.execute("CREATE TABLE items (id int PRIMARY KEY, body text) PARTITION BY RANGE (id)")
    connection.execute("CREATE TABLE low PARTITION OF items FOR VALUES FROM (0) TO (100)")
    connection.execute("CREATE TABLE high PARTITION OF items FOR VALUES FROM (100) TO (200)")
    connection.execute("INSERT INTO items VALUES (1, 'a'), (2, 'b'), (150, 'c')")
    captures.start("public.items")
    connection.execute("UPDATE items SET id = 151 WHERE id = 1")
    connection.execute("DELETE FROM items WHERE id = 2; INSERT INTO items VALUES (3, 'd')")
    level(connection)
    connection.execute("CREATE TABLE more PARTITION OF items FOR VALUES FROM (200) TO (300)")
    connection.execute("INSERT INTO items VALUES (250, 'e')")
    connection.execute("TRUNCATE items; INSERT INTO items VALUES (4, 'f')")
    level(connection)


def test_generated_columns_are_left_out(connection: Connection, captures: Captures) -> None:
    connection.execute("CREATE TABLE items (id int PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED)")
    connection.execute("INSERT INTO items VALUES (1, 1)")
    captures.start("public.items")
    connection.execute("INSERT INTO items VALUES (2, 2)")
    until(lambda: current(connection, "items") == {"[1]": {"id": 1, "a": 1}, "[2]": {"id": 2, "a": 2}}, "both rows")


@pytest.mark.usefixtures("items")
def test_columns_added_dropped_and_retyped_while_running(connection: Connection, captures: Captures) -> None:
    captures.start("public.items")
    connection.execute("ALTER TABLE items ADD extra int DEFAULT 5")
    connection.execute("INSERT INTO items VALUES (4, 'four', 4)")
    connection.execute("ALTER TABLE items ALTER extra TYPE text")
    connection.execute("INSERT INTO items VALUES (5, 'five', 'v')")
    connection.execute("ALTER TABLE items RENAME body TO content")
    connection.execute("INSERT INTO items VALUES (6, 'six', 'vi')")
    connection.execute("ALTER TABLE items DROP extra")
    connection.execute("INSERT INTO items VALUES (7, 'seven')")
    # Rows from before an alteration are copied again, in the table's present shape.
    level(connection)


@pytest.mark.usefixtures("items")
def test_key_column_renamed_while_running_is_a_clear_fault(connection: Connection, captures: Captures) -> None:
    running = captures.start("public.items")
    connection.execute("ALTER TABLE items RENAME id TO number")
    connection.execute("INSERT INTO items VALUES (4, 'x')")
    error = running.failed()
    assert isinstance(error, SourceError)
    assert "key column 'id' is gone" in str(error)


@pytest.mark.usefixtures("items")
def test_json_that_jsonb_refuses_stops_nothing(connection: Connection, captures: Captures) -> None:
    connection.execute("ALTER TABLE items ADD extra json")
    connection.execute(r"""UPDATE items SET extra = '{"a": "x\u0000y", "b": "\ud800", "c": 1e999}' WHERE id = 1""")
    captures.start("public.items")
    connection.execute(r"""UPDATE items SET extra = '["\udc00"]' WHERE id = 2""")
    until(lambda: (current(connection, "items").get("[2]") or {}).get("extra") == ["\ufffd"], "the second row")
    assert current(connection, "items")["[1]"]["extra"] == {"a": "x\ufffdy", "b": "\ufffd", "c": "Infinity"}


@pytest.mark.usefixtures("items")
def test_large_transaction_takes_the_bulk_lane_and_small_ones_do_not(
    connection: Connection, captures: Captures
) -> None:
    settings = QUICK.model_copy(update={"batch_documents": 7, "bulk_transaction": 20})
    captures.start("public.items", settings=settings)
    connection.execute("INSERT INTO items SELECT n, 'bulk' FROM generate_series(100, 149) n")
    connection.execute("INSERT INTO items VALUES (50, 'live')")
    level(connection)
    lanes = "SELECT body ->> 'body', bulk, count(*), count(DISTINCT lsn) FROM sophia.documents GROUP BY 1, 2"
    rows = connection.execute(lanes).fetchall()
    assert ("bulk", True, 50, 1) in rows
    assert ("live", False, 1, 1) in rows


@pytest.mark.usefixtures("items")
def test_two_tables_keep_to_their_collections(connection: Connection, captures: Captures) -> None:
    connection.execute("CREATE TABLE others (id int PRIMARY KEY, body text); INSERT INTO others VALUES (1, 'x')")
    captures.start("public.items", "public.others")
    with connection.transaction():
        connection.execute("UPDATE items SET body = 'i'")
        connection.execute("UPDATE others SET body = 'o'")
    level(connection)
    level(connection, "others")


# ---- faults of the source ----------------------------------------------------------------------------------


def test_faults_of_several_tables_are_told_at_once(connection: Connection, captures: Captures) -> None:
    connection.execute("CREATE TABLE keyless (v text); CREATE TABLE blind (id int PRIMARY KEY, v text)")
    connection.execute("ALTER TABLE blind REPLICA IDENTITY NOTHING; CREATE VIEW seen AS SELECT 1 AS id")
    error = captures.fails("public.keyless", "public.absent", "public.blind", "public.seen")
    assert isinstance(error, SourceError)
    lines = str(error).splitlines()
    assert len(lines) == 4
    assert "public.keyless: has no primary key" in lines[0]
    assert "ALTER TABLE public.keyless REPLICA IDENTITY USING INDEX" in lines[0]
    assert "public.absent: does not exist" in lines[1]
    assert "ALTER TABLE public.blind REPLICA IDENTITY FULL" in lines[2]
    assert "public.seen: is not a table" in lines[3]
    assert connection.execute(
        "SELECT count(*) FROM pg_replication_slots WHERE slot_name = %s", [captures.slot]
    ).fetchone() == (0,)


@pytest.mark.usefixtures("items")
def test_key_that_deletes_do_not_carry_is_refused(captures: Captures) -> None:
    error = captures.fails(Binding("public.items", "items", ("body",)))
    assert isinstance(error, SourceError)
    assert "deletes would not carry the key (body)" in str(error)


@pytest.fixture
def weak_role(connection: Connection, database: Database) -> Iterator[str]:
    """The URL of a role that may replicate and nothing else."""
    role = "weak_" + database.url.rsplit("/", 1)[-1].split("?")[0]
    connection.execute(f"CREATE ROLE {role} LOGIN REPLICATION")
    yield database.url.replace("://postgres", f"://{role}", 1)
    connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.mark.usefixtures("items")
def test_table_that_may_not_be_read(captures: Captures, weak_role: str) -> None:
    error = captures.fails("public.items", url=weak_role)
    assert isinstance(error, SourceError)
    assert "public.items: may not be read" in str(error)
    assert "GRANT SELECT ON" in str(error)


@pytest.mark.usefixtures("items")
def test_table_whose_rows_are_hidden_from_the_role(captures: Captures, weak_role: str, connection: Connection) -> None:
    """A copy would lack them without a word, and a row that is read again would pass for deleted."""
    role = weak_role.split("://", 1)[1].split("@")[0].split(":")[0]
    connection.execute(f"GRANT SELECT ON items TO {role}")
    connection.execute("ALTER TABLE items ENABLE ROW LEVEL SECURITY")
    error = captures.fails("public.items", url=weak_role)
    assert isinstance(error, SourceError)
    assert "public.items: row security may hide rows" in str(error)


@pytest.mark.usefixtures("items")
def test_publication_that_may_not_be_changed_names_the_statement(
    connection: Connection, captures: Captures, weak_role: str
) -> None:
    role = weak_role.split("://")[1].split(":")[0].split("@")[0]
    connection.execute(f"GRANT SELECT ON items TO {role}")
    error = captures.fails("public.items", url=weak_role)
    assert isinstance(error, SourceError)
    assert 'CREATE PUBLICATION "test_publication" FOR TABLE "public"."items"' in str(error)


@pytest.mark.usefixtures("items")
def test_second_capture_on_the_same_slot_is_refused_by_name(
    captures: Captures, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = captures.start("public.items")
    monkeypatch.setattr(capture_module.Capture._wait_released, "__defaults__", (0.3,))
    error = captures.fails("public.items")
    assert isinstance(error, SourceError)
    assert captures.slot in str(error)
    assert "another capture is running" in str(error)
    first.stop()


@pytest.mark.usefixtures("items")
def test_slot_of_another_project_is_left_alone(connection: Connection, captures: Captures) -> None:
    connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [captures.slot])
    error = captures.fails("public.items")
    assert isinstance(error, SourceError)
    assert "is not ours" in str(error)
    row = connection.execute("SELECT count(*) FROM pg_replication_slots WHERE slot_name = %s", [captures.slot])
    assert row.fetchone() == (1,)


@pytest.mark.usefixtures("items")
def test_slot_of_another_kind_is_refused(connection: Connection, captures: Captures) -> None:
    connection.execute("SELECT pg_create_physical_replication_slot(%s)", [captures.slot])
    try:
        error = captures.fails("public.items")
        assert isinstance(error, SourceError)
        assert "physical" in str(error)
    finally:
        connection.execute("SELECT pg_drop_replication_slot(%s)", [captures.slot])


def test_server_that_is_away_is_temporary_and_shows_no_password(captures: Captures) -> None:
    error = captures.fails("public.items", url="postgresql://user:hunter2@127.0.0.1:1/db")
    assert isinstance(error, TemporaryError)
    assert "hunter2" not in str(error)


# ---- positions ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("items")
def test_restart_resumes_where_it_was_and_reads_nothing_again(connection: Connection, captures: Captures) -> None:
    captures.start("public.items").stop()
    before = snapshots(connection)
    connection.execute("INSERT INTO items VALUES (4, 'while away')")
    for number in range(2):
        running = captures.start("public.items")
        level(connection)
        running.stop()
        assert snapshots(connection) == before
        counted = connection.execute("SELECT count(*) FROM sophia.inbox WHERE key = '[4]'").fetchone()
        assert counted == (1,), f"read again at restart {number}"


@pytest.mark.usefixtures("items")
def test_position_is_acknowledged_only_after_the_inbox_has_committed(
    connection: Connection, captures: Captures, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = captures.start("public.items")
    took = inbox.take
    failing = threading.Event()
    failing.set()

    def take(*args: Any, **options: Any) -> Any:
        result = took(*args, **options)
        if failing.is_set():
            raise psycopg.OperationalError("the disk is full")
        return result

    monkeypatch.setattr(inbox, "take", take)
    before = wal_position(connection)
    connection.execute("INSERT INTO items VALUES (4, 'x')")
    assert isinstance(running.failed(), TemporaryError)
    assert "[4]" not in current(connection, "items")
    stored, slot = confirmed(connection)
    assert max(stored, slot) <= before
    failing.clear()
    captures.start("public.items")
    level(connection)
    until(lambda: min(confirmed(connection)) > before, "the acknowledgement")


@pytest.mark.usefixtures("items")
def test_slot_is_never_ahead_of_what_is_stored(connection: Connection, captures: Captures) -> None:
    """Otherwise a process that dies between the two would have to begin anew, or lose changes."""
    captures.start("public.items")
    for number in range(30):
        connection.execute("CREATE TABLE IF NOT EXISTS noise (v text); INSERT INTO noise VALUES ('x')")
        connection.execute("UPDATE items SET body = %s", [str(number)])
        stored, slot = confirmed(connection)
        assert slot <= stored
    level(connection)
    until(lambda: confirmed(connection)[1] >= wal_position(connection) - 100_000, "the slot")


@pytest.mark.usefixtures("items")
def test_idle_slot_follows_the_log_of_other_tables(connection: Connection, captures: Captures) -> None:
    captures.start("public.items")
    connection.execute("CREATE TABLE noise (v text)")
    connection.execute("INSERT INTO noise SELECT repeat('x', 1000) FROM generate_series(1, 2000)")
    target = wal_position(connection)
    until(lambda: confirmed(connection)[1] >= target, "the slot to follow")
    stored, slot = confirmed(connection)
    assert slot <= stored


@pytest.mark.usefixtures("items")
def test_capture_that_was_succeeded_stops_and_writes_nothing(connection: Connection, captures: Captures) -> None:
    running = captures.start("public.items")
    connection.execute("UPDATE sophia.captures SET epoch = epoch + 1")
    connection.execute("INSERT INTO items VALUES (4, 'x')")
    error = running.failed()
    assert isinstance(error, FencedError)
    assert "[4]" not in current(connection, "items")


@pytest.mark.usefixtures("items")
def test_capture_that_was_succeeded_in_its_snapshot_writes_nothing_more(
    connection: Connection, captures: Captures
) -> None:
    """Its sweep would bury rows that the successor's snapshot is bringing, and mark the table as captured."""

    def progress(_collection: str, rows: int, _estimate: int) -> None:
        if rows == 2:
            connection.execute("UPDATE sophia.captures SET epoch = epoch + 1")

    running = captures.start(
        "public.items", settings=QUICK.model_copy(update={"batch_documents": 2}), progress=progress, wait=False
    )
    assert isinstance(running.failed(), FencedError)
    assert len(current(connection, "items")) == 2
    assert connection.execute("SELECT complete FROM sophia.captured_tables").fetchall() == [(False,)]


# ---- new generations ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "accident",
    [
        "SELECT pg_drop_replication_slot(%(slot)s)",
        "SELECT pg_replication_slot_advance(%(slot)s, pg_current_wal_lsn())",
        "UPDATE sophia.captures SET system_identifier = 'another'",
        "UPDATE sophia.captures SET confirmed_lsn = 'FFFF/0'",
        "UPDATE sophia.captures SET confirmed_lsn = NULL",
    ],
    ids=["slot dropped", "slot moved ahead", "another server", "restored server", "position never stored"],
)
@pytest.mark.usefixtures("items")
def test_accident_begins_a_new_generation_that_loses_and_keeps_nothing(
    connection: Connection, captures: Captures, accident: str
) -> None:
    captures.start("public.items").stop()
    first = generation(connection)
    connection.execute("DELETE FROM items WHERE id = 1")
    connection.execute("UPDATE items SET body = 'changed' WHERE id = 2")
    connection.execute("INSERT INTO items VALUES (4, 'new')")
    connection.execute(accident, {"slot": captures.slot} if "%(slot)s" in accident else None)
    captures.start("public.items")
    assert generation(connection) == first + 1
    level(connection)
    connection.execute("UPDATE items SET body = 'later'")
    level(connection)


@pytest.mark.usefixtures("items")
def test_table_added_later_gets_its_own_snapshot(connection: Connection, captures: Captures) -> None:
    captures.start("public.items").stop()
    before = snapshots(connection)
    connection.execute("CREATE TABLE others (id int PRIMARY KEY, body text); INSERT INTO others VALUES (1, 'a')")
    connection.execute("INSERT INTO items VALUES (4, 'while away')")
    captures.start("public.items", "public.others")
    connection.execute("INSERT INTO others VALUES (2, 'b')")
    level(connection)
    level(connection, "others")
    assert snapshots(connection)[:1] == before, "the first table was copied again"
    temporary = connection.execute(
        "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()"
    ).fetchone()
    assert temporary == (1,)


@pytest.mark.usefixtures("items")
def test_table_dropped_and_recreated_while_running(connection: Connection, captures: Captures) -> None:
    captures.start("public.items")
    connection.execute("DROP TABLE items")
    connection.execute("CREATE TABLE items (id int PRIMARY KEY, body text, extra int)")
    connection.execute("INSERT INTO items VALUES (2, 'two', 2), (9, 'nine', 9)")
    level(connection)
    connection.execute("INSERT INTO items VALUES (10, 'ten', 10)")
    level(connection)


@pytest.mark.usefixtures("items")
def test_dropped_table_is_reported_and_the_others_go_on(connection: Connection, captures: Captures) -> None:
    connection.execute("CREATE TABLE others (id int PRIMARY KEY, body text)")
    running = captures.start("public.items", "public.others")
    connection.execute("DROP TABLE others")
    letters = "SELECT stage, reason FROM sophia.dead_letters"
    until(lambda: connection.execute(letters).fetchone(), "the report")
    row = connection.execute(letters).fetchone()
    assert row is not None
    assert row[0] == "capture"
    assert "public.others: does not exist" in row[1]
    connection.execute("INSERT INTO items VALUES (4, 'x')")
    level(connection)
    assert not running.ended


@pytest.mark.parametrize(
    "statement", ["ALTER PUBLICATION test_publication DROP TABLE items", "DROP PUBLICATION test_publication"]
)
@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
@pytest.mark.usefixtures("items")
def test_table_that_left_the_publication_is_copied_again(
    connection: Connection, captures: Captures, statement: str, running: bool
) -> None:
    """Changes made meanwhile are not in the stream."""
    connection.execute("CREATE TABLE others (id int PRIMARY KEY, body text)")
    capture = captures.start("public.items", "public.others")
    if not running:
        capture.stop()
    with connection.transaction():
        connection.execute(statement)
        connection.execute("UPDATE items SET body = 'unpublished' WHERE id = 1")
        connection.execute("DELETE FROM items WHERE id = 2")
    connection.execute("INSERT INTO items VALUES (4, 'unpublished')")
    if not running:
        captures.start("public.items", "public.others")
    level(connection)
    connection.execute("INSERT INTO items VALUES (5, 'published')")
    level(connection)


@pytest.mark.parametrize(
    "options",
    ["WITH (publish = 'insert')", "WITH (publish_via_partition_root = false)"],
)
def test_publication_that_would_lose_changes_is_refused(
    connection: Connection, captures: Captures, options: str
) -> None:
    connection.execute("CREATE TABLE items (id int PRIMARY KEY, body text) PARTITION BY RANGE (id)")
    connection.execute("CREATE TABLE low PARTITION OF items FOR VALUES FROM (0) TO (100)")
    connection.execute(f"CREATE PUBLICATION test_publication FOR TABLE items {options}")
    error = captures.fails("public.items")
    assert isinstance(error, SourceError)
    assert "ALTER PUBLICATION" in str(error)


# ---- rows read again ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("key_type", ["int", "text", "bytea", "numeric", "timestamptz"])
def test_incomplete_document_is_read_again_from_its_source(
    connection: Connection, captures: Captures, key_type: str
) -> None:
    values = {
        "int": ("1", "2"),
        "text": ("'a''b'", "'\u96ea'"),
        "bytea": (r"'\x00ff'", r"'\x41'"),
        "numeric": ("1.50", "2"),
        "timestamptz": ("'2026-02-03 04:05:06.5+02'", "'2026-01-01'"),
    }[key_type]
    connection.execute(f"CREATE TABLE items (id {key_type} PRIMARY KEY, body text)")
    for value in values:
        connection.execute(f"INSERT INTO items VALUES ({value}, 'x')")
    captures.start("public.items")
    before = current(connection, "items")
    assert len(before) == 2
    connection.execute("UPDATE sophia.documents SET body = body - 'body', missing = '{body}'")
    until(lambda: connection.execute("SELECT count(*) FROM sophia.documents WHERE missing <> '{}'").fetchone() == (0,))
    assert current(connection, "items") == before


@pytest.mark.usefixtures("items")
def test_row_that_is_gone_when_read_again_is_deleted(connection: Connection, captures: Captures) -> None:
    captures.start("public.items").stop()
    connection.execute("DELETE FROM items WHERE id = 1")
    connection.execute("UPDATE sophia.documents SET missing = '{*}'")
    captures.start("public.items")
    level(connection)
    until(lambda: connection.execute("SELECT count(*) FROM sophia.documents WHERE missing <> '{}'").fetchone() == (0,))
    connection.execute("INSERT INTO items VALUES (1, 'again')")
    level(connection)


# ---- processes that die ------------------------------------------------------------------------------------

PROCESS = """
import sys, threading, time
from sophia.capture import Binding, Capture, CaptureSource
from sophia.database import Database
from sophia.settings import CaptureSettings
url, slot, pause = sys.argv[1:4]
def progress(collection, rows, estimate):
    print(rows, flush=True)
    if rows >= int(pause):
        threading.Event().wait()
source = CaptureSource("test", url, "test_publication", slot, (Binding("public.items", "items"),))
settings = CaptureSettings(status_seconds=0.2, catalog_check_seconds=0.2, batch_documents=10)
capture = Capture(source, Database(url), settings, progress)
threading.Thread(target=lambda: (capture.ready.wait(), print("ready", flush=True)), daemon=True).start()
capture.run(threading.Event())
"""


@pytest.fixture
def capture_process(captures: Captures) -> Iterator[Callable[[int], subprocess.Popen[str]]]:
    """Starts a capture in a process of its own that halts in its snapshot after so many rows."""
    started: list[subprocess.Popen[str]] = []

    def start(pause: int = 1 << 30) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", PROCESS, captures.database.url, captures.slot, str(pause)],
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _read_until(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    for text in process.stdout:
        if text.strip() == line:
            return
    raise AssertionError(f"the process ended before it said {line!r}")


@pytest.mark.usefixtures("items")
def test_kill_in_the_middle_of_the_snapshot_goes_on_where_it_was(
    connection: Connection, captures: Captures, capture_process: Callable[[int], subprocess.Popen[str]]
) -> None:
    connection.execute("INSERT INTO items SELECT n, 'row ' || n FROM generate_series(4, 50) n")
    process = capture_process(20)
    _read_until(process, "20")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < len(current(connection, "items")) < 50
    connection.execute("DELETE FROM items WHERE id = 1")
    connection.execute("UPDATE items SET body = 'changed' WHERE id = 2")
    captures.start("public.items")
    level(connection)
    # Of the 50 rows 20 came before the kill, one of them was deleted after it.
    assert connection.execute("SELECT rows, complete FROM sophia.captured_tables").fetchall() == [(50, True)]
    assert generation(connection) == 2


@pytest.mark.usefixtures("items")
def test_kill_in_the_stream_loses_nothing_and_copies_nothing_again(
    connection: Connection, captures: Captures, capture_process: Callable[..., subprocess.Popen[str]]
) -> None:
    process = capture_process()
    _read_until(process, "ready")
    before = snapshots(connection)
    connection.execute("CREATE TABLE noise (v text)")
    for number in range(100):
        connection.execute("INSERT INTO items VALUES (%s, 'x')", [100 + number])
        connection.execute("INSERT INTO noise VALUES ('x')")
        if number == 60:
            os.kill(process.pid, signal.SIGKILL)
    captures.start("public.items")
    level(connection)
    assert snapshots(connection) == before


@pytest.mark.usefixtures("items")
def test_lost_connections_are_temporary(connection: Connection, captures: Captures) -> None:
    for application in ("sophia-capture", "walsender"):
        running = captures.start("public.items")
        condition = "backend_type = 'walsender'" if application == "walsender" else "backend_type = 'client backend'"
        kill = (
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
            f"WHERE datname = current_database() AND application_name = 'sophia-capture' AND {condition}"
        )
        until(partial(lambda kill: connection.execute(kill).fetchone() != (0,), kill), "a connection to cut")
        connection.execute("UPDATE items SET body = %s", [application])
        assert isinstance(running.failed(), TemporaryError)
    captures.start("public.items")
    level(connection)


def test_module_paths_are_those_of_this_checkout() -> None:
    """The process tests run the code under test and no installed copy."""
    assert Path(capture_module.__file__).is_relative_to(Path(__file__).parents[2])


@pytest.mark.usefixtures("items")
def test_small_batches_by_bytes(connection: Connection, captures: Captures) -> None:
    captures.start("public.items", settings=CaptureSettings(status_seconds=0.2, batch_bytes=1000))
    connection.execute("INSERT INTO items SELECT n, repeat('x', 300) FROM generate_series(10, 60) n")
    connection.execute("UPDATE items SET body = 'small' WHERE id = 10")
    level(connection)

"""Erasure: no query finds the text, no delivery or writer brings it back, the dead rows are gone from the files."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import TupleRow

from sophia import failpoints, inbox
from sophia.database.embedded import EmbeddedPostgres
from sophia.documents import Change, Clock, Origin, canonical_key, key_hash
from sophia.erasure import REMAINS, erase
from sophia.errors import FencedError, SophiaError, TemporaryError
from sophia.indexing.leases import Lease
from sophia.indexing.promotion import promote, retire
from sophia.indexing.versions import active_versions, serving_version
from sophia.indexing.writer import Q as INDEXING
from sophia.indexing.writer import Row
from sophia.stores import PgvectorStore
from tests.integration.library import Library, key
from tests.waiting import until

Connection = psycopg.Connection[TupleRow]
STORE = PgvectorStore()
SECRET = "quixotryflumadiddle"
# As long as to be stored out of line, and of a kind that does not compress to nothing.
LONG = " ".join(f"{SECRET}{number * 7919 % 10007}" for number in range(900))
PAGE = 8192


@pytest.fixture
def shelf(library: Library) -> Library:
    """Two versions with forty documents; number 7 holds the secret, and is deleted in the source."""
    new = library.version()
    for number in range(40):
        library.put(number, f"title {number}", f"text {number}")
    library.put(7, f"{SECRET} title", f"short {SECRET}", module=SECRET)
    library.put(7, f"{SECRET} title", LONG, module=SECRET)
    library.repair()
    STORE.finish(library.connection, new)
    second = library.version(library.with_index(template="{body}"))
    library.repair(version=second)
    STORE.finish(library.connection, second)
    library.connection.execute("ANALYZE")
    assert places_with(library.connection, SECRET) >= {"sophia.documents", "indexes.documents_v1", "indexes.documents"}
    return library


def deleted(library: Library) -> None:
    library.delete(7)
    for version in active_versions(library.connection):
        library.apply(7, version=version)


def places_with(connection: Connection, text: str) -> set[str]:
    """Every table and view of the database, system ones too, in which a row says `text`."""
    relations = connection.execute(
        "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE c.relkind IN ('r', 'v', 'm', 'p') AND n.nspname NOT IN ('information_schema', 'pg_toast') "
        # What runs right now names the text by itself.
        "AND c.relname NOT IN ('pg_stat_activity', 'pg_prepared_statements', 'pg_cursors')"
    ).fetchall()
    found = set()
    for schema, name in relations:
        statement = sql.SQL("SELECT 1 FROM {} t WHERE t::text LIKE {} LIMIT 1").format(
            sql.Identifier(schema, name), sql.Literal(f"%{text}%")
        )
        try:
            if connection.execute(statement).fetchone():
                found.add(f"{schema}.{name}")
        except psycopg.Error:
            assert schema == "pg_catalog"
    return found


def files_with(connection: Connection, server: EmbeddedPostgres, text: str, *, tuples: bool) -> set[str]:
    """Relations of this database whose files hold the bytes: anywhere, or (`tuples`) in what a line pointer names."""
    connection.execute("CHECKPOINT")
    found = set()
    rows = connection.execute(
        "SELECT c.oid::regclass::text, pg_relation_filepath(c.oid) FROM pg_class c "
        "WHERE pg_relation_filepath(c.oid) IS NOT NULL AND c.relkind IN ('r', 'i', 't', 'm')"
    ).fetchall()
    for name, path in rows:
        file = Path(server.pgdata) / path
        if not file.exists():
            continue
        content = file.read_bytes()
        if text.encode() in content and (not tuples or text.encode() in b"\0".join(live_items(content))):
            found.add(name)
    return found


def live_items(content: bytes) -> Iterator[bytes]:
    """The items of all pages that line pointers name: live and dead tuples, index entries; not free space."""
    for start in range(0, len(content), PAGE):
        page = content[start : start + PAGE]
        (lower,) = struct.unpack_from("<H", page, 12)
        for offset in range(24, min(max(lower, 24), PAGE), 4):
            (pointer,) = struct.unpack_from("<I", page, offset)
            place, flags, length = pointer & 0x7FFF, pointer >> 15 & 0b11, pointer >> 17
            if flags == 1:
                yield page[place : place + length]


def test_rule_no_query_of_any_table_finds_an_erased_text(shelf: Library) -> None:
    """All tables and views of the database, also PostgreSQL's statistics, old versions and dead letters."""
    deleted(shelf)
    inbox.park(shelf.connection, "documents", key(7), stage="capture", reason=f"column {SECRET} is odd")
    assert {"sophia.dead_letters", "pg_catalog.pg_stats"} <= places_with(shelf.connection, SECRET)
    assert {"sophia.ledger", "sophia.batches", "sophia.inbox"} <= places_with(shelf.connection, key(7))
    others = shelf.contents(serving_version(shelf.connection, "documents"))
    found = erase(shelf.connection, "documents", key(7))
    assert places_with(shelf.connection, SECRET) == set()
    ours = {place for place in places_with(shelf.connection, key(7)) if not place.startswith("pg_catalog.")}
    assert ours == set()
    assert shelf.contents(serving_version(shelf.connection, "documents")) == others
    assert found.kept_by == ()
    assert found.deleted
    assert found.removed["dead_letters"] == 1
    assert found.removed["ledger"] == 2
    assert found.removed["documents"] == 1
    assert found.removed["inbox"] == 4
    row = shelf.connection.execute("SELECT key_hash, clock FROM sophia.erasures").fetchall()
    assert [(bytes(digest), Clock(*clock)) for digest, clock in row] == [(key_hash(key(7)), found.clock)]
    assert shelf.connection.execute("SELECT erasures FROM sophia.collections").fetchone() == (1,)
    for version in active_versions(shelf.connection):
        assert shelf.faults(version) == []
        assert shelf.compare(version).empty


def test_rule_what_was_erased_is_in_no_live_item_of_any_file(shelf: Library, server: EmbeddedPostgres) -> None:
    """Heap, TOAST, every index and the catalog of statistics; dead tuples have line pointers until vacuumed."""
    deleted(shelf)
    before = files_with(shelf.connection, server, SECRET, tuples=True)
    assert "indexes.documents_v1_text" in before
    erase(shelf.connection, "documents", key(7))
    assert files_with(shelf.connection, server, SECRET, tuples=True) == set()


def test_rule_a_rewrite_leaves_no_byte(shelf: Library, server: EmbeddedPostgres) -> None:
    deleted(shelf)
    assert files_with(shelf.connection, server, SECRET, tuples=False)
    erase(shelf.connection, "documents", key(7), rewrite=True)
    assert files_with(shelf.connection, server, SECRET, tuples=False) == set()


@pytest.mark.parametrize("fresh", [False, True])
def test_statistics_of_a_table_that_became_empty_go_too(library: Library, fresh: bool) -> None:
    """ANALYZE leaves the statistics of an empty table as they were, also where the fresh rows beside it are not."""
    library.version()
    if fresh:
        library.put(1)
        library.apply(1)
    for number in (7, 8):
        library.put(number, f"{SECRET} {number}", SECRET)
    library.repair()
    library.connection.execute("ANALYZE")
    assert "pg_catalog.pg_stats" in places_with(library.connection, SECRET)
    for number in (7, 8):
        library.delete(number)
        library.apply(number)
    for number in (7, 8):
        erase(library.connection, "documents", key(number))
    assert places_with(library.connection, SECRET) == set()


def test_rule_a_row_that_the_source_still_has_is_refused(shelf: Library) -> None:
    with pytest.raises(SophiaError, match="delete it in the source first, or say --force"):
        erase(shelf.connection, "documents", key(7))
    assert "sophia.documents" in places_with(shelf.connection, SECRET)
    found = erase(shelf.connection, "documents", key(7), force=True)
    assert not found.deleted
    assert places_with(shelf.connection, SECRET) == set()
    # As the output says: its next change brings it back.
    shelf.put(7, "t", "back again")
    shelf.repair()
    assert "t\n\nback again" in {text for texts in shelf.contents().values() for text in texts}


@pytest.mark.parametrize(
    ("collection", "number", "message"),
    [("documnets", 7, "there are: documents"), ("documents", 99, "has no such key")],
)
def test_what_is_not_there_is_said(shelf: Library, collection: str, number: int, message: str) -> None:
    with pytest.raises(SophiaError, match=message):
        erase(shelf.connection, collection, key(number))


def test_an_erasure_may_be_repeated(shelf: Library) -> None:
    deleted(shelf)
    first = erase(shelf.connection, "documents", key(7))
    second = erase(shelf.connection, "documents", key(7))
    assert second.clock == first.clock
    assert set(second.removed.values()) == {0}
    assert shelf.connection.execute("SELECT erasures FROM sophia.collections").fetchone() == (1,)


def test_a_snapshot_that_is_under_way_must_end_first(shelf: Library) -> None:
    deleted(shelf)
    shelf.connection.execute(
        "INSERT INTO sophia.captures (source, slot, publication, system_identifier) VALUES ('s', 's', 'p', '1')"
    )
    shelf.connection.execute(
        "INSERT INTO sophia.captured_tables (source, collection_id, table_name, relation_oid, consistent_point) "
        "SELECT 's', id, 'public.documents', 1, '0/1' FROM sophia.collections"
    )
    with pytest.raises(TemporaryError, match="is being copied from source 's'"):
        erase(shelf.connection, "documents", key(7))
    assert "sophia.documents" in places_with(shelf.connection, key(7))


def test_a_retired_version_keeps_nothing_of_it(shelf: Library) -> None:
    old, new = active_versions(shelf.connection)
    promote(shelf.connection, new, STORE)
    shelf.connection.execute(f"CREATE TABLE kept AS SELECT * FROM sophia.ledger WHERE version_id = {old.id}")
    retire(shelf.connection, old, STORE)
    # As after a process that died between the drop and the ledger.
    shelf.connection.execute("INSERT INTO sophia.ledger SELECT * FROM kept")
    shelf.connection.execute("DROP TABLE kept")
    shelf.delete(7)
    shelf.apply(7, version=new)
    assert erase(shelf.connection, "documents", key(7)).removed["ledger"] == 2
    assert shelf.connection.execute("SELECT count(*) FROM sophia.ledger WHERE key = '[7]'").fetchone() == (0,)


# ---- nobody brings it back -------------------------------------------------------------------------------------


@pytest.mark.parametrize("late", ["the insert", "the delete", "an older update"])
def test_rule_a_late_delivery_is_void(shelf: Library, late: str) -> None:
    deleted(shelf)
    found = erase(shelf.connection, "documents", key(7))
    body: dict[str, Any] = {"id": 7, "title": SECRET, "body": SECRET, "module": "m", "kind": "k"}
    clock = found.clock if late == "the delete" else Clock(1, 12, 1)
    change = Change(
        canonical_key([7]), "d" if late == "the delete" else "u", clock, body, origin=Origin(clock.position)
    )
    with shelf.connection.transaction():
        assert inbox.accept(shelf.connection, "documents", [change]).changed == 0
    shelf.repair()
    assert places_with(shelf.connection, SECRET) == set()


def test_a_new_row_under_the_same_key_is_taken(shelf: Library) -> None:
    deleted(shelf)
    erase(shelf.connection, "documents", key(7))
    shelf.put(7, "t", "another row")
    shelf.repair()
    assert shelf.contents()["[7]"] == ["t\n\nanother row"]


@pytest.mark.parametrize("lane", ["live", "bulk"])
def test_rule_a_writer_that_read_before_writes_nothing_after(shelf: Library, lane: str) -> None:
    """It sleeps between reading and writing; the erasure comes between."""
    version = serving_version(shelf.connection, "documents")
    name = f"live/{version.id}" if lane == "live" else f"repair/{version.id}/1"
    with shelf.database.connect("sleeper") as sleeper:
        lease = Lease.try_take(sleeper, name, 60.0)
        assert lease is not None
        shelf.put(7, SECRET, f"new {SECRET}")
        rows = shelf.rows(7)
        shelf.delete(7)
        erase(shelf.connection, "documents", key(7))
        with pytest.raises(FencedError):
            shelf.writer(version, lane=lane).apply(sleeper, rows, lease=lease, position=rows[-1].position)
        assert places_with(shelf.connection, SECRET) == set()
        # The same session takes the lease at once again, and finds nothing to write.
        assert Lease.try_take(sleeper, name, 60.0) is not None
        assert shelf.rows(7) == []


def test_rule_a_writer_in_its_transaction_is_waited_for(shelf: Library) -> None:
    """It holds its lease and has written; the erasure waits for its commit, and removes what it wrote."""
    version = serving_version(shelf.connection, "documents")
    shelf.put(7, SECRET, f"new {SECRET}")
    rows = shelf.rows(7)
    shelf.delete(7)
    written, go_on = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def pause(name: str) -> None:
        if name == "writer.store" and threading.current_thread().name == "writer":
            written.set()
            go_on.wait(60)

    def write() -> None:
        try:
            with shelf.database.connect("writer") as connection:
                lease = Lease.try_take(connection, f"live/{version.id}", 60.0)
                shelf.writer(version, lane="live").apply(connection, rows, lease=lease)
        except BaseException as error:
            errors.append(error)

    def remove() -> None:
        try:
            with shelf.database.connect("eraser") as connection:
                erase(connection, "documents", key(7))
        except BaseException as error:
            errors.append(error)

    failpoints.arm(pause)
    try:
        writer = threading.Thread(target=write, name="writer")
        writer.start()
        assert written.wait(60)
        eraser = threading.Thread(target=remove)
        eraser.start()
        waiting = (
            "SELECT 1 FROM pg_stat_activity WHERE application_name = 'eraser' AND wait_event_type = 'Lock' "
            "AND datname = current_database()"
        )
        until(lambda: not eraser.is_alive() or shelf.connection.execute(waiting).fetchone(), "the erasure")
        assert eraser.is_alive(), "the erasure did not wait for the writer"
        go_on.set()
        writer.join(60)
        eraser.join(60)
    finally:
        failpoints.arm(None)
        go_on.set()
    assert errors == []
    assert places_with(shelf.connection, SECRET) == set()


def test_rule_a_writer_that_begins_meanwhile_finds_nothing(shelf: Library) -> None:
    """Its lease is a new one, so there is no row to fence: it must wait for the erasure's end before it reads."""
    version = serving_version(shelf.connection, "documents")
    shelf.put(7, SECRET, f"new {SECRET}")
    removed, go_on = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def pause(name: str) -> None:
        if name == "erase.before_commit":
            removed.set()
            go_on.wait(60)

    def remove() -> None:
        try:
            with shelf.database.connect("eraser") as connection:
                erase(connection, "documents", key(7), force=True)
        except BaseException as error:
            errors.append(error)

    def write() -> None:
        try:
            with shelf.database.connect("beginner") as connection:
                lease = Lease.try_take(connection, f"live/{version.id}", 60.0)
                params = {"version_id": version.id, "collection_id": version.collection_id, "keys": [key(7)]}
                rows = [Row.read(row) for row in connection.execute(INDEXING["by_keys"], params)]
                shelf.writer(version, lane="live").apply(connection, rows, lease=lease)
        except BaseException as error:
            errors.append(error)

    failpoints.arm(pause)
    try:
        eraser = threading.Thread(target=remove)
        eraser.start()
        assert removed.wait(60)
        writer = threading.Thread(target=write)
        writer.start()
        waiting = (
            "SELECT 1 FROM pg_stat_activity WHERE application_name = 'beginner' AND wait_event_type = 'Lock' "
            "AND datname = current_database()"
        )
        until(lambda: not writer.is_alive() or shelf.connection.execute(waiting).fetchone(), "the writer")
        go_on.set()
        writer.join(60)
        eraser.join(120)
    finally:
        failpoints.arm(None)
        go_on.set()
    assert errors == []
    assert places_with(shelf.connection, SECRET) == set()


def test_the_indexer_goes_on_after_an_erasure(shelf: Library, run_loop: Callable[..., Any]) -> None:
    running = run_loop(shelf.indexer())
    shelf.put(7, SECRET, f"new {SECRET}")
    shelf.delete(7)
    erase(shelf.connection, "documents", key(7))
    shelf.put(300, "t", "afterwards")
    for version in active_versions(shelf.connection):
        shelf.level(version)
    assert places_with(shelf.connection, SECRET) == set()
    assert running.error is None


@pytest.mark.parametrize(("point", "gone"), [("erase.before_commit", False), ("erase.after_commit", True)])
def test_rule_an_erasure_that_dies_is_whole_or_not_there(shelf: Library, point: str, gone: bool) -> None:
    class Killed(BaseException):
        pass

    def die(name: str) -> None:
        if name == point:
            raise Killed

    deleted(shelf)
    failpoints.arm(die)
    try:
        with shelf.database.connect("doomed") as doomed, pytest.raises(Killed):
            erase(doomed, "documents", key(7))
    finally:
        failpoints.arm(None)
    there = shelf.connection.execute("SELECT count(*) FROM sophia.documents WHERE key = '[7]'").fetchone()
    assert there == (0 if gone else 1,)
    # Called again, it does the rest.
    again = erase(shelf.connection, "documents", key(7))
    assert again.kept_by == ()
    assert places_with(shelf.connection, SECRET) == set()


# ---- vacuum ----------------------------------------------------------------------------------------------------


def test_rule_a_session_that_still_sees_the_rows_is_named(shelf: Library, server: EmbeddedPostgres) -> None:
    deleted(shelf)
    with shelf.database.connect("old snapshot", autocommit=False) as reader:
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT count(*) FROM sophia.documents")
        found = erase(shelf.connection, "documents", key(7), patience=0.3)
        assert found.kept_by == (reader.info.backend_pid,)
        reader.rollback()
    again = erase(shelf.connection, "documents", key(7))
    assert again.kept_by == ()
    assert files_with(shelf.connection, server, SECRET, tuples=True) == set()


def test_the_output_says_what_stays(shelf: Library) -> None:
    deleted(shelf)
    shown = erase(shelf.connection, "documents", key(7)).to_json()
    assert shown["remains"] == list(REMAINS)
    assert set(shown["removed"]) == {
        *("documents", "inbox", "ledger", "dead_letters", "parked", "rereads", "batches", "cache"),
        *("documents v1", "documents v2"),
    }
    assert SECRET not in str(shown)
    assert str(key(7)) not in str({name: value for name, value in shown.items() if name != "clock"})

"""Behaviours 1 to 8 of Estuary's source-postgres, of the stand-in against a real PostgreSQL."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest

from sophia.documents import parse_lsn, uuid_clock, uuid_time
from sophia.errors import TemporaryError
from sophia.estuary.source.tables import describe_table
from sophia.estuary.stamps import ACK_TXN, CONTINUE_TXN, MICROSECOND, OUTSIDE_TXN, Producer, uuid_flags, uuid_of
from sophia.estuary.stand_in.journal import Journal
from sophia.estuary.stand_in.source_postgres import KEYLESS, key_pointers, request_backfill
from tests.estuary.scene import Source, state_of
from tests.waiting import until

Runner = Callable[..., Any]
BIG = "long " * 4_000


def collected(source: Source, count: int, collection: str = "acme/items") -> list[dict[str, Any]]:
    """Wait for that many documents; there are no more."""
    until(lambda: len(source.documents(collection)) >= count, f"{count} documents")
    documents = source.documents(collection)
    assert len(documents) == count
    return documents


def bare(document: dict[str, Any]) -> dict[str, Any]:
    """Without what differs from run to run."""
    meta = document["_meta"]
    where = {name: value for name, value in meta["source"].items() if name not in ("ts_ms", "loc", "txid")}
    return document | {"_meta": {name: value for name, value in meta.items() if name != "uuid"} | {"source": where}}


def make_items(source: Source, rows: int = 0) -> None:
    source.execute("CREATE TABLE items (id int PRIMARY KEY, body text, big text)")
    # So that a long text is kept apart, and left out when it did not change.
    source.execute("ALTER TABLE items ALTER big SET STORAGE EXTERNAL")
    source.execute("INSERT INTO items SELECT n, 'row ' || n FROM generate_series(1, %s) n", rows)


def test_01_documents_have_estuarys_fields_in_their_order(source: Source, run_loop: Runner) -> None:
    make_items(source, 2)
    run_loop(source.capture())
    first, second = collected(source, 2)
    assert list(first) == ["_meta", "big", "body", "id"]
    assert list(first["_meta"]) == ["op", "source", "uuid"]
    assert list(first["_meta"]["source"]) == ["schema", "snapshot", "table", "loc"]
    assert first["_meta"]["source"] == {"schema": "public", "snapshot": True, "table": "items", "loc": [-1, 0, 0]}
    assert second["_meta"]["source"]["loc"] == [-1, 1, 0]
    assert first["_meta"]["op"] == "c"

    source.execute("INSERT INTO items VALUES (3, 'new', NULL)")
    source.execute("UPDATE items SET body = 'changed' WHERE id = 3")
    source.execute("DELETE FROM items WHERE id = 3")
    inserted, updated, deleted = collected(source, 5)[2:]
    assert [document["_meta"]["op"] for document in (inserted, updated, deleted)] == ["c", "u", "d"]
    for document in (inserted, updated, deleted):
        where = document["_meta"]["source"]
        assert list(where) == ["ts_ms", "schema", "table", "loc", "txid"]
        last_end, event, commit = where["loc"]
        assert last_end <= event <= commit
    assert [d["_meta"]["source"]["loc"] for d in (inserted, updated, deleted)] == sorted(
        d["_meta"]["source"]["loc"] for d in (inserted, updated, deleted)
    )


def test_02_replica_identity_decides_before_and_deletes(source: Source, run_loop: Runner) -> None:
    make_items(source)
    source.execute("CREATE TABLE whole (id int PRIMARY KEY, body text, big text)")
    source.execute("ALTER TABLE whole REPLICA IDENTITY FULL")
    source.execute("ALTER TABLE whole ALTER big SET STORAGE EXTERNAL")
    run_loop(source.capture("public.items", "public.whole"))
    for table in ("items", "whole"):
        source.execute(f"INSERT INTO {table} VALUES (1, 'a', %s)", BIG)
        source.execute(f"UPDATE {table} SET body = 'b'")
        source.execute(f"DELETE FROM {table}")
    _, updated, deleted = collected(source, 3)
    assert "big" not in updated
    assert "before" not in updated["_meta"]
    assert set(deleted) == {"_meta", "id"}
    _, updated, deleted = collected(source, 3, "acme/whole")
    assert (updated["big"], updated["body"]) == (BIG, "b")
    assert updated["_meta"]["before"] == {"id": 1, "body": "a", "big": BIG}
    assert list(updated["_meta"]) == ["op", "source", "before", "uuid"]
    assert (deleted["body"], deleted["big"]) == ("b", BIG)
    assert "before" not in deleted["_meta"]


def test_03_a_key_change_is_one_update_with_the_old_key(source: Source, run_loop: Runner) -> None:
    make_items(source, 1)
    run_loop(source.capture())
    source.execute("UPDATE items SET id = 5")
    _, moved = collected(source, 2)
    assert bare(moved) == {
        "_meta": {"op": "u", "source": {"schema": "public", "table": "items"}, "before": {"id": 1}},
        "big": None,
        "body": "row 1",
        "id": 5,
    }


def test_04_truncate_is_ignored(source: Source, run_loop: Runner) -> None:
    make_items(source, 2)
    run_loop(source.capture())
    source.execute("TRUNCATE items")
    source.execute("INSERT INTO items VALUES (9, 'later', NULL)")
    documents = collected(source, 3)
    assert [document["_meta"]["op"] for document in documents] == ["c", "c", "c"]
    assert [document["id"] for document in documents] == [1, 2, 9]


def test_05_a_table_without_key_is_keyed_by_its_events(source: Source, run_loop: Runner) -> None:
    source.execute("CREATE TABLE events (body text)")
    source.execute("INSERT INTO events VALUES ('one'), ('one')")
    run_loop(source.capture("public.events"))
    source.execute("INSERT INTO events VALUES ('two')")
    documents = collected(source, 3, "acme/events")
    assert key_pointers(describe_table(source.connection, "public.events")) == KEYLESS
    locs = [tuple(document["_meta"]["source"]["loc"]) for document in documents]
    assert locs[:2] == [(-1, 0, 0), (-1, 1, 0)]
    assert len(set(locs)) == 3


def test_06_backfill_then_stream_loses_and_doubles_nothing(source: Source, run_loop: Runner) -> None:
    make_items(source, 400)
    stop = threading.Event()
    written = 400

    def write() -> None:
        nonlocal written
        with source.database.connect("sophia-test") as connection:
            while not stop.is_set() and written < 900:
                written += 1
                connection.execute("INSERT INTO items VALUES (%s, 'during', NULL)", [written])
                connection.execute("UPDATE items SET body = body || '.' WHERE id = %s", [written // 2])

    thread = threading.Thread(target=write)
    thread.start()
    try:
        run_loop(source.capture())
    finally:
        stop.set()
        thread.join()
    last = written

    def truth() -> dict[Any, Any]:
        return {row[0]: row[1] for row in source.connection.execute("SELECT id, body FROM items")}

    def seen() -> dict[Any, Any]:
        return {number: row["body"] for number, row in state_of(source.documents()).items()}

    until(lambda: last in seen() and seen() == truth(), "the journal")
    documents = source.documents()
    creates = [document["id"] for document in documents if document["_meta"]["op"] == "c"]
    assert len(creates) == len(set(creates)), "a row was brought by the backfill and by the stream"
    # First its insert, then only later changes.
    known: set[int] = set()
    for document in documents:
        assert document["_meta"]["op"] == "c" or document["id"] in known
        known.add(document["id"])


def test_06_a_second_backfill_brings_rows_and_no_deletes(source: Source, run_loop: Runner) -> None:
    make_items(source, 3)
    run_loop(source.capture()).stop()
    with Journal(source.path) as journal:
        request_backfill(journal, "acme/items")
    # What happens to the table before it is read again is told by nobody.
    source.execute("DELETE FROM items WHERE id = 2")
    source.execute("UPDATE items SET body = 'changed' WHERE id = 3")
    run_loop(source.capture())
    again = collected(source, 5)[3:]
    assert [(document["_meta"]["op"], document["id"], document["body"]) for document in again] == [
        ("c", 1, "row 1"),
        ("c", 3, "changed"),
    ]
    assert all(document["_meta"]["source"]["snapshot"] for document in again)
    assert set(state_of(source.documents())) == {1, 2, 3}, "the orphan stays until it is swept"


def test_06_a_backfill_that_died_brings_no_orphan(source: Source, run_loop: Runner) -> None:
    """Rows that the first try had brought, and that went before the second, get their deletes."""
    make_items(source, 3)
    run_loop(source.capture()).stop()
    with Journal(source.path) as journal:
        state = journal.checkpoint("source-postgres")
        # As if it had died right behind the first rows.
        state["tables"]["acme/items"]["pending"] = True
        journal.set_checkpoint("source-postgres", state)
    source.execute("DELETE FROM items WHERE id = 2")
    run_loop(source.capture())
    assert set(state_of(source.documents())) == {1, 3}


def test_07_uuids_have_the_clocks_that_estuarys_own_have() -> None:
    late, early = "3e2bc280-1deb-11b2-8000-071353030311", "770f6b80-1dda-11b2-8000-071353030311"
    assert uuid_clock(late) == 1955088577440000000
    assert uuid_clock(early) == 1955087424480000000
    assert uuid_time(uuid_clock(late)).isoformat() == "1970-01-01T03:00:09+00:00"
    assert uuid_time(uuid_clock(early)).isoformat() == "1970-01-01T01:00:03+00:00"
    assert late < early, "the text of a UUID does not sort by time"
    assert uuid_of(1955088577440000000, 0x071353030311, OUTSIDE_TXN) == late
    assert uuid_of(1955087424480000000, 0x071353030311, OUTSIDE_TXN) == early
    for flags in (OUTSIDE_TXN, CONTINUE_TXN, ACK_TXN, 0x3FF):
        text = uuid_of(1955088577440000005, 0xFFFF_FFFF_FFFF, flags)
        assert (uuid_clock(text), uuid_flags(text)) == (1955088577440000005, flags)


def test_07_a_producers_clock_goes_up_by_a_microsecond_at_least() -> None:
    times = iter([10.0, 10.0, 10.0, 5.0, 11.0])
    producer = Producer(lambda: next(times), random.Random(1))
    clocks = [uuid_clock(producer.stamp()) for _ in range(5)]
    assert [later - earlier for earlier, later in itertools.pairwise(clocks)][:3] == [MICROSECOND] * 3
    assert clocks == sorted(set(clocks))
    assert producer.id >> 40 & 1, "the multicast bit"
    assert producer.id != Producer(lambda: 1.0, random.Random(2)).id
    assert uuid_clock(Producer(lambda: 1.0, random.Random(2), last=clocks[-1]).stamp()) == clocks[-1] + MICROSECOND


def test_07_each_start_of_the_capture_is_another_producer(source: Source, run_loop: Runner) -> None:
    make_items(source, 2)
    run_loop(source.capture()).stop()
    # A clock that was set back does not bring one back.
    run_loop(source.capture(now=lambda: 1_000.0))
    source.execute("INSERT INTO items VALUES (9, 'later', NULL)")
    stamps = [document["_meta"]["uuid"] for document in collected(source, 3)]
    clocks = [uuid_clock(stamp) for stamp in stamps]
    assert clocks == sorted(set(clocks))
    assert stamps[0][-12:] == stamps[1][-12:] != stamps[2][-12:]
    assert all(uuid_flags(stamp) == CONTINUE_TXN for stamp in stamps)


def test_08_nothing_is_acknowledged_before_the_journal_has_it(
    source: Source, run_loop: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_items(source)
    run_loop(source.capture()).stop()
    position = source.connection.execute("SELECT pg_current_wal_lsn()::text").fetchone()
    assert position is not None
    source.execute("INSERT INTO items VALUES (1, 'must not be lost', NULL)")
    append = Journal.append

    def no_disk(*arguments: Any) -> None:
        raise TemporaryError("no space left on device")

    monkeypatch.setattr(Journal, "append", no_disk)
    running = run_loop(source.capture(), wait=False)
    assert "no space" in str(running.failed())
    confirmed = source.connection.execute(
        "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = %s", [source.slot]
    ).fetchone()
    assert confirmed is not None
    assert parse_lsn(confirmed[0]) <= parse_lsn(position[0])

    monkeypatch.setattr(Journal, "append", append)
    run_loop(source.capture())
    assert collected(source, 1)[0]["body"] == "must not be lost"


def test_08_what_the_journal_has_is_not_read_twice(source: Source, run_loop: Runner) -> None:
    """Dead between the journal's commit and the acknowledgement: the server sends it again."""
    make_items(source)
    run_loop(source.capture()).stop()
    source.execute("INSERT INTO items VALUES (1, 'once', NULL)")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sophia.capture.replication.ReplicationConnection.confirm", lambda self, position: None)
        running = run_loop(source.capture())
        collected(source, 1)
        running.stop()
    run_loop(source.capture())
    source.execute("INSERT INTO items VALUES (2, 'later', NULL)")
    assert [document["id"] for document in collected(source, 2)] == [1, 2]

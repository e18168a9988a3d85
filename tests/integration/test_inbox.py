"""The inbox: fence, merge, tombstones, floors, positions."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.rows import TupleRow

from sophia import inbox
from sophia.database import Database
from sophia.documents import Change, Clock, Key, Origin, bucket_of, canonical_key, parse_lsn
from sophia.inbox import WHOLE_ROW, Floor
from tests.waiting import until

Connection = psycopg.Connection[TupleRow]
Event = Change | Floor
NAME = "things"


def key(value: Any) -> Key:
    return canonical_key([value])


def change(
    value: Any,
    position: int,
    ordinal: int = 1,
    *,
    op: str = "u",
    generation: int = 1,
    before: Any = None,
    missing: tuple[str, ...] = (),
    complete: bool | None = None,
    bulk: bool = False,
    **columns: Any,
) -> Change:
    """An upsert of row `value` with these columns, or a delete."""
    return Change(
        key=key(value),
        op=op,  # type: ignore[arg-type]
        clock=Clock(generation, position, ordinal),
        body=None if op == "d" else {"id": value, **columns},
        complete=not missing if complete is None else complete,
        missing=missing,
        before_key=key(before) if before is not None else None,
        origin=Origin(position, 7, datetime(2026, 1, 1, tzinfo=UTC)),
        bulk=bulk,
    )


@pytest.fixture(autouse=True)
def collection(connection: Connection) -> int:
    return inbox.ensure_collection(connection, NAME, ["id"])


def accept(connection: Connection, *events: Event) -> inbox.Accepted:
    with connection.transaction():
        return inbox.accept(connection, NAME, events)


def documents(connection: Connection) -> dict[str, Any]:
    """Key to body; None for a tombstone."""
    return {k: None if gone else body for k, gone, body, *_ in state(connection)}


def state(connection: Connection) -> list[Any]:
    """All that does not depend on arrival: key, deleted, body, clock, missing."""
    return connection.execute("SELECT key, deleted, body, clock, missing FROM sophia.documents ORDER BY key").fetchall()


def position(connection: Connection) -> int:
    row = connection.execute("SELECT position FROM sophia.collections WHERE name = %s", [NAME]).fetchone()
    assert row is not None
    return int(row[0])


# ---- fence -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("later", "expected", "changed"),
    [
        (Clock(1, 10, 2), "new", 1),
        (Clock(1, 11, 1), "new", 1),
        (Clock(2, 1, 1), "new", 1),
        (Clock(1, 10, 1), "old", 0),
        (Clock(1, 9, 9), "old", 0),
        (Clock(0, 99, 9), "old", 0),
    ],
)
def test_higher_clock_wins(connection: Connection, later: Clock, expected: str, changed: int) -> None:
    accept(connection, change(1, 10, v="old"))
    result = accept(connection, change(1, later.position, later.ordinal, generation=later.generation, v="new"))
    assert result == inbox.Accepted(1, changed)
    assert documents(connection) == {"[1]": {"id": 1, "v": expected}}


def test_fence_holds_inside_one_batch(connection: Connection) -> None:
    accept(connection, change(1, 10, 2, v="new"), change(1, 10, 1, v="stale"), change(1, 10, 2, v="again"))
    assert documents(connection) == {"[1]": {"id": 1, "v": "new"}}


def test_one_document_for_many_changes_of_a_key(connection: Connection) -> None:
    assert accept(connection, *[change(1, 10, n, v=n) for n in range(1, 51)]) == inbox.Accepted(50, 1)
    assert documents(connection) == {"[1]": {"id": 1, "v": 50}}
    assert connection.execute("SELECT count(*) FROM sophia.inbox").fetchone() == (50,)


def test_document_row_holds_where_it_came_from(connection: Connection) -> None:
    accept(connection, change(1, 10, 3, v="x"))
    row = connection.execute(
        "SELECT bucket, clock, lsn::text, txid, committed_at, bulk, deleted FROM sophia.documents"
    ).fetchone()
    assert row == (bucket_of(key(1)), [1, 10, 3], "0/A", 7, datetime(2026, 1, 1, tzinfo=UTC), False, False)


def test_append_log_holds_no_text(connection: Connection) -> None:
    accept(connection, change(1, 10, v="very secret text"))
    rows = connection.execute("SELECT i::text FROM sophia.inbox i").fetchall()
    assert len(rows) == 1
    assert "secret" not in rows[0][0]


def test_unknown_collection_is_refused(connection: Connection) -> None:
    with pytest.raises(LookupError, match="'nothing'"), connection.transaction():
        inbox.accept(connection, "nothing", [change(1, 1)])


@pytest.mark.parametrize("value", ["snow 雪", 'quo"te', "back\\slash", "{1,2}", "", " ", "NULL", "a,b", "🦎"])
def test_odd_keys_and_values_survive(connection: Connection, value: str) -> None:
    accept(connection, change(value, 1, v=value, missing=(value or "m",)))
    assert state(connection) == [(canonical_key([value]), False, {"id": value, "v": value}, [1, 1, 1], [value or "m"])]


# ---- merge -------------------------------------------------------------------------------------------------


def test_partial_change_keeps_what_it_does_not_name(connection: Connection) -> None:
    accept(connection, change(1, 10, v="a", big="B"))
    accept(connection, change(1, 11, v="b", missing=("big",)))
    assert state(connection) == [("[1]", False, {"id": 1, "v": "b", "big": "B"}, [1, 11, 1], [])]


def test_merge_is_top_level_only(connection: Connection) -> None:
    accept(connection, change(1, 10, v={"a": 1, "b": 2}, big="B"))
    accept(connection, change(1, 11, v={"c": 3}, missing=("big",)))
    assert documents(connection) == {"[1]": {"id": 1, "v": {"c": 3}, "big": "B"}}


def test_complete_change_drops_columns_that_it_does_not_name(connection: Connection) -> None:
    accept(connection, change(1, 10, v="a", dropped="x"))
    accept(connection, change(1, 11, v="b"))
    assert documents(connection) == {"[1]": {"id": 1, "v": "b"}}


def test_partial_change_without_a_base_remembers_what_is_missing(connection: Connection) -> None:
    accept(connection, change(1, 10, v="a", missing=("big", "large")))
    accept(connection, change(1, 11, v="b", big="B", missing=("large",)))
    assert state(connection) == [("[1]", False, {"id": 1, "v": "b", "big": "B"}, [1, 11, 1], ["large"])]
    accept(connection, change(1, 12, v="b", big="B", large="L"))
    assert state(connection)[0][4] == []


def test_partial_change_after_a_delete_does_not_meet_the_old_row(connection: Connection) -> None:
    accept(connection, change(1, 10, v="a", big="B"), change(1, 11, op="d"), change(1, 12, v="c", missing=("big",)))
    assert state(connection) == [("[1]", False, {"id": 1, "v": "c"}, [1, 12, 1], ["big"])]


def test_replay_does_not_bring_back_outgrown_values(connection: Connection) -> None:
    """A replayed batch holds an old whole row and a partial one above what is stored: only the latter counts."""
    old, newer, partial = change(1, 10, v="a", big="OLD"), change(1, 11, v="b", big="NEW"), None
    partial = change(1, 12, v="c", missing=("big",))
    accept(connection, old, newer)
    accept(connection, old, partial)
    assert documents(connection) == {"[1]": {"id": 1, "v": "c", "big": "NEW"}}


def test_parked_document_marks_its_key_until_the_row_was_read_whole(connection: Connection) -> None:
    accept(connection, change(1, 10, v="a", big="B"))
    accept(connection, change(1, 11, missing=(WHOLE_ROW,)))
    assert state(connection)[0][4] == [WHOLE_ROW]
    accept(connection, change(1, 12, v="b", missing=("big",)))
    assert state(connection)[0][4] == [WHOLE_ROW], "a partial change passed for complete"
    accept(connection, change(1, 13, v="c", big="C"))
    assert state(connection)[0][4] == []


def test_parked_document_and_partial_change_of_one_batch(connection: Connection) -> None:
    accept(connection, change(1, 10, v="a", big="B"))
    accept(connection, change(1, 11, missing=(WHOLE_ROW,)), change(1, 12, v="b", missing=("big",)))
    assert WHOLE_ROW in state(connection)[0][4]


# ---- keys and deletes --------------------------------------------------------------------------------------


def test_key_change_deletes_the_old_key(connection: Connection) -> None:
    accept(connection, change(1, 10, v="a"))
    accept(connection, change(5, 11, before=1, v="b"))
    assert documents(connection) == {"[1]": None, "[5]": {"id": 5, "v": "b"}}


def test_key_change_carries_unchanged_columns_over(connection: Connection) -> None:
    accept(connection, change(1, 10, v="a", big="B"))
    accept(connection, change(5, 11, before=1, v="a", missing=("big",)))
    assert documents(connection) == {"[1]": None, "[5]": {"id": 5, "v": "a", "big": "B"}}


def test_key_change_of_an_incomplete_row_stays_incomplete(connection: Connection) -> None:
    accept(connection, change(1, 10, v="a", missing=("big",)))
    accept(connection, change(5, 11, before=1, v="a", missing=("big",)))
    assert state(connection)[1][4] == ["big"]


def test_freed_key_is_taken_again_in_the_same_transaction(connection: Connection) -> None:
    accept(connection, change(1, 10, v="one", big="B"))
    moved = change(5, 11, 1, before=1, v="one", missing=("big",))
    events = [moved, change(1, 11, 2, op="c", v="new"), change(5, 11, 3, v="moved", missing=("big",))]
    expected = {"[1]": {"id": 1, "v": "new"}, "[5]": {"id": 5, "v": "moved", "big": "B"}}
    accept(connection, *events)
    assert documents(connection) == expected
    accept(connection, *events[:2])
    accept(connection, *events[1:])
    assert documents(connection) == expected


def test_two_rows_exchange_their_keys(connection: Connection) -> None:
    accept(connection, change(1, 10, 1, v="a", big="A"), change(2, 10, 2, v="b", big="B"))
    accept(
        connection,
        change(0, 11, 1, before=1, v="a", missing=("big",)),
        change(1, 11, 2, before=2, v="b", missing=("big",)),
        change(2, 11, 3, before=0, v="a", missing=("big",)),
    )
    assert documents(connection) == {
        "[0]": None,
        "[1]": {"id": 1, "v": "b", "big": "B"},
        "[2]": {"id": 2, "v": "a", "big": "A"},
    }


def test_tombstone_keeps_a_late_older_insert_out(connection: Connection) -> None:
    accept(connection, change(1, 12, op="d"))
    assert accept(connection, change(1, 10, op="c", v="late")).changed == 0
    assert state(connection) == [("[1]", True, None, [1, 12, 1], [])]


def test_deleted_key_can_come_back(connection: Connection) -> None:
    accept(connection, change(1, 10, v="a"), change(1, 11, op="d"), change(1, 12, op="c", v="b"))
    assert documents(connection) == {"[1]": {"id": 1, "v": "b"}}


# ---- floors ------------------------------------------------------------------------------------------------


def test_truncate_deletes_what_is_older_and_keeps_what_follows(connection: Connection) -> None:
    accept(connection, change(1, 10, v="a"), change(2, 10, 2, v="b"))
    accept(
        connection,
        change(3, 11, 1, v="c"),
        Floor(Clock(1, 11, 2), Origin(11)),
        change(4, 11, 3, v="d"),
        change(1, 11, 4, v="again"),
    )
    assert documents(connection) == {
        "[1]": {"id": 1, "v": "again"},
        "[2]": None,
        "[3]": None,
        "[4]": {"id": 4, "v": "d"},
    }


def test_what_is_below_the_floor_is_void_for_ever(connection: Connection) -> None:
    accept(connection, Floor(Clock(1, 11, 2), Origin(11)))
    accept(connection, change(9, 11, 1, v="late"), change(8, 10, 5, op="d"))
    assert documents(connection) == {}


def test_replayed_truncate_does_not_delete_what_came_after(connection: Connection) -> None:
    floor, after = Floor(Clock(1, 11, 2), Origin(11)), change(4, 11, 3, v="d")
    accept(connection, change(1, 10, v="a"), floor, after)
    before = state(connection)
    accept(connection, floor)
    accept(connection, change(1, 10, v="a"), floor, after)
    assert state(connection) == before


def test_sweep_deletes_what_the_new_generation_did_not_bring(connection: Connection) -> None:
    accept(connection, change(1, 10, v="kept"), change(2, 10, v="gone"), change(3, 10, v="changed"))
    with connection.transaction():
        inbox.raise_floor(connection, NAME, Clock(2, 5, 0))
    assert None not in documents(connection).values(), "search goes on while the snapshot comes in"
    accept(connection, change(3, 6, 1, generation=2, v="streamed"))
    accept(connection, change(1, 5, 0, generation=2, op="c", v="kept", bulk=True))
    accept(connection, change(3, 5, 0, generation=2, op="c", v="snapshot", bulk=True))
    with connection.transaction():
        assert inbox.sweep(connection, NAME) == 1
    assert documents(connection) == {
        "[1]": {"id": 1, "v": "kept"},
        "[2]": None,
        "[3]": {"id": 3, "v": "streamed"},
    }
    accept(connection, change(2, 99, 1, generation=1, v="of the old generation"))
    assert documents(connection)["[2]"] is None


def test_sweep_and_floors_never_go_back(connection: Connection) -> None:
    with connection.transaction():
        inbox.raise_floor(connection, NAME, Clock(3, 5, 0))
        inbox.raise_floor(connection, NAME, Clock(2, 9, 9))
    row = connection.execute("SELECT floor, generation FROM sophia.collections").fetchone()
    assert row == ([3, 5, 0], 3)


def test_swept_documents_are_seen_by_a_reader_of_positions(connection: Connection) -> None:
    accept(connection, *[change(n, 10, n + 1, v="a") for n in range(5)])
    seen = position(connection)
    accept(connection, change(9, 11, 1, v="x"), Floor(Clock(1, 11, 2), Origin(11)), change(8, 11, 3, v="y"))
    rows = connection.execute(
        "SELECT key, deleted FROM sophia.documents WHERE position > %s AND NOT bulk ORDER BY position", [seen]
    ).fetchall()
    assert len(rows) == len({k for k, _ in rows}) == 7
    positions = connection.execute("SELECT position FROM sophia.documents").fetchall()
    assert len(set(positions)) == 7
    assert max(positions)[0] <= position(connection)


# ---- replays -----------------------------------------------------------------------------------------------


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Event], list[tuple[int, int]]]:
    """A source's history in commit order, and a delivery of it: slices, repeated and overlapping, that cover it.

    Slices begin anywhere at or before what was delivered last, as a source does that resumes from a confirmed
    position, so each is a contiguous piece of the history.
    """
    events: list[Event] = []
    live: set[int] = set()
    for number in range(draw(st.integers(1, 14))):
        at = 10 + number
        kind = draw(st.sampled_from(["whole", "whole", "partial", "delete", "move", "truncate"]))
        row = draw(st.integers(1, 4))
        if kind == "truncate" and draw(st.booleans()):
            events.append(Floor(Clock(1, at, 1), Origin(at)))
            live.clear()
        elif kind == "delete" and row in live:
            events.append(change(row, at, op="d"))
            live.discard(row)
        elif kind == "partial" and row in live:
            events.append(change(row, at, v=number, missing=("big",)))
        elif kind == "move" and row in live and live != {1, 2, 3, 4}:
            to = min({1, 2, 3, 4} - live)
            partial = draw(st.booleans())
            columns = {"v": number} if partial else {"v": number, "big": f"B{number}"}
            events.append(change(to, at, before=row, missing=("big",) if partial else (), **columns))
            live.symmetric_difference_update({row, to})
        else:
            events.append(change(row, at, v=number, big=f"B{number}"))
            live.add(row)
    slices: list[tuple[int, int]] = []
    done = 0
    while done < len(events):
        start = draw(st.integers(0, done))
        end = draw(st.integers(start + 1, len(events)))
        slices.append((start, end))
        done = max(done, end)
    return events, slices


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(histories())
def test_any_cut_and_repetition_of_a_history_yields_the_same_documents(
    connection: Connection, history: tuple[list[Event], list[tuple[int, int]]]
) -> None:
    events, slices = history

    def outcome(batches: Sequence[Sequence[Event]]) -> list[Any]:
        connection.execute("TRUNCATE sophia.collections, sophia.documents, sophia.inbox RESTART IDENTITY CASCADE")
        inbox.ensure_collection(connection, NAME, ["id"])
        for batch in batches:
            accept(connection, *batch)
        return [row for row in state(connection) if not row[1]]

    expected = outcome([[event] for event in events])
    assert outcome([events]) == expected
    assert outcome([events[start:end] for start, end in slices]) == expected
    assert all(row[4] == [] for row in expected), "nothing was missing in a whole history"


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(list(range(6))), st.integers(0, 5))
def test_whole_documents_may_come_in_any_order(connection: Connection, order: list[int], twice: int) -> None:
    events = [change(1 + n % 2, 10 + n, op="d" if n == 3 else "u", v=n) for n in range(6)]
    connection.execute("TRUNCATE sophia.collections, sophia.documents, sophia.inbox RESTART IDENTITY CASCADE")
    inbox.ensure_collection(connection, NAME, ["id"])
    for n in [*order, twice]:
        accept(connection, events[n])
    assert documents(connection) == {"[1]": {"id": 1, "v": 4}, "[2]": {"id": 2, "v": 5}}


# ---- transactions and positions ----------------------------------------------------------------------------


def test_rollback_leaves_nothing(connection: Connection) -> None:
    with connection.transaction(force_rollback=True):
        inbox.accept(connection, NAME, [change(1, 10, v="a")])
    for table in ("documents", "inbox"):
        assert connection.execute(f"SELECT count(*) FROM sophia.{table}").fetchone() == (0,)
    assert position(connection) == 0


def test_positions_become_visible_in_their_order(connection: Connection, database: Database) -> None:
    """The second writer waits for the first one's commit, so a reader never sees a smaller position appear later."""
    entered = threading.Event()

    def second() -> None:
        with database.connect("second") as other, other.transaction():
            entered.set()
            inbox.accept(other, NAME, [change(2, 11, v="second")])

    with database.connect("first") as first, first.transaction():
        inbox.accept(first, NAME, [change(1, 10, v="first")])
        thread = threading.Thread(target=second)
        thread.start()
        entered.wait(60)
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'second' AND wait_event_type = 'Lock'"
        until(lambda: connection.execute(waiting).fetchone() == (1,), "the second writer's wait")
        assert documents(connection) == {}
    thread.join(60)
    rows = connection.execute("SELECT key, position FROM sophia.documents ORDER BY position").fetchall()
    assert rows == [("[1]", 1), ("[2]", 2)]


def test_writers_of_two_collections_do_not_wait_for_each_other(connection: Connection, database: Database) -> None:
    inbox.ensure_collection(connection, "others", ["id"])
    with database.connect("first") as first, first.transaction():
        inbox.accept(first, NAME, [change(1, 10, v="first")])
        connection.execute("SET lock_timeout = '5s'")
        with connection.transaction():
            assert inbox.accept(connection, "others", [change(1, 10)]).changed == 1


def test_collection_follows_the_newest_source_position(connection: Connection) -> None:
    accept(connection, change(1, 20, v="a"))
    accept(connection, change(2, 15, v="b"))
    row = connection.execute("SELECT source_lsn::text, source_time FROM sophia.collections").fetchone()
    assert row is not None
    assert (parse_lsn(row[0]), row[1]) == (20, datetime(2026, 1, 1, tzinfo=UTC))


def test_bulk_documents_raise_the_bulk_position(connection: Connection) -> None:
    accept(connection, change(1, 10, v="live"))
    assert connection.execute("SELECT bulk_position FROM sophia.collections").fetchone() == (0,)
    accept(connection, change(2, 11, v="bulk", bulk=True))
    assert connection.execute("SELECT bulk_position FROM sophia.collections").fetchone() == (2,)


def test_readers_are_notified_at_commit_only(connection: Connection, database: Database) -> None:
    connection.execute("LISTEN sophia_inbox")
    with database.connect() as writer:
        with writer.transaction():
            inbox.accept(writer, NAME, [change(1, 10, v="a")])
            assert list(connection.notifies(timeout=0.05)) == []
        assert [n.payload for n in connection.notifies(timeout=10, stop_after=1)] == [NAME]
        accept(writer, change(1, 10, v="a"))
        assert list(connection.notifies(timeout=0.05)) == [], "a duplicate is no news"


def test_a_fault_of_a_key_is_one_dead_letter(connection: Connection) -> None:
    for reason in ("first", "second"):
        inbox.park(connection, NAME, "[1]", stage="capture", reason=reason, clock=Clock(1, 2, 3))
    rows = connection.execute("SELECT key, stage, reason, attempts, clock FROM sophia.dead_letters").fetchall()
    assert rows == [("[1]", "capture", "second", 2, [1, 2, 3])]


def test_key_fields_are_kept_when_none_are_given(connection: Connection) -> None:
    first = inbox.ensure_collection(connection, NAME, ["a", "b"])
    assert inbox.ensure_collection(connection, NAME) == first
    assert connection.execute("SELECT key_fields FROM sophia.collections").fetchone() == (["a", "b"],)

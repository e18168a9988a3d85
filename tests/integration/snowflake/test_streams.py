"""The stream path, over the shim of streams: fakesnow has none, so Snowflake's own streams are not tested here."""

from __future__ import annotations

import pytest

from sophia import failpoints, inbox
from sophia.errors import FencedError, TemporaryError
from tests.integration.snowflake.conftest import Snow, by_stream, dies_at
from tests.integration.snowflake.stream_shim import Fault
from tests.waiting import until

MANY = tuple(f"{number}, 'text {number}', NULL" for number in range(1, 10))
NO_KEY = "CREATE TABLE ITEMS (ID NUMBER(38,0), BODY VARCHAR)"


def staged(snow: Snow) -> int:
    """Rows in all staging tables."""
    names = [
        row[0] for row in snow.run("SELECT TABLE_NAME FROM INFORMATION_SCHEMA.TABLES WHERE TABLE_NAME LIKE '%_STAGED'")
    ]
    return sum(snow.run(f'SELECT COUNT(*) FROM SOPHIA_STAGING."{name}"')[0][0] for name in names)


def change(snow: Snow) -> None:
    """An update, a delete, an insert."""
    snow.run("UPDATE ITEMS SET BODY = 'changed' WHERE ID IN (2, 3, 4)")
    snow.run("DELETE FROM ITEMS WHERE ID = 1")
    snow.insert("10, 'ten', NULL")


def test_rows_are_copied_then_followed_with_deletes(snow: Snow) -> None:
    snow.items("1, 'one', NULL", "2, 'two', NULL", "3, 'three', NULL")
    snow.start(by_stream())
    snow.level()
    snow.run("UPDATE ITEMS SET BODY = 'TWO' WHERE ID = 2")
    snow.run("DELETE FROM ITEMS WHERE ID = 1")
    snow.insert("4, 'four', NULL")
    snow.level()
    assert sorted(set(snow.changes())) == [("[1]", "d"), ("[2]", "u"), ("[4]", "c")]


def test_an_update_is_one_change_however_often_its_row_changed(snow: Snow) -> None:
    snow.items(*MANY)
    snow.once(by_stream())
    for text in ("first", "second"):
        snow.run(f"UPDATE ITEMS SET BODY = '{text}' WHERE ID = 2")
    snow.once(by_stream())
    assert snow.changes() == [("[2]", "u")]
    assert snow.bodies()[2] == "second"
    assert staged(snow) == 0


def test_keys_that_move_along_end_where_the_table_has_them(snow: Snow) -> None:
    """One statement: 2 becomes 1, 3 becomes 2, and so on; each key but the last is given up and taken."""
    snow.run(NO_KEY)
    snow.run("INSERT INTO ITEMS VALUES (2, 'b'), (3, 'c'), (4, 'd'), (5, 'e')")
    snow.once(by_stream(key=("id",)), batch=2)
    snow.run("UPDATE ITEMS SET ID = ID - 1")
    snow.once(by_stream(key=("id",)), batch=2)
    assert snow.bodies() == {1: "b", 2: "c", 3: "d", 4: "e"}
    snow.run("UPDATE ITEMS SET ID = ID + 1")
    snow.once(by_stream(key=("id",)), batch=1)
    assert snow.bodies() == {2: "b", 3: "c", 4: "d", 5: "e"}


def test_death_while_following_loses_and_doubles_nothing(snow: Snow) -> None:
    snow.items(*MANY)
    snow.once(by_stream(), batch=2)
    change(snow)
    for point in ("staged", "before_commit", "after_commit", "cleared"):
        with dies_at(f"snowflake.{point}"):
            snow.once(by_stream(), batch=2)
        snow.run(f"UPDATE ITEMS SET BODY = 'after {point}' WHERE ID = 4")
    snow.once(by_stream(), batch=2)
    snow.level(seconds=0)
    assert staged(snow) == 0
    taken = snow.changes()
    assert [taken.count(one) for one in (("[1]", "d"), ("[2]", "u"), ("[10]", "c"))] == [1, 1, 1]


def test_death_while_copying_goes_on_without_a_gap(snow: Snow) -> None:
    """What changes between the parts of the copy is neither lost nor left over."""
    snow.items(*MANY)
    generation = None
    for point in ("generation_begun", "before_commit", "snapshot.after_commit", "snapshot_done.after_commit"):
        with dies_at(f"snowflake.{point}"):
            snow.once(by_stream(), batch=2)
        now = snow.own.execute("SELECT generation FROM sophia.collections").fetchone()
        assert generation in (None, now), "it began anew"
        generation = now
        if point == "before_commit":
            change(snow)
        if point == "snapshot.after_commit":
            snow.run("DELETE FROM ITEMS WHERE ID IN (5, 10)")
    snow.once(by_stream(), batch=2)
    snow.level(seconds=0)


def test_a_row_that_came_and_went_while_the_table_was_copied_is_not_left_over(snow: Snow) -> None:
    """A stream never speaks of it, so that the copy may not see it either."""
    snow.items(*MANY)

    def come() -> None:
        snow.insert("99, 'for a moment', NULL")

    def go() -> None:
        snow.shim.hooks.clear()
        snow.run("DELETE FROM ITEMS WHERE ID = 99")

    snow.shim.hooks += [(r'ORDER BY "ID"', come), (r"STREAM_HAS_DATA", go)]
    snow.once(by_stream())
    assert snow.shim.hooks == []
    snow.once(by_stream())
    snow.level(seconds=0)


def test_what_is_staged_stays_until_the_inbox_has_committed(snow: Snow) -> None:
    snow.items(*MANY)
    snow.once(by_stream())
    change(snow)
    with dies_at("snowflake.before_commit"):
        snow.once(by_stream())
    assert (staged(snow), snow.changes()) == (8, [])
    with dies_at("snowflake.after_commit"):
        snow.once(by_stream())
    assert staged(snow) == 8
    snow.once(by_stream())
    assert staged(snow) == 0


@pytest.mark.parametrize("how", ["dropped", "stale", "no control row"])
def test_a_lost_stream_is_made_anew_with_a_copy_and_a_sweep(snow: Snow, how: str) -> None:
    snow.items(*MANY)
    snow.once(by_stream())
    (name,) = [stream for stream in snow.shim.tables if snow.name in stream]
    change(snow)
    match how:
        case "dropped":
            snow.shim.tables.pop(name)
        case "stale":
            snow.shim.stale.add(name)
        case _:
            snow.run("DELETE FROM SOPHIA_STAGING.SOPHIA_CONTROL")
    generation = snow.own.execute("SELECT generation FROM sophia.collections").fetchone()
    snow.once(by_stream())
    snow.level(seconds=0)
    assert snow.own.execute("SELECT generation - 1 FROM sophia.collections").fetchone() == generation
    # The old one holds back no history of the table any more.
    (other,) = [stream for stream in snow.shim.tables if snow.name in stream]
    assert other != name
    snow.run("DELETE FROM ITEMS WHERE ID = 4")
    snow.once(by_stream())
    snow.level(seconds=0)


def test_an_altered_table_is_copied_anew(snow: Snow) -> None:
    snow.items(*MANY)
    snow.once(by_stream())
    snow.run("ALTER TABLE ITEMS ADD COLUMN KIND VARCHAR")
    snow.run("UPDATE ITEMS SET KIND = 'k', BODY = 'changed' WHERE ID = 1")
    snow.once(by_stream())
    snow.level(seconds=0)
    assert [body["kind"] for body in snow.documents().values()] == ["k"] + [None] * 8


def test_a_table_made_anew_is_copied_and_swept(snow: Snow) -> None:
    snow.items(*MANY)
    snow.once(by_stream())
    snow.run("DROP TABLE ITEMS")
    snow.items("2, 'other', NULL", "30, 'thirty', NULL")
    snow.once(by_stream())
    snow.level(seconds=0)


def test_the_method_may_be_changed(snow: Snow) -> None:
    from tests.integration.snowflake.conftest import by_cursor

    snow.items("1, 'one', '2026-01-01'", "2, 'two', '2026-01-02'")
    snow.once(by_cursor())
    snow.run("DELETE FROM ITEMS WHERE ID = 1")
    snow.once(by_stream())
    snow.level(seconds=0)
    snow.run("UPDATE ITEMS SET BODY = 'TWO' WHERE ID = 2")
    snow.once(by_cursor())
    snow.level(seconds=0)


def test_a_succeeded_capture_stages_nothing(snow: Snow) -> None:
    """It slept before it staged; its number would lie below what its successor has read, and be lost."""
    snow.items(*MANY)
    snow.once(by_stream())
    change(snow)

    def succeeded() -> None:
        snow.shim.hooks.clear()
        snow.once(by_stream())
        snow.run("UPDATE ITEMS SET BODY = 'newest' WHERE ID = 5")

    snow.shim.hooks.append(("^BEGIN", succeeded))
    with pytest.raises(FencedError, match="taken over stream"):
        snow.once(by_stream())
    assert staged(snow) == 0
    snow.once(by_stream())
    snow.level(seconds=0)


def test_a_failed_staging_leaves_the_stream_where_it_was(snow: Snow) -> None:
    snow.items(*MANY)
    snow.once(by_stream())
    change(snow)
    snow.shim.faults.append(Fault("^COMMIT", "000604", "SQL execution canceled", "57014"))
    with pytest.raises(TemporaryError, match="STATEMENT_SECONDS"):
        snow.once(by_stream())
    assert staged(snow) == 0
    snow.once(by_stream())
    snow.level(seconds=0)


def test_a_parked_row_is_read_again_when_it_was_mended(snow: Snow) -> None:
    snow.items(*MANY)
    snow.once(by_stream())
    snow.run("UPDATE ITEMS SET BODY = 'a' || CHR(0) WHERE ID = 2")
    snow.once(by_stream())
    assert 2 not in snow.bodies()
    assert len(snow.letters()) == 1
    inbox.request_reread(snow.own, "items")
    snow.once(by_stream())
    assert 2 not in snow.bodies()
    snow.run("UPDATE ITEMS SET BODY = 'mended' WHERE ID = 2")
    snow.once(by_stream())
    snow.once(by_stream())
    snow.level(seconds=0)
    assert snow.letters() == []


def test_a_replay_reads_rows_as_they_were_at_the_offset(snow: Snow) -> None:
    snow.items(*MANY)
    snow.once(by_stream())
    inbox.park(snow.own, "items", "[2]", stage="inbox", reason="x")
    inbox.request_reread(snow.own, "items")
    snow.run("UPDATE ITEMS SET BODY = 'later' WHERE ID = 2")
    seen: list[str] = []
    failpoints.arm(lambda name: seen.append(snow.bodies()[2]) if name == "snowflake.reread.after_commit" else None)
    snow.once(by_stream())
    failpoints.arm(None)
    assert seen == ["text 2"]
    snow.level(seconds=0)
    assert snow.letters() == []


def test_a_moved_row_that_cannot_be_kept_leaves_nothing_at_its_old_key(snow: Snow) -> None:
    snow.run(NO_KEY)
    snow.run("INSERT INTO ITEMS VALUES (1, 'a'), (2, 'b')")
    snow.once(by_stream(key=("id",)))
    snow.run("UPDATE ITEMS SET ID = 9, BODY = 'a' || CHR(0) WHERE ID = 1")
    snow.once(by_stream(key=("id",)))
    assert snow.bodies() == {2: "b"}
    assert [letter for letter in snow.letters() if "NUL" in letter]


def test_a_column_that_goes_while_the_capture_runs_leads_to_a_copy(snow: Snow) -> None:
    """The statement that names it fails; the next look begins with what the table is by then."""
    snow.items(*MANY)
    snow.start(by_stream())
    snow.level()

    def alter() -> None:
        snow.shim.hooks.clear()
        snow.run("ALTER TABLE ITEMS DROP COLUMN UPDATED_AT")

    snow.shim.hooks.append(("^BEGIN", alter))
    snow.run("UPDATE ITEMS SET BODY = 'changed' WHERE ID = 1")
    snow.level()
    until(lambda: snow.letters() == [], "the end of the report")
    assert set(snow.documents()["[2]"]) == {"id", "body"}

"""The cursor path: the real connector against fakesnow."""

from __future__ import annotations

import random

import pytest

from sophia import failpoints, inbox
from sophia.capture.snowflake.documents import Place, document
from sophia.capture.snowflake.rows import Row, Taker
from sophia.capture.snowflake.state import Positions
from sophia.capture.snowflake.table import Table
from sophia.documents import canonical_key
from sophia.errors import FencedError
from tests.integration.snowflake.conftest import Snow, by_cursor, dies_at

MANY = tuple(f"{number}, 'text {number}', '2026-01-01 00:00:{number:02}'" for number in range(1, 10))
POINTS = ("snowflake.generation_begun", "snowflake.cursor.before_commit", "snowflake.cursor.after_commit")


def test_rows_are_copied_then_followed(snow: Snow) -> None:
    snow.items("1, 'one', '2026-01-01'", "2, 'two', '2026-01-02'", "3, 'no time', NULL")
    snow.start(by_cursor())
    snow.level()
    snow.run("UPDATE ITEMS SET BODY = 'TWO', UPDATED_AT = '2026-01-03' WHERE ID = 2")
    snow.insert("4, 'four', '2026-01-03'")
    snow.level()
    assert sorted(snow.changes()) == [("[2]", "u"), ("[4]", "c")]
    assert snow.documents()["[4]"] == {"id": 4, "body": "four", "updated_at": "2026-01-03T00:00:00Z"}


def test_a_second_change_at_the_same_cursor_value_is_not_lost(snow: Snow) -> None:
    snow.items("1, 'one', '2026-01-01'")
    for text in ("first", "second", "third"):
        snow.once(by_cursor())
        snow.run(f"UPDATE ITEMS SET BODY = '{text}', UPDATED_AT = '2026-01-02'")
    snow.once(by_cursor())
    assert snow.bodies() == {1: "third"}
    assert snow.changes() == [("[1]", "u")] * 3


def test_what_was_read_before_has_no_effect(snow: Snow) -> None:
    snow.items(*MANY)
    for _ in range(3):
        snow.once(by_cursor(look_back=3600))
    assert snow.changes() == []
    assert snow.own.execute("SELECT position, source_time IS NOT NULL FROM sophia.collections").fetchone() == (9, True)


def test_a_late_commit_is_read_within_the_look_back(snow: Snow) -> None:
    snow.items("1, 'one', '2026-01-01 12:00:00'")
    snow.once(by_cursor(look_back=60))
    snow.insert("2, 'late', '2026-01-01 11:59:30'", "3, 'too late', '2026-01-01 11:00:00'")
    snow.once(by_cursor(look_back=60))
    assert snow.bodies() == {1: "one", 2: "late"}


def test_a_comparison_finds_what_the_cursor_does_not_show(snow: Snow) -> None:
    """Deleted rows, values that went backwards, values that are null, rows that came late."""
    snow.items(*MANY)
    snow.once(by_cursor(), batch=2)
    snow.run("DELETE FROM ITEMS WHERE ID IN (1, 5)")
    snow.run("UPDATE ITEMS SET BODY = 'backwards', UPDATED_AT = '2025-01-01' WHERE ID = 2")
    snow.run("UPDATE ITEMS SET BODY = 'no time', UPDATED_AT = NULL WHERE ID = 3")
    snow.insert("10, 'late', '2025-06-01'")
    snow.once(by_cursor(), batch=2)
    assert 1 in snow.bodies()
    snow.once(by_cursor(compare_hours=1e-9), batch=2)
    snow.level(seconds=0)
    assert sorted(snow.changes()) == [("[10]", "c"), ("[1]", "d"), ("[2]", "u"), ("[3]", "u"), ("[5]", "d")]
    # A row that comes back at its old value outranks its own delete.
    snow.insert("5, 'back', '2026-01-01 00:00:05'")
    snow.once(by_cursor(compare_hours=1e-9))
    snow.level(seconds=0)


def test_a_comparison_of_rows_finds_changes_that_left_the_cursor_as_it_was(snow: Snow) -> None:
    snow.items(*MANY)
    snow.once(by_cursor())
    snow.run("UPDATE ITEMS SET BODY = 'silent' WHERE ID = 4")
    snow.run("DELETE FROM ITEMS WHERE ID = 6")
    snow.once(by_cursor(compare_hours=1e-9))
    assert snow.bodies()[4] == "text 4"
    snow.once(by_cursor(compare_hours=1e-9, compare="rows"))
    snow.level(seconds=0)


def test_an_emptied_table_empties_the_collection(snow: Snow) -> None:
    snow.items(*MANY)
    snow.once(by_cursor())
    snow.run("DELETE FROM ITEMS")
    snow.once(by_cursor(compare_hours=1e-9))
    assert snow.documents() == {}


def test_a_value_in_the_future_hides_nothing(snow: Snow) -> None:
    snow.items("1, 'one', '2026-01-01'", "2, 'typing error', '9026-01-01'")
    snow.once(by_cursor())
    snow.run("INSERT INTO ITEMS VALUES (3, 'later', CURRENT_TIMESTAMP()::TIMESTAMP_NTZ)")
    snow.once(by_cursor())
    assert snow.bodies() == {1: "one", 2: "typing error", 3: "later"}
    snow.run("UPDATE ITEMS SET BODY = 'mended', UPDATED_AT = CURRENT_TIMESTAMP()::TIMESTAMP_NTZ WHERE ID = 2")
    snow.once(by_cursor())
    assert snow.bodies()[2] == "mended"


@pytest.mark.parametrize(("kind", "values"), [("NUMBER(18,0)", ("7", "7", "8")), ("DATE", ("'2026-01-01'",) * 3)])
def test_numbers_and_dates_are_cursors_too(snow: Snow, kind: str, values: tuple[str, ...]) -> None:
    snow.run(f"CREATE TABLE ITEMS (ID NUMBER(38,0) PRIMARY KEY, BODY VARCHAR, VERSION {kind})")
    snow.run(f"INSERT INTO ITEMS VALUES (1, 'one', {values[0]}), (2, 'two', NULL)")
    binding = by_cursor(cursor="version")
    snow.once(binding)
    snow.run(f"UPDATE ITEMS SET BODY = 'ONE', VERSION = {values[1]} WHERE ID = 1")
    snow.run(f"INSERT INTO ITEMS VALUES (3, 'three', {values[2]})")
    snow.once(binding)
    snow.level(seconds=0)


def test_death_while_copying_loses_and_doubles_nothing(snow: Snow) -> None:
    snow.items(*MANY)
    for point in POINTS:
        with dies_at(point):
            snow.once(by_cursor(), batch=2)
    assert len(snow.bodies()) == 2
    snow.run("DELETE FROM ITEMS WHERE ID IN (1, 9)")
    # What is left of the copy, and a comparison, since the copy saw more than one state of the table.
    snow.once(by_cursor(), batch=2)
    snow.once(by_cursor(), batch=2)
    snow.level(seconds=0)
    assert snow.changes() == [("[1]", "d")]


@pytest.mark.parametrize("point", ["snowflake.compare.before_commit", "snowflake.compare.deleted"])
def test_death_while_comparing_loses_nothing(snow: Snow, point: str) -> None:
    snow.items(*MANY)
    snow.once(by_cursor())
    snow.run("DELETE FROM ITEMS WHERE ID = 9")
    snow.run("UPDATE ITEMS SET BODY = 'b', UPDATED_AT = '2025-01-01' WHERE ID = 1")
    with dies_at(point):
        snow.once(by_cursor(compare_hours=1))
        snow.own.execute("UPDATE sophia.snowflake_tables SET compared_at = NULL")
        snow.once(by_cursor(compare_hours=1))
    snow.once(by_cursor(compare_hours=1))
    snow.level(seconds=0)


def test_the_second_capture_fences_the_first(snow: Snow) -> None:
    snow.items(*MANY)
    first = snow.start(by_cursor())
    snow.level()
    second = snow.start(by_cursor())
    snow.insert("10, 'ten', '2026-02-01'")
    assert isinstance(first.failed(), FencedError)
    snow.running = [second]
    snow.level()


def test_a_capture_that_slept_writes_nothing(snow: Snow) -> None:
    """What it read is older than what its successor has read since."""
    snow.items("1, 'old', '2026-01-01'")
    snow.once(by_cursor())
    snow.run("UPDATE ITEMS SET BODY = 'read by the first', UPDATED_AT = '2026-01-02'")

    def succeeded() -> None:
        snow.shim.hooks.clear()
        snow.run("UPDATE ITEMS SET BODY = 'newest', UPDATED_AT = '2026-01-01'")
        snow.once(by_cursor(compare_hours=1e-9))

    failpoints.arm(lambda name: (failpoints.arm(None), succeeded()) if name == "snowflake.read" else None)
    with pytest.raises(FencedError):
        snow.once(by_cursor())
    assert snow.bodies() == {1: "newest"}


def test_an_altered_table_is_copied_anew(snow: Snow) -> None:
    snow.items("1, 'one', '2026-01-01'", "2, 'two', '2026-01-02'")
    snow.once(by_cursor())
    snow.run("ALTER TABLE ITEMS ADD COLUMN KIND VARCHAR")
    snow.run("UPDATE ITEMS SET KIND = 'k' WHERE ID = 1")
    snow.once(by_cursor())
    assert [body.get("kind", "absent") for body in snow.documents().values()] == ["k", None]
    snow.run("ALTER TABLE ITEMS DROP COLUMN KIND")
    snow.once(by_cursor())
    assert [body.get("kind", "absent") for body in snow.documents().values()] == ["absent", "absent"]


def test_a_table_made_anew_is_copied_and_swept(snow: Snow) -> None:
    snow.items("1, 'one', '2026-01-01'", "2, 'two', '2026-01-02'")
    snow.once(by_cursor())
    snow.run("DROP TABLE ITEMS")
    snow.items("2, 'other two', '2025-01-01'", "3, 'three', '2025-01-01'")
    snow.once(by_cursor())
    assert snow.bodies() == {2: "other two", 3: "three"}


def test_another_account_is_captured_anew(snow: Snow) -> None:
    snow.items("1, 'one', '2026-01-01'")
    snow.once(by_cursor())
    snow.own.execute("UPDATE sophia.captures SET system_identifier = 'another-account/SNOW'")
    snow.own.execute("UPDATE sophia.documents SET body = '{}'")
    snow.once(by_cursor())
    assert snow.bodies() == {1: "one"}
    generation = snow.own.execute("SELECT generation FROM sophia.collections").fetchone()
    snow.once(by_cursor())
    assert snow.own.execute("SELECT generation FROM sophia.collections").fetchone() == generation


def test_a_row_that_cannot_be_kept_is_parked_until_it_is_mended(snow: Snow) -> None:
    snow.items("1, 'one', '2026-01-01'", "2, 'a' || CHR(0) || 'b', '2026-01-02'", "3, 'three', '2026-01-03'")
    snow.once(by_cursor(look_back=1e9))
    snow.once(by_cursor(look_back=1e9))
    assert set(snow.bodies()) == {1, 3}
    assert [letter for letter in snow.letters() if "NUL" in letter and "'BODY'" in letter]
    assert snow.own.execute("SELECT attempts FROM sophia.dead_letters").fetchall() == [(1,)]
    snow.run("UPDATE ITEMS SET BODY = 'mended' WHERE ID = 2")
    snow.once(by_cursor(look_back=1e9))
    snow.once(by_cursor(look_back=1e9))
    assert snow.bodies() == {1: "one", 2: "mended", 3: "three"}
    assert snow.letters() == []


def test_a_replay_reads_the_row_again(snow: Snow) -> None:
    snow.items("1, 'one', '2026-01-01'", "2, 'two', '2026-01-02'")
    snow.once(by_cursor())
    for number in (1, 2):
        inbox.park(snow.own, "items", f"[{number}]", stage="inbox", reason="x")
    snow.run("DELETE FROM ITEMS WHERE ID = 2")
    assert inbox.request_reread(snow.own, "items") == 2
    snow.once(by_cursor())
    assert snow.bodies() == {1: "one"}
    assert snow.letters() == []


def test_two_rows_of_one_key_are_reported(snow: Snow) -> None:
    snow.run("CREATE TABLE ITEMS (ID NUMBER(38,0), BODY VARCHAR, UPDATED_AT TIMESTAMP_NTZ)")
    snow.insert("1, 'a', '2026-01-01'", "1, 'b', '2026-01-02'")
    binding = by_cursor()
    snow.once(type(binding)(binding.table, binding.collection, ("id",), binding.options))
    assert snow.bodies() == {1: "b"}
    assert ["1 rows whose key another row has" in letter for letter in snow.letters()] == [True]


@pytest.mark.parametrize("seed", range(4))
def test_any_looks_in_any_order_end_at_the_table(snow: Snow, seed: int) -> None:
    """Rows come, change and go; their cursor rises, stays, falls; looks see some of them; at the end a comparison."""
    chance = random.Random(seed)
    binding = by_cursor()
    types = {"ID": "NUMBER", "BODY": "TEXT", "UPDATED_AT": "NUMBER"}
    table = Table(binding, "D", "PUBLIC", "ITEMS", types, ("ID",), "UPDATED_AT", "shape")
    inbox.ensure_collection(snow.own, "items", ["id"])
    snow.own.execute("INSERT INTO sophia.captures VALUES ('s', '', '', 'x', NULL, 1)")
    positions = Positions(snow.own, "s", 1, table)
    generation = positions.begin()
    taker = Taker(positions, table, generation, 1_000)
    rows: dict[int, tuple[str, int]] = {}

    def look(numbers: list[int]) -> None:
        found = []
        for number in numbers:
            if number in rows:
                text, cursor = rows[number]
                row = {"ID": number, "BODY": text, "UPDATED_AT": cursor}
                found.append(Row(canonical_key([number]), cursor, document("c", row, Place("PUBLIC", "ITEMS", 0, 0))))
        with snow.own.transaction():
            taker.take(found)
            taker.delete([canonical_key([number]) for number in numbers if number not in rows])

    for step in range(150):
        number = chance.randrange(8)
        match chance.randrange(4):
            case 0:
                rows.pop(number, None)
            case 1 | 2:
                rows[number] = (f"text {step}", max(0, rows.get(number, ("", 50))[1] + chance.choice((-3, 0, 0, 1, 5))))
            case _:
                look(chance.sample(range(8), 3))
    look(list(range(8)))
    assert snow.bodies() == {number: text for number, (text, _) in rows.items()}
    look(list(range(8)))
    clocks = snow.own.execute("SELECT key, clock FROM sophia.inbox ORDER BY id").fetchall()
    last: dict[str, list[int]] = {}
    for key, clock in clocks:
        assert clock > last.get(key, [0, 0, 0])
        last[key] = clock

"""A snapshot that dies anywhere goes on where it was, and loses, doubles and keeps nothing wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg.rows import TupleRow

from sophia.capture.snapshot import row_change
from sophia.documents import Change, Clock, capture_uuid, from_document
from sophia.failpoints import arm
from tests.integration.conftest import QUICK, Captures, Running, current
from tests.integration.source_items import BIG, generation, level
from tests.waiting import until

Connection = psycopg.Connection[TupleRow]
TENS = QUICK.model_copy(update={"batch_documents": 10})
ROWS = 45


class Killed(BaseException):
    """The process ended here."""


@pytest.fixture
def die_at() -> Iterator[Callable[[str, int], None]]:
    """Ends the capture at the n-th time that it reaches a point."""

    def set_point(point: str, hits: int = 1) -> None:
        left = [hits]

        def action(name: str) -> None:
            if name == point:
                left[0] -= 1
                if left[0] == 0:
                    arm(None)
                    raise Killed(name)

        arm(action)

    yield set_point
    arm(None)


def point_and_rows(connection: Connection) -> tuple[str, int, bool]:
    row = connection.execute("SELECT consistent_point::text, rows, complete FROM sophia.captured_tables").fetchone()
    assert row is not None
    return row


@pytest.fixture
def large(connection: Connection) -> None:
    """A table `items` of 45 rows with a column that updates leave out."""
    connection.execute("CREATE TABLE items (id int PRIMARY KEY, body text, big text)")
    connection.execute("ALTER TABLE items ALTER big SET STORAGE EXTERNAL")
    connection.execute("INSERT INTO items SELECT n, 'row ' || n, 'small' FROM generate_series(1, %s) n", [ROWS])
    connection.execute("UPDATE items SET big = %s || id WHERE id IN (1, 4, 5, 40, 41, 42)", [BIG])


# Of 45 rows, 20 are copied when the copy dies: what happens behind and ahead of it, and across.
CHANGES = [
    "UPDATE items SET body = 'behind' WHERE id IN (1, 6)",
    "UPDATE items SET body = 'ahead' WHERE id IN (40, 39)",
    "DELETE FROM items WHERE id IN (2, 38)",
    "DELETE FROM items WHERE id = 7; INSERT INTO items VALUES (7, 'again', 'small')",
    "DELETE FROM items WHERE id = 37; INSERT INTO items VALUES (37, 'again', 'small')",
    "INSERT INTO items VALUES (-1, 'new behind', 'x'), (100, 'new ahead', 'x')",
    "INSERT INTO items VALUES (-2, 'gone behind', 'x'), (101, 'gone ahead', 'x')",
    "DELETE FROM items WHERE id IN (-2, 101)",
    "UPDATE items SET id = 203 WHERE id = 3; UPDATE items SET id = 204 WHERE id = 4",
    "UPDATE items SET id = -36 WHERE id = 36; UPDATE items SET id = -41 WHERE id = 41",
    "UPDATE items SET id = -42 WHERE id = 42; UPDATE items SET id = 42 WHERE id = -42",
    "UPDATE items SET id = 205 WHERE id = 5; UPDATE items SET id = 5 WHERE id = 205",
]


def change_all(connection: Connection) -> None:
    for statement in CHANGES:
        connection.execute(statement)


def drop_slot(connection: Connection, slot: str) -> None:
    """Drop the slot of a capture that has just ended; its sender may take a moment longer."""
    active = "SELECT active FROM pg_replication_slots WHERE slot_name = %s"
    until(lambda: connection.execute(active, [slot]).fetchone() == (False,), "the end of the sender")
    connection.execute("SELECT pg_drop_replication_slot(%s)", [slot])


def complete(connection: Connection) -> bool:
    return connection.execute("SELECT count(*) FROM sophia.documents WHERE missing <> '{}'").fetchone() == (0,)


@pytest.mark.usefixtures("large")
def test_snapshot_that_was_cut_off_goes_on_behind_its_last_key(
    connection: Connection, captures: Captures, die_at: Callable[[str, int], None]
) -> None:
    die_at("capture.snapshot.after_commit", 2)
    assert isinstance(captures.start("public.items", settings=TENS, wait=False).failed(), Killed)
    point, rows, _ = point_and_rows(connection)
    assert rows == 20
    first = generation(connection)
    change_all(connection)
    seen: list[int] = []
    captures.start("public.items", settings=TENS, progress=lambda _c, rows, _e: seen.append(rows))
    assert seen[0] == 30, "it copied again what it had"
    assert point_and_rows(connection)[::2] == (point, True), "the floor of the first part was not kept"
    assert generation(connection) == first
    level(connection)
    until(lambda: complete(connection), "the rows that lacked a column")
    connection.execute("UPDATE items SET body = 'later' WHERE id % 2 = 0")
    connection.execute("DELETE FROM items WHERE id % 5 = 0")
    level(connection)


POINTS = [
    ("capture.slot_created", 1),
    ("capture.generation_begun", 1),
    ("capture.snapshot.before_commit", 1),
    ("capture.snapshot.before_commit", 3),
    ("capture.snapshot.after_commit", 1),
    ("capture.snapshot.after_commit", 4),
    ("capture.sweep", 1),
    ("capture.snapshot_done.before_commit", 1),
    ("capture.snapshot_done.after_commit", 1),
]


@pytest.mark.parametrize(("point", "hits"), POINTS)
@pytest.mark.usefixtures("large")
def test_new_snapshot_after_a_lost_slot_survives_death_at_any_point(
    connection: Connection, captures: Captures, die_at: Callable[[str, int], None], point: str, hits: int
) -> None:
    captures.start("public.items", settings=TENS).stop()
    first = generation(connection)
    connection.execute("DELETE FROM items WHERE id IN (10, 30)")
    drop_slot(connection, captures.slot)
    die_at(point, hits)
    assert isinstance(captures.start("public.items", settings=TENS, wait=False).failed(), Killed)
    change_all(connection)
    captures.start("public.items", settings=TENS)
    level(connection)
    until(lambda: complete(connection), "the rows that lacked a column")
    assert generation(connection) == first + 1
    connection.execute("INSERT INTO items VALUES (10, 'again', 'x')")
    level(connection)


@pytest.mark.usefixtures("large")
def test_snapshot_survives_several_deaths(
    connection: Connection, captures: Captures, die_at: Callable[[str, int], None]
) -> None:
    for number, statement in enumerate(CHANGES):
        die_at("capture.snapshot.after_commit" if number % 2 else "capture.snapshot.before_commit", 1)
        running = captures.start("public.items", settings=QUICK.model_copy(update={"batch_documents": 5}), wait=False)
        until(lambda running=running: running.ended or running.loop.ready.is_set(), "death or the stream")
        connection.execute(statement)
        if not running.ended:
            running.stop()
    arm(None)
    captures.start("public.items")
    level(connection)


@pytest.mark.usefixtures("large")
def test_death_in_the_second_table_leaves_the_first_alone(
    connection: Connection, captures: Captures, die_at: Callable[[str, int], None]
) -> None:
    connection.execute("CREATE TABLE others (id int PRIMARY KEY, body text)")
    connection.execute("INSERT INTO others SELECT n, 'o' FROM generate_series(1, 30) n")
    die_at("capture.snapshot.after_commit", 7)
    running = captures.start("public.items", "public.others", settings=TENS, wait=False)
    assert isinstance(running.failed(), Killed)
    connection.execute("UPDATE others SET body = 'changed' WHERE id IN (1, 30); DELETE FROM others WHERE id IN (2, 29)")
    change_all(connection)
    copied: list[str] = []
    captures.start("public.items", "public.others", settings=TENS, progress=lambda name, _r, _e: copied.append(name))
    assert set(copied) == {"others"}
    level(connection)
    level(connection, "others")


KEYS = {
    "text": "text",
    "text by bytes": 'text COLLATE "C"',
    "numeric": "numeric",
    "float": "float8",
    "time": "timestamptz",
    "bytes": "bytea",
    "padded": "char(6)",
    "uuid": "uuid",
}
VALUES = {
    "numeric": "((n - 6) / 4.0)::numeric",
    "float": "(n - 6) / 3.0::float8",
    "time": "timestamptz '2026-01-01' + n * interval '1.000001 seconds'",
    "padded": "(ARRAY['b', 'B', 'ä', 'a b', 'Z', 'z', 'A', 'é', '雪', '', '%s', 'a'])[n]",
    "bytes": r"decode(lpad(to_hex(n * 37 % 256), 2, '0') || '5c27', 'hex')",
    "uuid": "md5(n::text)::uuid",
}
TEXT = r"(ARRAY['a''b', 'B', 'ä', 'Z', '\x', 'z', 'A', 'é', '雪', '', ' ', '%s'])[n]"


@pytest.mark.parametrize("kind", KEYS)
def test_keys_of_any_type_are_gone_through_in_their_order(
    connection: Connection, captures: Captures, die_at: Callable[[str, int], None], kind: str
) -> None:
    """A death after every row: whatever the order of the keys, none is left out."""
    connection.execute(f'CREATE TABLE items ("the id" {KEYS[kind]}, part int, body text, PRIMARY KEY ("the id", part))')
    connection.execute(
        f"INSERT INTO items SELECT {VALUES.get(kind, TEXT)}, part, 'x' "
        "FROM generate_series(1, 12) n, generate_series(1, 2) part"
    )
    settings = QUICK.model_copy(update={"batch_documents": 5})
    for _ in range(5):
        die_at("capture.snapshot.after_commit", 1)
        captures.start("public.items", settings=settings, wait=False).failed()
    arm(None)
    assert point_and_rows(connection)[1] == 24
    captures.start("public.items", settings=settings)
    assert point_and_rows(connection)[1:] == (24, True)
    assert len(current(connection, "items")) == 24


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE items ALTER id TYPE text",
        "UPDATE items SET code = 100 - id; ALTER TABLE items DROP CONSTRAINT items_pkey, ADD PRIMARY KEY (code)",
        "ALTER PUBLICATION test_publication DROP TABLE items",
    ],
    ids=["type changed", "other key", "left the publication"],
)
def test_copy_that_cannot_go_on_starts_its_table_over(
    connection: Connection, captures: Captures, die_at: Callable[[str, int], None], statement: str
) -> None:
    connection.execute("CREATE TABLE items (id int PRIMARY KEY, body text, code int NOT NULL DEFAULT 0)")
    connection.execute("INSERT INTO items SELECT n, 'x' FROM generate_series(1, 30) n")
    die_at("capture.snapshot.after_commit", 1)
    captures.start("public.items", settings=TENS, wait=False).failed()
    connection.execute(statement)
    connection.execute("UPDATE items SET body = 'changed' WHERE id::int = 3; DELETE FROM items WHERE id::int = 4")
    captures.start("public.items", settings=TENS)
    assert point_and_rows(connection)[1:] == (29, True)
    expected = connection.execute("SELECT to_jsonb(t) FROM items t").fetchall()
    until(lambda: len(current(connection, "items")) == 29, "the deletes")
    found = sorted(current(connection, "items").values(), key=str)
    assert found == sorted((row[0] for row in expected), key=str)


@pytest.mark.usefixtures("large")
def test_copy_of_a_successor_is_not_disturbed_by_its_predecessors_slot(
    connection: Connection, captures: Captures
) -> None:
    """An old process that wakes up may replace the slot before it is fenced: the stream must not skip what is lost."""
    moved: list[bool] = []

    def progress(_collection: str, _rows: int, _estimate: int) -> None:
        if not moved:
            moved.append(True)
            connection.execute("SELECT pg_drop_replication_slot(%s)", [captures.slot])
            change_all(connection)
            connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [captures.slot])

    running: Running = captures.start("public.items", settings=TENS, progress=progress, wait=False)
    running.failed()
    captures.start("public.items")
    level(connection)


def test_snapshot_document_is_what_estuarys_shape_says() -> None:
    clock = Clock(2, 77, 0)
    row = {"id": 5, "body": "x", "_meta": "a column of that name"}
    document = {
        "_meta": {
            "op": "c",
            "source": {"schema": "public", "snapshot": True, "table": "items", "loc": [-1, 3, 0]},
            "uuid": capture_uuid(77, 0),
        },
        "id": 5,
        "body": "x",
    }
    read = from_document(document, ["id"], clock, complete=True, bulk=True)
    made = row_change(["id"], row, clock, snapshot=True)
    assert made == Change(**{name: getattr(read, name) for name in read.__slots__} | {"snapshot": True})


@pytest.mark.usefixtures("large")
def test_snapshot_is_not_in_the_log_of_changes(connection: Connection, captures: Captures) -> None:
    captures.start("public.items")
    assert connection.execute("SELECT count(*) FROM sophia.inbox").fetchone() == (0,)
    connection.execute("UPDATE items SET body = 'x' WHERE id = 9")
    level(connection)
    assert connection.execute("SELECT key FROM sophia.inbox").fetchall() == [("[9]",)]


@pytest.mark.usefixtures("large")
def test_batches_are_bounded_by_bytes(connection: Connection, captures: Captures) -> None:
    connection.execute("UPDATE items SET big = %s", [BIG])
    seen: list[int] = []
    settings = QUICK.model_copy(update={"batch_documents": 10, "batch_bytes": 40_000})
    captures.start("public.items", settings=settings, progress=lambda _c, rows, _e: seen.append(rows))
    assert seen[:3] == [10, 11, 12]
    level(connection)

"""ALTER TABLE streams no row: the rows that were there are copied again, and equal what the source shows now."""

from __future__ import annotations

import psycopg
import pytest
from psycopg.rows import TupleRow

from tests.integration.conftest import Captures
from tests.integration.source_items import BIG, level

Connection = psycopg.Connection[TupleRow]


@pytest.fixture(autouse=True)
def items(connection: Connection) -> None:
    connection.execute("CREATE TABLE items (id int PRIMARY KEY, body text, spare text)")
    connection.execute("INSERT INTO items SELECT n, 'row ' || n, 'spare' FROM generate_series(1, 20) n")


ALTERATIONS = {
    "add": "ALTER TABLE items ADD extra int",
    "add with default": "ALTER TABLE items ADD extra int DEFAULT 5",
    "drop unused": "ALTER TABLE items DROP spare",
    "rename": "ALTER TABLE items RENAME body TO content",
    "retype": "ALTER TABLE items ALTER spare TYPE json USING to_json(spare)",
    "swap": "ALTER TABLE items RENAME body TO x; ALTER TABLE items RENAME spare TO body; "
    "ALTER TABLE items RENAME x TO spare",
    "replace": "ALTER TABLE items DROP spare; ALTER TABLE items ADD spare text DEFAULT 'new'",
}


@pytest.mark.parametrize("statement", ALTERATIONS.values(), ids=ALTERATIONS.keys())
def test_rows_that_do_not_change_follow_an_altered_table(
    connection: Connection, captures: Captures, statement: str
) -> None:
    captures.start("public.items")
    level(connection)
    connection.execute(statement)
    level(connection)
    connection.execute("UPDATE items SET id = id + 100 WHERE id <= 3; DELETE FROM items WHERE id = 4")
    level(connection)


def test_table_that_was_altered_while_nothing_ran(connection: Connection, captures: Captures) -> None:
    running = captures.start("public.items")
    level(connection)
    running.stop()
    connection.execute("ALTER TABLE items ADD extra text DEFAULT 'there'")
    connection.execute("UPDATE items SET body = 'changed' WHERE id = 1; DELETE FROM items WHERE id = 2")
    captures.start("public.items")
    level(connection)


def test_change_without_its_large_column_after_an_alteration(connection: Connection, captures: Captures) -> None:
    connection.execute("ALTER TABLE items ALTER body SET STORAGE EXTERNAL")
    connection.execute("UPDATE items SET body = %s WHERE id = 1", [BIG])
    captures.start("public.items")
    level(connection)
    connection.execute("ALTER TABLE items ADD extra int DEFAULT 7")
    connection.execute("UPDATE items SET spare = 'touched' WHERE id = 1")
    level(connection)


def test_same_shape_is_not_copied_again(connection: Connection, captures: Captures) -> None:
    running = captures.start("public.items")
    level(connection)
    before = connection.execute("SELECT started_at FROM sophia.captured_tables").fetchone()
    running.stop()
    connection.execute("CREATE INDEX ON items (spare); ALTER TABLE items ALTER spare SET NOT NULL")
    captures.start("public.items")
    connection.execute("UPDATE items SET body = 'changed' WHERE id = 1")
    level(connection)
    assert connection.execute("SELECT started_at FROM sophia.captured_tables").fetchone() == before

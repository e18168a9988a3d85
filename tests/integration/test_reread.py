"""Rows that lack something are read again from their source, and rank right among the changes around."""

from __future__ import annotations

import json

from sophia import inbox
from sophia.documents import canonical_key
from tests.integration.conftest import Captures, Connection, current
from tests.waiting import until

LARGE = "x" * 20_000


def incomplete(connection: Connection) -> int:
    row = connection.execute("SELECT count(*) FROM sophia.documents WHERE missing <> '{}'").fetchone()
    assert row is not None
    return int(row[0])


def forget_body(connection: Connection, key: str) -> None:
    """As if the inbox had never seen the large column of a row."""
    connection.execute("UPDATE sophia.documents SET body = body - 'body', missing = '{body}' WHERE key = %s", [key])


def test_row_without_its_base_is_read_again(connection: Connection, captures: Captures) -> None:
    connection.execute("CREATE TABLE items (id int PRIMARY KEY, name text, body text)")
    connection.execute("ALTER TABLE items ALTER body SET STORAGE EXTERNAL")
    connection.execute("INSERT INTO items VALUES (1, 'a', %s), (2, 'b', 'short')", [LARGE])
    running = captures.start("public.items")
    until(lambda: len(current(connection, "items")) == 2)
    running.stop()
    connection.execute("DELETE FROM sophia.documents WHERE key = '[1]'")
    # The large column is unchanged, so the stream does not carry it, and its base is gone.
    connection.execute("UPDATE items SET name = 'changed' WHERE id = 1")
    captures.start("public.items")
    until(lambda: current(connection, "items").get("[1]", {}).get("body") == LARGE, "the row as its source has it")
    assert current(connection, "items")["[1]"] == {"id": 1, "name": "changed", "body": LARGE}
    assert incomplete(connection) == 0


def test_row_that_is_gone_becomes_a_delete(connection: Connection, captures: Captures) -> None:
    connection.execute("CREATE TABLE items (a int, b text, PRIMARY KEY (a, b))")
    connection.execute("INSERT INTO items VALUES (1, 'x'), (2, 'y')")
    captures.start("public.items")
    until(lambda: len(current(connection, "items")) == 2)
    # A key that the source does not have: parked once, its row deleted before anyone looked.
    connection.execute(
        "INSERT INTO sophia.documents (collection_id, key, bucket, position, clock, missing, body) "
        "SELECT id, %s, 0, 0, '{1,1,1}', '{*}', '{}' FROM sophia.collections WHERE name = 'items'",
        [canonical_key([9, "z"])],
    )
    until(lambda: incomplete(connection) == 0, "nothing incomplete")
    assert set(current(connection, "items")) == {'[1,"x"]', '[2,"y"]'}


def test_later_change_wins_over_the_row_read_again(connection: Connection, captures: Captures) -> None:
    connection.execute("CREATE TABLE items (id int PRIMARY KEY, name text, body text)")
    connection.execute("INSERT INTO items VALUES (1, 'a', 'first')")
    captures.start("public.items")
    until(lambda: len(current(connection, "items")) == 1)
    for number in range(20):
        forget_body(connection, "[1]")
        connection.execute("UPDATE items SET body = %s WHERE id = 1", [f"text {number}"])
    until(lambda: incomplete(connection) == 0 and current(connection, "items")["[1]"]["body"] == "text 19")


def test_replay_reads_the_rows_of_dead_letters_again(connection: Connection, captures: Captures) -> None:
    connection.execute("CREATE TABLE items (id int PRIMARY KEY, name text)")
    connection.execute("INSERT INTO items VALUES (1, 'a'), (2, 'b')")
    captures.start("public.items")
    until(lambda: len(current(connection, "items")) == 2)
    inbox.park(connection, "items", "[1]", stage="inbox", reason="a test")
    connection.execute("UPDATE sophia.documents SET body = %s WHERE key = '[1]'", [json.dumps({"id": 1})])
    assert inbox.request_reread(connection) == 1
    until(lambda: current(connection, "items")["[1]"] == {"id": 1, "name": "a"}, "the row as its source has it")
    row = connection.execute("SELECT count(*) FROM sophia.dead_letters").fetchone()
    assert row == (0,)


def test_a_row_that_cannot_be_read_stops_neither_the_stream_nor_other_rows(
    connection: Connection, captures: Captures
) -> None:
    connection.execute("CREATE TABLE items (id int PRIMARY KEY, name text, extra jsonb)")
    connection.execute("INSERT INTO items VALUES (1, 'a'), (2, 'b')")
    captures.start("public.items")
    until(lambda: len(current(connection, "items")) == 2)
    # jsonb holds what Python's parser gives up on.
    connection.execute("UPDATE items SET extra = %s WHERE id = 1", ["[" * 2_000 + "]" * 2_000])
    until(lambda: incomplete(connection) == 1, "the key marked")
    connection.execute("UPDATE sophia.documents SET body = '{\"id\": 2}', missing = '{*}' WHERE key = '[2]'")
    until(lambda: current(connection, "items")["[2]"].get("name") == "b", "the other row, read again")
    rows = connection.execute("SELECT key, reason FROM sophia.dead_letters").fetchall()
    assert [(key, "nested too deep" in reason) for key, reason in rows] == [("[1]", True)]
    connection.execute("UPDATE items SET extra = '1' WHERE id = 1")
    until(lambda: current(connection, "items")["[1]"] == {"id": 1, "name": "a", "extra": 1}, "the row that was mended")
    assert incomplete(connection) == 0

"""Order follows the source's commits: never a column, arrival, transaction numbers or wall time."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import psycopg
import pytest
from psycopg.rows import TupleRow

from sophia import inbox
from sophia.database import Database
from sophia.documents import Change
from sophia.inbox import Floor
from tests.integration.conftest import QUICK, Captures, current
from tests.integration.source_items import BIG, level

Connection = psycopg.Connection[TupleRow]


@pytest.fixture(autouse=True)
def items(connection: Connection) -> None:
    """A table `items` of ten rows that carries a clock of its own, which no one may believe."""
    connection.execute("CREATE TABLE items (id int PRIMARY KEY, body text, updated_at float8)")
    connection.execute("INSERT INTO items SELECT n, 'row ' || n FROM generate_series(1, 10) n")


def test_hot_rows(connection: Connection, captures: Captures) -> None:
    captures.start("public.items")
    for number in range(100):
        connection.execute("UPDATE items SET body = %s WHERE id <= 2", [f"hot {number}"])
    level(connection)


def test_rows_that_flap(connection: Connection, captures: Captures) -> None:
    """Deleted and inserted again and again, in one transaction and in many, ending either way."""
    captures.start("public.items", settings=QUICK.model_copy(update={"batch_documents": 3}))
    for number in range(20):
        connection.execute("DELETE FROM items WHERE id IN (1, 2)")
        connection.execute("INSERT INTO items VALUES (1, %s), (2, %s)", [f"a{number}", f"b{number}"])
    connection.execute("DELETE FROM items WHERE id = 2")
    with connection.transaction():
        for number in range(20):
            connection.execute("DELETE FROM items WHERE id IN (3, 4)")
            connection.execute("INSERT INTO items VALUES (3, %s), (4, %s)", [f"c{number}", f"d{number}"])
        connection.execute("DELETE FROM items WHERE id = 4")
    level(connection)


def test_rolled_back_transactions_and_savepoints_leave_nothing(connection: Connection, captures: Captures) -> None:
    captures.start("public.items")
    with connection.transaction(force_rollback=True):
        connection.execute("UPDATE items SET body = 'rolled back'; DELETE FROM items WHERE id = 1")
    with connection.transaction():
        connection.execute("UPDATE items SET body = 'kept' WHERE id = 1")
        with connection.transaction(force_rollback=True):
            connection.execute("UPDATE items SET body = 'rolled back'; TRUNCATE items")
        with connection.transaction():
            connection.execute("INSERT INTO items VALUES (11, 'kept too')")
        connection.execute("UPDATE items SET body = 'kept last' WHERE id = 2")
    level(connection)
    assert connection.execute("SELECT count(*) FROM sophia.documents WHERE body::text LIKE '%rolled%'").fetchone() == (
        0,
    )


def test_transaction_that_began_first_and_commits_last_wins(
    connection: Connection, captures: Captures, database: Database
) -> None:
    """Its number is lower and its `now()` earlier than those of the transaction that it overwrites."""
    captures.start("public.items")
    with database.connect("early") as early, early.transaction():
        early.execute("UPDATE items SET body = 'opens it', updated_at = date_part('epoch', now()) WHERE id = 10")
        connection.execute(
            "UPDATE items SET body = 'later, earlier end', updated_at = date_part('epoch', now()) WHERE id IN (1, 2)"
        )
        connection.execute("DELETE FROM items WHERE id = 3; INSERT INTO items VALUES (20, 'x')")
        level(connection)
        early.execute(
            "UPDATE items SET body = 'earlier, committed last', updated_at = date_part('epoch', now()) WHERE id = 1"
        )
        early.execute("DELETE FROM items WHERE id = 20; INSERT INTO items VALUES (3, 'back')")
    level(connection)
    assert current(connection, "items")["[1]"]["body"] == "earlier, committed last"


def test_column_that_runs_backwards_decides_nothing(connection: Connection, captures: Captures) -> None:
    captures.start("public.items")
    for number in range(30):
        connection.execute(
            "UPDATE items SET body = %s, updated_at = -%s WHERE id = 1",
            [f"step {number}", number],
        )
    level(connection)
    assert current(connection, "items")["[1]"]["body"] == "step 29"


# ---- delivered again ---------------------------------------------------------------------------------------


def history(connection: Connection, captures: Captures, monkeypatch: pytest.MonkeyPatch) -> list[Change | Floor]:
    """What a capture delivered of many changes: rows that come and go, and updates without a large column."""
    delivered: list[Change | Floor] = []
    take = inbox.take

    def record(own: Any, collection: inbox.Locked, events: Any) -> Any:
        events = list(events)
        delivered.extend(events)
        return take(own, collection, events)

    connection.execute("ALTER TABLE items ADD big text; ALTER TABLE items ALTER big SET STORAGE EXTERNAL")
    monkeypatch.setattr(inbox, "take", record)
    captures.start("public.items")
    level(connection)
    chosen = random.Random(7)
    for number in range(60):
        row = chosen.randint(1, 6)
        match chosen.randrange(4):
            case 0:
                connection.execute("DELETE FROM items WHERE id = %s", [row])
            case 1:
                connection.execute("UPDATE items SET body = %s WHERE id = %s", [f"small {number}", row])
            case _:
                connection.execute(
                    "INSERT INTO items VALUES (%s, 'new', 0, %s) ON CONFLICT (id) DO UPDATE SET big = EXCLUDED.big",
                    [row, f"{number}{BIG}"],
                )
    level(connection)
    captures.stop_all()
    monkeypatch.undo()
    return delivered


def state(connection: Connection, collection: str) -> list[Any]:
    return connection.execute(
        "SELECT key, deleted, body, clock, d.missing FROM sophia.documents d JOIN sophia.collections c "
        "ON c.id = d.collection_id WHERE c.name = %s ORDER BY key",
        [collection],
    ).fetchall()


def deliver(connection: Connection, collection: str, batches: list[list[Change | Floor]]) -> None:
    for batch in batches:
        with connection.transaction():
            inbox.accept(connection, collection, batch)


def test_delivered_again_in_any_way_changes_nothing(
    connection: Connection, captures: Captures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In other batches, out of order across keys, in part, late, and with more in the batch."""
    delivered = history(connection, captures, monkeypatch)
    expected = state(connection, "items")
    chosen = random.Random(11)
    by_key: dict[str, list[Change | Floor]] = defaultdict(list)
    for event in delivered:
        assert isinstance(event, Change)
        by_key[event.key].append(event)
    for number in range(6):
        name = f"again_{number}"
        inbox.ensure_collection(connection, name, ["id"])
        connection.execute(
            "UPDATE sophia.collections SET floor = c.floor, generation = c.generation FROM sophia.collections c "
            "WHERE collections.name = %s AND c.name = 'items'",
            [name],
        )
        queues = [list(events) for events in by_key.values()]
        batches: list[list[Change | Floor]] = []
        while any(queues):
            batch: list[Change | Floor] = []
            for _ in range(chosen.randint(1, 9)):
                queue = chosen.choice([queue for queue in queues if queue] or [[]])
                if queue:
                    batch.append(queue.pop(0))
            # Something that was delivered long ago comes along.
            batches.append([*batch, *chosen.sample(batches[0], 1)] if batches else batch)
        deliver(connection, name, batches)
        assert state(connection, name) == expected, f"order {number}"
    for start in (0, 5, 17):
        deliver(connection, "items", [delivered[start : start + 20], delivered[start:]])
        assert state(connection, "items") == expected

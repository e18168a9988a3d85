"""The inbox and what it must not take: erased documents, keys that no index can hold, outgrown dead letters."""

from __future__ import annotations

import hashlib
from typing import Any

import psycopg
import pytest
from psycopg.rows import TupleRow

from sophia import inbox
from sophia.documents import Change, Clock, Key, canonical_key, key_hash
from sophia.inbox import WHOLE_ROW, Floor

Connection = psycopg.Connection[TupleRow]
NAME = "things"


def key(value: Any) -> Key:
    return canonical_key([value])


def change(value: Any, position: int, *, before: Any = None, gone: bool = False, **columns: Any) -> Change:
    missing = columns.pop("missing", ())
    return Change(
        key(value),
        "d" if gone else "u",
        Clock(1, position, 1),
        None if gone else {"id": value, **columns},
        not missing,
        missing,
        key(before) if before is not None else None,
    )


def accept(connection: Connection, *events: Change | Floor) -> inbox.Accepted:
    with connection.transaction():
        return inbox.accept(connection, NAME, events)


def documents(connection: Connection) -> dict[str, Any]:
    """Key to body; None for a tombstone."""
    return dict(connection.execute("SELECT key, body FROM sophia.documents").fetchall())


def erase(connection: Connection, collection: int, value: Any, position: int) -> None:
    """What remains after a document was erased."""
    connection.execute("DELETE FROM sophia.documents WHERE key = %s", [key(value)])
    connection.execute(
        "INSERT INTO sophia.erasures (collection_id, key_hash, clock) VALUES (%s, %s, %s)",
        [collection, key_hash(key(value)), list(Clock(1, position, 9))],
    )
    connection.execute("UPDATE sophia.collections SET erasures = erasures + 1 WHERE id = %s", [collection])


@pytest.fixture(autouse=True)
def collection(connection: Connection) -> int:
    return inbox.ensure_collection(connection, NAME, ["id"])


# ---- erasures ----------------------------------------------------------------------------------------------


def test_key_hash_is_the_whole_sha256() -> None:
    assert key_hash(key("ü")) == hashlib.sha256('["ü"]'.encode()).digest()


def test_erased_document_does_not_come_back_with_an_old_delivery(connection: Connection, collection: int) -> None:
    old = change(1, 10, v="secret")
    accept(connection, old, change(2, 10, v="other"))
    erase(connection, collection, 1, 20)
    result = accept(connection, old, change(1, 20, v="secret"), change(1, 15, gone=True), change(2, 11, v="newer"))
    assert result == inbox.Accepted(4, 1)
    assert documents(connection) == {"[2]": {"id": 2, "v": "newer"}}
    assert connection.execute(
        "SELECT count(*) FROM sophia.inbox WHERE key = '[1]' AND clock > '{1,10,1}'"
    ).fetchone() == (0,)


def test_key_that_was_erased_may_be_used_anew(connection: Connection, collection: int) -> None:
    erase(connection, collection, 1, 20)
    accept(connection, change(1, 21, v="anew"))
    assert documents(connection) == {"[1]": {"id": 1, "v": "anew"}}


def test_partial_change_of_an_erased_row_knows_what_it_lacks(connection: Connection, collection: int) -> None:
    accept(connection, change(1, 10, v="a", big="B"))
    erase(connection, collection, 1, 20)
    accept(connection, change(1, 10, v="a", big="B"), change(1, 21, v="b", missing=("big",)))
    row = connection.execute("SELECT body, missing FROM sophia.documents").fetchone()
    assert row == ({"id": 1, "v": "b"}, ["big"])


def test_row_that_moved_away_from_an_erased_key_stays(connection: Connection, collection: int) -> None:
    accept(connection, change(1, 10, v="a", big="B"))
    erase(connection, collection, 1, 20)
    accept(connection, change(5, 12, before=1, v="a", missing=("big",)))
    row = connection.execute("SELECT key, body, missing FROM sophia.documents").fetchall()
    assert row == [("[5]", {"id": 5, "v": "a"}, ["big"])]


def test_erasure_of_one_collection_is_none_of_another(connection: Connection, collection: int) -> None:
    erase(connection, collection, 1, 20)
    inbox.ensure_collection(connection, "others", ["id"])
    with connection.transaction():
        assert inbox.accept(connection, "others", [change(1, 10, v="a")]).changed == 1


# ---- keys --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "taken"), [(1_996, True), (1_997, False), (100_000, False)])
def test_long_key_is_parked_and_the_rest_is_taken(connection: Connection, length: int, taken: bool) -> None:
    accept(connection, change("x" * length, 10), change("é" * 400, 10), change(1, 10))
    assert len(documents(connection)) == 2 + taken
    letters = connection.execute("SELECT key, stage, reason FROM sophia.dead_letters").fetchall()
    assert len(letters) == (not taken)
    if letters:
        digest = key_hash(key("x" * length)).hex()
        assert letters[0][:2] == (None, "inbox")
        assert f"SHA-256 {digest} has {length + 4:,} bytes" in letters[0][2]


def test_row_whose_key_became_too_long_is_gone_from_its_old_one(connection: Connection) -> None:
    accept(connection, change(1, 10, v="a"))
    accept(connection, change("x" * 3_000, 11, before=1, v="a"))
    assert documents(connection) == {"[1]": None}


# ---- dead letters ------------------------------------------------------------------------------------------


def letters(connection: Connection) -> list[Any]:
    return connection.execute("SELECT key, reason, clock FROM sophia.dead_letters ORDER BY key").fetchall()


def park(connection: Connection, position: int, reason: str) -> None:
    inbox.park(connection, NAME, key(1), stage="capture", reason=reason, clock=Clock(1, position, 1))


def test_older_row_does_not_resolve_a_newer_fault(connection: Connection) -> None:
    park(connection, 12, "newer")
    inbox.resolve(connection, NAME, [key(1)], Clock(1, 11, 1))
    assert len(letters(connection)) == 1
    inbox.resolve(connection, NAME, [key(1)], Clock(1, 12, 1))
    assert letters(connection) == []


def test_older_fault_replaces_neither_a_newer_one_nor_a_newer_document(connection: Connection) -> None:
    park(connection, 12, "newer")
    park(connection, 11, "older")
    assert letters(connection) == [("[1]", "newer", [1, 12, 1])]
    inbox.resolve(connection, NAME, [key(1)], Clock(1, 12, 1))
    accept(connection, change(1, 20, v="whole"))
    park(connection, 19, "of an outgrown document")
    assert letters(connection) == []


def test_fault_is_over_when_a_newer_document_came_whole(connection: Connection) -> None:
    accept(connection, change(1, 10, missing=(WHOLE_ROW,)))
    park(connection, 10, "unreadable")
    inbox.resolve_outgrown(connection, NAME)
    assert len(letters(connection)) == 1
    accept(connection, change(1, 11, v="b", missing=("big",)))
    inbox.resolve_outgrown(connection, NAME)
    assert len(letters(connection)) == 1, "a partial change passed for whole"
    accept(connection, change(1, 12, v="c", big="B"))
    inbox.resolve_outgrown(connection, NAME)
    assert letters(connection) == []


# ---- floors ------------------------------------------------------------------------------------------------


def test_floor_with_many_tombstones_takes_the_bulk_lane(connection: Connection) -> None:
    accept(connection, *[change(n, 10) for n in range(5)])
    accept(connection, Floor(Clock(1, 11, 1), bulk_above=5))
    assert connection.execute("SELECT bool_or(bulk) FROM sophia.documents").fetchone() == (False,)
    accept(connection, *[change(n, 12) for n in range(6)])
    accept(connection, Floor(Clock(1, 13, 1), bulk_above=5))
    assert connection.execute("SELECT bool_and(bulk) FROM sophia.documents").fetchone() == (True,)
    assert connection.execute("SELECT bulk_position = position FROM sophia.collections").fetchone() == (True,)


def test_sweep_of_nothing_calls_no_one_to_work(connection: Connection) -> None:
    accept(connection, change(1, 10))
    with connection.transaction():
        assert inbox.sweep(connection, NAME) == 0
    assert connection.execute("SELECT bulk_position FROM sophia.collections").fetchone() == (0,)

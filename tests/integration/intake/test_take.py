"""Taking deliveries: order, replays, merges, changed keys, and what the database refuses."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import psycopg
import pytest
from psycopg.rows import TupleRow

from sophia.estuary.intake import take
from sophia.estuary.intake.documents import Feed
from tests.intake import body, document, uuid_of
from tests.integration.intake.inbox_view import Deliveries


def test_per_key_the_higher_clock_wins_and_an_equal_one_is_a_duplicate(deliveries: Deliveries) -> None:
    deliveries.take(document(1, 5, title="five"))
    late = deliveries.take(document(1, 4, title="four"), document(1, 5, title="another five"))
    assert deliveries.rows() == {"[1]": (5, {"id": 1, "title": "five"}, [])}
    assert (late.documents, late.stale + late.duplicates) == (2, 1)
    again = deliveries.take(document(1, 5, title="five"))
    assert (again.duplicates, again.stale) == (1, 0)
    stale = deliveries.take(document(1, 3, title="three"))
    assert (stale.duplicates, stale.stale) == (0, 1)


def test_documents_of_a_request_count_in_their_order(deliveries: Deliveries) -> None:
    deliveries.take(document(1, 1, title="a"), document(1, 2, "d"), document(2, 3), document(1, 4, title="b"))
    assert deliveries.rows() == {"[1]": (4, {"id": 1, "title": "b"}, []), "[2]": (3, {"id": 2}, [])}
    deliveries.take(document(2, 6), document(2, 5, "d"))
    assert deliveries.rows()["[2]"][0] == 6


def test_a_tombstone_keeps_a_late_older_document_out(deliveries: Deliveries) -> None:
    deliveries.take(document(1, 1, title="a"))
    deliveries.take(document(1, 9, "d"))
    deliveries.take(document(1, 8, "u", title="late"), document(2, 3, "d"), document(2, 2, title="late"))
    assert deliveries.rows() == {"[1]": (9, None, []), "[2]": (3, None, [])}


def test_replays_with_other_boundaries_and_further_documents_change_nothing(deliveries: Deliveries) -> None:
    number = itertools.count(1)
    chance = random.Random(3)
    sent: list[dict[str, Any]] = []
    for _ in range(60):
        op = chance.choice("cuud")
        columns = {} if op == "d" else {name: f"{next(number)}" for name in chance.sample(["title", "body"], 1)}
        sent.append(document(chance.randrange(6), next(number), op, **columns))
    for begin in range(0, 60, 7):
        deliveries.take(*sent[begin : begin + 7])
    whole = deliveries.rows()
    # The model: documents of a key, one after the other.
    model: dict[str, Any] = {}
    for each in sent:
        key, columns = f"[{each['id']}]", {name: value for name, value in each.items() if name != "_meta"}
        before = model.get(key)
        if each["_meta"]["op"] == "d":
            model[key] = None
        else:
            model[key] = columns if each["_meta"]["op"] == "c" or before is None else before | columns
    assert {key: row for key, (_, row, _) in whole.items()} == model
    for cut in (1, 5, 60):
        for begin in range(0, 60, cut):
            deliveries.take(*sent[begin : begin + cut])
        assert deliveries.rows() == whole
    deliveries.take_raw(*[body(each) for each in sent[30:]], body(*sent[:10]))
    assert deliveries.rows() == whole


def test_absent_columns_are_kept_and_present_ones_replaced_top_level(deliveries: Deliveries) -> None:
    deliveries.take(document(1, 1, title="t", body={"a": 1, "b": 2}, other=None))
    deliveries.take(document(1, 2, "u", body={"a": 3}, other=4))
    assert deliveries.rows() == {"[1]": (2, {"id": 1, "title": "t", "body": {"a": 3}, "other": 4}, [])}


def test_several_partial_documents_of_a_key_in_one_request(deliveries: Deliveries) -> None:
    deliveries.take(document(1, 1, title="t", body="b"))
    deliveries.take(document(1, 2, "u", title="t2"), document(1, 3, "u", extra=[1]), document(2, 4, "u", title="x"))
    assert deliveries.rows() == {
        "[1]": (3, {"id": 1, "title": "t2", "body": "b", "extra": [1]}, []),
        "[2]": (4, {"id": 2, "title": "x"}, ["body"]),
    }


def test_an_update_of_an_unknown_key_says_what_it_lacks_until_that_comes(deliveries: Deliveries) -> None:
    deliveries.take(document(1, 1, "u", title="t"))
    assert deliveries.rows()["[1]"][2] == ["body"]
    deliveries.take(document(1, 2, "u", other=1))
    assert deliveries.rows()["[1]"][2] == ["body"]
    deliveries.take(document(1, 3, "u", body="b"))
    assert deliveries.rows() == {"[1]": (3, {"id": 1, "title": "t", "other": 1, "body": "b"}, [])}
    deliveries.take(document(1, 4, "d"), document(2, 5, "u", title="t"), document(2, 6, "c", title="t"))
    assert deliveries.rows() == {"[1]": (4, None, []), "[2]": (6, {"id": 2, "title": "t"}, [])}
    # After a delete nothing is merged into what was.
    deliveries.take(document(1, 7, "u", title="new"))
    assert deliveries.rows()["[1]"] == (7, {"id": 1, "title": "new"}, ["body"])


def test_a_changed_key_deletes_nothing_blindly(deliveries: Deliveries) -> None:
    """Key 1 became 5, a new 1 was inserted, 5 updated: Estuary sends one combined document, and the new 1."""
    deliveries.take(document(1, 1, title="old", body="b"), document(5, 2, title="another 5", body="of 5"))
    deliveries.take(document(5, 3, "d"))
    deliveries.take(document(1, 11, title="new one", body="n"), document(5, 12, "u", before={"id": 1}, title="moved"))
    assert deliveries.rows() == {
        "[1]": (11, {"id": 1, "title": "new one", "body": "n"}, []),
        # Unchanged large columns of the row came with it, and nobody knows them here.
        "[5]": (12, {"id": 5, "title": "moved"}, ["body"]),
    }
    assert deliveries.rereads() == {"[1]": 12, "[5]": 12}


def test_of_a_changed_key_nothing_of_another_row_is_kept(deliveries: Deliveries) -> None:
    deliveries.take(document(5, 2, title="another 5", body="of 5"))
    deliveries.take(document(5, 12, "u", before={"id": 1}, title="moved"))
    assert deliveries.rows()["[5]"] == (12, {"id": 5, "title": "moved"}, ["body"])


def test_of_several_requests_to_read_a_row_again_the_newest_stays(deliveries: Deliveries) -> None:
    deliveries.take(document(5, 12, "u", before={"id": 1}, title="a"))
    deliveries.take(document(6, 11, "u", before={"id": 1}, title="a"), document(7, 9, "u", before={"id": 2}, title="a"))
    assert deliveries.rereads() == {"[1]": 12, "[2]": 9, "[5]": 12, "[6]": 11, "[7]": 9}


def test_a_row_that_came_to_a_key_is_read_again_too(deliveries: Deliveries) -> None:
    """Another row of that key, updated and moved away before, is part of the same document: `body` may be its own."""
    deliveries.take(document(5, 12, "u", before={"id": 1}, title="moved", body="of the other row"))
    assert deliveries.rows()["[5]"][2] == []
    assert deliveries.rereads() == {"[1]": 12, "[5]": 12}
    deliveries.take(document(6, 13, "c", before={"id": 5}, title="inserted behind a move", body="its own"))
    assert deliveries.rereads() == {"[1]": 12, "[5]": 13}


def test_in_history_mode_the_old_key_is_deleted_at_that_clock(connection: psycopg.Connection[TupleRow]) -> None:
    deliveries = Deliveries(connection, Feed("kept", "sophia/kept", ("id",), ("title", "body"), history=True))
    deliveries.take(document(1, 1, title="old", body="large"))
    deliveries.take(document(5, 3, "u", before={"id": 1}, title="moved"))
    # What was not sent has moved with the row.
    assert deliveries.rows() == {"[1]": (3, None, []), "[5]": (3, {"id": 5, "title": "moved", "body": "large"}, [])}
    # It may have changed before the move, in a document that is delivered behind it.
    assert deliveries.rereads() == {"[5]": 3}
    deliveries.take(document(8, 4, "u", before={"id": 5}, title="whole", body="b"))
    assert deliveries.rereads() == {"[5]": 3}
    # In key order: the new 1 before the move that made room for it.
    deliveries.take(document(7, 11, "c", title="new", body="n"), document(9, 10, "u", before={"id": 7}, title="m"))
    assert deliveries.rows()["[7]"] == (11, {"id": 7, "title": "new", "body": "n"}, [])
    assert deliveries.rows()["[9]"] == (10, {"id": 9, "title": "m"}, ["body"])


LARGE = {
    b'"\\u0000"': "NUL",
    b"1e200000": "number",
    b"1e-200000": "number",
    b"[" * 499 + b"]" * 499: None,
    b"1e100000": None,
    b"9" * 20_000: None,
    b"123456789012345678901234567890.12345678901234567890": None,
    b'"\\ud83d\\ude00"': None,
}


@pytest.mark.parametrize("value", LARGE, ids=range(len(LARGE)))
def test_what_only_the_database_can_tell(deliveries: Deliveries, value: bytes) -> None:
    bad = b'{"id":9,"_meta":{"op":"c","uuid":"%b"},"title":%b}' % (uuid_of(9).encode(), value)
    taken = deliveries.take(*[document(n, n) for n in range(1, 6)], bad, *[document(n, n) for n in range(11, 16)])
    assert taken.documents == 11
    reason = LARGE[value]
    if reason is None:
        assert (taken.parked, len(deliveries.rows())) == (0, 11)
        (stored,) = deliveries.connection.execute(
            "SELECT (body->'title')::text FROM sophia.documents WHERE key = '[9]'"
        ).fetchone() or ("",)
        if value[:1].isdigit() and b"e" not in value:
            # No digit is lost.
            assert stored == value.decode()
        return
    assert taken.parked == 1
    assert len(deliveries.rows()) == 11
    ((key, said, attempts, text),) = deliveries.parked()
    assert (key, attempts, text) == ("[9]", 1, bad)
    assert reason in said
    # Never shown as it was before: its row must be read again.
    assert deliveries.rows()["[9]"] == (0, {}, ["*"])
    assert deliveries.rereads() == {"[9]": 9}


def test_what_cannot_be_explained_is_parked_as_a_whole(deliveries: Deliveries, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(take, "_sift", lambda connection, step: None)
    bad = body(document(1, 1), b'{"id":9,"_meta":{"op":"c","uuid":"%b"},"title":1e200000}' % uuid_of(9).encode())
    taken = deliveries.take_raw(bad)
    assert taken.bodies == [(0, 1)]
    assert deliveries.rows() == {}
    assert deliveries.parked()[0][3] == bad


def test_a_parked_document_hides_what_its_key_was_until_a_newer_one_comes(deliveries: Deliveries) -> None:
    bad = b'{"id":1,"_meta":{"op":"u","uuid":"%b"},"title":NaN}' % uuid_of(5).encode()
    deliveries.take(document(1, 1, title="old", body="b"))
    deliveries.take(document(1, 4, "u", title="four"), bad, document(1, 6, "u", body="six"))
    number, row, missing = deliveries.rows()["[1]"]
    assert (number, missing) == (6, ["*"])
    assert row["body"] == "six"
    assert deliveries.rereads() == {"[1]": 5}
    deliveries.take(document(1, 7, "c", title="seven", body="b"))
    assert deliveries.rows()["[1]"] == (7, {"id": 1, "title": "seven", "body": "b"}, [])


def test_redelivery_parks_nothing_twice(deliveries: Deliveries) -> None:
    for _ in range(3):
        deliveries.take(b'{"a":1}', document(1, 1), b'{"a":1}')
        deliveries.take_raw(b"[{", b"[{")
    assert [(attempts, text) for _, _, attempts, text in deliveries.parked()] == [(6, b'{"a":1}'), (6, b"[{")]
    assert list(deliveries.rows()) == ["[1]"]


def test_a_key_that_no_index_can_hold_is_parked_with_its_document(deliveries: Deliveries) -> None:
    long = document("k" * 3_000, 1)
    deliveries.take(long, document("ü" * 1_500, 1, "d"), document("k" * 1_900, 2))
    assert [len(key) for key in deliveries.rows()] == [1_904]
    (first, second) = deliveries.parked()
    assert "at most 2,000" in first[1]
    assert json.loads(first[3]) == long
    assert first[0] is None
    assert "at most 2,000" in second[1]


def test_nothing_is_taken_of_a_transaction_that_does_not_commit(
    deliveries: Deliveries, monkeypatch: pytest.MonkeyPatch
) -> None:
    class DiedError(Exception):
        pass

    def die(name: str) -> None:
        if name == "intake.before_commit":
            raise DiedError

    monkeypatch.setattr(take, "failpoint", die)
    with pytest.raises(DiedError):
        deliveries.take(document(1, 1), b'{"a":1}', document(5, 12, "u", before={"id": 1}))
    assert (deliveries.rows(), deliveries.parked(), deliveries.rereads()) == ({}, [], {})


def test_the_log_names_changes_and_no_text(deliveries: Deliveries) -> None:
    deliveries.take(document(1, 1, title="a"), document(1, 2, "u", title="b"), document(2, 3, "d"))
    rows = deliveries.connection.execute("SELECT key, op FROM sophia.inbox ORDER BY id").fetchall()
    assert sorted(rows) == [("[1]", "c"), ("[1]", "u"), ("[2]", "d")]
    assert json.dumps(deliveries.rows()).count("_meta") == 0

"""What is parked: listed, replayed, removed with its time and with the key that is erased."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import TupleRow

import sophia.catalog
from sophia import inbox
from sophia.catalog import Catalog
from sophia.catalog.models import Retention
from sophia.documents import canonical_key
from sophia.erasure import erase
from sophia.estuary.intake.documents import Feed, Reader
from sophia.estuary.intake.parked import Replayed, replay_parked
from sophia.estuary.intake.take import take_documents
from sophia.retention import apply_retention
from tests.intake import FEED, NAME, body, document, fed_catalog, uuid_of
from tests.integration.cli.conftest import Done, sophia_command
from tests.integration.intake.inbox_view import Deliveries

__all__ = ["sophia_command"]
SECRET = "a purple elephant"


def bad(key: int, number: int, text: str = SECRET) -> bytes:
    """A document that is no JSON; its key can be told all the same."""
    return b'{"id":%d,"title":"%b","n":NaN,"_meta":{"op":"c","uuid":"%b"}}' % (
        key,
        text.encode(),
        uuid_of(number).encode(),
    )


def test_they_are_listed_without_their_text_and_replayed(
    sophia_command: Callable[..., Done], deliveries: Deliveries, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sophia.catalog, "load", lambda path: fed_catalog(catalog))
    deliveries.take(document(1, 1), bad(7, 3), {"title": SECRET}, document(5, 9, "u", before={"id": 4}, title="t"))
    rows = sophia_command("dead-letters", "--json").json
    found = {(row["stage"], row["key"]): row["reason"] for row in rows}
    assert set(found) == {("intake", "[7]"), ("intake", None), ("reread", "[4]"), ("reread", "[5]"), ("reread", "[7]")}
    assert "no JSON" in found["intake", "[7]"]
    assert "url_env" in found["reread", "[4]"]
    assert {row["collection"] for row in rows} == {"documents"}
    assert SECRET not in json.dumps(rows)
    done = sophia_command("dead-letters", "--replay", "--json")
    assert "0 parked deliveries were taken, 2 stay parked" in done.err
    assert [row["attempts"] for row in done.json if row["stage"] == "intake"] == [2, 2]


def test_a_key_is_marked_whatever_numbers_its_document_has(deliveries: Deliveries) -> None:
    """What is marked keeps its digits: read as a float this number is infinite, which no jsonb is."""
    number = b"1" + b"0" * 400 + b".5"
    deliveries.take_raw(b'[{"id":7,"n":%b,"_meta":{"op":"c","uuid":"%b"}}]' % (number, uuid_of(1).encode()))
    deliveries.take(bad(7, 3), document(8, 4))
    assert [key for key, *_ in deliveries.parked()] == ["[7]"]
    assert deliveries.rows()["[7]"][2] == ["*"]
    assert "[8]" in deliveries.rows()
    query = "SELECT body ->> 'n' FROM sophia.documents WHERE key = '[7]'"
    assert deliveries.connection.execute(query).fetchone() == (number.decode(),)


def test_what_can_be_taken_by_now_is_taken_and_the_rest_stays(
    deliveries: Deliveries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a change of the catalog: the key was another column before."""
    former = Reader(Feed("documents", NAME, ("number",)))
    inbox.ensure_collection(deliveries.connection, "documents", ("number",))
    several = [document(n, n) for n in range(100, 150)]
    take_documents(
        deliveries.connection, former, [body(document(1, 1), document(2, 2, "d"), bad(3, 3)), body(*several)]
    )
    take_documents(deliveries.connection, former, [b"[unreadable"])
    assert deliveries.rows() == {}
    assert len(deliveries.parked()) == 5
    inbox.ensure_collection(deliveries.connection, "documents", FEED.key)
    # Something newer came in between.
    deliveries.take(document(1, 8, title="new"))
    elsewhere = {"sophia/elsewhere": FEED}
    assert replay_parked(deliveries.connection, elsewhere) == Replayed(0, 0, 5)
    assert replay_parked(deliveries.connection, {NAME: FEED}) == Replayed(3, 2, 0)
    rows = deliveries.rows()
    assert rows["[1]"] == (8, {"id": 1, "title": "new"}, [])
    assert rows["[2]"][1] is None
    assert {f"[{n}]" for n in range(100, 150)} <= set(rows)
    assert [(key, attempts) for key, _, attempts, _ in deliveries.parked()] == [("[3]", 2), (None, 2)]


def test_a_parked_event_is_replayed(deliveries: Deliveries, monkeypatch: pytest.MonkeyPatch) -> None:
    from sophia.estuary.intake import events
    from sophia.estuary.intake.documents import Rejected
    from sophia.estuary.intake.take import park

    good = {
        "materialization": "m",
        "collections": [NAME],
        "publishedAtMin": "2026-01-02T03:04:05Z",
        "publishedAtMax": "2026-01-02T03:04:06Z",
    }
    for raw in (json.dumps(good).encode(), b"nope"):
        park(deliveries.connection, events.NAME, Rejected(raw, "not read by a former release", documents=0))
    assert replay_parked(deliveries.connection, {}) == Replayed(1, 1, 0)
    assert len(deliveries.connection.execute("SELECT FROM sophia.estuary_watermarks").fetchall()) == 1


def test_they_go_with_their_time(deliveries: Deliveries) -> None:
    deliveries.take({"a": 1}, {"a": 2})
    deliveries.connection.execute("UPDATE sophia.parked SET last_seen = now() - interval '31 days' WHERE id = 1")
    removed = apply_retention(deliveries.connection, Retention(dead_letter_days=30))
    assert (removed["parked"], len(deliveries.parked())) == (1, 1)


def places_with(connection: psycopg.Connection[TupleRow], text: str) -> list[str]:
    """Tables of ours that hold a text."""
    found = []
    for (table,) in connection.execute(
        "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname IN ('sophia', 'indexes')"
    ).fetchall():
        rows: list[Any] = connection.execute(f"SELECT * FROM {table}").fetchall()
        if any(
            text in str(value) or text.encode() in (value if isinstance(value, bytes) else b"")
            for row in rows
            for value in row
        ):
            found.append(table)
    return found


def test_an_erasure_leaves_no_text_and_says_what_it_cannot_judge(deliveries: Deliveries, tmp_path: Path) -> None:
    key = f'["{SECRET}"]'
    raws = [
        # Of the key.
        b'{"id":"%b","n":NaN,"_meta":{"op":"c","uuid":"%b"}}' % (SECRET.encode(), uuid_of(5).encode()),
        # Without a key that can be read: the value, a value that may be hidden in an escape.
        json.dumps({"of": SECRET}).encode(),
        b'{"of":"\\u0061 purple elephant"}',
        # Another one's.
        b'{"of":"a grey mouse"}',
    ]
    deliveries.take(document(SECRET, 1, title=SECRET), *raws, document(6, 4, "u", before={"id": SECRET}, title="t"))
    deliveries.take(document(SECRET, 2, "d"))
    deliveries.take_raw(b'["%b' % SECRET.encode(), b'["cut of')
    assert len(deliveries.parked()) == 6
    assert "sophia.parked" in places_with(deliveries.connection, SECRET)
    done = erase(deliveries.connection, "documents", canonical_key([SECRET]), force=True)
    assert (done.removed["parked"], done.removed["rereads"], done.unnamed) == (5, 1, 1)
    assert done.to_json()["parked_without_key"] == 1
    assert [text for *_, text in deliveries.parked()] == [raws[3]]
    assert places_with(deliveries.connection, SECRET) == []
    # A redelivery brings nothing back, neither taken nor parked.
    deliveries.take(document(SECRET, 1, title=SECRET), raws[0], document(6, 4, "u", before={"id": SECRET}, title="t"))
    assert key not in deliveries.rows()
    assert [text for *_, text in deliveries.parked()] == [raws[3]]
    assert deliveries.rereads() == {"[6]": 4}
    assert places_with(deliveries.connection, SECRET) == []
    deliveries.take(document(SECRET, 10, title="a new life"))
    assert deliveries.rows()[key][0] == 10

"""Documents that a version has for the first time are copied in: what is stored is what an upsert stores, and whatever
came between reading and writing makes an upsert of it."""

from __future__ import annotations

from typing import Any

import pytest

from sophia import inbox
from sophia.documents import Change, Clock, Origin, canonical_key
from sophia.errors import BusyError, FencedError
from sophia.indexing.leases import Lease, Leases
from sophia.indexing.repair import neighbours, repair_shard
from sophia.stores import pgvector_load
from sophia.stores.base import COPIED_DOCUMENTS
from tests.integration.library import COLLECTION, Library

LONG = " ".join(f"word{number}" for number in range(400))
NUMBERS = range(COPIED_DOCUMENTS + 4)


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many documents each copy into the store was of, whether it was done or not."""
    sizes: list[int] = []
    enter = pgvector_load.enter

    def counting(connection: Any, version: Any, writes: Any, run: str) -> None:
        sizes.append(len(writes))
        enter(connection, version, writes, run)

    monkeypatch.setattr(pgvector_load, "enter", counting)
    return sizes


def everything(library: Library) -> list[tuple[Any, ...]]:
    """Each row of the store beside its entry in the ledger, but for times and run."""
    name = library.version().store_name
    return library.connection.execute(
        "SELECT s.id, s.key, s.bucket, s.chunk, s.span::text, s.content, s.content_hash, s.embedding::text, "
        "s.metadata, s.metadata::text, s.clock, s.lsn::text, s.txid, s.committed_at, s.tsv::text, l.bucket, l.clock, "
        "l.state, l.deleted, l.content_hashes, l.vector_hashes, l.held "
        f"FROM sophia.ledger l LEFT JOIN indexes.{name} s ON s.key = l.key ORDER BY l.key, s.chunk"
    ).fetchall()


def test_what_is_copied_in_is_what_an_upsert_writes(library: Library, copies: list[int]) -> None:
    odd: list[dict[str, Any]] = [
        {"module": None, "kind": 2**80},
        {"module": {"ä": [1, None, 1.5e300]}, "kind": 'a "quoted" \\ line\n'},
        {"module": "漢字 😀", "kind": True},
        {"title": "", "body": ""},
        {"body": LONG},
        {"title": None, "body": "😀 " * 300},
    ]
    for number in NUMBERS:
        library.put(number, **({"body": f"text {number}"} | (odd[number] if number < len(odd) else {})))
    library.change(len(odd), {"id": len(odd), "title": "no body"})
    library.delete(len(odd) + 1)
    row = {"id": 99, "title": "t", "body": "without origin", "module": "m", "kind": "k"}
    with library.connection.transaction():
        unknown = Change(canonical_key([99]), "u", Clock(1, 99, 0), row, origin=Origin())
        # A position is a number of 64 bits without a sign.
        high = Change(canonical_key([98]), "u", Clock(1, 98, 0), row | {"id": 98}, origin=Origin(2**64 - 1))
        inbox.accept(library.connection, COLLECTION, [unknown, high])
    rows = library.rows(*NUMBERS, 98, 99)
    writer = library.writer()
    figures = writer.apply(library.connection, rows)
    assert copies == [len(rows)]
    assert (figures.documents, figures.deleted, figures.parked) == (len(rows), 1, 1)
    assert library.faults() == []
    assert library.compare().empty
    copied = everything(library)
    assert {entry[17] for entry in copied} == {"applied", "parked"}
    writer.apply(library.connection, rows, repair=True)
    assert copies == [len(rows)], "this was a copy, too"
    assert copied == everything(library)


@pytest.mark.parametrize("value", ["1.10", "12345678901234567890.5", "[1e-400, -0.0]", "1.5e300", "1e5000"])
def test_a_number_that_no_float_holds_is_no_drift(library: Library, value: str) -> None:
    """PostgreSQL keeps every digit of a document; what Python read of them is what the store has."""
    library.put(1)
    library.connection.execute("UPDATE sophia.documents SET body = body || %s::jsonb", ['{"module": ' + value + "}"])
    library.apply(1)
    assert library.compare().empty
    for other in ("true", "1", '"1.1"'):
        library.connection.execute(
            f"UPDATE indexes.{library.version().store_name} SET metadata = metadata || %s::jsonb",
            ['{"module": ' + other + "}"],
        )
        assert not library.compare().empty


@pytest.mark.parametrize("lane", ["live", "bulk"])
@pytest.mark.parametrize("nested", ["{}", "[{}]"])
def test_a_number_without_a_name_in_json_parks_its_document_alone(library: Library, lane: str, nested: str) -> None:
    """A fraction beyond a float's range, which PostgreSQL stores, is infinite for Python."""
    for number in NUMBERS:
        library.put(number, body=f"text {number}")
    body = '{"module": ' + nested.format("1" + "0" * 400 + ".5") + "}"
    library.connection.execute("UPDATE sophia.documents SET body = body || %s::jsonb WHERE key = '[3]'", [body])
    library.writer(lane=lane).apply(library.connection, library.rows(*NUMBERS))
    assert list(library.parked()) == ["[3]"]
    assert "'module'" in library.parked()["[3]"]
    assert library.faults() == []
    library.put(3)
    library.apply(3)
    assert library.parked() == {}
    assert library.faults() == []


@pytest.mark.parametrize("newer", ["ours", "theirs"])
def test_a_writer_that_came_between_is_not_copied_over(library: Library, copies: list[int], newer: str) -> None:
    """Neither does its older text stay, nor a chunk of it, nor is its newer text lost. Nothing is embedded twice."""
    for number in NUMBERS:
        library.put(number, body=f"{LONG} {number}")
    version = library.version()
    first = library.rows(*NUMBERS)
    for number in NUMBERS:
        library.put(number, body=f"short {number}")
    second = library.rows(*NUMBERS)
    ours, theirs = (second, first) if newer == "ours" else (first, second)

    def come_between(_texts: Any) -> None:
        library.embedder.before = lambda _: None
        with library.database.connect() as other:
            library.writer(version).apply(other, theirs[:-1])

    library.embedder.before = come_between
    library.writer(version).apply(library.connection, ours)
    assert len(library.embedder.texts) == len(set(library.embedder.texts))
    if newer == "theirs":
        library.writer(version).apply(library.connection, second[-1:])
    assert copies == [len(theirs) - 1]
    assert library.faults() == []
    assert library.compare().empty


def test_a_row_added_by_hand_does_not_stop_a_first_load(library: Library, copies: list[int]) -> None:
    library.put(98)
    library.apply(98)
    for number in NUMBERS:
        library.put(number, body=f"text {number}")
    library.connection.execute(
        f"INSERT INTO indexes.{library.version().store_name} (id, key, bucket, chunk, span, content, content_hash, "
        "embedding, metadata, clock, run) SELECT gen_random_uuid(), '[5]', bucket, 0, span, 'by hand', content_hash, "
        f"embedding, metadata, clock, run FROM indexes.{library.version().store_name}"
    )
    library.writer().apply(library.connection, library.rows(*NUMBERS))
    assert copies == [len(NUMBERS)]
    assert library.faults() == []


def test_a_fenced_writer_copies_nothing(library: Library) -> None:
    for number in NUMBERS:
        library.put(number)
    held = Leases.try_take_all(library.connection, ["x", "y"], 0.0)
    assert held is not None
    with library.database.connect() as other:
        assert Lease.try_take(other, "y", 60) is not None
        with pytest.raises(FencedError):
            library.writer().apply(library.connection, library.rows(*NUMBERS), lease=held)
    assert everything(library) == []


def test_small_shards_are_repaired_together(library: Library) -> None:
    """In batches that are as full as they may be; each counts as compared, and whoever has one of them has it alone."""
    catalog = library.with_index(shards=16)
    version = library.version(catalog)
    for number in range(40):
        library.put(number, body=f"text {number}")
    together = neighbours(version, range(16), 40, 40)
    assert together == [range(16)]
    with library.database.connect() as other:
        seventh = Lease.try_take(other, f"repair/{version.id}/7", 60)
        assert seventh is not None
        with pytest.raises(BusyError):
            repair_shard(library.connection, library.writer(version), 0, last=15, batch=40)
        first = Lease.try_take(other, f"repair/{version.id}/0", 60)
        assert first is not None, "nothing of it is kept"
        # The end of a session frees them too, but a moment later.
        for lease in (first, seventh):
            lease.release(other)
    repair_shard(library.connection, library.writer(version), 0, last=15, batch=40)
    assert library.connection.execute("SELECT documents FROM sophia.batches").fetchall() == [(40,)]
    assert library.faults(version) == []
    unseen = "SELECT count(*) FROM sophia.shards WHERE version_id = %s AND position < 0"
    assert library.connection.execute(unseen, [version.id]).fetchone() == (0,)


def test_shards_are_joined_up_to_a_batch(library: Library) -> None:
    version = library.version(library.with_index(shards=16))
    assert neighbours(version, range(16), 1_000, 256) == [range(0, 4), range(4, 8), range(8, 12), range(12, 16)]
    assert neighbours(version, [0, 1, 3, 4, 5], 1_000, 128) == [range(0, 2), range(3, 5), range(5, 6)]
    assert neighbours(version, range(3), 100_000, 2_000) == [range(0, 1), range(1, 2), range(2, 3)]
    assert neighbours(version, range(2), 0, 1) == [range(0, 2)]

"""What every vector store must do, whatever it is: the tests of `sophia.stores.base.Store`.

A module per store makes a fixture `stand` and a subclass of `StoreContract`. The tests go through the writer, the
repair and the indexer, as everything does; the judge is `embed(current documents)`, computed here from the documents.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any, ClassVar

import psycopg
import pytest
from psycopg.rows import TupleRow

from sophia import failpoints
from sophia.documents import canonical_key
from sophia.embedding.base import Vectors
from sophia.erasure import erase
from sophia.errors import FencedError, TemporaryError
from sophia.indexing import shards
from sophia.indexing.batch import Row
from sophia.indexing.leases import Lease
from sophia.indexing.promotion import promote, retire, rollback
from sophia.indexing.publication import settle
from sophia.indexing.search import search
from sophia.indexing.shards import HeldError
from sophia.indexing.text import Texts
from sophia.indexing.verify import verify
from sophia.indexing.versions import IndexVersion
from sophia.indexing.writer import Q as INDEXING
from sophia.stores import Query, Scope, Store
from sophia.stores.base import vector_hash
from tests.embedders import HashEmbedder, hash_vector
from tests.integration.library import Library, key
from tests.waiting import WAIT_SECONDS, until

Connection = psycopg.Connection[TupleRow]
RunLoop = Callable[..., Any]
# Several chunks at the sample index's chunk size, and fewer when it is cut.
LONG = "\n\n".join(" ".join(f"word{number * n * n % 997}" for n in range(120)) for number in range(1, 16))
VALUES: dict[str, Any] = {
    "module": "text with 'quotes' and ä",
    "kind": 17,
    "ratio": 2.5,
    "flag": True,
    "nothing": None,
    "tags": ["a", 2],
    "nested": {"b": [1, None]},
}


class Killed(BaseException):
    """The process ended here."""


class Stand:
    """A library of documents over the store under test, and ways to break that store.

    Attributes:
        library: its catalog's index is in the store under test; its `stores` hold it.
        hybrid: whether the store fuses words and vectors.
        unacceptable: columns that make the store refuse a document for what it is; None if it refuses none.
    """

    hybrid = True
    unacceptable: ClassVar[Mapping[str, Any] | None] = None

    def __init__(self, library: Library) -> None:
        self.library = library

    def store(self, version: IndexVersion) -> Store:
        return self.library.store(version)

    def edit(
        self,
        version: IndexVersion,
        number: int,
        chunk: int,
        *,
        content: str | None = None,
        vector: Vectors | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Change a stored chunk behind Sophia's back."""
        raise NotImplementedError

    def add(self, version: IndexVersion, number: int, chunk: int, content: str) -> None:
        """Add a chunk under an id that no version gives, for whatever key, behind Sophia's back."""
        raise NotImplementedError

    def remove(self, version: IndexVersion, number: int, chunk: int) -> None:
        """Remove a stored chunk behind Sophia's back."""
        raise NotImplementedError

    def served_by_name(self, version: IndexVersion) -> set[str]:
        """Texts that someone sees who asks the store for the index's public name."""
        raise NotImplementedError

    def away(self) -> AbstractContextManager[None] | None:
        """Meanwhile the store is down; None where it cannot be."""
        return None

    def fails(self, after: int) -> AbstractContextManager[None] | None:
        """Meanwhile a write of several documents takes so many, then fails; None where that cannot be."""
        return None

    # ---- what must be there ----------------------------------------------------------------------------------

    def faults(self, version: IndexVersion) -> list[str]:
        """How the store differs from `embed(current documents)`."""
        library = self.library
        index = version.index
        texts = Texts(index.template, index.chunk_tokens, index.chunk_overlap, None, 1 << 30)
        parked = library.parked()
        wanted: dict[str, tuple[Any, ...]] = {}
        documents = library.connection.execute(
            "SELECT key, body, clock FROM sophia.documents WHERE collection_id = %s AND NOT deleted",
            [version.collection_id],
        ).fetchall()
        for name, body, clock in documents:
            chunks = texts.chunks(body) if name not in parked else []
            if chunks:
                hashes = tuple(chunk.content_hash for chunk in chunks)
                vectors = tuple(vector_hash(hash_vector(chunk.content, version.dimension)) for chunk in chunks)
                ids = tuple(version.chunk_id(name, number) for number in range(len(chunks)))
                metadata = json.dumps({field: body.get(field) for field in index.metadata}, sort_keys=True)
                wanted[name] = (ids, hashes, hashes, vectors, (metadata,), tuple(clock), tuple(clock))
        faults = []
        for stored in self.store(version).inventory(library.connection, version, Scope()):
            found = (
                stored.ids,
                stored.content_hashes,
                stored.read_hashes,
                stored.vector_hashes,
                tuple({json.dumps(json.loads(text), sort_keys=True) for text in stored.metadata}),
                tuple(stored.oldest),
                tuple(stored.newest),
            )
            want = wanted.pop(stored.key, None)
            if want is None:
                faults.append(f"{stored.key} is extra")
            elif found != want:
                names = ("ids", "hashes", "read hashes", "vectors", "metadata", "oldest", "newest")
                faults.append(
                    f"{stored.key} differs in {[n for n, a, b in zip(names, found, want, strict=True) if a != b]}"
                )
        return faults + [f"{name} is missing" for name in wanted]

    def right(self, version: IndexVersion | None = None) -> None:
        """The store is `embed(current documents)`, and Sophia's own comparison says so, too."""
        version = version or self.library.version()
        assert self.faults(version) == []
        assert self.library.compare(version).counts() == dict.fromkeys(self.library.compare(version).counts(), 0) | {
            "parked": len(self.library.parked())
        }

    def level(self, version: IndexVersion | None = None, seconds: float = WAIT_SECONDS) -> None:
        """Wait until the store is right."""
        version = version or self.library.version()
        until(lambda: not self.faults(version), "the store to be level", seconds)


def long_after(connection: Connection) -> None:
    """The time of every write that may still be under way is over."""
    connection.execute("UPDATE sophia.leases SET expires_at = '-infinity' WHERE name LIKE 'shard/%'")


def text_of(number: int) -> str:
    return f"title {number}\n\ntext {number}"


class StoreContract:
    """The tests. Subclasses say with which `stand`."""

    @pytest.fixture
    def filled(self, stand: Stand) -> Stand:
        """Twelve documents, of which number 3 is long, number 4 empty and number 5 deleted."""
        for number in range(12):
            stand.library.put(number, f"title {number}", f"text {number}")
        stand.library.put(3, "long", LONG)
        stand.library.put(4, None, None)
        stand.library.delete(5)
        stand.library.repair()
        return stand

    # ---- writing ---------------------------------------------------------------------------------------------

    def test_a_place_is_made_once(self, stand: Stand) -> None:
        version = stand.library.version()
        assert stand.library.version() == version
        assert stand.store(version).counts(stand.library.connection, version) == (0, 0)
        stand.right(version)

    def test_documents_are_stored_replaced_and_removed(self, filled: Stand) -> None:
        filled.right()
        library = filled.library
        library.put(1, "title 1", "another text")
        library.put(6, "title 6", "text 6", module="elsewhere")
        library.delete(2)
        library.put(20, "new", "text")
        library.put(5, "back", "again")
        library.apply(1, 6, 2, 20, 5)
        filled.right()

    def test_an_older_document_is_not_written_over_a_newer_one(self, filled: Stand) -> None:
        library = filled.library
        version = library.version()
        library.put(1, "t", "older")
        stale = library.rows(1, 6, version=version)
        library.put(1, "t", "newer")
        library.delete(6)
        library.apply(1, 6, version=version)
        library.writer(version).apply(library.connection, stale)
        filled.right(version)

    def test_a_document_that_shrinks_leaves_nothing_behind(self, filled: Stand) -> None:
        library = filled.library
        version = library.version()
        documents, chunks = filled.store(version).counts(library.connection, version)
        assert chunks > documents
        library.put(3, "long", LONG[: len(LONG) // 2])
        library.apply(3)
        filled.right(version)
        library.put(3, "short", "now")
        library.apply(3)
        filled.right(version)
        assert filled.store(version).counts(library.connection, version) == (documents, documents)

    def test_what_is_not_the_text_is_refreshed_without_embedding(self, filled: Stand) -> None:
        library = filled.library
        library.embedder.texts.clear()
        library.put(3, "long", LONG, module="another")
        library.apply(3)
        filled.right()
        assert library.embedder.texts == []

    def test_only_what_differs_of_a_long_text_is_embedded(self, filled: Stand) -> None:
        library = filled.library
        library.embedder.texts.clear()
        library.put(3, "long", LONG + "\n\nand a last paragraph")
        library.apply(3)
        filled.right()
        assert len(library.embedder.texts) <= 2

    # ---- reading ---------------------------------------------------------------------------------------------

    def found(self, stand: Stand, version: IndexVersion, text: str, **query: Any) -> list[str]:
        asked = Query(vector=hash_vector(text, version.dimension), text=text, **query)
        return [hit.key for hit in stand.store(version).search(stand.library.connection, version, asked)]

    def test_search_finds_the_nearest_first(self, filled: Stand) -> None:
        version = filled.library.version()
        store = filled.store(version)
        for number in (0, 7, 11):
            query = Query(vector=hash_vector(text_of(number), version.dimension), text="", k=3)
            hits = store.search(filled.library.connection, version, query)
            assert len(hits) == 3
            assert (hits[0].key, hits[0].chunk, hits[0].content) == (key(number), 0, text_of(number))
            assert hits[0].score == pytest.approx(1, abs=1e-4)
            assert hits[0].metadata == {"module": "m", "kind": "k"}
            assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        assert self.found(filled, version, text_of(9), k=1, exact=True) == [key(9)]
        # Who searches by name gets the version that serves.
        hits = search(
            filled.library.connection,
            version.index_name,
            text_of(8),
            lambda version: filled.library.embedder,
            k=1,
            stores=filled.library.stores,
        )
        assert [hit.key for hit in hits] == [key(8)]

    def test_a_filter_of_any_json_type(self, stand: Stand) -> None:
        library = stand.library
        library.catalog = library.with_index(metadata=tuple(VALUES))
        others = dict.fromkeys(VALUES, "another")
        for number, (name, value) in enumerate(VALUES.items()):
            library.put(number, f"title {number}", f"text {number}", **(others | {name: value}))
        library.repair()
        version = library.version()
        for number, (name, value) in enumerate(VALUES.items()):
            assert self.found(stand, version, text_of(9), k=5, filters={name: value}) == [key(number)], name
            assert key(number) not in self.found(stand, version, text_of(number), k=9, filters={name: "another"}), name
            assert self.found(stand, version, text_of(number), k=5, filters={name: "of nobody"}) == [], name
        stand.right(version)

    def test_filters_are_taken_together(self, filled: Stand) -> None:
        library = filled.library
        library.put(30, "title 30", "text 30", module="a", kind="b")
        library.put(31, "title 31", "text 31", module="a", kind="c")
        library.apply(30, 31)
        version = library.version()
        assert self.found(filled, version, text_of(31), k=5, filters={"module": "a", "kind": "b"}) == [key(30)]

    def test_words_count_in_a_hybrid_search(self, filled: Stand) -> None:
        if not filled.hybrid:
            pytest.skip("this store has no words")
        library = filled.library
        library.put(40, "a zyzzyva", "is a weevil")
        library.apply(40)
        version = library.version()
        vector = hash_vector(text_of(1), version.dimension)
        hits = filled.store(version).search(
            library.connection, version, Query(vector=vector, text="zyzzyva", k=3, hybrid=True)
        )
        # By vector it is as far as any other; only the word leads to it.
        assert {key(40), key(1)} <= {hit.key for hit in hits}

    def test_counts_sample_and_origins(self, filled: Stand) -> None:
        library = filled.library
        version = library.version()
        store = filled.store(version)
        documents, chunks = store.counts(library.connection, version)
        assert documents == 10
        long = store.chunks_of(library.connection, version, key(3))
        assert chunks == documents - 1 + len(long)
        assert [origin.chunk for origin in long] == list(range(len(long)))
        clock = library.rows(3)[0].clock
        assert {(tuple(origin.clock), origin.run) for origin in long} == {(tuple(clock), "test")}
        assert {origin.lsn for origin in long} == {f"0/{clock.position:X}"}
        assert long[0].start == 0
        assert all(one.start < one.end for one in long)
        assert [o.content_hash for o in long] == [h.hex() for h in library.rows(3)[0].ledger_hashes]
        assert store.chunks_of(library.connection, version, key(99)) == []
        sample = store.sample(library.connection, version, 100, "seed")
        assert sample
        # The same for the same seed.
        again = store.sample(library.connection, version, 100, "seed")
        assert [(c.key, c.content) for c in again] == [(c.key, c.content) for c in sample]
        for chunk in sample:
            assert vector_hash(chunk.vector) == vector_hash(hash_vector(chunk.content, version.dimension))
            assert chunk.metadata == {"module": "m", "kind": "k"}

    def test_the_proof_holds(self, filled: Stand) -> None:
        library = filled.library
        version = library.version()
        proof = verify(library.connection, version, filled.store(version), library.embedder, seed="s")
        assert proof.holds, proof.sentence()
        assert proof.documents == 10
        filled.edit(version, 7, 0, content="another text")
        assert not verify(library.connection, version, filled.store(version), library.embedder, seed="s").holds

    # ---- behind Sophia's back --------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("drift", "kind", "embedded"),
        [
            ("text", "altered", 0),
            ("vector", "altered", 1),
            ("metadata", "altered", 0),
            ("removed", "missing", 1),
            ("part removed", "missing", 1),
            ("added", "extra", 0),
            ("doubled", "doubled", 0),
            ("deleted key added", "extra", 0),
        ],
    )
    def test_what_was_done_behind_its_back_is_found_and_mended(
        self, filled: Stand, drift: str, kind: str, embedded: int
    ) -> None:
        library = filled.library
        version = library.version()
        if drift == "text":
            filled.edit(version, 7, 0, content="another text")
        elif drift == "vector":
            filled.edit(version, 7, 0, vector=hash_vector("another text", version.dimension))
        elif drift == "metadata":
            filled.edit(version, 7, 0, metadata={"module": "another", "kind": "k"})
        elif drift == "removed":
            filled.remove(version, 7, 0)
        elif drift == "part removed":
            filled.remove(version, 3, 1)
        elif drift == "added":
            filled.add(version, 77, 0, "a document that nobody has")
        elif drift == "doubled":
            filled.add(version, 7, 1, text_of(7))
        else:
            filled.add(version, 5, 0, "a document that was deleted")
        found = library.compare(version)
        assert {name: count for name, count in found.counts().items() if count} == {kind: 1}
        library.embedder.texts.clear()
        library.repair(deep=True)
        filled.right(version)
        assert len(library.embedder.texts) == embedded

    # ---- versions --------------------------------------------------------------------------------------------

    def test_a_switch_back_and_forth_and_an_end(self, filled: Stand) -> None:
        library = filled.library
        stores = library.stores
        old = library.version()
        # What the indexer does beside: the first version's public name.
        settle(library.connection, stores)
        assert text_of(1) in filled.served_by_name(old)
        new = library.version(library.with_index(template="{body}"))
        library.repair(version=new)
        assert promote(library.connection, new, filled.store(new)).switched
        assert "text 1" in filled.served_by_name(new)
        assert text_of(1) not in filled.served_by_name(new)
        assert rollback(library.connection, new.index_name, stores=stores).now == old.number
        assert text_of(1) in filled.served_by_name(old)
        promote(library.connection, new, filled.store(new))
        retire(library.connection, old, filled.store(old))
        filled.right(new)
        assert "text 1" in filled.served_by_name(new)
        # The same version once more: its place was empty.
        again = library.version(library.catalog)
        assert filled.store(again).counts(library.connection, again) == (0, 0)
        library.repair(version=again)
        filled.right(again)
        filled.right(new)

    def test_both_versions_follow_while_the_model_changes(self, filled: Stand, run_loop: RunLoop) -> None:
        library = filled.library
        old = library.version()
        new_catalog = library.with_index(template="{body}")
        new = library.version(new_catalog)
        running = run_loop(library.indexer(new_catalog))
        library.put(1, "t", "after the new one was begun")
        library.delete(7)
        filled.level(old)
        filled.level(new)
        promote(library.connection, new, filled.store(new))
        library.put(8, "t", "after the switch")
        filled.level(old)
        filled.level(new)
        running.stop()

    # ---- erasure ---------------------------------------------------------------------------------------------

    def test_an_erased_document_is_gone_from_every_version(self, filled: Stand) -> None:
        library = filled.library
        old = library.version()
        new = library.version(library.with_index(template="{body}"))
        library.repair(version=new)
        long = len(filled.store(old).chunks_of(library.connection, old, key(3)))
        library.delete(3)
        # What a deletion that was not applied yet has left goes, too.
        library.apply(3, version=new)
        done = erase(library.connection, "documents", key(3), stores=library.stores, patience=0.2)
        assert done.removed[old.label] == long
        assert done.removed[new.label] == 0
        rows = library.connection.execute("SELECT 1 FROM sophia.ledger WHERE key = %s", [key(3)]).fetchall()
        assert rows == []
        for version in (old, new):
            assert filled.store(version).chunks_of(library.connection, version, key(3)) == []
            filled.right(version)
        # Once more is no fault, and others were left alone.
        again = erase(library.connection, "documents", key(3), stores=library.stores, patience=0.2)
        assert again.removed[old.label] == 0
        library.put(3, "t", "another row")
        library.apply(3, version=old)
        filled.right(old)

    # ---- several writers -------------------------------------------------------------------------------------

    def test_writers_of_the_same_keys_end_right(self, filled: Stand) -> None:
        library = filled.library
        version = library.version()
        errors: list[BaseException] = []
        over = threading.Event()

        def write(name: str) -> None:
            try:
                with library.database.connect(name) as connection:
                    writer = library.writer(version, HashEmbedder(version.dimension))
                    writer.external.patience = 10.0
                    while not over.is_set():
                        params = {"version_id": version.id, "collection_id": version.collection_id}
                        keys = [canonical_key([number]) for number in range(12)]
                        rows = connection.execute(INDEXING["by_keys"], params | {"keys": keys}).fetchall()
                        writer.apply(connection, [Row.read(row) for row in rows])
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=write, args=(f"writer {n}",), daemon=True) for n in range(3)]
        for thread in threads:
            thread.start()
        for turn in range(12):
            library.put(turn % 4, "t", f"turn {turn}", module=f"m{turn}")
            library.put(3, "long", LONG[: 200 + 900 * turn])
            library.delete(6) if turn % 2 else library.put(6, "t", f"turn {turn}")
        until(lambda: not filled.faults(version) or errors, "the writers to be level")
        over.set()
        for thread in threads:
            thread.join(60)
        assert errors == []
        filled.right(version)

    # ---- faults ----------------------------------------------------------------------------------------------

    def test_a_document_that_the_store_refuses_is_parked_and_the_others_are_not(self, filled: Stand) -> None:
        if filled.unacceptable is None:
            pytest.skip("this store refuses no document")
        library = filled.library
        version = library.version()
        library.put(1, "t", "another text")
        library.put(3, **filled.unacceptable)
        library.put(50, **filled.unacceptable)
        figures = library.apply(1, 3, 50)
        assert (figures.documents, figures.parked) == (3, 2)
        assert set(library.parked()) == {key(3), key(50)}
        filled.right(version)
        assert filled.store(version).chunks_of(library.connection, version, key(3)) == []
        library.put(3, "t", "in order again")
        library.delete(50)
        library.apply(3, 50)
        assert library.parked() == {}
        filled.right(version)

    @pytest.mark.parametrize("after", [0, 1, 2])
    def test_a_batch_that_was_taken_in_part_is_written_again(self, filled: Stand, after: int) -> None:
        failure = filled.fails(after)
        if failure is None:
            pytest.skip("this store takes a batch whole or not at all")
        library = filled.library
        version = library.version()
        library.put(1, "t", "another text")
        library.put(3, "long", LONG[:3000])
        library.delete(6)
        with failure, pytest.raises(TemporaryError):
            library.apply(1, 3, 6)
        states = dict(library.connection.execute("SELECT key, state FROM sophia.ledger").fetchall())
        assert {states[key(number)] for number in (1, 3, 6)} == {"pending"}
        assert set(library.compare(version).pending) == {key(1), key(3), key(6)}
        # The store may still be at it: nobody writes these keys before that is over.
        with pytest.raises(HeldError):
            library.apply(1, 3, 6)
        long_after(library.connection)
        library.apply(1, 3, 6)
        filled.right(version)

    def test_store_down_and_back(self, filled: Stand, run_loop: RunLoop, caplog: pytest.LogCaptureFixture) -> None:
        away = filled.away()
        if away is None:
            pytest.skip("this store is where the ledger is")
        library = filled.library
        version = library.version()
        run_loop(library.indexer())
        with away:
            position = library.version_position(version)
            library.put(1, "t", "while it was away")
            library.put(60, "t", "new while it was away")
            library.delete(7)
            until(lambda: "waits, others go on" in caplog.text, "the first try")
            assert library.version_position(version) == position, "the lag must show"
        filled.level(version)
        until(lambda: library.version_position(version) > position, "the position")
        assert caplog.text.count("waits, others go on") == 1
        filled.right(version)

    @pytest.mark.parametrize(
        "point", ["writer.embedded", "external.pending", "external.written", "external.before_commit"]
    )
    def test_a_writer_that_died_is_succeeded(self, filled: Stand, point: str) -> None:
        library = filled.library
        version = library.version()
        if filled.store(version).transactional:
            point = {"external.pending": "writer.ledger", "external.written": "writer.store"}.get(point, point)
            point = point.replace("external.", "writer.")
        library.put(1, "t", "of the dead")
        library.put(3, "long", LONG[:3000])
        library.delete(6)
        with dying(point), pytest.raises(Killed), library.database.connect("dead") as dead:
            library.writer(version).apply(dead, library.rows(1, 3, 6))
        # Of what it began, one key changes meanwhile.
        library.put(1, "t", "of the living")
        begun = not filled.store(version).transactional and point != "writer.embedded"
        assert bool(library.pending(version)) == begun
        if begun:
            with pytest.raises(HeldError):
                library.apply(1, 3, 6)
            long_after(library.connection)
        library.apply(1, 3, 6)
        filled.right(version)

    def test_what_a_dead_writer_left_is_found_by_the_indexer(self, filled: Stand, run_loop: RunLoop) -> None:
        library = filled.library
        version = library.version()
        if filled.store(version).transactional:
            pytest.skip("nothing is left of a transaction")
        rows = library.rows(1, 3, version=version)
        with dying("external.pending"), pytest.raises(Killed), library.database.connect("dead") as dead:
            library.writer(version).apply(dead, rows, repair=True)
        long_after(library.connection)
        library.connection.execute("UPDATE sophia.ledger SET updated_at = '-infinity' WHERE state = 'pending'")
        run_loop(library.indexer())
        until(lambda: not library.pending(version), "the indexer to take them up")
        filled.right(version)

    def test_a_writer_that_was_halted_does_not_overwrite_its_successor(
        self, filled: Stand, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It wakes up before its request: it sees on its own clock that the time is over."""
        monkeypatch.setattr(shards, "TURN_MS", 50)
        library = filled.library
        version = library.version()
        if filled.store(version).transactional:
            pytest.skip("a transaction is fenced by the database; see test_indexing.py")
        library.put(1, "t", "of the halted")
        rows = library.rows(1, version=version)
        clock = HaltedClock()

        def meanwhile(point: str) -> None:
            if point == "external.pending":
                failpoints.arm(None)
                long_after(library.connection)
                library.put(1, "t", "of the successor")
                library.apply(1, version=version)
                clock.ahead = 3600.0

        failpoints.arm(meanwhile)
        with library.database.connect("halted") as halted, clock.installed(), pytest.raises(TemporaryError):
            library.writer(version).apply(halted, rows)
        filled.right(version)

    def test_what_a_writer_wrote_behind_its_time_is_found(self, filled: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
        """The window that remains: halted between its last look at the clock and its request."""
        monkeypatch.setattr(shards, "TURN_MS", 50)
        library = filled.library
        version = library.version()
        store = filled.store(version)
        if store.transactional:
            pytest.skip("a transaction is fenced by the database; see test_indexing.py")
        lease = Lease.try_take(library.connection, f"live/{version.id}", 60.0)
        library.put(1, "t", "of the halted")
        writer = library.writer(version)
        rows = library.rows(1, version=version)
        given: list[Any] = []

        class Halted:
            """The store as the halted process sees it."""

            def __getattr__(self, name: str) -> Any:
                return getattr(store, name)

            def write(self, *args: Any, **options: Any) -> Any:
                long_after(library.connection)
                library.put(1, "t", "of the successor")
                library.apply(1, version=version)
                given.append(args)
                return store.write(*args, **options)

        writer.external._store = Halted()
        with library.database.connect("halted") as halted, pytest.raises(FencedError):
            writer.apply(halted, rows, lease=lease)
        assert given
        assert library.compare(version).altered == [key(1)]
        library.repair(deep=True)
        filled.right(version)


class HaltedClock:
    """A monotonic clock that jumps: the process slept meanwhile and did not know."""

    def __init__(self) -> None:
        self.ahead = 0.0

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        monkeypatch = pytest.MonkeyPatch()
        slept = SimpleNamespace(
            monotonic=lambda: time.monotonic() + self.ahead, sleep=time.sleep, perf_counter=time.perf_counter
        )
        monkeypatch.setattr(shards, "time", slept)
        try:
            yield
        finally:
            failpoints.arm(None)
            monkeypatch.undo()


@contextlib.contextmanager
def dying(wanted: str) -> Iterator[None]:
    """Meanwhile this process ends at a failpoint."""

    def die(point: str) -> None:
        if point == wanted:
            raise Killed

    failpoints.arm(die)
    try:
        yield
    finally:
        failpoints.arm(None)

"""From documents to the store: what is embedded, what is written, who may write."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from psycopg.rows import TupleRow

from sophia import inbox
from sophia.documents import Clock, canonical_key
from sophia.errors import ConfigurationError, FencedError, TemporaryError
from sophia.indexing.indexer import Indexer
from sophia.indexing.leases import Lease
from sophia.indexing.repair import repair_shard
from sophia.indexing.versions import active_versions, ensure_version, fingerprint
from sophia.stores import DocumentWrite, PgvectorStore
from tests.embedders import HashEmbedder
from tests.integration.library import COLLECTION, Library, key
from tests.waiting import until

Connection = psycopg.Connection[TupleRow]
RunLoop = Callable[..., Any]


def words(count: int, word: str = "word") -> str:
    return " ".join(f"{word}{n}" for n in range(count))


# ---- what is written ---------------------------------------------------------------------------------------


def test_documents_become_chunks_with_their_metadata_and_origin(library: Library) -> None:
    library.put(1, "title", "body", module="mod", kind="class")
    library.apply(1)
    rows = library.connection.execute(
        "SELECT key, chunk, content, metadata, clock, lsn::text, run, span FROM indexes.documents"
    ).fetchall()
    assert len(rows) == 1
    assert rows[0][:7] == ("[1]", 0, "title\n\nbody", {"module": "mod", "kind": "class"}, [1, 10, 1], "0/A", "test")
    assert (rows[0][7].lower, rows[0][7].upper) == (0, 11)
    assert library.faults() == []


def test_chunk_ids_are_deterministic(library: Library) -> None:
    """Other ids after an upgrade would double every chunk of every store."""
    version = library.version()
    assert version.chunk_id("[1]", 0) == version.chunk_id("[1]", 0)
    different = {
        version.chunk_id("[1]", 0),
        version.chunk_id("[1]", 1),
        version.chunk_id("[2]", 0),
        version.chunk_id('["1"]', 0),
    }
    assert len(different) == 4
    expected = uuid.uuid5(
        uuid.UUID("5f0d7f0a-6a0e-5c1e-9b4e-3d7c6c7a1e52"), f'["{version.fingerprint}", "documents", "[1]", 0]'
    )
    assert version.chunk_id("[1]", 0) == expected
    library.put(1)
    library.apply(1)
    assert library.connection.execute("SELECT id FROM indexes.documents_v1").fetchall() == [(expected,)]


def test_surplus_chunks_of_a_shrunken_document_go_away(library: Library) -> None:
    library.put(1, body=words(2000))
    library.apply(1)
    assert len(library.contents()["[1]"]) > 3
    library.put(1, body="short")
    library.apply(1)
    assert library.contents() == {"[1]": ["t\n\nshort"]}
    assert library.faults() == []


def test_delete_removes_every_chunk_and_leaves_a_tombstone(library: Library) -> None:
    library.put(1, body=words(2000))
    library.apply(1)
    clock = library.delete(1)
    assert library.apply(1).deleted == 1
    assert library.contents() == {}
    assert library.connection.execute("SELECT deleted, clock FROM sophia.ledger").fetchall() == [(True, list(clock))]


@pytest.mark.parametrize(("title", "body"), [(None, None), ("", ""), (" ", "\n")])
def test_empty_text_has_no_chunks_and_is_no_fault(library: Library, title: str | None, body: str | None) -> None:
    library.put(1, "title", "body")
    library.apply(1)
    library.put(1, title, body)
    library.apply(1)
    assert library.contents() == {}
    assert library.parked() == {}
    assert library.compare().empty


def test_older_document_does_not_replace_a_newer_one(library: Library) -> None:
    library.put(1, body="old")
    late = library.rows(1)
    library.put(1, body="new")
    library.apply(1)
    library.writer().apply(library.connection, late)
    assert library.contents() == {"[1]": ["t\n\nnew"]}
    assert library.faults() == []


def test_late_backfill_writer_does_not_bring_a_deleted_document_back(library: Library) -> None:
    library.put(1, body="doomed")
    late = library.rows(1)
    library.delete(1)
    library.apply(1)
    library.writer().apply(library.connection, late)
    assert library.contents() == {}


def test_document_deleted_before_it_was_ever_indexed(library: Library) -> None:
    library.put(1)
    late = library.rows(1)
    library.delete(1)
    library.apply(1)
    library.writer().apply(library.connection, late)
    assert library.contents() == {}


def test_view_has_the_documented_columns(library: Library) -> None:
    library.version()
    columns = library.connection.execute(
        "SELECT column_name, udt_name FROM information_schema.columns "
        "WHERE table_schema = 'indexes' AND table_name = 'documents' ORDER BY ordinal_position"
    ).fetchall()
    assert columns == [
        ("key", "text"),
        ("chunk", "int4"),
        ("content", "text"),
        ("content_hash", "bytea"),
        ("embedding", "vector"),
        ("metadata", "jsonb"),
        ("clock", "_int8"),
        ("lsn", "pg_lsn"),
        ("model", "text"),
        ("indexed_at", "timestamptz"),
        ("span", "int4range"),
        ("txid", "int8"),
        ("committed_at", "timestamptz"),
        ("run", "text"),
        ("fingerprint", "text"),
        ("version", "int4"),
    ]


def test_batches_are_recorded_and_announced(library: Library) -> None:
    with library.database.connect() as listener:
        listener.execute("LISTEN sophia_indexed")
        library.put(1)
        library.apply(1)
        (notice,) = listener.notifies(timeout=10, stop_after=1)
    assert json.loads(notice.payload)["keys"] == ["[1]"]
    assert library.connection.execute("SELECT documents, embedded, keys FROM sophia.batches").fetchall() == [
        (1, 1, ["[1]"])
    ]


def test_announcement_of_very_long_keys_fits(library: Library) -> None:
    """NOTIFY carries at most 8,000 bytes."""
    numbers = [10**190 + n for n in range(64)]
    for number in numbers:
        library.put(number)
    assert library.apply(*numbers).documents == 64


# ---- what is embedded --------------------------------------------------------------------------------------


def test_metadata_change_embeds_nothing(library: Library) -> None:
    library.put(1, module="old")
    library.apply(1)
    library.embedder.texts.clear()
    library.put(1, module="new")
    figures = library.apply(1)
    assert library.embedder.texts == []
    assert (figures.embedded, figures.reused) == (0, 1)
    assert library.faults() == []


def test_metadata_change_leaves_the_vectors_alone(library: Library) -> None:
    """Rewriting a vector would enter it into the nearest-neighbour graph anew."""
    library.put(1, module="old")
    library.apply(1)
    library.put(1, module="new")
    seen: list[DocumentWrite] = []

    class Watched(PgvectorStore):
        def write(self, connection: Any, version: Any, writes: Any, run: str, *, replace: bool = False) -> None:
            seen.extend(writes)
            super().write(connection, version, writes, run, replace=replace)

    writer = library.writer()
    writer.store = Watched()
    writer.apply(library.connection, library.rows(1))
    assert [chunk.vector for write in seen for chunk in write.chunks] == [None]
    assert library.faults() == []


def test_only_changed_chunks_are_embedded(library: Library) -> None:
    paragraphs = [words(120, f"p{n}w") for n in range(6)]
    library.put(1, None, "\n\n".join(paragraphs))
    library.apply(1)
    total = len(library.embedder.texts)
    assert total >= 4
    library.embedder.texts.clear()
    paragraphs[-1] = words(120, "changed")
    library.put(1, None, "\n\n".join(paragraphs))
    library.apply(1)
    assert 0 < len(library.embedder.texts) < total
    assert library.faults() == []


def test_equal_texts_are_embedded_once(library: Library) -> None:
    for number in range(1, 6):
        library.put(number, "same", "text")
    library.apply(1, 2, 3)
    library.apply(4, 5)
    assert library.embedder.texts == ["same\n\ntext"]
    assert len(library.contents()) == 5
    assert library.faults() == []


def test_a_hot_row_is_one_document(library: Library, run_loop: RunLoop) -> None:
    library.version()
    for number in range(50):
        library.put(1, body=f"revision {number}")
    run_loop(library.indexer())
    library.level()
    assert library.embedder.texts == ["t\n\nrevision 49"]


# ---- what cannot be indexed --------------------------------------------------------------------------------


def test_huge_text_is_parked_and_its_old_vectors_go(library: Library) -> None:
    library.put(1, body="small")
    library.put(2, body="innocent")
    library.apply(1, 2)
    library.put(1, body="x" * 10_000_000)
    library.put(2, body="still here")
    figures = library.apply(1, 2)
    assert figures.parked == 1
    assert library.contents() == {"[2]": ["t\n\nstill here"]}
    assert list(library.parked()) == ["[1]"]
    assert "SOPHIA_INDEXER__MAX_TEXT_BYTES" in library.parked()["[1]"]
    assert library.compare().parked == ["[1]"]
    assert library.compare().empty


def test_column_that_the_template_needs_was_dropped(library: Library) -> None:
    library.put(1)
    library.apply(1)
    library.put(1, body=...)  # type: ignore[arg-type]
    library.apply(1)
    assert library.contents() == {}
    assert "column 'body' of the template is not in the row" in library.parked()["[1]"]


def test_incomplete_row_is_parked_until_it_was_read_whole(library: Library) -> None:
    library.change(1, {"id": 1, "title": "t"}, missing=("body",))
    library.apply(1)
    assert library.contents() == {}
    assert "columns body were never received" in library.parked()["[1]"]


def test_dead_letter_goes_with_the_next_good_change(library: Library) -> None:
    library.put(1, body="x" * 2_000_000)
    library.apply(1)
    assert library.parked()
    library.put(1, body="fine again")
    library.apply(1)
    assert library.parked() == {}
    assert library.connection.execute("SELECT state FROM sophia.ledger").fetchall() == [("applied",)]
    assert library.faults() == []


def test_dead_letter_goes_with_the_document(library: Library) -> None:
    library.put(1, body="x" * 2_000_000)
    library.apply(1)
    library.delete(1)
    library.apply(1)
    assert library.parked() == {}


def test_dead_letter_quotes_no_text(library: Library) -> None:
    library.put(1, body="secret " * 200_000)
    library.apply(1)
    assert "secret" not in str(library.parked())


# ---- the process -------------------------------------------------------------------------------------------


def test_indexer_loads_what_is_there_and_follows(library: Library, run_loop: RunLoop) -> None:
    for number in range(30):
        library.put(number, body=f"text {number}", bulk=number % 2 == 0)
    running = run_loop(library.indexer())
    library.level()
    library.put(3, body="changed")
    library.delete(4)
    library.put(99, body="new")
    library.level()
    running.stop()
    lanes = library.connection.execute("SELECT DISTINCT lane FROM sophia.batches ORDER BY 1").fetchall()
    assert lanes == [("bulk",), ("live",)]
    assert library.compare().empty


def test_live_work_goes_first_while_bulk_work_runs(library: Library, run_loop: RunLoop) -> None:
    """The embedder halts in its first bulk pass; a change that comes meanwhile is applied between two passes."""
    library.embedder.pass_size = 1
    for number in range(40):
        library.put(number, body=f"bulk {number}", bulk=True)
    in_bulk, go_on = threading.Event(), threading.Event()

    def before(texts: Sequence[str]) -> None:
        if len(texts) > 1:
            in_bulk.set()
            assert go_on.wait(60)

    library.embedder.before = before
    run_loop(library.indexer(), wait=False)
    assert in_bulk.wait(60)
    library.put(1000, body="live")
    go_on.set()
    library.level()
    order = library.connection.execute("SELECT lane FROM sophia.batches ORDER BY id").fetchall()
    assert order[0] == ("live",), "the bulk batch was written before the change that waited for it"


def test_change_of_a_row_that_the_bulk_lane_holds(library: Library, run_loop: RunLoop) -> None:
    library.embedder.pass_size = 1
    for number in range(10):
        library.put(number, body=f"bulk {number}", bulk=True)
    library.version()
    done = threading.Event()

    def before(texts: Sequence[str]) -> None:
        if len(texts) > 1 and not done.is_set():
            with library.database.connect() as other:
                elsewhere = replace(library, connection=other)
                elsewhere.put(3, body="newer")
                elsewhere.delete(4)
            done.set()

    library.embedder.before = before
    run_loop(library.indexer(), wait=False)
    assert done.wait(60)
    library.level()
    assert library.contents()["[3]"] == ["t\n\nnewer"]
    assert "[4]" not in library.contents()


def test_swept_documents_leave_the_index(library: Library, run_loop: RunLoop) -> None:
    for number in range(10):
        library.put(number, body=f"text {number}")
    run_loop(library.indexer())
    library.level()
    with library.connection.transaction():
        inbox.raise_floor(library.connection, COLLECTION, Clock(2, 0, 0))
        inbox.sweep(library.connection, COLLECTION)
    until(lambda: library.contents() == {}, "the sweep")


def test_only_one_of_two_indexers_writes_and_the_other_takes_over(library: Library, run_loop: RunLoop) -> None:
    # Longer than this machine may halt: what stops gives its leases back.
    first = library.indexer(lease_seconds=3600)
    running = run_loop(first)
    second = library.indexer(lease_seconds=3600)
    run_loop(second)
    library.put(1, body="one")
    library.level()
    # A batch's figures are added after its commit.
    until(lambda: first.figures.documents == 1, "the figures of the first")
    running.stop()
    library.put(2, body="two")
    library.level()
    until(lambda: second.figures.documents == 1, "the figures of the second")
    assert first.figures.documents == 1


def test_indexer_whose_session_was_killed_is_succeeded(library: Library, run_loop: RunLoop) -> None:
    """A dead holder's lease is free at once, however long it had still to run."""
    first = library.indexer(lease_seconds=3600)
    running = run_loop(first)
    library.put(1, body="one")
    library.level()
    library.connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE application_name = 'sophia-indexer' AND datname = current_database()"
    )
    assert isinstance(running.failed(), TemporaryError | psycopg.OperationalError)
    run_loop(library.indexer(lease_seconds=3600))
    library.put(2, body="two")
    library.level()


def test_fenced_writer_writes_nothing(library: Library) -> None:
    """The lease is lost between reading and writing: the check is part of the writing transaction."""
    library.put(1, body="text")
    lease = Lease.try_take(library.connection, "live/1", 0.0)
    assert lease is not None
    with library.database.connect() as other:
        assert Lease.try_take(other, "live/1", 60) is not None
        with pytest.raises(FencedError):
            library.writer().apply(library.connection, library.rows(1), lease=lease, position=5)
    assert library.contents() == {}
    for table in ("ledger", "batches"):
        assert library.connection.execute(f"SELECT count(*) FROM sophia.{table}").fetchone() == (0,)
    assert library.version().position == 1


def test_successor_waits_for_the_transaction_that_holds_the_lease(library: Library) -> None:
    lease = Lease.try_take(library.connection, "x", 0.0)
    assert lease is not None
    taken: list[Lease | None] = []
    with library.database.connect("successor") as other, library.database.connect() as watcher:
        with library.connection.transaction():
            lease.check(library.connection)()
            thread = threading.Thread(target=lambda: taken.append(Lease.try_take(other, "x", 60)))
            thread.start()
            waiting = (
                "SELECT count(*) FROM pg_stat_activity "
                "WHERE application_name = 'successor' AND wait_event_type = 'Lock'"
            )
            until(lambda: watcher.execute(waiting).fetchone() == (1,), "the successor's wait")
            assert taken == []
        thread.join(60)
    assert taken[0] is not None
    assert taken[0].epoch == lease.epoch + 1


def test_epochs_never_repeat(library: Library) -> None:
    """A holder that slept through a successor's whole life must not pass for the present one."""
    sleeper = Lease.try_take(library.connection, "x", 0.0)
    assert sleeper is not None
    with library.database.connect() as second:
        lease = Lease.try_take(second, "x", 60)
        assert lease is not None
        lease.release(second)
    with library.database.connect() as third:
        assert Lease.try_take(third, "x", 60) is not None
        with pytest.raises(FencedError):
            sleeper.check(library.connection)()


def test_released_lease_is_free_at_once(library: Library) -> None:
    lease = Lease.try_take(library.connection, "x", 3600)
    assert lease is not None
    with library.database.connect() as other:
        assert Lease.try_take(other, "x", 60) is None
        lease.release(library.connection)
        assert Lease.try_take(other, "x", 60) is not None


def test_unchanged_chunks_survive_a_writer_that_came_between(library: Library) -> None:
    """Two writers of one version: what the first took for unchanged, the second has changed in the meantime."""
    version = library.version()
    library.put(1, body="first")
    library.apply(1)
    library.put(1, body="between")
    slow = library.rows(1)
    library.put(1, body="first", module="changed")
    fast = library.rows(1)
    ran = threading.Event()
    writer = library.writer()
    original = writer._plan

    def plan(*args: Any, **options: Any) -> Any:
        result = original(*args, **options)
        if not ran.is_set():
            ran.set()
            with library.database.connect() as other:
                library.writer(version, HashEmbedder()).apply(other, slow)
        return result

    writer._plan = plan  # type: ignore[method-assign]
    writer.apply(library.connection, fast)
    assert library.faults() == []


def test_writers_of_the_same_documents_do_not_deadlock(library: Library) -> None:
    for number in range(40):
        library.put(number, body=f"text {number}")
    version = library.version()
    rows = library.rows(*range(40))
    errors: list[BaseException] = []

    def write(batch: Any) -> None:
        try:
            with library.database.connect() as other:
                library.writer(version, HashEmbedder()).apply(other, batch)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(batch,)) for batch in (rows, rows[::-1], rows, rows[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert library.faults() == []


# ---- versions ----------------------------------------------------------------------------------------------


def test_same_catalog_is_the_same_version(library: Library) -> None:
    assert library.version().id == library.version().id
    assert [v.state for v in active_versions(library.connection)] == ["serving"]


@pytest.mark.parametrize(
    "change",
    [
        {"template": "{body}"},
        {"chunk_tokens": 100},
        {"chunk_overlap": 5},
        {"metadata": ("module",)},
        {"model": "bge_base"},
        {"shards": 4},
    ],
)
def test_every_part_of_the_recipe_is_in_the_fingerprint(library: Library, change: dict[str, Any]) -> None:
    index = library.index
    changed = index.model_copy(update=change)
    models = library.catalog.model
    assert fingerprint(index, models(index.model), "pgvector") != fingerprint(
        changed, models(changed.model), "pgvector"
    )
    assert fingerprint(index, models(index.model), "pgvector") != fingerprint(index, models(index.model), "weaviate")


def test_what_does_not_change_contents_is_not_in_the_fingerprint(library: Library) -> None:
    index = library.index
    changed = index.model_copy(update={"description": "other", "max_lag_seconds": 1.0, "owners": ("team:x",)})
    model = library.catalog.model(index.model)
    assert fingerprint(index, model, "pgvector") == fingerprint(changed, model, "pgvector")


def test_new_fingerprint_builds_a_second_version_that_live_and_bulk_feed(library: Library, run_loop: RunLoop) -> None:
    for number in range(20):
        library.put(number, "title", f"text {number}", bulk=number < 10)
    running = run_loop(library.indexer())
    library.level()
    running.stop()
    catalog = library.with_index(template="{body}")
    run_loop(library.indexer(catalog))
    old, new = active_versions(library.connection)
    assert [(old.number, old.state), (new.number, new.state)] == [(1, "serving"), (2, "building")]
    library.level(new)
    library.put(3, "title", "live")
    library.delete(4)
    library.level(new)
    library.level(old)
    assert library.contents(new)["[3]"] == ["live"]
    assert library.contents(old)["[3]"] == ["title\n\nlive"]
    tombstones = library.connection.execute(
        "SELECT version_id FROM sophia.ledger WHERE key = '[4]' AND deleted ORDER BY 1"
    ).fetchall()
    assert tombstones == [(old.id,), (new.id,)]
    served = library.connection.execute("SELECT count(*) FROM indexes.documents WHERE content LIKE 'title%'").fetchone()
    assert served == (19,), "the public view still reads the version that serves"


def test_versions_are_made_once_by_many_processes(library: Library) -> None:
    made: list[int] = []

    def make() -> None:
        with library.database.connect() as other:
            version = ensure_version(other, library.catalog, library.index, "local")
            PgvectorStore().ensure(other, version)
            made.append(version.id)

    threads = [threading.Thread(target=make) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(made) == 5
    assert len(set(made)) == 1


def test_index_without_a_store_here_is_plan_only(library: Library, catalog: Any) -> None:
    index = next(index for index in catalog.indexes if index.store.local is None)
    with pytest.raises(ConfigurationError, match="plan-only"):
        ensure_version(library.connection, catalog, index, "local")


# ---- repair ------------------------------------------------------------------------------------------------


@pytest.fixture
def shelf(library: Library) -> Library:
    """Eight indexed documents, the last of several chunks."""
    for number in range(7):
        library.put(number, body=f"text {number}")
    library.put(7, body=words(1000))
    library.repair()
    assert library.compare().empty
    library.embedder.texts.clear()
    return library


def tamper(library: Library, statement: str) -> None:
    cursor = library.connection.execute(statement.format(t="indexes.documents_v1"))
    assert cursor.rowcount > 0


@pytest.mark.parametrize(
    ("statement", "kind", "keys", "embedded"),
    [
        ("DELETE FROM {t} WHERE key = '[1]'", "missing", ["[1]"], 1),
        ("DELETE FROM {t} WHERE key = '[7]' AND chunk = 1", "missing", ["[7]"], 1),
        ("UPDATE {t} SET content = 'forged' WHERE key = '[2]'", "altered", ["[2]"], 0),
        ("UPDATE {t} SET content_hash = '\\x00' WHERE key = '[2]'", "altered", ["[2]"], 0),
        (
            "UPDATE {t} SET embedding = (SELECT embedding FROM {t} WHERE key = '[4]') WHERE key = '[3]'",
            "altered",
            ["[3]"],
            1,
        ),
        (
            "INSERT INTO {t} SELECT gen_random_uuid(), '[99]', bucket, 0, span, content, content_hash, embedding, "
            "metadata, clock, lsn, txid, committed_at, run FROM {t} WHERE key = '[5]'",
            "extra",
            ["[99]"],
            0,
        ),
        (
            "INSERT INTO {t} SELECT gen_random_uuid(), key, bucket, 50, span, 'added', content_hash, embedding, "
            "metadata, clock, lsn, txid, committed_at, run FROM {t} WHERE key = '[5]'",
            "doubled",
            ["[5]"],
            0,
        ),
    ],
    ids=["deleted", "chunk deleted", "text edited", "hash edited", "vector edited", "document added", "chunk added"],
)
def test_repair_finds_what_was_done_behind_its_back(
    shelf: Library, statement: str, kind: str, keys: list[str], embedded: int
) -> None:
    tamper(shelf, statement)
    assert shelf.faults() != []
    found = shelf.compare()
    assert {name: getattr(found, name) for name, count in found.counts().items() if count} == {kind: keys}
    assert shelf.repair().documents == 0, "only a deep repair reads the store"
    shelf.repair(deep=True)
    assert shelf.faults() == []
    assert shelf.compare().empty
    assert len(shelf.embedder.texts) == embedded


def test_clock_edited_in_the_store_is_found_and_mended(shelf: Library) -> None:
    tamper(shelf, "UPDATE {{t}} SET clock = '{{9,9,9}}' WHERE key = '[7]' AND chunk = 1".replace("{{t}}", "{t}"))
    assert shelf.compare().altered == ["[7]"]
    shelf.repair(deep=True)
    assert shelf.compare().empty


def test_repair_of_a_healthy_index_writes_and_embeds_nothing(shelf: Library) -> None:
    assert shelf.repair(deep=True).documents == 0
    assert shelf.embedder.texts == []


def test_repair_removes_what_has_no_document_any_more(shelf: Library) -> None:
    """A tombstone that was pruned, or a ledger that came from a backup."""
    shelf.connection.execute("DELETE FROM sophia.documents WHERE key = '[1]'")
    assert shelf.compare().extra == ["[1]"]
    shelf.repair(deep=True)
    assert "[1]" not in shelf.contents()
    assert shelf.compare().empty


def test_compare_tells_stale_from_missing(shelf: Library) -> None:
    shelf.put(1, body="newer")
    shelf.put(50, body="unknown")
    shelf.delete(2)
    found = shelf.compare()
    assert (found.missing, sorted(found.stale)) == (["[50]"], ["[1]", "[2]"])
    assert not found.empty
    shelf.repair()
    assert shelf.compare().empty


def test_row_added_by_hand_does_not_stop_the_document_of_its_key(shelf: Library) -> None:
    tamper(
        shelf,
        "INSERT INTO {t} SELECT gen_random_uuid(), '[99]', bucket, 0, span, 'by hand', content_hash, embedding, "
        "metadata, clock, lsn, txid, committed_at, run FROM {t} WHERE key = '[5]'",
    )
    shelf.put(99, body="real")
    shelf.apply(99)
    assert shelf.contents()["[99]"] == ["t\n\nreal"]
    assert shelf.faults() == []


def test_indexer_and_repairs_at_the_same_time(library: Library, run_loop: RunLoop) -> None:
    """Whatever the interleaving, the index ends as the documents are."""
    for number in range(60):
        library.put(number, body=f"text {number}", bulk=number % 3 == 0)
    run_loop(library.indexer())
    stop = threading.Event()
    errors: list[BaseException] = []

    def repairs() -> None:
        with library.database.connect() as other:
            version = active_versions(other)[0]
            writer = library.writer(version, HashEmbedder())
            while not stop.is_set():
                for shard in range(version.index.shards):
                    try:
                        repair_shard(other, writer, shard, batch=7, deep=True)
                    except TemporaryError:
                        continue
                    except BaseException as error:
                        errors.append(error)
                        return

    threads = [threading.Thread(target=repairs) for _ in range(2)]
    for thread in threads:
        thread.start()
    for revision in range(4):
        for number in range(0, 60, 2):
            if number % 10 == 0:
                library.delete(number)
            else:
                library.put(number, body=f"text {number} {revision // 2}", module=f"m{revision}", bulk=number % 4 == 0)
    stop.set()
    for thread in threads:
        thread.join(60)
    assert errors == []
    library.level()
    assert library.compare().empty


def test_shard_under_repair_is_not_repaired_twice(shelf: Library) -> None:
    version = shelf.version()
    with shelf.database.connect() as other:
        assert Lease.try_take(other, f"repair/{version.id}/0", 60) is not None
        with pytest.raises(TemporaryError, match="being repaired by another run"):
            repair_shard(shelf.connection, shelf.writer(version), 0, batch=10)
        repair_shard(shelf.connection, shelf.writer(version), 1, batch=10)


def test_interrupted_repair_goes_on_where_it_was(library: Library) -> None:
    for number in range(40):
        library.put(number, body=f"text {number}")
    version = library.version()

    class Killed(Exception):
        pass

    def kill(_figures: Any) -> None:
        raise Killed

    with pytest.raises(Killed):
        repair_shard(library.connection, library.writer(version), 0, batch=5, progress=kill)
    embedded = len(library.embedder.texts)
    assert embedded == 5
    library.repair()
    assert len(library.embedder.texts) == 40, "what was done was done again"
    assert library.faults() == []


def test_key_is_not_indexed_from_another_collection(library: Library) -> None:
    inbox.ensure_collection(library.connection, "others", ["id"])
    library.put(1)
    library.connection.execute(
        "INSERT INTO sophia.documents (collection_id, key, bucket, position, clock, body) "
        "SELECT id, %s, 1, 99, '{1,99,1}', %s FROM sophia.collections WHERE name = 'others'",
        [canonical_key([2]), '{"title": "x", "body": "y"}'],
    )
    library.repair()
    assert list(library.contents()) == [key(1)]


def test_indexer_stops_in_the_middle_of_bulk_work(library: Library, run_loop: RunLoop) -> None:
    library.embedder.pass_size = 1
    for number in range(40):
        library.put(number, body=f"bulk {number}", bulk=True)
    in_bulk, go_on = threading.Event(), threading.Event()

    def before(texts: Sequence[str]) -> None:
        in_bulk.set()
        assert go_on.wait(60)

    library.embedder.before = before
    indexer: Indexer = library.indexer()
    running = run_loop(indexer, wait=False)
    assert in_bulk.wait(60)
    running.stop_event.set()
    go_on.set()
    running.stop()
    assert library.contents() == {}
    library.embedder.before = lambda texts: None
    run_loop(library.indexer())
    library.level()

"""Fresh rows: what is not in the neighbours' graph is found all the same, and moved into it without harm."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from sophia import failpoints
from sophia.catalog.models import GraphKind
from sophia.errors import FencedError, SophiaError
from sophia.indexing import absorbing
from sophia.indexing.absorbing import Absorption
from sophia.indexing.batch import Figures
from sophia.indexing.leases import Lease
from sophia.indexing.promotion import retire
from sophia.indexing.repair import finish_load
from sophia.indexing.search import search
from sophia.indexing.versions import IndexVersion, serving_version
from sophia.stores import PgvectorStore, Query, pgvector_fresh
from tests.embedders import hash_vector
from tests.integration.library import Library
from tests.waiting import until

STORE = PgvectorStore()


@pytest.fixture(autouse=True)
def disarm() -> Iterator[None]:
    yield
    failpoints.arm(None)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the newest three rows stay fresh."""
    monkeypatch.setattr(pgvector_fresh, "KEPT", 3)


def lease_of(library: Library, version: IndexVersion) -> Lease:
    lease = Lease.try_take(library.connection, f"live/{version.id}", 30)
    assert lease is not None
    return lease


def write(library: Library, numbers: range | list[int], revision: int = 0, **more: Any) -> None:
    """By the live lane."""
    for number in numbers:
        library.put(number, "", f"text {number}.{revision}", **more)
    library.apply(*numbers)


def load(library: Library, numbers: range, version: IndexVersion | None = None, **more: Any) -> None:
    """By the bulk lane, into the table that has the graph."""
    for number in numbers:
        library.put(number, "", f"text {number}.0", bulk=True, **more)
    library.repair(version=version)


def places(library: Library) -> tuple[set[str], set[str]]:
    """The keys in the table that has the graph, and the fresh ones."""
    own, fresh = (
        {row[0] for row in library.connection.execute(f"SELECT key FROM {table}")}
        for table in ("ONLY indexes.documents_v1", "indexes.documents_v1_fresh")
    )
    return own, fresh


def absorb_all(library: Library, version: IndexVersion) -> int:
    """Until nothing is left to be moved. Returns the number of moves."""
    absorption, lease, moves = Absorption(version), lease_of(library, version), 0
    while absorption.step(library.connection, lease):
        moves += 1
    return moves


def found(library: Library, version: IndexVersion, text: str, **options: Any) -> list[tuple[str, int]]:
    """By the vector alone: no text has the word."""
    query = Query(vector=hash_vector(text), text="zebra", **options)
    return [(hit.key, hit.chunk) for hit in STORE.search(library.connection, version, query)]


def keys(*numbers: int) -> set[str]:
    return {f"[{number}]" for number in numbers}


# ---- what a search finds -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["full", "half", "binary"])
def test_any_mixture_of_fresh_and_absorbed_rows_is_searched_whole(library: Library, few: None, kind: GraphKind) -> None:
    """Inserts, updates, deletes, changed metadata, repairs and moves in any order: as exact search has it."""
    library.catalog = library.with_index(graph=kind)
    version = library.version()
    load(library, range(60), module="m0")
    finish_load(library.connection, library.writer())
    rng = random.Random(11)
    for round_ in range(1, 7):
        numbers = rng.sample(range(90), 12)
        write(library, numbers[:6], round_, module=f"m{round_ % 2}")
        for number in numbers[6:8]:
            library.delete(number)
        library.apply(*numbers[6:8])
        write(library, numbers[:2], round_, module=f"m{(round_ + 1) % 2}")
        load(library, range(100 + round_, 101 + round_))
        if round_ % 3 == 0:
            library.repair(deep=True)
        if round_ % 2 == 0:
            absorb_all(library, version)
        own, fresh = places(library)
        assert not own & fresh
        assert library.faults() == []
        for options in ({}, {"filters": {"module": "m1"}}):
            text = f"query {round_}"
            exact = found(library, version, text, k=8, exact=True, **options)
            assert found(library, version, text, k=8, **options) == exact
        newest = f"text {numbers[2]}.{round_}"
        assert found(library, version, newest, k=1, hybrid=True) == [(f"[{numbers[2]}]", 0)]
    assert own
    assert fresh


def test_the_public_view_asks_the_graph_and_shows_fresh_rows(library: Library, few: None) -> None:
    """`ORDER BY embedding <=> …` of anybody's: an index scan of the graph, merged with the fresh rows."""
    version = library.version()
    load(library, range(300))
    finish_load(library.connection, library.writer())
    write(library, range(300, 310))
    # So few rows would be read rather than looked for.
    library.connection.execute("SET enable_seqscan = off")
    query = "SELECT key FROM indexes.documents ORDER BY embedding <=> %s::real[]::vector LIMIT 3"
    plan = "\n".join(
        row[0] for row in library.connection.execute("EXPLAIN " + query, [hash_vector("text 305.0").tolist()])
    )
    assert "Merge Append" in plan
    assert f"Index Scan using {version.store_name}_hnsw" in plan
    for text in ("text 305.0", "text 7.0"):
        nearest = library.connection.execute(query, [hash_vector(text).tolist()]).fetchall()
        assert nearest[0] == (f"[{text.split()[1].partition('.')[0]}]",)


def test_what_the_live_lane_writes_enters_no_graph(library: Library) -> None:
    """New rows, and rows of the graph that get a new text: they leave it. The bulk lane's are in it at once."""
    load(library, range(5))
    finish_load(library.connection, library.writer())
    assert places(library) == (keys(*range(5)), set())
    write(library, [4, 5], 1)
    assert places(library) == (keys(0, 1, 2, 3), keys(4, 5))
    library.put(5, "", "text 5.2", bulk=True)
    library.repair()
    assert places(library) == (keys(0, 1, 2, 3, 5), keys(4))
    assert library.faults() == []


def test_new_metadata_of_a_live_row_enter_no_graph(library: Library) -> None:
    """The text is the same: the row leaves the graph with its vector; without new metadata it stays where it is."""
    load(library, range(5), module="old")
    library.embedder.texts.clear()
    write(library, [1], 0, module="new")
    write(library, [2], 0, module="old", unindexed=5)
    assert places(library) == (keys(0, 2, 3, 4), keys(1))
    assert library.embedder.texts == []
    assert library.faults() == []
    write(library, [1], 0, module="newer")
    library.put(3, "", "text 3.0", module="new", bulk=True)
    library.repair()
    assert places(library) == (keys(0, 2, 3, 4), keys(1))
    assert library.faults() == []


# ---- how rows are moved ------------------------------------------------------------------------------------------


def test_all_but_the_newest_are_moved_and_these_stay(library: Library, few: None) -> None:
    version = library.version()
    write(library, range(10))
    assert absorb_all(library, version) > 1
    assert places(library) == (keys(*range(7)), keys(7, 8, 9))
    assert library.faults() == []


def test_an_indexer_that_was_succeeded_moves_nothing(
    library: Library, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = library.version()
    write(library, range(10))
    lease = lease_of(library, version)
    absorption = Absorption(version)
    library.connection.execute("UPDATE sophia.leases SET epoch = epoch + 1")
    with pytest.raises(FencedError):
        absorption.step(library.connection, lease)
    monkeypatch.setattr(absorbing, "MOST_FRESH", 0)
    with pytest.raises(FencedError):
        absorption.wrote(library.connection, lease, Figures(chunks=5))
    assert places(library) == (set(), keys(*range(10)))


@pytest.mark.parametrize("point", ["absorb.before_commit", "absorb.after_commit"])
def test_a_death_while_rows_are_moved_loses_and_doubles_none(library: Library, few: None, point: str) -> None:
    version = library.version()
    write(library, range(10))

    def die(name: str) -> None:
        if name == point:
            raise KeyboardInterrupt

    failpoints.arm(die)
    with pytest.raises(KeyboardInterrupt):
        Absorption(version).step(library.connection, lease_of(library, version))
    assert library.faults() == []
    own, fresh = places(library)
    assert not own & fresh
    assert bool(own) == (point == "absorb.after_commit")


def test_a_row_that_is_being_written_stays_and_nobody_waits(library: Library, few: None) -> None:
    """The writer's transaction is open: its keys are passed over, and what it writes is what there is afterwards."""
    version = library.version()
    write(library, range(10))
    rows = pgvector_fresh.oldest(library.connection, version, 100)
    assert {row[1] for row in rows} == keys(*range(7))
    lease = lease_of(library, version)
    with library.database.connect("writer") as writer:
        at_commit, go_on = threading.Event(), threading.Event()

        def wait(name: str) -> None:
            if name == "writer.before_commit":
                at_commit.set()
                go_on.wait(60)

        library.put(0, "", "text 0.1")
        failpoints.arm(wait)
        thread = threading.Thread(target=library.writer(lane="live").apply, args=(writer, library.rows(0)))
        thread.start()
        try:
            assert at_commit.wait(60)
            library.connection.execute("SET lock_timeout = '1s'")
            with library.connection.transaction():
                lease.check(library.connection)()
                assert pgvector_fresh.absorb(library.connection, version, rows) == 6
        finally:
            go_on.set()
            thread.join()
    assert places(library) == (keys(*range(1, 7)), keys(0, 7, 8, 9))
    # Chosen before it was written again: it has become one of the newest.
    with library.connection.transaction():
        assert pgvector_fresh.absorb(library.connection, version, rows) == 0
    assert library.faults() == []


def test_fresh_rows_are_bounded_without_a_quiet_moment(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pgvector_fresh, "KEPT", 3)
    monkeypatch.setattr(absorbing, "MOST_FRESH", 8)
    version = library.version()
    lease, absorption = lease_of(library, version), Absorption(version, clock=lambda: 0.0)
    for first in range(0, 30, 3):
        numbers = range(first, first + 3)
        write(library, numbers)
        absorption.wrote(library.connection, lease, Figures(chunks=3))
        assert pgvector_fresh.count(library.connection, version) <= 8
        assert not absorption.step(library.connection, lease), "the moment is not quiet"
    assert library.faults() == []


@pytest.mark.parametrize("ready", [False, True])
def test_rows_count_as_fresh_that_cost_no_embedding(library: Library, few: None, ready: bool) -> None:
    """One text in many documents, or documents that bring their vectors: these rows are moved like all others."""
    if ready:
        library.catalog = library.with_index(vector="embedding")
    version = library.version()
    lease, absorption = lease_of(library, version), Absorption(version, clock=lambda: 0.0)
    assert not absorption.step(library.connection, lease)
    assert absorption.wait() is None
    for number in range(20):
        vector = {"embedding": hash_vector(f"text {number}").tolist()} if ready else {}
        library.put(number, "", "the same", **vector)
    figures = library.apply(*range(20))
    assert figures.embedded == (0 if ready else 1)
    absorption.wrote(library.connection, lease, figures)
    assert absorption.wait() is not None
    assert absorb_all(library, version) > 0
    assert len(places(library)[1]) == 3


@pytest.mark.parametrize("known", [False, True])
def test_absorption_of_a_version_that_was_retired_is_fenced(library: Library, few: None, known: bool) -> None:
    """The indexer sees the end of a version a second later, and goes on with the others."""
    version = library.version()
    write(library, range(10))
    now = 0.0
    lease, absorption = lease_of(library, version), Absorption(version, clock=lambda: now)
    if known:
        absorption.wrote(library.connection, lease, Figures(chunks=10))
    library.connection.execute("UPDATE sophia.index_versions SET state = 'retiring'")
    retire(library.connection, version, STORE)
    now = 1.0
    with pytest.raises(FencedError):
        absorption.step(library.connection, lease)


def test_a_running_indexer_moves_rows_while_they_change(
    library: Library, run_loop: Callable[..., Any], few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moves and writes of the same few rows meet all the time; in the end the index is what the documents say."""
    monkeypatch.setattr(absorbing, "QUIET_SECONDS", 0.0)
    library.version()
    load(library, range(4))
    run_loop(library.indexer())
    rng = random.Random(5)
    for revision in range(120):
        number = rng.randrange(12)
        if revision % 9 == 0:
            library.delete(number)
        else:
            library.put(number, "", f"text {number}.{revision}")
    library.level()
    until(lambda: len(places(library)[1]) <= 3, "the moves")
    own, fresh = places(library)
    assert not own & fresh
    assert library.faults() == []


# ---- tables of an earlier release --------------------------------------------------------------------------------


def test_a_version_of_an_earlier_release_gets_its_fresh_table(library: Library, run_loop: Callable[..., Any]) -> None:
    """Also one that the catalog does not ask for any more; and the index that nothing uses goes."""
    load(library, range(3))
    finish_load(library.connection, library.writer())
    library.connection.execute("DROP TABLE indexes.documents_v1_fresh")
    library.connection.execute("CREATE INDEX documents_v1_recent ON indexes.documents_v1 (indexed_at)")
    run_loop(library.indexer(library.with_index(template="{title}: {body}")))
    library.put(3, "", "text 3.0")
    until(lambda: library.connection.execute("SELECT to_regclass('indexes.documents_v1_fresh')").fetchone() != (None,))
    until(lambda: "[3]" in places(library)[1], "the live change")
    until(lambda: library.connection.execute("SELECT to_regclass('indexes.documents_v1_recent')").fetchone() == (None,))
    version = serving_version(library.connection, "documents")
    assert found(library, version, "text 3.0", k=1) == [("[3]", 0)]


def test_a_search_before_the_indexer_ran_says_what_is_missing(library: Library) -> None:
    """Right after an upgrade."""
    load(library, range(3))
    library.connection.execute("DROP TABLE indexes.documents_v1_fresh")
    with pytest.raises(SophiaError, match="no indexer of this release has begun it yet"):
        search(library.connection, "documents", "text 1.0", lambda _: library.embedder)
    library.version()
    assert search(library.connection, "documents", "text 1.0", lambda _: library.embedder, k=1)[0].key == "[1]"


def test_a_version_with_fresh_rows_is_dropped_whole(library: Library) -> None:
    version = library.version()
    write(library, range(2))
    with library.connection.transaction():
        STORE.drop(library.connection, version)
    left = library.connection.execute("SELECT count(*) FROM pg_class WHERE relname LIKE 'documents_v1%'").fetchone()
    assert left == (0,)


def test_vectors_of_fresh_rows_are_lent_and_vouched_for(library: Library) -> None:
    """An equal text elsewhere takes a fresh row's vector, and a repair keeps it."""
    write(library, range(2))
    library.embedder.texts.clear()
    library.put(7, "", "text 1.0", bulk=True)
    library.repair()
    library.repair(deep=True)
    assert library.embedder.texts == []
    sample = STORE.sample(library.connection, library.version(), 20, "seed")
    assert {chunk.key for chunk in sample} <= keys(0, 1, 7)
    assert np.isfinite(sample[0].vector).all()

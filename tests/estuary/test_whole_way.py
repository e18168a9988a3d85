"""A table, changed at random, through stand-in, intake, inbox and indexer, under faults: at rest all are the same."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from psycopg.rows import TupleRow

from sophia.catalog import Catalog
from sophia.database import Database
from sophia.documents import parse_lsn
from sophia.estuary.source.reread import Rereader, reread_collection
from sophia.estuary.source.sweep import sweep
from sophia.estuary.stand_in.faults import Faults
from sophia.estuary.stand_in.journal import Journal
from sophia.estuary.stand_in.materialize import Materializer
from sophia.estuary.stand_in.source_postgres import request_backfill
from sophia.indexing import indexer
from sophia.settings import Settings
from tests.embedders import HashEmbedder
from tests.estuary.scene import ITEMS, NAME, Source, estuary_catalog, materializer
from tests.integration.conftest import current
from tests.integration.library import Library
from tests.integration.source_items import truth
from tests.waiting import until

Connection = psycopg.Connection[TupleRow]
Runner = Callable[..., Any]
FAULTS = Faults(duplicate=0.15, lost=0.1, late=0.2, restart=0.15, reorder=0.3)
# More of them when someone asks.
SEEDS = range(int(os.environ.get("SOPHIA_TEST_SEEDS", "1")))


class Way:
    """The table `items` and all that hangs on it."""

    def __init__(self, source: Source, catalog: Catalog, start_intake: Callable[[Catalog], str], settings: Settings):
        self.source, self.settings = source, settings
        self.connection = source.connection
        self.connection.execute("CREATE TABLE items (id int PRIMARY KEY, body text, big text, n int)")
        # So that a long text is kept apart, and left out when it did not change.
        self.connection.execute("ALTER TABLE items ALTER big SET STORAGE EXTERNAL")
        self.catalog = catalog
        self.address = start_intake(self.catalog)

    def stand_in(self, rng: random.Random | None = None, faults: Faults | None = None) -> Materializer:
        binding = replace(ITEMS, history=self.catalog.collection("items").history)
        return materializer(self.source.path, self.address, bindings=(binding,), faults=faults, rng=rng)

    def captured(self) -> None:
        """Wait until the journal has what has committed by now."""
        row = self.connection.execute("SELECT pg_current_wal_lsn()::text").fetchone()
        assert row is not None
        wanted = parse_lsn(row[0])

        def confirmed() -> bool:
            row = self.connection.execute(
                "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = %s", [self.source.slot]
            ).fetchone()
            return row is not None and row[0] is not None and parse_lsn(row[0]) >= wanted

        until(confirmed, "the capture")

    def reread(self) -> int:
        return reread_collection(self.connection, self.catalog.collection("items"), self.source.database.url)

    def answered(self) -> bool:
        row = self.connection.execute(
            "SELECT (SELECT count(*) FROM sophia.rereads), "
            "(SELECT count(*) FROM sophia.documents WHERE missing <> '{}')"
        ).fetchone()
        return row == (0, 0)

    def sweep(self) -> int:
        return sweep(self.connection, self.catalog, "items", self.settings, before=datetime.now(UTC)).deleted


@pytest.fixture
def history() -> bool:
    """Whether the capture keeps every change apart."""
    return False


@pytest.fixture
def way(
    history: bool,
    source: Source,
    catalog: Catalog,
    start_intake: Callable[[Catalog], str],
    settings: Settings,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> Way:
    monkeypatch.setenv("SOPHIA_ESTUARY_SOURCE_URL", database.url)
    return Way(source, estuary_catalog(catalog, history=history), start_intake, settings)


def change(connection: Connection, rng: random.Random) -> None:
    """One transaction of one to six statements over twelve keys."""
    with connection.transaction():
        for _ in range(rng.choice((1, 1, 2, 3, 6))):
            here, there = rng.randrange(1, 13), rng.randrange(1, 13)
            text = f"{rng.random():.6f}"
            match rng.randrange(8):
                case 0 | 1:
                    long = f"{text} " * 900
                    connection.execute(
                        "INSERT INTO items VALUES (%s, %s, %s, 0) ON CONFLICT (id) DO UPDATE SET body = EXCLUDED.body",
                        [here, text, long],
                    )
                case 2:
                    connection.execute("UPDATE items SET n = n + 1 WHERE id = %s", [here])
                case 3:
                    connection.execute("UPDATE items SET body = %s WHERE id = %s", [text, here])
                case 4:
                    connection.execute("UPDATE items SET big = %s WHERE id = %s", [f"{text} " * 900, here])
                case 5:
                    connection.execute("DELETE FROM items WHERE id = %s", [here])
                case 6:
                    connection.execute(
                        "UPDATE items SET id = %s WHERE id = %s AND NOT EXISTS (SELECT FROM items WHERE id = %s)",
                        [there, here, there],
                    )
                case 7:
                    # Two rows change places.
                    connection.execute("UPDATE items SET id = -id WHERE id IN (%s, %s)", [here, there])
                    connection.execute(
                        "UPDATE items SET id = CASE -id WHEN %s THEN %s::int ELSE %s::int END WHERE id < 0",
                        [here, there, here],
                    ) if here != there else connection.execute("UPDATE items SET id = -id WHERE id < 0")


def differences(expected: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Row and document where they differ, long texts cut."""

    def short(row: dict[str, Any] | None) -> Any:
        return row and {name: value[:8] if isinstance(value, str) else value for name, value in row.items()}

    keys = sorted({*expected, *found})
    return {
        key: (short(expected.get(key)), short(found.get(key))) for key in keys if expected.get(key) != found.get(key)
    }


@pytest.mark.parametrize("history", [False, True], ids=["combined", "history"])
@pytest.mark.parametrize("seed", SEEDS)
def test_at_rest_inbox_and_index_are_the_table(
    way: Way,
    run_loop: Runner,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
    hash_embedder: HashEmbedder,
    database: Database,
) -> None:
    rng, faults = random.Random(seed), random.Random(seed)
    monkeypatch.setattr(indexer, "load_embedder", lambda model, precision, settings: hash_embedder)
    library = Library(way.connection, database, way.catalog, way.settings, hash_embedder)
    for number in range(1, 9):
        way.connection.execute("INSERT INTO items VALUES (%s, 'first', %s, 0)", [number, "long " * 900])
    capture = run_loop(way.source.capture())
    run_loop(Rereader(way.catalog, database, way.settings, poll_seconds=0.02))
    run_loop(library.indexer())
    made: dict[str, int] = {}
    for part in range(3):
        with way.stand_in(faults, FAULTS) as stand_in:
            for _ in range(12):
                for _ in range(rng.randrange(1, 5)):
                    change(way.connection, rng)
                if rng.random() < 0.3:
                    # Everything of these transactions into one of the materialisation.
                    way.captured()
                stand_in.drain()
            made = {name: made.get(name, 0) + count for name, count in stand_in.transport.made.items()}
        if part == 1:
            # Read again, while some changes are told by nobody.
            capture.stop()
            with Journal(way.source.path) as journal:
                request_backfill(journal, NAME)
            for _ in range(10):
                change(way.connection, rng)
            capture = run_loop(way.source.capture())
    way.captured()
    with way.stand_in(faults, FAULTS) as stand_in:
        stand_in.drain()
        # How many requests there were so far depends on how far the capture was behind.
        while not all(made[name] + count for name, count in stand_in.transport.made.items()):
            change(way.connection, rng)
            way.captured()
            stand_in.drain()
    until(way.answered, "the answers")
    expected, found = truth(way.connection), current(way.connection, "items")
    # Before the sweep: every row is right, and there may be orphans.
    assert differences(expected, {key: found.get(key) for key in expected}) == {}
    orphans = set(found) - set(expected)
    assert way.sweep() == len(orphans)
    assert differences(expected, current(way.connection, "items")) == {}
    library.level()


def test_a_key_change_combined_with_others_buries_no_live_row(way: Way, run_loop: Runner) -> None:
    """Key 1 becomes 5, a new 1 comes, 5 is updated, all in one transaction."""
    way.connection.execute("INSERT INTO items VALUES (1, 'old', 'long', 0), (2, 'other', 'long', 0)")
    run_loop(way.source.capture())
    with way.stand_in() as stand_in:
        stand_in.drain()
        with way.connection.transaction():
            way.connection.execute("UPDATE items SET id = 5 WHERE id = 1")
            way.connection.execute("INSERT INTO items VALUES (1, 'new', 'long', 0)")
            way.connection.execute("UPDATE items SET body = 'updated' WHERE id = 5")
        way.captured()
        stand_in.drain()
    # Nothing was deleted on suspicion.
    assert differences(truth(way.connection), current(way.connection, "items")) == {}
    assert way.reread() == 2
    assert differences(truth(way.connection), current(way.connection, "items")) == {}
    assert way.answered()


def test_a_changed_key_leaves_no_orphan(way: Way, run_loop: Runner) -> None:
    way.connection.execute("INSERT INTO items VALUES (1, 'old', 'long', 0)")
    run_loop(way.source.capture())
    with way.stand_in() as stand_in:
        stand_in.drain()
        way.connection.execute("UPDATE items SET id = 5 WHERE id = 1")
        way.captured()
        stand_in.drain()
    assert set(current(way.connection, "items")) == {"[1]", "[5]"}
    way.reread()
    assert differences(truth(way.connection), current(way.connection, "items")) == {}


def test_a_row_that_came_to_a_key_takes_nothing_of_the_row_that_left_it(way: Way, run_loop: Runner) -> None:
    """Both are in one document: the large text of the one that left, and the key of the one that came.

    Nobody tells that a row left key 5: it went to 9, and the document of 9 names the row that had come there before.
    """
    way.connection.execute("INSERT INTO items VALUES (1, 'one', %s, 0)", ["own " * 2_000])
    way.connection.execute("INSERT INTO items VALUES (5, 'five', 'x', 0), (7, 'seven', 'x', 0)")
    run_loop(way.source.capture())
    with way.stand_in() as stand_in:
        stand_in.drain()
        with way.connection.transaction():
            way.connection.execute("UPDATE items SET big = %s WHERE id = 5", ["other " * 2_000])
            for old, new in ((7, 9), (9, 12), (5, 9), (1, 5)):
                way.connection.execute("UPDATE items SET id = %s WHERE id = %s", [new, old])
        way.captured()
        stand_in.drain()
    way.reread()
    assert differences(truth(way.connection), current(way.connection, "items")) == {}


def test_of_two_moves_to_one_key_the_second_old_key_is_found_by_the_sweep(way: Way, run_loop: Runner) -> None:
    """Of `_meta.before` the first one stays, so nobody is told of the second."""
    way.connection.execute("INSERT INTO items SELECT n, 'row', 'long', 0 FROM generate_series(1, 2) n")
    run_loop(way.source.capture())
    with way.stand_in() as stand_in:
        stand_in.drain()
        with way.connection.transaction():
            way.connection.execute("UPDATE items SET id = 5 WHERE id = 1")
            way.connection.execute("UPDATE items SET id = 6 WHERE id = 5")
            way.connection.execute("UPDATE items SET id = 5 WHERE id = 2")
        way.captured()
        stand_in.drain()
    way.reread()
    assert set(current(way.connection, "items")) == {"[2]", "[5]", "[6]"}
    assert way.sweep() == 1
    assert differences(truth(way.connection), current(way.connection, "items")) == {}


@pytest.mark.parametrize("history", [True], ids=["history"])
def test_with_history_and_whole_rows_nothing_has_to_be_read_again(way: Way, run_loop: Runner) -> None:
    rng = random.Random(4)
    way.connection.execute("ALTER TABLE items REPLICA IDENTITY FULL")
    for number in range(1, 9):
        way.connection.execute("INSERT INTO items VALUES (%s, 'first', %s, 0)", [number, "long " * 900])
    run_loop(way.source.capture())
    with way.stand_in(rng, FAULTS) as stand_in:
        for _ in range(15):
            for _ in range(rng.randrange(1, 5)):
                change(way.connection, rng)
            if rng.random() < 0.3:
                way.captured()
            stand_in.drain()
        way.captured()
        stand_in.drain()
    assert way.answered()
    assert differences(truth(way.connection), current(way.connection, "items")) == {}


@pytest.mark.parametrize("history", [True], ids=["history"])
def test_in_history_mode_a_row_that_moved_reads_large_text_again(way: Way, run_loop: Runner) -> None:
    """Keys are delivered in their order: the move to 1 comes before the change of 5 that went before it."""
    way.connection.execute("INSERT INTO items VALUES (5, 'five', %s, 0)", ["old " * 2_000])
    run_loop(way.source.capture())
    with way.stand_in() as stand_in:
        stand_in.drain()
        with way.connection.transaction():
            way.connection.execute("UPDATE items SET big = %s WHERE id = 5", ["new " * 2_000])
            way.connection.execute("UPDATE items SET id = 1 WHERE id = 5")
        way.captured()
        stand_in.drain()
    way.reread()
    assert differences(truth(way.connection), current(way.connection, "items")) == {}

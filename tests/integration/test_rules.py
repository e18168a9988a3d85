"""The rules of exactness over the whole way: source table, capture, inbox, indexer, pgvector.

The judge is the chaos test's oracle, which shares no code with Sophia: it reads the source by plain SQL and compares
every version and the public view with it, row by row. Deaths at random moments are `tests/chaos`; here each rule has
its own named test. Rules 9 and 10 have theirs in test_erasure.py and test_scan.py.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import TupleRow

from sophia import inbox
from sophia.capture import Binding, Capture
from sophia.capture.replication import ReplicationConnection
from sophia.catalog import Catalog
from sophia.catalog.models import Collection, EmbeddingModel, Index, Source
from sophia.database import Database
from sophia.database.embedded import EmbeddedPostgres
from sophia.documents import Change
from sophia.errors import FencedError, SourceError, TemporaryError
from sophia.failpoints import arm
from sophia.inbox import Floor
from sophia.indexing import indexer as indexer_module
from sophia.indexing.indexer import Indexer
from sophia.indexing.repair import repair_shard
from sophia.indexing.scan import Scanner
from sophia.indexing.versions import IndexVersion, active_versions
from sophia.indexing.writer import Writer
from sophia.settings import CaptureSettings, Settings
from sophia.stores import PgvectorStore
from tests.chaos import oracle
from tests.chaos.embedder import ChaosEmbedder
from tests.chaos.tables import BY_NAME, CHUNK_TOKENS, DIMENSION, Table
from tests.integration.conftest import QUICK, Captures, Running
from tests.waiting import WAIT_SECONDS, until

Connection = psycopg.Connection[TupleRow]
MODEL = "chaos_a"
NOTES, ARTICLES, LOGS, PARTS = (BY_NAME[name] for name in ("notes", "articles", "logs", "parts"))
CODED = Table(
    "coded",
    "CREATE TABLE app.coded (id int PRIMARY KEY, code int NOT NULL UNIQUE, words text, rank int, unused int); "
    "ALTER TABLE app.coded REPLICA IDENTITY USING INDEX coded_code_key",
    ("code",),
    ("words",),
    "rank",
    {MODEL: "{words}"},
)
# A row that is written last: once it is in the index, all before it was seen.
MARKERS = {
    "notes": "INSERT INTO app.notes VALUES (%(n)s, 'marker', 'no. ' || %(n)s, %(n)s)",
    "articles": "INSERT INTO app.articles VALUES ('zz', %(n)s::text, 'marker', 'no. ' || %(n)s, 'p', %(n)s)",
    "logs": "INSERT INTO app.logs VALUES ('marker ' || %(n)s, 'marker no. ' || %(n)s, %(n)s)",
    "parts": "INSERT INTO app.parts VALUES (9, %(n)s, 'marker no. ' || %(n)s, %(n)s)",
    "coded": "INSERT INTO app.coded VALUES (%(n)s, %(n)s, 'marker no. ' || %(n)s, %(n)s)",
}
# Long enough to lie out of line, and to have several chunks.
LONG = " ".join(f"word{n * n % 997}" for n in range(120))
ROWS = {
    "notes": "INSERT INTO app.notes SELECT n, 'title ' || n, 'body ' || n, n, 0 FROM generate_series(1, 6) n",
    "articles": "INSERT INTO app.articles SELECT 'en', 'a' || n, 'title ' || n, "
    f"n || ' {LONG}', '{LONG * 3}', n, 0 FROM generate_series(1, 4) n",
    "logs": "INSERT INTO app.logs SELECT 'log ' || n, 'line ' || n, n, 0 FROM generate_series(1, 6) n",
    "parts": "INSERT INTO app.parts SELECT n % 4, n, 'words ' || n, n, 0 FROM generate_series(1, 8) n",
    "coded": "INSERT INTO app.coded SELECT n, n, 'words ' || n, n, 0 FROM generate_series(1, 6) n",
}


class Killed(BaseException):
    """The process ended here."""


class CountingEmbedder(ChaosEmbedder):
    """Remembers what it embedded; `before` is called first, and may wait or raise."""

    def __init__(self) -> None:
        super().__init__(MODEL)
        self.texts: list[str] = []
        self.before: Callable[[Sequence[str]], None] = lambda texts: None

    def embed(self, texts: Sequence[str], between: Callable[[], None] = lambda: None) -> Any:
        self.before(texts)
        self.texts += texts
        return super().embed(texts, between)


def catalog_of(tables: Sequence[Table]) -> Catalog:
    model = EmbeddingModel(
        name=MODEL,
        description="A function of the text.",
        provider="openai",
        url="http://127.0.0.1:9",
        model=MODEL,
        dimension=DIMENSION,
        max_tokens=1024,
        version="1",
    )
    collections = tuple(
        Collection(name=t.name, description="Rows.", source="rules", table=t.qualified, key=t.key, estuary="rules/rows")
        for t in tables
    )
    indexes = tuple(
        Index(
            name=t.name,
            description="Texts of rows.",
            collection=t.name,
            model=MODEL,
            template=t.templates[MODEL],
            chunk_tokens=CHUNK_TOKENS,
            metadata=(t.number,),
            store="pgvector",
            shards=2,
        )
        for t in tables
    )
    source = Source(name="rules", description="The tables.", kind="postgres", publication="p", slot="s")
    return Catalog(sources=(source,), collections=collections, models=(model,), indexes=indexes)


@dataclass
class Way:
    """Source tables and all that runs behind them.

    Attributes:
        source: the tables' database, if it is another one.
        verifies: whether the indexers verify and mend what they wrote; off, since that would hide what went wrong.
    """

    connection: Connection
    database: Database
    settings: Settings
    captures: Captures
    run_loop: Callable[..., Running]
    embedder: CountingEmbedder
    tables: list[Table] = field(default_factory=list)
    source: Connection | None = None
    verifies: bool = False
    _marker: int = 1000

    def make(self, *tables: Table, rows: bool = True) -> None:
        """Create source tables, with some rows."""
        origin = self.source or self.connection
        origin.execute("CREATE SCHEMA IF NOT EXISTS app")
        for table in tables:
            origin.execute(table.create)
            if rows:
                origin.execute(ROWS[table.name])
            self.tables.append(table)

    def begin(self, *tables: Table, **options: Any) -> tuple[Running, Running]:
        """Make the tables, run a capture and an indexer, and wait until all is indexed."""
        self.make(*tables)
        running = self.capture(**options), self.indexer()
        self.level()
        self.embedder.texts.clear()
        return running

    def capture(self, settings: CaptureSettings = QUICK, **options: Any) -> Running:
        bindings = [Binding(table.qualified, table.name, table.key) for table in self.tables]
        return self.captures.start(*bindings, settings=settings, **options)

    def indexer(self, **settings: Any) -> Running:
        quick = {"poll_seconds": 0.1, "lease_seconds": 1.0} | settings
        changed = self.settings.model_copy(update={"indexer": self.settings.indexer.model_copy(update=quick)})
        return self.run_loop(Indexer(catalog_of(self.tables), self.database, changed))

    def do(self, *statements: str) -> None:
        """Run statements on the source, each in a transaction of its own."""
        for statement in statements:
            (self.source or self.connection).execute(statement)

    def level(self, seconds: float = WAIT_SECONDS) -> None:
        """Write a marker into every table, and wait until the indexes are exactly the tables."""
        self._marker += 1
        for table in self.tables:
            (self.source or self.connection).execute(MARKERS[table.name], {"n": self._marker})
        self.exact(seconds)

    def exact(self, seconds: float = WAIT_SECONDS) -> None:
        """Wait until the indexes are exactly the tables."""
        verdicts: list[oracle.Verdict] = []

        def equal() -> bool:
            verdicts[:] = [oracle.judge(self.connection, self.tables, self.source)]
            return verdicts[0].exact

        with contextlib.suppress(AssertionError):
            until(equal, "the indexes", seconds)
        assert verdicts[0].exact, verdicts[0].examples

    @property
    def embedded(self) -> list[str]:
        """What was embedded since, the markers left out."""
        return [text for text in self.embedder.texts if "marker" not in text]

    def clocks(self) -> list[Any]:
        """Of every stored chunk: what a needless write would change."""
        found: list[Any] = []
        for table in self.tables:
            found += self.connection.execute(f"SELECT id, clock, indexed_at FROM indexes.{table.name}_v1 ORDER BY id")
        return found


@pytest.fixture
def way(
    connection: Connection,
    database: Database,
    settings: Settings,
    captures: Captures,
    run_loop: Callable[..., Running],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Way]:
    embedder = CountingEmbedder()
    monkeypatch.setattr(indexer_module, "load_embedder", lambda model, precision, settings: embedder)
    way = Way(connection, database, settings, captures, run_loop, embedder)
    wait = Scanner.wait
    monkeypatch.setattr(Scanner, "wait", lambda self: wait(self) if way.verifies else 3600.0)
    yield way
    arm(None)
    embedder.before = lambda texts: None


# ---- 1: order ----------------------------------------------------------------------------------------------


def test_rule_1_transaction_that_commits_last_wins(way: Way) -> None:
    """It began first, and its row's own clock is older."""
    way.begin(NOTES)
    with way.database.connect("early") as early, early.transaction():
        early.execute("UPDATE app.notes SET body = 'opens it', rank = 1 WHERE id = 6")
        way.do(
            "UPDATE app.notes SET body = 'began later, ended first', rank = 99 WHERE id IN (1, 2)",
            "DELETE FROM app.notes WHERE id = 3",
            "INSERT INTO app.notes VALUES (7, 'short', 'life', 7)",
        )
        until(lambda: any("ended first" in text for text in way.embedder.texts), "the first commit")
        early.execute("UPDATE app.notes SET body = 'ended last', rank = 1 WHERE id = 1")
        early.execute("DELETE FROM app.notes WHERE id = 7; INSERT INTO app.notes VALUES (3, 'back', 'again', 3)")
    way.level()
    row = way.connection.execute("SELECT content, metadata FROM indexes.notes WHERE key = '[1]'").fetchone()
    assert row == ("title 1\nended last", {"rank": 1})


def test_rule_1_rolled_back_work_is_never_indexed(way: Way) -> None:
    way.begin(NOTES)
    with way.connection.transaction(force_rollback=True):
        way.do("UPDATE app.notes SET body = 'rolled back'; DELETE FROM app.notes WHERE id = 1; TRUNCATE app.notes")
    with way.connection.transaction():
        way.do("UPDATE app.notes SET body = 'kept' WHERE id = 1")
        with way.connection.transaction(force_rollback=True):
            way.do("UPDATE app.notes SET body = 'rolled back' WHERE id IN (1, 2); DELETE FROM app.notes WHERE id = 3")
    way.level()
    assert way.embedded == ["title 1\nkept"]


def test_rule_1_hot_rows_flapping_rows_and_a_clock_that_runs_backwards(way: Way) -> None:
    way.begin(NOTES, settings=QUICK.model_copy(update={"batch_documents": 3}))
    for number in range(25):
        way.do(
            f"UPDATE app.notes SET body = 'hot {number}', rank = {-number} WHERE id = 1",
            "DELETE FROM app.notes WHERE id IN (2, 3)",
            f"INSERT INTO app.notes VALUES (2, 'a', 'flaps {number}', {-number}), (3, 'b', 'flaps {number}', 0)",
        )
    way.do("DELETE FROM app.notes WHERE id = 3")
    with way.connection.transaction():
        for number in range(10):
            way.do(
                f"UPDATE app.notes SET body = 'at once {number}', rank = {-number} WHERE id = 4",
                "DELETE FROM app.notes WHERE id = 5",
                f"INSERT INTO app.notes VALUES (5, 'c', 'flaps {number}', 0)",
            )
    way.level()


# ---- 2: every kind of change -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """Statements on a table, and how many texts they cost; None where that depends on how they are batched."""

    table: Table
    statements: tuple[str, ...]
    embedded: int | None = None


RENAME = (
    "ALTER TABLE app.notes RENAME body TO other; ALTER TABLE app.notes RENAME title TO body; "
    "ALTER TABLE app.notes RENAME other TO title"
)
CASES = {
    "insert": Case(NOTES, ("INSERT INTO app.notes VALUES (7, 'new', 'row', 7), (8, NULL, NULL, 8)",), 1),
    "update": Case(NOTES, ("UPDATE app.notes SET body = 'changed' WHERE id = 1",), 1),
    "update to an empty text": Case(NOTES, ("UPDATE app.notes SET title = '', body = NULL WHERE id = 1",), 0),
    "update of metadata": Case(NOTES, ("UPDATE app.notes SET rank = rank + 100 WHERE id <= 3",), 0),
    "update of neither": Case(NOTES, ("UPDATE app.notes SET unused = 5",), 0),
    "update without a change": Case(NOTES, ("UPDATE app.notes SET body = body, rank = rank",), 0),
    "delete": Case(NOTES, ("DELETE FROM app.notes WHERE id IN (1, 6)",), 0),
    "delete and insert": Case(
        NOTES, ("DELETE FROM app.notes WHERE id = 1; INSERT INTO app.notes VALUES (1, 'other', 'row', 1)",), 1
    ),
    "key change": Case(NOTES, ("UPDATE app.notes SET id = id + 100 WHERE id IN (1, 6)",), 0),
    "key change, the old key taken at once": Case(
        NOTES,
        (
            "DELETE FROM app.notes WHERE id = 5; UPDATE app.notes SET id = 5 WHERE id = 1; "
            "INSERT INTO app.notes VALUES (1, 'a new', 'first', 11)",
        ),
        1,
    ),
    "keys exchanged": Case(
        NOTES,
        (
            "UPDATE app.notes SET id = -1 WHERE id = 1; UPDATE app.notes SET id = 1 WHERE id = 2; "
            "UPDATE app.notes SET id = 2 WHERE id = -1",
        ),
        0,
    ),
    "truncate": Case(NOTES, ("TRUNCATE app.notes",), 0),
    "truncate and refill": Case(
        NOTES, ("BEGIN; TRUNCATE app.notes; INSERT INTO app.notes VALUES (2, 'after', 'it', 2); COMMIT",), 1
    ),
    "unchanged large column": Case(ARTICLES, ("UPDATE app.articles SET views = views + 100",), 0),
    "large column unchanged, text changed": Case(
        ARTICLES, ("UPDATE app.articles SET title = 'another' WHERE slug = 'a1'",)
    ),
    "key change of a large row": Case(ARTICLES, ("UPDATE app.articles SET slug = 'b1' WHERE slug = 'a1'",), 0),
    "large column shrinks": Case(ARTICLES, ("UPDATE app.articles SET body = 'short' WHERE slug = 'a1'",), 1),
    "composite and text key": Case(
        ARTICLES,
        (
            "INSERT INTO app.articles VALUES ('de', 'a1', 'snow', 'Schnee \u96ea', '', 1)",
            "INSERT INTO app.articles VALUES ('a,\"b\\', '', 'odd', '', '', 2)",
            "UPDATE app.articles SET lang = 'fr' WHERE slug = 'a2'; DELETE FROM app.articles WHERE slug = 'a3'",
        ),
        2,
    ),
    "identity FULL": Case(
        LOGS,
        (
            "UPDATE app.logs SET level = 50 WHERE name = 'log 1'",
            "UPDATE app.logs SET line = 'new' WHERE name = 'log 2'",
            "UPDATE app.logs SET name = 'moved' WHERE name = 'log 3'; DELETE FROM app.logs WHERE name = 'log 4'",
        ),
        1,
    ),
    "identity USING INDEX": Case(
        CODED,
        (
            "UPDATE app.coded SET rank = 50 WHERE id = 1; UPDATE app.coded SET words = 'new' WHERE id = 2",
            "UPDATE app.coded SET code = 33 WHERE id = 3; UPDATE app.coded SET id = 44 WHERE id = 4",
            "DELETE FROM app.coded WHERE id = 5",
        ),
        1,
    ),
    "partitioned": Case(
        PARTS,
        (
            "UPDATE app.parts SET stock = 50 WHERE id = 4; UPDATE app.parts SET words = 'new' WHERE id = 1",
            "UPDATE app.parts SET region = 0 WHERE id = 2; DELETE FROM app.parts WHERE id = 3",
            "INSERT INTO app.parts VALUES (7, 7, 'into the rest', 7)",
        ),
        2,
    ),
    "partition added and truncated": Case(
        PARTS,
        (
            "CREATE TABLE app.parts_5 PARTITION OF app.parts FOR VALUES IN (5)",
            "INSERT INTO app.parts VALUES (5, 1, 'in the new one', 1); TRUNCATE app.parts; " + ROWS["parts"],
        ),
    ),
    "dropped and created anew": Case(
        NOTES,
        (
            f"DROP TABLE app.notes; {NOTES.create}; INSERT INTO app.notes VALUES (2, 'title 2', 'body 2', 22), "
            "(9, 'another', 'table', 9)",
            "UPDATE app.notes SET rank = 10 WHERE id = 9",
        ),
        1,
    ),
    "used column altered": Case(NOTES, ("ALTER TABLE app.notes ALTER body TYPE varchar(99) USING 'x ' || body",), 6),
    "used columns exchanged": Case(NOTES, (RENAME,), 6),
    "unused column dropped": Case(
        NOTES, ("ALTER TABLE app.notes DROP unused", "UPDATE app.notes SET rank = 7 WHERE id = 1"), 0
    ),
    "column added": Case(
        NOTES, ("ALTER TABLE app.notes ADD more text DEFAULT 'x'", "UPDATE app.notes SET more = 'y' WHERE id = 1"), 0
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_rule_2_every_kind_of_change(way: Way, case: Case) -> None:
    way.begin(case.table)
    way.do(*case.statements)
    way.level()
    assert case.embedded is None or len(set(way.embedded)) == len(way.embedded) == case.embedded


# ---- 3: two of anything ------------------------------------------------------------------------------------


def test_rule_3_second_capture_is_refused_and_does_no_harm(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    # How long it waits for a slot that a dead capture may have left in use.
    monkeypatch.setattr(Capture._wait_released, "__defaults__", (0.3,))
    way.begin(NOTES)
    way.do("UPDATE app.notes SET body = 'one' WHERE id = 1")
    second = way.capture(wait=False)
    way.do("UPDATE app.notes SET body = 'two' WHERE id = 2; DELETE FROM app.notes WHERE id = 3")
    assert isinstance(second.failed(), SourceError)
    way.level()
    assert sorted(way.embedded) == ["title 1\none", "title 2\ntwo"]


def test_rule_3_capture_that_slept_writes_nothing_when_it_wakes_up(way: Way) -> None:
    """It holds changes that its successor took, too, and that newer ones have replaced since."""
    sleeper, _ = way.begin(NOTES)
    asleep, wake = threading.Event(), threading.Event()
    flush = sleeper.loop._flush

    def sleep_first(*arguments: Any) -> Any:
        asleep.set()
        assert wake.wait(60)
        return flush(*arguments)

    sleeper.loop._flush = sleep_first
    way.do("UPDATE app.notes SET body = 'slept over' WHERE id IN (1, 2)")
    assert asleep.wait(60)
    way.connection.execute("SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots WHERE active")
    way.capture()
    way.do("UPDATE app.notes SET body = 'since' WHERE id = 1; DELETE FROM app.notes WHERE id = 2")
    way.level()
    before = way.clocks(), logged(way)
    wake.set()
    assert isinstance(sleeper.failed(), FencedError)
    way.exact()
    assert (way.clocks(), logged(way)) == before


def test_rule_3_indexer_that_slept_writes_nothing_when_it_wakes_up(way: Way) -> None:
    """Its lease went to another, which has written newer texts and deletes since."""
    _, sleeper = way.begin(NOTES)
    asleep, wake = threading.Event(), threading.Event()

    def sleep_once(texts: Sequence[str]) -> None:
        if not asleep.is_set() and "slept over" in texts[0]:
            asleep.set()
            assert wake.wait(60)

    way.embedder.before = sleep_once
    way.do("UPDATE app.notes SET body = 'slept over' WHERE id IN (1, 2)")
    assert asleep.wait(60)
    # One that keeps its lease, however long this machine halts.
    way.indexer(lease_seconds=3600)
    way.do("UPDATE app.notes SET body = 'since' WHERE id = 1; DELETE FROM app.notes WHERE id = 2")
    way.level()
    before = way.clocks(), batches(way), epochs(way)
    wake.set()
    sleeper.stop()
    way.exact()
    assert (way.clocks(), batches(way), epochs(way)) == before, "it wrote, or took the lease back"


def test_rule_3_repair_that_slept_brings_nothing_old_back(way: Way) -> None:
    """Two rows are gone from the store; while they are embedded again, one changes and the other is deleted."""
    way.begin(NOTES)
    way.connection.execute("DELETE FROM indexes.notes_v1 WHERE key IN ('[1]', '[2]')")
    asleep, wake = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def sleep(texts: Sequence[str]) -> None:
        asleep.set()
        assert wake.wait(60)

    def repair() -> None:
        try:
            with way.database.connect("repair") as other:
                embedder = CountingEmbedder()
                embedder.before = sleep
                for shard in range(2):
                    repair_shard(other, repairer(active_versions(other)[0], embedder), shard, batch=10, deep=True)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=repair)
    thread.start()
    assert asleep.wait(60)
    way.do("UPDATE app.notes SET body = 'newer' WHERE id = 1; DELETE FROM app.notes WHERE id = 2")
    way.level()
    wake.set()
    thread.join(60)
    assert errors == []
    way.exact()


def test_rule_3_two_indexers_beside_deep_repairs(way: Way) -> None:
    way.begin(NOTES, ARTICLES)
    way.indexer()
    stop = threading.Event()
    errors: list[BaseException] = []

    def repairs() -> None:
        try:
            with way.database.connect("repair") as other:
                while not stop.is_set():
                    for version in active_versions(other):
                        for shard in range(2):
                            with contextlib.suppress(TemporaryError):
                                repair_shard(other, repairer(version), shard, batch=3, deep=True)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=repairs) for _ in range(2)]
    for thread in threads:
        thread.start()
    chosen = random.Random(3)
    for number in range(40):
        row = chosen.randint(1, 6)
        way.do(
            chosen.choice(
                [
                    f"UPDATE app.notes SET body = 'text {number % 3}' WHERE id = {row}",
                    f"UPDATE app.notes SET rank = {number} WHERE id = {row}",
                    f"DELETE FROM app.notes WHERE id = {row}",
                    f"INSERT INTO app.notes VALUES ({row}, 'back', 'text {number % 3}', 1) ON CONFLICT DO NOTHING",
                    f"UPDATE app.articles SET views = {number} WHERE slug = 'a{row}'",
                    f"UPDATE app.articles SET title = 't{number % 3}' WHERE slug = 'a{row}'",
                ]
            )
        )
    stop.set()
    for thread in threads:
        thread.join(60)
    assert errors == []
    way.level()


# ---- 4: snapshots and servers ------------------------------------------------------------------------------


def test_rule_4_rows_that_change_while_the_snapshot_runs(way: Way) -> None:
    way.make(NOTES)
    way.do("INSERT INTO app.notes SELECT n, 'title ' || n, 'body ' || n, n FROM generate_series(7, 30) n")
    steps = iter(
        [
            "UPDATE app.notes SET body = 'behind' WHERE id = 1; UPDATE app.notes SET body = 'ahead' WHERE id = 30",
            "DELETE FROM app.notes WHERE id IN (2, 29); INSERT INTO app.notes VALUES (500, 'new', 'row', 1)",
            "UPDATE app.notes SET id = id + 100 WHERE id IN (3, 28); UPDATE app.notes SET rank = 70 WHERE id = 27",
            "DELETE FROM app.notes WHERE id = 500; INSERT INTO app.notes VALUES (2, 'again', 'there', 2)",
        ]
    )

    def progress(_collection: str, _rows: int, _estimate: int) -> None:
        way.do(*[statement for statement in [next(steps, "")] if statement])

    way.indexer()
    way.capture(QUICK.model_copy(update={"batch_documents": 4}), progress=progress)
    assert next(steps, None) is None
    way.level()


def test_rule_4_snapshot_that_was_killed_loses_nothing(way: Way) -> None:
    way.make(NOTES)
    way.do("INSERT INTO app.notes SELECT n, 'title ' || n, 'body ' || n, n FROM generate_series(7, 30) n")
    way.indexer()
    die_at("capture.snapshot.after_commit", 3)
    assert isinstance(way.capture(QUICK.model_copy(update={"batch_documents": 4}), wait=False).failed(), Killed)
    way.do(
        "UPDATE app.notes SET body = 'changed' WHERE id IN (1, 30); DELETE FROM app.notes WHERE id IN (2, 29)",
        "UPDATE app.notes SET id = id + 100 WHERE id = 3; UPDATE app.notes SET id = id - 100 WHERE id = 28",
    )
    way.capture()
    way.level()


def test_rule_4_table_that_was_added_later(way: Way) -> None:
    capture, indexer = way.begin(NOTES)
    capture.stop()
    indexer.stop()
    way.make(LOGS)
    way.do("UPDATE app.notes SET body = 'meanwhile' WHERE id = 1; DELETE FROM app.notes WHERE id = 2")
    way.capture()
    way.indexer()
    way.level()
    assert sorted(way.embedded) == sorted(["title 1\nmeanwhile", *(f"line {n}" for n in range(1, 7))])


def test_rule_4_replaced_server_begins_a_new_generation(way: Way, short_path: Path) -> None:
    """Its log is far behind, and its rows are those of a backup."""
    capture, _ = way.begin(NOTES)
    way.do("UPDATE app.notes SET body = 'newer than the backup' WHERE id = 1; DELETE FROM app.notes WHERE id = 2")
    way.level()
    capture.stop()
    way.embedder.texts.clear()
    generation = newest_generation(way)
    server = EmbeddedPostgres(short_path / "other")
    try:
        with psycopg.connect(server.url(), autocommit=True) as other:
            assert lsn(other) < lsn(way.connection), "positions must go backwards"
            way.source, way.tables = other, []
            way.make(NOTES)
            way.capture(url=server.url())
            way.level()
            assert newest_generation(way) == generation + 1
            assert sorted(way.embedded) == ["title 1\nbody 1", "title 2\nbody 2"]
            way.do("UPDATE app.notes SET body = 'later' WHERE id = 3; DELETE FROM app.notes WHERE id = 4")
            way.level()
            way.captures.stop_all()
    finally:
        server.release()


# ---- 5: death ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "point", ["capture.flush.before_commit", "capture.flush.after_commit", "writer.embedded", "writer.before_commit"]
)
def test_rule_5_death_loses_nothing_and_embeds_one_batch_again(way: Way, point: str) -> None:
    capture, indexer = way.begin(NOTES)
    generation = newest_generation(way)
    die_at(point)
    way.do("UPDATE app.notes SET body = 'a' WHERE id = 1; UPDATE app.notes SET id = 50 WHERE id = 2")
    died = capture if point.startswith("capture") else indexer
    assert isinstance(died.failed(), Killed)
    way.do("DELETE FROM app.notes WHERE id = 3")
    if died is capture:
        way.capture()
    else:
        way.indexer()
    way.level()
    assert way.embedded in (["title 1\na"], ["title 1\na"] * 2)
    assert newest_generation(way) == generation, "it began anew"


# ---- 6: re-delivery ----------------------------------------------------------------------------------------


def test_rule_6_log_that_is_sent_again_changes_nothing(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    """All acknowledgements and positions since a moment are lost; what was taken comes again, in other batches."""
    way.begin(NOTES)
    monkeypatch.setattr(ReplicationConnection, "confirm", lambda self, position: None)
    way.level()
    lost = way.connection.execute("SELECT confirmed_flush_lsn::text FROM pg_replication_slots").fetchone()
    assert lost is not None
    way.do(
        "UPDATE app.notes SET body = 'one' WHERE id = 1; UPDATE app.notes SET body = 'two' WHERE id = 1",
        "UPDATE app.notes SET id = 50 WHERE id = 2; INSERT INTO app.notes VALUES (2, 'new', 'two', 2)",
        "DELETE FROM app.notes WHERE id = 3",
        "TRUNCATE app.notes; " + ROWS["notes"],
        "DELETE FROM app.notes WHERE id = 4",
    )
    way.level()
    way.captures.stop_all()
    before, taken, embedded = (way.clocks(), documents(way)), logged(way), len(way.embedder.texts)
    way.connection.execute("UPDATE sophia.captures SET confirmed_lsn = %s", [lost[0]])
    way.capture(QUICK.model_copy(update={"batch_documents": 2}))
    reached = lsn(way.connection)
    until(lambda: position(way) >= reached, "the end of the log")
    way.exact()
    assert logged(way) > taken, "nothing was sent again"
    assert ((way.clocks(), documents(way)), len(way.embedder.texts)) == (before, embedded)
    way.level()


def test_rule_6_documents_in_other_batches_orders_and_late(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    delivered: list[Change | Floor] = []
    take = inbox.take

    def record(own: Connection, collection: inbox.Locked, events: Any) -> Any:
        events = list(events)
        delivered.extend(events)
        return take(own, collection, events)

    way.begin(ARTICLES)
    with monkeypatch.context() as patched:
        patched.setattr(inbox, "take", record)
        way.do(
            "UPDATE app.articles SET title = 'one' WHERE slug = 'a1'",
            "UPDATE app.articles SET views = 100 WHERE slug IN ('a1', 'a2')",
            "DELETE FROM app.articles WHERE slug = 'a3'",
            "UPDATE app.articles SET body = 'short', views = 7 WHERE slug = 'a1'",
            "INSERT INTO app.articles VALUES ('en', 'a3', 'back', 'again', '', 3)",
        )
        way.level()
    assert len(delivered) >= 7
    fourth = 'SELECT id FROM indexes.articles_v1 WHERE key = \'["en","a4"]\''
    others = [row[0] for row in way.connection.execute(f"SELECT id FROM indexes.articles_v1 EXCEPT {fourth}")]

    def untouched() -> list[Any]:
        rows = [row for row in documents(way) if "a4" not in row[1]]
        return rows + [row for row in way.clocks() if row[0] in others]

    before = untouched()
    way.embedder.texts.clear()
    chosen = random.Random(5)
    for number in range(12):
        queues: dict[str, list[Change | Floor]] = {}
        for event in delivered[chosen.randrange(len(delivered)) :]:
            assert isinstance(event, Change)
            queues.setdefault(event.key, []).append(event)
        batch = [queues[key].pop(0) for key in chosen.sample(sorted(queues), len(queues))]
        way.do(f"UPDATE app.articles SET views = {200 + number} WHERE slug = 'a4'")
        with way.connection.transaction():
            inbox.accept(way.connection, "articles", batch)
    way.exact()
    assert way.embedder.texts == []
    assert untouched() == before


# ---- 7: drift ----------------------------------------------------------------------------------------------


def test_rule_7_drift_heals_beside_changes_and_embeds_only_what_is_wrong(way: Way) -> None:
    way.begin(NOTES)[1].stop()
    for statement in (
        "DELETE FROM indexes.notes_v1 WHERE key = '[1]'",
        "UPDATE indexes.notes_v1 SET content = 'forged' WHERE key = '[2]'",
        "UPDATE indexes.notes_v1 SET metadata = '{\"rank\": -1}' WHERE key = '[3]'",
        "UPDATE indexes.notes_v1 SET embedding = (SELECT embedding FROM indexes.notes_v1 WHERE key = '[5]') "
        "WHERE key = '[4]'",
    ):
        way.connection.execute(statement)
    way.verifies = True
    way.indexer(scan_hours=0.0002)
    way.do("UPDATE app.notes SET body = 'changed meanwhile' WHERE id = 6")
    way.level()
    assert sorted(way.embedded) == ["title 1\nbody 1", "title 4\nbody 4", "title 6\nchanged meanwhile"]


# ---- 8: dead letters ---------------------------------------------------------------------------------------


def test_rule_8_change_without_its_large_column_is_not_taken_for_the_row(way: Way) -> None:
    """The inbox has lost the row: until it was read again from the source, nothing of it is shown."""
    way.begin(ARTICLES)
    key = '["en","a1"]'
    reading, go_on = threading.Event(), threading.Event()

    def hold(name: str) -> None:
        if name == "capture.reread.before_commit":
            reading.set()
            assert go_on.wait(60)

    arm(hold)
    way.connection.execute("DELETE FROM sophia.documents WHERE key = %s", [key])
    way.do("UPDATE app.articles SET views = 100 WHERE slug = 'a1'")
    parked = "SELECT stage FROM sophia.dead_letters WHERE key = %s"
    until(lambda: way.connection.execute(parked, [key]).fetchone(), "the dead letter")
    assert reading.wait(60)
    assert way.connection.execute("SELECT count(*) FROM indexes.articles WHERE key = %s", [key]).fetchone() == (0,)
    go_on.set()
    way.level()
    assert way.connection.execute(parked, [key]).fetchall() == []


def test_rule_8_replay_reads_the_row_from_its_source(way: Way) -> None:
    """What is parked and what is stored of it are both wrong; only the source knows better."""
    way.begin(NOTES)
    way.connection.execute("UPDATE sophia.documents SET body = body || '{\"rank\": -5}' WHERE key = '[1]'")
    inbox.park(way.connection, "notes", "[1]", stage="inbox", reason="a test")
    assert inbox.request_reread(way.connection, "notes") == 1
    way.level()
    until(
        lambda: way.connection.execute("SELECT count(*) FROM sophia.dead_letters").fetchone() == (0,),
        "the end of the dead letter",
    )
    assert way.connection.execute("SELECT body ->> 'rank' FROM sophia.documents WHERE key = '[1]'").fetchone() == ("1",)
    assert way.embedded == []


# ---- what the tests need ------------------------------------------------------------------------------------


def repairer(version: IndexVersion, embedder: ChaosEmbedder | None = None) -> Writer:
    """What a repair run writes with."""
    return Writer(version, PgvectorStore(), embedder or ChaosEmbedder(MODEL), 1_000_000, run="repair", lane="bulk")


def die_at(point: str, hits: int = 1) -> None:
    """Let whoever reaches the point for the n-th time end there."""
    left = hits

    def action(name: str) -> None:
        nonlocal left
        if name == point:
            left -= 1
            if left == 0:
                arm(None)
                raise Killed(name)

    arm(action)


def newest_generation(way: Way) -> int:
    row = way.connection.execute("SELECT max(generation) FROM sophia.collections").fetchone()
    assert row is not None
    return int(row[0])


def documents(way: Way) -> list[Any]:
    """The inbox's documents, with the positions at which they were taken last."""
    return way.connection.execute(
        "SELECT collection_id, key, position, clock, deleted, body FROM sophia.documents ORDER BY 1, 2"
    ).fetchall()


def batches(way: Way) -> int:
    row = way.connection.execute("SELECT count(*) FROM sophia.batches").fetchone()
    assert row is not None
    return int(row[0])


def logged(way: Way) -> int:
    """Changes in the inbox's log, which holds what came again, too."""
    row = way.connection.execute("SELECT count(*) FROM sophia.inbox").fetchone()
    assert row is not None
    return int(row[0])


def epochs(way: Way) -> list[Any]:
    return way.connection.execute("SELECT name, epoch FROM sophia.leases WHERE name LIKE 'live/%'").fetchall()


def lsn(connection: Connection) -> int:
    row = connection.execute("SELECT (pg_current_wal_lsn() - '0/0')::bigint").fetchone()
    assert row is not None
    return int(row[0])


def position(way: Way) -> int:
    row = way.connection.execute("SELECT (confirmed_lsn - '0/0')::bigint FROM sophia.captures").fetchone()
    assert row is not None
    return int(row[0])

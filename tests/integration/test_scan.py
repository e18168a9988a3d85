"""Continuous verification: what changed each tick, everything in slices; each kind of drift found and repaired."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from sophia import failpoints
from sophia.documents import BUCKETS, canonical_key
from sophia.errors import FencedError
from sophia.indexing.compare import Slices, compare
from sophia.indexing.indexer import Indexer
from sophia.indexing.leases import Lease
from sophia.indexing.repair import repair_shard
from sophia.indexing.scan import TICK_SECONDS, Scanner
from sophia.indexing.status import index_progress, index_status
from sophia.indexing.verify import verify
from sophia.indexing.writer import Row
from sophia.sql import load
from sophia.stores import PgvectorStore, Scope
from tests.integration.library import Library
from tests.waiting import until

# What someone may do to the index's table: kind of difference, key, and the texts that must be embedded again.
DRIFT = {
    "row deleted": ("DELETE FROM {t} WHERE key = '[1]'", "missing", "[1]", 1),
    "text edited": ("UPDATE {t} SET content = 'forged' WHERE key = '[2]'", "altered", "[2]", 0),
    "hash edited": ("UPDATE {t} SET content_hash = '\\x00' WHERE key = '[2]'", "altered", "[2]", 0),
    "vector edited": (
        "UPDATE {t} SET embedding = (SELECT embedding FROM {t} WHERE key = '[4]') WHERE key = '[3]'",
        "altered",
        "[3]",
        1,
    ),
    "metadata edited": (
        "UPDATE {t} SET metadata = metadata || '{{\"kind\": \"forged\"}}' WHERE key = '[3]'",
        "altered",
        "[3]",
        0,
    ),
    "clock edited": ("UPDATE {t} SET clock = '{{9,9,9}}' WHERE key = '[3]'", "altered", "[3]", 0),
    "id edited": ("UPDATE {t} SET id = gen_random_uuid() WHERE key = '[3]'", "altered", "[3]", 0),
    "row added by hand": (
        "INSERT INTO {t} SELECT gen_random_uuid(), '[99]', bucket, 0, span, content, content_hash, embedding, "
        "metadata, clock, lsn, txid, committed_at, run FROM {t} WHERE key = '[5]'",
        "extra",
        "[99]",
        0,
    ),
    "chunk doubled": (
        "INSERT INTO {t} SELECT gen_random_uuid(), key, bucket, 50, span, content, content_hash, embedding, "
        "metadata, clock, lsn, txid, committed_at, run FROM {t} WHERE key = '[5]'",
        "doubled",
        "[5]",
        0,
    ),
    "one chunk of several deleted": ("DELETE FROM {t} WHERE key = '[7]' AND chunk = 1", "missing", "[7]", 1),
}


class Clock:
    """A monotonic clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Scanning:
    """A scanner over the library's index, and the lease that it writes under."""

    def __init__(self, library: Library, hours: float = 0.0) -> None:
        self.library = library
        self.version = library.version()
        self.clock = Clock()
        self.scanner = Scanner(library.writer(self.version), hours, batch=10, clock=self.clock)
        lease = Lease.try_take(library.connection, f"live/{self.version.id}", 60)
        assert lease is not None
        self.lease = lease

    def live(self) -> None:
        """Apply what waits for the live lane, as the indexer does."""
        version = {"version_id": self.version.id, "collection_id": self.version.collection_id}
        position = self.library.connection.execute(
            "SELECT position FROM sophia.index_versions WHERE id = %s", [self.version.id]
        ).fetchone()
        assert position is not None
        found = self.library.connection.execute(
            load("indexing")["live"], version | {"position": position[0], "limit": 1000}
        ).fetchall()
        if found:
            rows = [Row.read(row) for row in found]
            writer = self.library.writer(self.version, lane="live")
            writer.apply(self.library.connection, rows, position=rows[-1].position)

    def tick(self) -> Any:
        """One step, a second later."""
        self.clock.now += TICK_SECONDS
        return self.scanner.step(self.library.connection, self.lease)

    def cycle(self) -> int:
        """Steps until a whole deep scan has ended. Returns how many slices that were."""
        ended = self.row()["cycle_ended_at"]
        for steps in itertools.count(1):
            self.clock.now += 3600
            self.scanner.step(self.library.connection, self.lease)
            if self.row()["cycle_ended_at"] != ended:
                return steps
        raise AssertionError

    def row(self) -> dict[str, Any]:
        """The stored state of the scan."""
        with self.library.connection.cursor(row_factory=psycopg.rows.dict_row) as cursor:
            row = cursor.execute("SELECT * FROM sophia.scans WHERE version_id = %s", [self.version.id]).fetchone()
        return dict(row) if row else dict.fromkeys(("cycle_ended_at", "verified"))


def words(count: int) -> str:
    return " ".join(f"word{n}" for n in range(count))


def tamper(library: Library, statement: str) -> None:
    assert library.connection.execute(statement.format(t="indexes.documents_v1")).rowcount > 0


@pytest.fixture
def shelf(library: Library) -> Library:
    """Eight documents that the live lane applied, the last of several chunks; nothing of them verified yet."""
    library.version()
    library.repair()
    for number in range(7):
        library.put(number, body=f"text {number}")
    library.put(7, body=words(1000))
    scanning = Scanning(library)
    scanning.live()
    scanning.lease.release(library.connection)
    assert library.compare().empty
    library.embedder.texts.clear()
    return library


@pytest.fixture(params=list(DRIFT))
def drift(request: pytest.FixtureRequest) -> tuple[str, str, str, int]:
    """One kind of drift."""
    return DRIFT[request.param]


# ---- rule 7: drift is found and repaired, embedding only what is wrong -----------------------------------------


def test_rule_7_deep_scan_finds_and_repairs_drift(shelf: Library, drift: tuple[str, str, str, int]) -> None:
    statement, _kind, _key, embedded = drift
    scanning = Scanning(shelf, hours=1)
    # The tick has seen all changes, so what follows is the deep scan's to find.
    scanning.tick()
    tamper(shelf, statement)
    assert shelf.faults() != []
    scanning.cycle()
    assert shelf.faults() == []
    assert shelf.compare().empty
    assert len(shelf.embedder.texts) == embedded
    row = scanning.row()
    assert (row["found"], row["repaired"]) == (1, 1)
    scanning.cycle()
    assert scanning.row()["found"] == 1, "a second cycle finds nothing more"


def test_rule_7_tick_finds_and_repairs_drift_of_changed_documents(
    shelf: Library, drift: tuple[str, str, str, int]
) -> None:
    statement, _kind, key, embedded = drift
    scanning = Scanning(shelf)
    tamper(shelf, statement)
    scanning.tick()
    if key == "[99]":
        assert shelf.faults() == ["[99]/0 is extra"], "no document of this key ever changed: the deep scan's work"
        return
    assert shelf.faults() == []
    assert len(shelf.embedder.texts) == embedded
    row = scanning.row()
    assert (row["found"], row["repaired"]) == (1, 1)


def test_rule_7_repair_run_finds_and_repairs_drift(shelf: Library, drift: tuple[str, str, str, int]) -> None:
    statement, _kind, _key, embedded = drift
    tamper(shelf, statement)
    assert shelf.repair().documents == 0, "only a deep repair reads the store"
    shelf.repair(deep=True)
    assert shelf.faults() == []
    assert len(shelf.embedder.texts) == embedded


def test_rule_7_running_indexer_heals_its_index(shelf: Library, run_loop: Callable[..., Any]) -> None:
    """While live changes go on; both looks, without anybody's help."""
    run_loop(shelf.indexer(scan_hours=1e-6))
    tamper(shelf, "DELETE FROM {t} WHERE key IN ('[1]', '[7]')")
    tamper(shelf, "UPDATE {t} SET metadata = '{{}}' WHERE key = '[3]'")
    for number in range(20, 40):
        shelf.put(number, body=f"live {number}")
    shelf.level()

    def counted() -> tuple[int, int]:
        status = index_status(shelf.connection)[0]
        return status.drift_found, status.drift_repaired

    until(lambda: counted() == (3, 3), "three found and repaired")
    position = shelf.connection.execute("SELECT position FROM sophia.collections").fetchone()
    until(lambda: (index_progress(shelf.connection)[0].verified,) == position, "verified up to the end")
    until(lambda: index_progress(shelf.connection)[0].scan_ended_at is not None, "a whole deep scan")


def test_rule_7_drift_is_found_without_a_quiet_moment(
    shelf: Library, run_loop: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Indexer._live_pass

    def busy(indexer: Indexer, connection: psycopg.Connection[Any]) -> bool:
        real(indexer, connection)
        return True

    monkeypatch.setattr(Indexer, "_live_pass", busy)
    monkeypatch.setattr("sophia.indexing.indexer.LATE_SECONDS", 0.1)
    run_loop(shelf.indexer(scan_hours=1e-6), wait=False)
    tamper(shelf, "DELETE FROM {t} WHERE key IN ('[1]', '[7]')")
    until(lambda: index_status(shelf.connection)[0].drift_repaired == 2, "the repair")


# ---- rule 10: the proof -----------------------------------------------------------------------------------------


def test_rule_10_verify_lists_each_kind_of_drift(shelf: Library, drift: tuple[str, str, str, int]) -> None:
    statement, kind, key, _embedded = drift
    tamper(shelf, statement)
    proof = verify(shelf.connection, shelf.version(), PgvectorStore(), shelf.embedder)
    assert not proof.holds
    assert {name: keys for name, keys in proof.difference.keys().items() if keys} == {kind: [key]}
    assert f"DIFFERS from its source at LSN {proof.lsn}" in proof.sentence()
    assert f"{kind} 1" in proof.sentence()


def test_rule_10_verify_says_what_it_proved(shelf: Library) -> None:
    proof = verify(shelf.connection, shelf.version(), PgvectorStore(), shelf.embedder)
    assert proof.holds
    assert re.fullmatch(
        r"documents v1 equals its source at LSN \S+: missing 0, extra 0, stale 0, doubled 0, altered 0, "
        r"sampled cosine >= (0\.999\d*|1\.0*) of 8",
        proof.sentence(),
    )


def test_rule_10_vector_that_ledger_and_store_agree_on_but_no_model_made(shelf: Library) -> None:
    """Hashes alone would not show it: the sample is embedded anew."""
    tamper(shelf, "UPDATE {t} SET embedding = (SELECT embedding FROM {t} WHERE key = '[4]') WHERE key = '[3]'")
    shelf.connection.execute(
        "UPDATE sophia.ledger SET vector_hashes = (SELECT vector_hashes FROM sophia.ledger WHERE key = '[4]') "
        "WHERE key = '[3]'"
    )
    proof = verify(shelf.connection, shelf.version(), PgvectorStore(), shelf.embedder)
    assert proof.difference.empty
    assert not proof.holds


def test_rule_10_document_on_its_way_is_named_so(shelf: Library) -> None:
    shelf.put(1, body="newer")
    shelf.put(60, body="new")
    proof = verify(shelf.connection, shelf.version(), PgvectorStore(), None)
    assert (proof.difference.stale, proof.difference.missing) == (["[1]"], ["[60]"])
    assert sorted(proof.difference.pending) == ["[1]", "[60]"]
    assert "(2 of these are on their way)" in proof.sentence()
    assert not proof.holds


# ---- the tick ---------------------------------------------------------------------------------------------------


def test_tick_of_an_unchanged_index_compares_nothing(shelf: Library) -> None:
    scanning = Scanning(shelf)
    scanning.tick()
    assert (
        scanning.row()["verified"] == shelf.connection.execute("SELECT position FROM sophia.collections").fetchone()[0]
    )
    tamper(shelf, DRIFT["text edited"][0])
    assert scanning.tick() is None
    assert shelf.faults() != [], "what did not change is the deep scan's work"


def test_tick_pages_through_many_changes(shelf: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sophia.indexing.scan.SLICE_KEYS", 3)
    scanning = Scanning(shelf)
    seen = []
    for _ in range(3):
        scanning.clock.now += TICK_SECONDS if not seen else 0
        scanning.scanner.step(shelf.connection, scanning.lease)
        seen.append(scanning.row()["verified"])
    last = shelf.connection.execute("SELECT position FROM sophia.collections").fetchone()
    assert seen == sorted(set(seen)), "a full page is followed by the next at once"
    assert (seen[-1],) == last


def test_document_on_its_way_is_late_and_not_wrong(shelf: Library) -> None:
    """Neither look takes work from the live lane, or from the bulk lane."""
    scanning = Scanning(shelf, hours=1)
    shelf.put(1, body="newer")
    shelf.put(60, body="bulk", bulk=True)
    scanning.tick()
    scanning.cycle()
    assert scanning.row()["found"] == 0
    assert shelf.embedder.texts == []
    scanning.live()
    shelf.repair()
    scanning.tick()
    scanning.cycle()
    assert scanning.row()["found"] == 0
    assert shelf.faults() == []


def test_nothing_is_verified_before_the_first_load_is_over(library: Library) -> None:
    scanning = Scanning(library, hours=1)
    library.put(1)
    scanning.live()
    assert scanning.tick() is None
    library.repair()
    assert scanning.tick() is not None


@pytest.mark.parametrize("drifted", [True, False])
def test_fenced_scan_writes_nothing(shelf: Library, drifted: bool) -> None:
    """Neither a repair, nor how far it is."""
    scanning = Scanning(shelf, hours=1)
    if drifted:
        tamper(shelf, DRIFT["text edited"][0])
    before = shelf.stored()
    with shelf.database.connect() as other:
        shelf.connection.execute("UPDATE sophia.leases SET expires_at = '-infinity'")
        assert Lease.try_take(other, scanning.lease.name, 60) is not None
        with pytest.raises(FencedError):
            scanning.cycle()
        assert shelf.stored() == before
        assert scanning.row()["verified"] == 0


def pages(library: Library, scanning: Scanning, queries: list[tuple[Any, Any]]) -> int:
    """Buffers that one step's statements touch, each explained with its own parameters."""
    total = 0
    for query, params in queries:
        plan = library.connection.execute(
            psycopg.sql.SQL("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) ") + psycopg.sql.SQL(query), params
        ).fetchone()
        node = plan[0][0]["Plan"]
        total += node["Shared Hit Blocks"] + node["Shared Read Blocks"]
    return total


def test_rule_7_tick_does_not_cost_more_with_more_rows(library: Library) -> None:
    """Buffers that the tick's own queries touch, unchanged and with three changes, at 200 and at 20,000 rows."""
    from sophia.indexing.scan import Q

    library.version()
    library.repair()
    scanning = Scanning(library)

    def buffers() -> tuple[int, int]:
        """Of an unchanged index, and of one in which three documents changed."""
        for number in range(3):
            library.put(number, body=f"changed {number}")
        scanning.live()
        position = library.connection.execute("SELECT position FROM sophia.collections").fetchone()[0]
        version = {"version_id": scanning.version.id, "collection_id": scanning.version.collection_id}
        counts = [
            pages(
                library,
                scanning,
                [(Q["state"], version), (Q["changed"], version | {"after": after, "upto": position, "limit": 500})],
            )
            for after in (position, position - 3)
        ]
        cursor = library.connection.execute("SELECT pg_stat_reset_single_table_counters('sophia.documents'::regclass)")
        cursor.fetchall()
        return counts[0], counts[1]

    def rows_read(step: Callable[[], Any]) -> int:
        """Rows that a step read of documents, ledger and store, by the server's own count."""
        query = (
            "SELECT sum(seq_tup_read + COALESCE(idx_tup_fetch, 0))::bigint FROM pg_stat_all_tables "
            "WHERE relid IN ('sophia.documents'::regclass, 'sophia.ledger'::regclass, 'indexes.documents_v1'::regclass)"
        )
        flush = "SELECT pg_stat_force_next_flush()"
        library.connection.execute(flush)
        before = library.connection.execute(query).fetchone()[0]
        step()
        library.connection.execute(flush)
        return int(library.connection.execute(query).fetchone()[0]) - int(before)

    def fill(upto: int) -> None:
        library.connection.execute(
            """
            INSERT INTO sophia.documents (collection_id, key, bucket, position, clock, bulk, body, lsn)
            SELECT %s, '[' || n || ']', n %% 65536, n - 1000000, ARRAY[1, 1, n]::bigint[], n %% 2 = 0,
                   jsonb_build_object('id', n, 'title', 't', 'body', 'b'), '0/1'
            FROM generate_series(1000, 999 + %s) n ON CONFLICT DO NOTHING
            """,
            [scanning.version.collection_id, upto],
        )
        library.connection.execute(
            """
            INSERT INTO sophia.ledger (version_id, key, bucket, clock, state, run)
            SELECT %s, key, bucket, clock, 'applied', 'test' FROM sophia.documents ON CONFLICT DO NOTHING
            """,
            [scanning.version.id],
        )
        library.connection.execute("VACUUM ANALYZE sophia.documents, sophia.ledger")

    figures = []
    for upto in (200, 20_000):
        fill(upto)
        unchanged, changed = buffers()
        scanning.tick()
        read = rows_read(scanning.tick)
        for number in range(3):
            library.put(number, body=f"again {number} {upto}")
        scanning.live()
        read_changed = rows_read(scanning.tick)
        figures.append((unchanged, changed, read, read_changed))
    small, large = figures
    assert small[2] == large[2] == 0, "a tick without changes reads no row"
    assert 0 < large[3] <= 30, "three documents, their ledger entries and rows, whatever the number of others"
    # An index of a hundred times the rows is a level or two deeper.
    assert large[0] <= small[0] + 10, figures
    assert large[1] <= small[1] + 15, figures


# ---- the deep scan ----------------------------------------------------------------------------------------------


def test_slices_cover_all_buckets_and_follow_the_density() -> None:
    slices = Slices(0, BUCKETS - 1, 500)
    covered = []
    held = []
    for scope in slices:
        covered += [scope.first, scope.last + 1]
        keys = (scope.last - scope.first + 1) * 10
        held.append(keys)
        slices.held(keys)
    assert covered[0] == 0
    assert covered[-1] == BUCKETS
    assert covered[1:-1:2] == covered[2::2], "each slice begins where the one before ended"
    assert all(400 <= keys <= 600 for keys in held[3:-1])


def test_cycle_time_is_spread_over_the_buckets_and_shown(shelf: Library) -> None:
    scanning = Scanning(shelf, hours=1)
    for _ in range(2):
        scanning.tick()
    width = scanning.row()["next_bucket"]
    assert 0 < width < BUCKETS
    scanning.scanner._next_tick = float("inf")
    assert scanning.scanner.wait() == pytest.approx(3600 * width / BUCKETS, abs=TICK_SECONDS)
    scanning.scanner._next_tick = 0.0
    assert scanning.row()["cycle_seconds"] is None
    slices = scanning.cycle()
    row = scanning.row()
    assert slices > 1
    assert row["next_bucket"] == 0
    assert row["cycle_seconds"] >= 0
    assert row["cycle_ended_at"] >= row["cycle_began_at"]


def test_scan_can_be_turned_off(shelf: Library) -> None:
    scanning = Scanning(shelf, hours=0)
    for _ in range(5):
        scanning.clock.now += 1e6
        scanning.tick()
    assert scanning.row()["next_bucket"] == 0
    assert scanning.row()["cycle_began_at"] is None


@pytest.mark.parametrize("point", ["scan.found", "scan.mended", "scan.before_commit"])
def test_scan_that_was_cut_off_is_done_again(shelf: Library, point: str) -> None:
    class Killed(BaseException):
        pass

    def kill(name: str) -> None:
        if name == point:
            raise Killed

    tamper(shelf, "DELETE FROM {t}")
    scanning = Scanning(shelf, hours=1)
    failpoints.arm(kill)
    try:
        with pytest.raises(Killed):
            scanning.cycle()
    finally:
        failpoints.arm(None)
    assert scanning.row()["verified"] == 0
    successor = Scanning(shelf, hours=1)
    successor.tick()
    successor.cycle()
    assert shelf.faults() == []


def test_scan_goes_on_where_the_process_before_it_was(shelf: Library) -> None:
    first = Scanning(shelf, hours=1)
    for _ in range(2):
        first.tick()
    reached = first.row()["next_bucket"]
    assert reached > 0
    second = Scanning(shelf, hours=1)
    second.tick()
    assert second.row()["next_bucket"] > reached


# ---- repair in pages ----------------------------------------------------------------------------------------------


def test_repair_looks_at_each_bucket_once(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages begin where the one before ended: the ranges looked at do not overlap by more than a bucket."""
    for number in range(300):
        library.put(number, body=f"text {number}")
    version = library.version()
    looked: list[tuple[int, int]] = []
    execute = psycopg.Connection.execute

    def spy(self: Any, query: Any, params: Any = None, **options: Any) -> Any:
        if isinstance(query, str) and "ORDER BY d.bucket" in query:
            looked.append((params["first"], params["last"]))
        return execute(self, query, params, **options)

    monkeypatch.setattr(psycopg.Connection, "execute", spy)
    repair_shard(library.connection, library.writer(version), 0, batch=10)
    assert len(looked) > 10
    assert [first for first, _ in looked] == sorted(first for first, _ in looked)
    assert len({first for first, _ in looked}) == len(looked)
    monkeypatch.undo()
    library.repair()
    assert library.faults() == []


def test_deep_repair_lets_live_work_in_between_slices(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sophia.indexing.repair.SLICE_KEYS", 10)
    for number in range(200):
        library.put(number, body=f"text {number}")
    library.repair()
    calls = itertools.count()
    figures = repair_shard(
        library.connection, library.writer(), 0, batch=10, deep=True, between=lambda: next(calls) and None
    )
    assert figures.documents == 0
    assert next(calls) >= 10


def test_compare_of_some_keys_sees_only_these(shelf: Library) -> None:
    tamper(shelf, "UPDATE {t} SET content = 'forged' WHERE key IN ('[2]', '[3]')")
    found = compare(shelf.connection, shelf.version(), PgvectorStore(), Scope(keys=(canonical_key([2]),)))
    assert (found.altered, found.compared) == (["[2]"], 1)


def test_number_that_went_through_a_float_is_no_difference(library: Library) -> None:
    """jsonb keeps 1.10 and 30 digits, a float does not: the same value all the same."""
    library.version()
    library.put(1, kind=None)
    library.connection.execute(
        """UPDATE sophia.documents SET body = body || '{"kind": 1.10, "module": 0.1234567890123456789012345}'"""
    )
    library.repair()
    assert library.compare().empty
    tamper(library, """UPDATE {t} SET metadata = metadata || '{{"kind": 1.2}}'""")
    assert library.compare().altered == ["[1]"]


def test_rule_7_edited_vector_is_not_handed_on_to_a_row_of_the_same_text(library: Library) -> None:
    library.put(1, body="shared text")
    library.apply(1)
    library.connection.execute(
        "UPDATE indexes.documents_v1 SET embedding = (SELECT array_agg(0.05)::vector FROM generate_series(1, 384))"
    )
    library.embedder.texts.clear()
    library.put(2, body="shared text")
    library.apply(2)
    assert len(library.embedder.texts) == 1
    library.repair(deep=True)
    assert library.faults() == []

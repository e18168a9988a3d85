"""The live lane: rows that change all the time, what the stored position says, and leases during bulk work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import pytest

from sophia import sql
from sophia.indexing.lane import Lane
from sophia.indexing.leases import Lease
from sophia.stores import PgvectorStore
from tests.integration.library import Library
from tests.waiting import until

RunLoop = Callable[..., Any]
Q = sql.load("indexing")


def lane_of(library: Library) -> Lane:
    return Lane(
        library.version(),
        PgvectorStore(),
        library.embedder,
        library.settings,
        "live",
        lambda version, lane, figures: None,
    )


def test_row_that_changes_all_the_time_is_embedded_now_and_then_and_stays_live(
    library: Library, run_loop: RunLoop
) -> None:
    library.put(1, body="at first")
    run_loop(library.indexer())
    library.level()
    library.embedder.texts.clear()
    other = 100
    began = time.monotonic()
    for number in range(50):
        library.put(1, body=f"change {number}")
        if number % 10 == 0:
            other += 1
            library.put(other, body=f"another row {other}")
    library.level()
    hot = [text for text in library.embedder.texts if "change" in text]
    assert "change 49" in hot[-1]
    # Without rests nearly every change is a batch of its own; between two of them it rests for 25 ms at least.
    assert len(hot) <= 5 + (time.monotonic() - began) / 0.025
    head = library.connection.execute("SELECT position FROM sophia.collections WHERE name = 'documents'").fetchone()
    assert head is not None
    # What was read past the head that a look began with is passed by the next look.
    until(lambda: library.version().position == head[0], "the position")


def test_position_stays_before_a_resting_row(library: Library) -> None:
    lane = lane_of(library)
    library.put(1)
    library.put(2)
    rows = library.rows(1, 2)
    ready, position = lane.choose(rows, [], 2, 10.0)
    assert ([row.key for row in ready], position) == (["[1]", "[2]"], 2)
    library.put(1, body="again")
    library.put(3)
    ready, position = lane.choose(library.rows(1, 3), [], 4, 10.001)
    assert ([row.key for row in ready], position) == (["[3]"], 2), "row 1 rests at position 3"
    assert lane.rested(10.002) == []
    assert lane.rested(11.0) == ["[1]"]
    ready, position = lane.choose([], library.rows(1), 4, 11.0)
    assert ([row.key for row in ready], position) == (["[1]"], 4)


def test_delete_of_a_hot_row_does_not_rest(library: Library) -> None:
    lane = lane_of(library)
    library.put(1)
    lane.choose(library.rows(1), [], 1, 10.0)
    library.put(1, body="again")
    assert lane.choose(library.rows(1), [], 2, 10.001)[0] == []
    library.delete(1)
    ready, position = lane.choose(library.rows(1), [], 3, 10.002)
    assert ([row.deleted for row in ready], position) == ([True], 3)


def test_live_lease_is_renewed_during_long_bulk_work(library: Library, run_loop: RunLoop) -> None:
    """A shard that takes as many forward passes as the test wants."""
    for number in range(20):
        library.put(number, body=f"text {number}", bulk=True)
    lease = f"live/{library.version().id}"
    in_bulk, seen = threading.Event(), threading.Event()
    embed = library.embedder.embed

    def slow(texts: Sequence[str], between: Callable[[], None] = lambda: None) -> Any:
        in_bulk.set()
        while not seen.wait(0.01):
            between()
        return embed(texts)

    def expires() -> datetime:
        row = library.connection.execute("SELECT expires_at FROM sophia.leases WHERE name = %s", [lease]).fetchone()
        assert row is not None
        at: datetime = row[0]
        return at

    library.embedder.embed = slow  # type: ignore[method-assign]
    run_loop(library.indexer(lease_seconds=12.0), wait=False)
    assert in_bulk.wait(60)
    try:
        before = expires()
        until(lambda: expires() > before, "a renewal between two passes")
        with library.database.connect("standby") as standby:
            assert Lease.try_take(standby, lease, 10) is None
    finally:
        seen.set()
    library.level()


def test_versions_are_level_at_rest_whatever_came_in_bulk(library: Library, run_loop: RunLoop) -> None:
    """Else a version made behind bulk documents could not be rolled back from before the next live change."""
    library.put(1)
    first = library.version()
    run_loop(library.indexer())
    library.put(2)
    library.level(first)
    library.put(3, bulk=True)
    changed = library.with_index(template="{title} {body}")
    second = library.version(changed)

    def positions() -> set[int]:
        rows = library.connection.execute("SELECT position FROM sophia.index_versions")
        return {row[0] for row in rows}

    until(lambda: positions() == {3}, "both versions at the newest position")
    assert second.position == 3


@pytest.mark.parametrize("query", ["live", "by_keys"])
def test_the_ledger_is_looked_up_by_key_whatever_its_statistics_say(library: Library, query: str) -> None:
    """They say that it is empty until the server has counted it, and a backlog may come within that minute."""
    version = library.version()
    for number in range(300):
        library.put(number, body=f"text {number}")
    library.apply(*range(300))
    params = {"version_id": version.id, "collection_id": version.collection_id, "position": 0, "limit": 100}
    params |= {"keys": [f"[{number}]" for number in range(100)]}
    rows = library.connection.execute("EXPLAIN " + Q[query], params, prepare=False).fetchall()
    looked_up = [row[0] for row in rows if "Cond" in row[0] and "version_id" in row[0]]
    assert len(looked_up) == 1
    assert "key = d.key" in looked_up[0] or "bucket = d.bucket" in looked_up[0]

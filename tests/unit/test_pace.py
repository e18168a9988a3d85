"""How much to take at once, and when a row that changes often is taken again."""

import itertools

from sophia.documents import Key
from sophia.indexing.pace import FIRST_SIZE, LONGEST_REST, HotRows, Pace

ROW = Key("[1]")


def test_first_batch_is_small() -> None:
    assert Pace().size(10.0, 500) == FIRST_SIZE
    assert Pace().size(10.0, 5) == 5


def test_size_follows_the_cost() -> None:
    pace = Pace()
    pace.took(10, 0.1)
    assert pace.size(0.05, 500) == 5
    for _ in range(30):
        pace.took(100, 0.01)
    assert 400 <= pace.size(0.05, 1_000) <= 500
    assert pace.size(0.05, 100) == 100
    for _ in range(30):
        pace.took(1, 1.0)
    assert pace.size(0.05, 100) == 1, "one document is always taken"


def test_batch_without_documents_teaches_nothing() -> None:
    pace = Pace()
    pace.took(0, 5.0)
    assert pace.size(0.05, 500) == FIRST_SIZE


def test_row_that_was_never_taken_is_due() -> None:
    assert HotRows().due(ROW) <= 0.0


def taken(step: float, until: float) -> list[float]:
    """When a row that changes every `step` seconds is taken."""
    hot, times, now = HotRows(), [], 100.0
    while now < 100.0 + until:
        if hot.due(ROW) <= now:
            hot.take([ROW], now)
            times.append(round(now - 100.0, 3))
        now += step
    return times


def test_hot_row_rests_longer_each_time_up_to_a_limit() -> None:
    times = taken(0.001, 0.6)
    rests = [round(b - a, 3) for a, b in itertools.pairwise(times)]
    assert rests == sorted(rests)
    assert max(rests) <= LONGEST_REST + 0.002
    assert sum(time < 0.15 for time in times) <= 4


def test_row_that_changes_now_and_then_never_waits() -> None:
    assert taken(0.5, 5.0) == [0.5 * n for n in range(10)]


def test_memory_is_bounded_by_the_recent_rows() -> None:
    hot = HotRows()
    for number in range(1_000):
        hot.take([Key(f"[{number}]")], number * 0.01)
    assert len(hot._taken) < 50

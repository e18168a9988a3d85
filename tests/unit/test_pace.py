"""How much to take at once, and when a row that changes often is taken again."""

import itertools

from sophia.documents import Key
from sophia.indexing.pace import FIRST_SIZE, LEAST_SIZE, LONGEST_REST, HotRows, Pace

ROW = Key("[1]")


def test_first_batch_is_small() -> None:
    assert Pace().size(500) == FIRST_SIZE
    assert Pace().size(5) == 5


def test_full_quick_batches_grow() -> None:
    pace = Pace()
    for _ in range(3):
        pace.took(pace.size(10_000), 0.01, 0.05)
    assert pace.size(10_000) == 8 * FIRST_SIZE
    assert pace.size(100) == 100


def test_batches_that_are_not_full_teach_nothing() -> None:
    pace = Pace()
    for _ in range(50):
        pace.took(1, 0.04, 0.05)
        pace.took(0, 5.0, 0.05)
    assert pace.size(500) == FIRST_SIZE


def test_slow_batches_shrink_but_not_to_nothing() -> None:
    pace = Pace()
    pace.took(16, 0.1, 0.05)
    assert pace.size(500) == LEAST_SIZE
    for _ in range(10):
        pace.took(pace.size(500), 1.0, 0.05)
    assert pace.size(500) == LEAST_SIZE


def test_one_slow_document_does_not_shrink_the_batches_after_it() -> None:
    pace = Pace()
    pace.took(16, 0.01, 0.05)
    pace.took(1, 1.0, 0.05)
    assert pace.size(500) == 2 * FIRST_SIZE


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

"""Whether a task takes what is written, told from totals: every way in which these move."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from sophia.estuary.control.movement import Movement, lag_seconds, moved_on

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


def _looks(*totals: tuple[float, float]) -> Movement:
    """Looks a minute apart at (taken, written)."""
    movement: Movement | None = None
    for minute, (docs, written) in enumerate(totals):
        movement = moved_on(movement, docs, written, NOON + timedelta(minutes=minute))
    assert movement is not None
    return movement


@pytest.mark.parametrize(
    ("totals", "moved", "waiting"),
    [
        pytest.param([(5, 9)], False, 0, id="the first look only takes the totals"),
        pytest.param([(5, 5), (5, 5)], False, 0, id="nothing written, nothing waits"),
        pytest.param([(5, 5), (7, 7)], True, 0, id="what was written was taken"),
        pytest.param([(5, 5), (5, 8)], False, 0, id="written just now, not yet late"),
        pytest.param([(5, 5), (5, 8), (5, 8), (5, 8)], False, 120, id="waits since it was first seen"),
        pytest.param([(5, 5), (5, 8), (5, 12), (5, 20)], False, 120, id="more is written, the oldest counts"),
        pytest.param([(5, 5), (5, 8), (6, 8), (6, 8)], False, 0, id="taking some ends the wait"),
        pytest.param([(5, 5), (5, 8), (0, 0)], False, 60, id="a new month does not end the wait by itself"),
        pytest.param([(5, 5), (5, 8), (0, 0), (1, 1)], True, 0, id="taking some in the new month does"),
        pytest.param([(9, 9), (2, 2)], True, 0, id="totals that fell and are not 0 moved"),
        pytest.param([(9, 9), (0, 0), (0, 0)], False, 0, id="a quiet beginning of a month"),
        pytest.param([(9, 9), (0, 0), (0, 4), (0, 4)], False, 60, id="a stall that begins with the month"),
    ],
)
def test_what_waits_is_known_from_two_looks(totals: list[tuple[float, float]], moved: bool, waiting: float) -> None:
    movement = _looks(*totals)
    assert (movement.moved, movement.waiting_seconds) == (moved, waiting)


def test_lag_is_the_distance_of_the_two_fronts_where_estuary_tells_both() -> None:
    quiet = _looks((5, 5), (5, 5))
    assert lag_seconds(quiet, published_at=1_000.0, captured_at=1_012.5) == 12.5
    # Clocks of two tasks may differ by a little.
    assert lag_seconds(quiet, published_at=1_000.0, captured_at=999.0) == 0.0


def test_lag_from_one_front_is_said_only_while_something_flows() -> None:
    published = NOON.timestamp()
    assert lag_seconds(_looks((5, 5), (5, 5)), published, 0.0) is None
    assert lag_seconds(_looks((5, 5), (6, 6)), published, 0.0) == 60.0
    assert lag_seconds(_looks((5, 5), (5, 6)), published, 0.0) == 60.0
    assert lag_seconds(_looks((5, 5), (6, 6)), 0.0, 0.0) is None

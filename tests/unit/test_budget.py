"""The token budget: found by doubling, halved by lack of memory, grown back slowly."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sophia.embedding.budget import GOOD_PASSES, SMALLEST, TokenBudget


def searched(rate: Callable[[int], float], first: int = 256, largest: int = 4_096) -> tuple[int, list[int]]:
    """The budget that was found, and the sizes that were measured."""
    budget = TokenBudget(first)
    measured: list[int] = []

    def note(tokens: int) -> float:
        measured.append(tokens)
        return rate(tokens)

    budget.find(largest, note)
    return budget.tokens, measured


@pytest.mark.parametrize(
    ("rates", "found", "measured"),
    [
        ({256: 100.0, 512: 104.0, 1024: 105.0}, 512, [256, 512, 1024]),
        ({256: 100.0, 512: 102.0}, 256, [256, 512]),
        ({256: 100.0, 512: 90.0}, 256, [256, 512]),
        ({256: 100.0, 512: 200.0, 1024: 400.0, 2048: 0.0}, 1024, [256, 512, 1024, 2048]),
        ({256: 1.0, 512: 2.0, 1024: 4.0, 2048: 8.0, 4096: 16.0}, 4096, [256, 512, 1024, 2048, 4096]),
        ({256: 0.0, 512: 0.0}, 256, [256, 512]),
    ],
    ids=["gain ends", "no gain", "slower", "no memory", "to the end", "nothing could be measured"],
)
def test_search_doubles_while_that_is_faster(rates: dict[int, float], found: int, measured: list[int]) -> None:
    assert searched(rates.__getitem__) == (found, measured)


def test_search_stays_within_the_largest() -> None:
    assert searched(float, first=300, largest=1_000) == (600, [300, 600])


def test_lack_of_memory_halves_what_did_not_fit() -> None:
    budget = TokenBudget(8_192)
    budget.lack(8_000)
    assert budget.tokens == 4_000
    # One that had begun before, or is a single long text.
    budget.lack(8_000)
    assert budget.tokens == 4_000
    budget.lack(3_000)
    assert budget.tokens == 1_500


def test_budget_grows_back_slowly_and_no_further_than_the_best() -> None:
    budget = TokenBudget(1_000)
    budget.lack(1_000)
    seen = []
    while budget.tokens < 1_000:
        passes = 0
        before = budget.tokens
        while budget.tokens == before:
            budget.fit()
            passes += 1
        seen.append((passes, budget.tokens))
    assert seen == [(GOOD_PASSES, 626), (GOOD_PASSES, 783), (GOOD_PASSES, 979), (GOOD_PASSES, 1_000)]


def test_another_lack_begins_the_count_anew() -> None:
    budget = TokenBudget(1_000)
    budget.lack(1_000)
    for _ in range(GOOD_PASSES - 1):
        budget.fit()
    budget.lack(400)
    for _ in range(GOOD_PASSES - 1):
        budget.fit()
    assert budget.tokens == 200
    budget.fit()
    assert budget.tokens == 251


@given(st.integers(SMALLEST, 10_000), st.lists(st.one_of(st.none(), st.integers(1, 20_000)), max_size=400))
def test_budget_stays_between_the_smallest_and_the_best(best: int, events: list[int | None]) -> None:
    budget = TokenBudget(best)
    for tokens in events:
        before = budget.tokens
        if tokens is None:
            budget.fit()
        else:
            budget.lack(tokens)
            assert budget.tokens <= before
        assert SMALLEST <= budget.tokens <= best

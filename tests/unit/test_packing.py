"""Cutting texts into passes: every text once, within the budget, the longest first."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sophia.embedding.packing import pack


@pytest.mark.parametrize("padded", [True, False])
@given(lengths=st.lists(st.integers(0, 600), max_size=200), budget=st.integers(1, 2048))
def test_each_text_once_within_the_budget(padded: bool, lengths: list[int], budget: int) -> None:
    batches = list(pack(lengths, lambda: budget, lambda: None, padded=padded))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        sizes = [lengths[index] for index in batch]
        assert (max(sizes) * len(sizes) if padded else sum(sizes)) <= budget or len(batch) == 1
    firsts = [lengths[index] for batch in batches for index in batch]
    assert firsts == sorted(firsts, reverse=True)


@pytest.mark.parametrize("padded", [True, False])
@given(lengths=st.lists(st.integers(1, 600), min_size=2, max_size=200), budget=st.integers(1, 2048))
def test_no_pass_leaves_out_a_text_that_fits(padded: bool, lengths: list[int], budget: int) -> None:
    batches = list(pack(lengths, lambda: budget, lambda: None, padded=padded))
    for batch, following in pairwise(batches):
        sizes = [lengths[index] for index in [*batch, following[0]]]
        assert (max(sizes) * len(sizes) if padded else sum(sizes)) > budget


@given(st.lists(st.integers(1, 100), max_size=60), st.integers(1, 300), st.data())
def test_budget_is_asked_for_after_between_and_for_each_pass(
    lengths: list[int], budget: int, data: st.DataObject
) -> None:
    log: list[str] = []
    room = budget

    def ask() -> int:
        log.append("budget")
        return room

    def between() -> None:
        nonlocal room
        log.append("between")
        room = data.draw(st.integers(1, budget))

    for batch in pack(lengths, ask, between, padded=False):
        log.append("pass")
        assert sum(lengths[index] for index in batch) <= room or len(batch) == 1
    passes = log.count("pass")
    assert log == (["budget", "pass"] + ["between", "budget", "pass"] * (passes - 1) if passes else [])


def test_texts_of_one_length_keep_their_order() -> None:
    assert list(pack([3, 3, 5, 3], lambda: 6, lambda: None)) == [[2], [0, 1], [3]]

"""The token budget of a forward pass: a property of the device, so it is found by measuring, and follows its memory.

Small passes pay for each launch, large ones fall out of a CPU's cache; between them lies what the device does best.
The search doubles the budget until that gains less than 3 % and is the warm-up at the same time. A pass that does not
fit into memory halves it; after many that did, it grows back slowly.
"""

from __future__ import annotations

from collections.abc import Callable

# A doubling that gains less ends the search.
GAIN = 1.03
# After so many passes without lack of memory the budget grows by `GROWTH`, up to what was found best.
GOOD_PASSES = 100
GROWTH = 1.25
# The budget is not halved below this: what finds no memory then is no matter of budgets.
SMALLEST = 16


class TokenBudget:
    """Tokens of a forward pass. `tokens` is the budget now."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self._best = tokens
        self._good = 0

    def find(self, largest: int, rate: Callable[[int], float]) -> None:
        """Double the budget for as long as that makes passes faster by 3 %, and no further than memory reaches.

        Args:
            largest: where the search ends at the latest.
            rate: measures tokens per second of passes of that many tokens; 0 where memory does not suffice.
        """
        found, best = self.tokens, rate(self.tokens)
        size = found * 2
        while size <= largest:
            now = rate(size)
            if now <= best * GAIN:
                break
            found, best = size, now
            size *= 2
        self.tokens = self._best = found

    def lack(self, tokens: int) -> None:
        """A pass of so many tokens did not fit. One that is larger than the budget says nothing of the budget: it had
        begun before that was lowered, or is a single long text."""
        if tokens <= self.tokens:
            self.tokens = max(SMALLEST, tokens // 2)
            self._good = 0

    def fit(self) -> None:
        """A pass did fit."""
        if self.tokens == self._best:
            return
        self._good += 1
        if self._good >= GOOD_PASSES:
            self.tokens = min(self._best, int(self.tokens * GROWTH) + 1)
            self._good = 0

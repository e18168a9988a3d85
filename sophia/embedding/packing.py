"""How texts are cut into forward passes by a token budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence


def pack(
    lengths: Sequence[int], budget: Callable[[], int], between: Callable[[], None], *, padded: bool = True
) -> Iterator[list[int]]:
    """Batches of indices, longest texts first, each of at most `budget()` tokens.

    Sorted by length, texts of a batch are about equally long: little padding, and attention over equal runs. A text
    longer than the budget is a batch of its own. Longest first, so that a lack of memory shows at once. Between two
    batches `between` is called, and then the budget is asked for again: it may have become smaller.

    Args:
        padded: a batch costs its longest text times its number, instead of the sum of its lengths.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    start = 0
    while start < len(order):
        if start:
            between()
        room = budget()
        end = start
        used = 0
        while end < len(order):
            used = lengths[order[start]] * (end - start + 1) if padded else used + lengths[order[end]]
            if used > room and end > start:
                break
            end += 1
        yield order[start:end]
        start = end

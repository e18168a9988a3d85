"""Whether a task takes what is written to its collection, told from the totals of two looks. Pure.

Estuary gives no lag of a binding, only totals of the month and when the newest document that was taken was published.
That time says something only while documents flow: of a quiet collection it is old, and nothing is late. So a look is
compared with the one before: documents that were written while the task took none wait since then, until it takes some.
Totals begin again with a month; a total that fell counts as moved if it is not 0, and else says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Movement:
    """A task with a collection, as a look saw it.

    Attributes:
        docs, written: documents that the task took, and that were written to the collection, this month.
        moved_at: when the task was last seen to take some; None if never.
        waiting_since: since when documents wait that it does not take; None if none do.
        observed_at: the time of the look.
    """

    docs: float
    written: float
    moved_at: datetime | None
    waiting_since: datetime | None
    observed_at: datetime

    @property
    def moved(self) -> bool:
        """Whether it took documents since the look before."""
        return self.moved_at == self.observed_at

    @property
    def waiting_seconds(self) -> float:
        """How long documents have been waiting, as far as looks tell."""
        if self.waiting_since is None:
            return 0.0
        return max(0.0, (self.observed_at - self.waiting_since).total_seconds())


def moved_on(before: Movement | None, docs: float, written: float, at: datetime) -> Movement:
    """The movement as seen now; the first look only takes the totals."""
    if before is None:
        return Movement(docs, written, None, None, at)
    if _grew(before.docs, docs):
        return Movement(docs, written, at, None, at)
    waiting = before.waiting_since
    if waiting is None and _grew(before.written, written):
        waiting = at
    return Movement(docs, written, before.moved_at, waiting, at)


def _grew(before: float, now: float) -> bool:
    return now > before or 0 < now < before


def lag_seconds(movement: Movement, published_at: float, captured_at: float) -> float | None:
    """How far a task is behind its source's newest document, in seconds; None if nothing can be said.

    Args:
        published_at: when the newest document that it took was published, in seconds since 1970; 0 if unknown.
        captured_at: the same of the newest document that was captured, which newer versions of Estuary tell.
    """
    if not published_at:
        return None
    if captured_at:
        return max(0.0, captured_at - published_at)
    if movement.moved or movement.waiting_since is not None:
        return max(0.0, movement.observed_at.timestamp() - published_at)
    return None

"""Named points at which a test may kill or delay a process: beside every commit, acknowledgement and switch.

Nothing is armed outside of tests. The chaos test (`tests/chaos`) arms one point in a process, which then ends there as
by `kill -9`; docs/guarantees.md lists how often each was hit. A name is `part.moment`, the moment saying which side of
the commit it is on.
"""

from __future__ import annotations

from collections.abc import Callable

_action: Callable[[str], None] | None = None


def arm(action: Callable[[str], None] | None) -> None:
    """From now on call `action` with the name of each point that this process reaches; None disarms."""
    global _action
    _action = action


def failpoint(name: str) -> None:
    """Mark a point. Does nothing unless a test has armed this process."""
    if _action is not None:
        _action(name)

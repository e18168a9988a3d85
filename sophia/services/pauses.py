"""Keeps Python's garbage collector from stopping a process for long, and from looking in vain.

A full collection looks at every object there is, while no thread runs Python. What torch and its companions bring is
half a million objects that stay for ever: a third of a second on a quiet core, at some moment among the first requests.
"""

from __future__ import annotations

import gc


def keep_what_is_loaded() -> None:
    """Have the collector never look again at what is in memory now. For a process of our own that has just loaded all
    it needs: what exists now and becomes garbage of cycles later is never freed."""
    gc.collect()
    gc.freeze()
    # The next one waits for a quarter more than this one found, which is nothing: it comes soon, and is short.
    gc.collect()


def expect_batches() -> None:
    """Have the collector look at new objects by the ten thousand. For a process that reads rows in batches: they are in
    use until the batch is written, form no cycles, and would be looked at again and again, for a fifth of its time."""
    gc.set_threshold(10_000, 10, 10)

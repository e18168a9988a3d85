"""What a process has loaded, or has in use, costs hardly any collection. In processes of their own, since it lasts."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import gc
from weakref import ref
from sophia.services.pauses import keep_what_is_loaded

class Node:
    pass

def ring():
    one, other = Node(), Node()
    one.other, other.other = other, one
    return ref(one)

loaded = [[] for _ in range(200_000)]
garbage = ring()
keep_what_is_loaded()
assert garbage() is None, "garbage was kept for ever"
assert len(gc.get_objects()) < 10_000, "the next full collection looks at everything"
garbage = ring()
# As requests make them: so many that the collector looks by itself.
full = gc.get_stats()[2]["collections"]
for _ in range(200):
    kept = [[] for _ in range(1_000)]
assert gc.get_stats()[2]["collections"] > full, "there was no full collection"
assert garbage() is None, "garbage is not collected any more"
"""


BATCHES = """
import gc
from sophia.services.pauses import expect_batches

expect_batches()
looks = sum(each["collections"] for each in gc.get_stats())
batch = [([], {}) for _ in range(30_000)]
assert sum(each["collections"] for each in gc.get_stats()) - looks < 10, "rows in use are looked at time and again"
"""


def test_what_is_loaded_is_looked_at_no_more_and_garbage_still_is() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_rows_of_a_batch_are_looked_at_seldom() -> None:
    done = subprocess.run([sys.executable, "-c", BATCHES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

"""What is measured on an arm whose workers run. Each function returns its figures."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from typing import Any

from benchmarks.peers.arm import Arm
from benchmarks.peers.workload import Difference, Source

SETTLE_SECONDS = 1.5
HOT_UPDATES = 50
TOUCHED = 15
# Between the small transactions of a change set that is interrupted.
SPACING_SECONDS = 0.01


def initial(arm: Arm, source: Source, rows: int) -> dict[str, Any]:
    """From the start of the workers until every row is there, and how much of it passed before the first embedding."""
    requests, texts = arm.counts()
    started = time.perf_counter()
    arm.start()
    arm.until(lambda: arm.counts()[0] > requests, "the first embedding", look=0.02)
    first = time.perf_counter() - started
    arm.until(lambda: arm.count() >= rows, "the initial load", look=0.02)
    seconds = time.perf_counter() - started
    difference = arm.difference(source)
    paid_requests, paid = arm.counts()
    arm.loaded()
    return {
        "seconds": seconds,
        "start": first,
        "requests": paid_requests - requests,
        "texts": paid - texts,
        "state": str(difference),
    }


def ready(arm: Arm, source: Source) -> None:
    """Until a row has gone in and out of the index."""
    number, body = source.insert()
    arm.until(lambda: arm.content(number) == body, "a first row")
    source.delete(number)
    arm.until(lambda: arm.content(number) is None, "its deletion")


def change_set(arm: Arm, source: Source, share: int) -> dict[str, Any]:
    """Update, delete and insert `share` rows each in one transaction: seconds until they are right, texts embedded."""
    before = arm.counts()[1]
    _pause(arm)
    with source.transaction():
        wanted, gone = _changes(source, share)
    started = time.perf_counter()
    arm.until(lambda: _right(arm, wanted, gone), "the change set", look=0.005)
    seconds = time.perf_counter() - started
    time.sleep(SETTLE_SECONDS)
    return {
        "seconds": seconds,
        "texts": arm.counts()[1] - before,
        "right": 2 * share,
        "state": str(arm.difference(source)),
    }


def latency(arm: Arm, source: Source, changes: int) -> dict[str, list[float]]:
    """Milliseconds from commit until the index's table shows it, of single-row changes."""
    times: dict[str, list[float]] = {"insert": [], "update": [], "delete": []}

    def measured(what: str, started: float, reached: Any) -> None:
        arm.until(reached, what)
        times[what].append((time.perf_counter() - started) * 1000)

    for _ in range(changes):
        _pause(arm)
        number, body = source.insert()
        measured("insert", time.perf_counter(), lambda n=number, b=body: arm.content(n) == b)
        _pause(arm)
        body = source.update(number)
        measured("update", time.perf_counter(), lambda n=number, b=body: arm.content(n) == b)
        _pause(arm)
        source.delete(number)
        measured("delete", time.perf_counter(), lambda n=number: arm.content(n) is None)
    return times


def hot_row(arm: Arm, source: Source) -> dict[str, Any]:
    """One row updated many times in a burst, a transaction each: texts embedded."""
    number = source.ids(1)[0]
    before = arm.counts()[1]
    for _ in range(HOT_UPDATES):
        body = source.update(number)
    arm.until(lambda: arm.content(number) == body, "the hot row")
    time.sleep(SETTLE_SECONDS)
    return {"texts": arm.counts()[1] - before, "state": str(arm.difference(source))}


def touched(arm: Arm, source: Source) -> dict[str, Any]:
    """A column that is not embedded changes: texts embedded."""
    before = arm.counts()[1]
    source.touch(source.ids(TOUCHED))
    # A later row is there: the earlier ones have been dealt with.
    number, body = source.insert()
    arm.until(lambda: arm.content(number) == body, "a row after the touched ones")
    time.sleep(SETTLE_SECONDS)
    return {"texts": arm.counts()[1] - before - 1, "state": str(arm.difference(source))}


def killed(arm: Arm, source: Source, share: int) -> dict[str, Any]:
    """Kill -9 of all workers half-way through a change set of small transactions, start again after it."""
    return _interrupted(arm, source, share, arm.kill, arm.start)


def cut(arm: Arm, source: Source, share: int) -> dict[str, Any]:
    """Every connection of the workers is terminated half-way through a change set; five rows deleted in between."""

    def terminate() -> None:
        arm.reader.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name <> 'client' AND pid <> pg_backend_pid()"
        )
        for number in source.ids(5):
            source.delete(number)

    return _interrupted(arm, source, share, terminate, lambda: None)


def _interrupted(arm: Arm, source: Source, share: int, interrupt: Any, resume: Any) -> dict[str, Any]:
    before, restarts = arm.counts()[1], arm.restarts
    half = threading.Event()

    def write() -> None:
        for done in range(share):
            _changes(source, 1)
            if done == share // 2:
                half.set()
            time.sleep(SPACING_SECONDS)

    writing = threading.Thread(target=write)
    writing.start()
    half.wait()
    interrupt()
    writing.join()
    started = time.perf_counter()
    resume()
    difference = _settled(arm, source)
    seconds = time.perf_counter() - started
    time.sleep(SETTLE_SECONDS)
    return {
        "state": str(arm.difference(source) if difference.exact else difference),
        "seconds": seconds,
        "texts": arm.counts()[1] - before,
        "right": 2 * share,
        "restarts": arm.restarts - restarts,
    }


def _settled(arm: Arm, source: Source) -> Difference:
    """The difference once it is none, or what is left when patience ends."""
    found = [arm.difference(source)]

    def exact() -> bool:
        arm.revive()
        found.append(arm.difference(source))
        return found[-1].exact

    with contextlib.suppress(TimeoutError):
        arm.until(exact, "exactness", look=0.1)
    return found[-1]


def _changes(source: Source, share: int) -> tuple[dict[int, str], list[int]]:
    """Update, delete and insert; (wanted texts, keys that must be gone)."""
    numbers = source.ids(2 * share)
    wanted = {number: source.update(number) for number in numbers[:share]}
    for number in numbers[share:]:
        source.delete(number)
    wanted |= dict(source.insert() for _ in range(share))
    return wanted, numbers[share:]


def _right(arm: Arm, wanted: dict[int, str], gone: list[int]) -> bool:
    return arm.contents([*wanted, *gone]) == wanted


def _pause(arm: Arm) -> None:
    """A random moment of the arm's cycle."""
    time.sleep(random.uniform(0.01, 0.03 + arm.cycle))  # noqa: S311

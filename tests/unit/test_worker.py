"""The loop that runs loops: tries again after temporary faults, and pauses longer only for faults in a row."""

from __future__ import annotations

import threading

import pytest

from sophia.errors import ConfigurationError, TemporaryError
from sophia.services.worker import FIRST_DELAY_SECONDS, Loop, keep_running, run_together
from tests.waiting import until


class Stop(threading.Event):
    """Notes the pauses instead of making them."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.pauses.append(timeout or 0.0)
        return self.is_set()


def pauses(works: list[bool]) -> list[float]:
    """The pauses after faults, each of which came before (False) or after (True) the loop had become ready."""
    stop, ready, left = Stop(), threading.Event(), list(works)

    def run(_stop: threading.Event) -> None:
        if not left:
            return
        if left.pop(0):
            ready.set()
        raise TemporaryError("away")

    keep_running(Loop("test", run, ready), stop)
    assert not ready.is_set()
    return stop.pauses


def test_pauses_grow_while_the_loop_does_not_get_to_work() -> None:
    first = FIRST_DELAY_SECONDS
    assert pauses([False, False, False, False]) == [first, 2 * first, 4 * first, 8 * first]


def test_a_loop_that_worked_again_begins_with_the_shortest_pause() -> None:
    first = FIRST_DELAY_SECONDS
    assert pauses([True, False, False, True, False, True]) == [first, 2 * first, 4 * first, first, 2 * first, first]


def test_what_a_person_must_mend_ends_the_loop() -> None:
    def run(_stop: threading.Event) -> None:
        raise ConfigurationError("mend it")

    with pytest.raises(ConfigurationError, match="mend it"):
        keep_running(Loop("test", run, threading.Event()), Stop())


def test_what_a_person_must_mend_ends_no_other_loop(caplog: pytest.LogCaptureFixture) -> None:
    """The process goes on with the others, says which is not ready, and its exit code tells of it in the end."""
    stop, bad, good = threading.Event(), threading.Event(), threading.Event()
    worked = 0

    def fail(_stop: threading.Event) -> None:
        bad.set()
        raise ConfigurationError("mend it")

    def work(stop: threading.Event) -> None:
        nonlocal worked
        good.set()
        while not stop.wait(0.001):
            worked += 1

    ended: list[BaseException] = []

    def run() -> None:
        try:
            run_together([Loop("bad", fail, bad), Loop("good", work, good)], stop)
        except ConfigurationError as error:
            ended.append(error)

    process = threading.Thread(target=run, daemon=True)
    process.start()
    until(lambda: "bad has ended" in caplog.text, "word of it")
    before = worked
    until(lambda: worked > before, "work of the other")
    assert (bad.is_set(), good.is_set(), stop.is_set(), ended) == (False, True, False, [])
    stop.set()
    process.join(60)
    assert [str(error) for error in ended] == ["mend it"]


def test_what_ended_the_process_is_told_and_not_what_it_outlived(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(_stop: threading.Event) -> None:
        raise ConfigurationError("mend it")

    def fail(_stop: threading.Event) -> None:
        until(lambda: "bad has ended" in caplog.text, "the end of the other")
        raise ZeroDivisionError

    loops = [Loop("bad", refuse, threading.Event()), Loop("good", fail, threading.Event())]
    with pytest.raises(ZeroDivisionError):
        run_together(loops, threading.Event())


def test_a_fault_that_nobody_expects_ends_all_loops() -> None:
    def fail(_stop: threading.Event) -> None:
        raise ZeroDivisionError

    def work(stop: threading.Event) -> None:
        stop.wait(60)

    stop = threading.Event()
    with pytest.raises(ZeroDivisionError):
        run_together([Loop("bad", fail, threading.Event()), Loop("good", work, threading.Event())], stop)
    assert stop.is_set()

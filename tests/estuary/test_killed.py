"""`kill -9` of the stand-in at every point that matters and at random moments: nothing is lost."""

from __future__ import annotations

import itertools
import random
import signal
from collections.abc import Iterator
from multiprocessing import get_context
from typing import Any

import pytest

from sophia import failpoints, inbox
from sophia.documents import Change, Clock, canonical_key
from sophia.estuary.stamps import published_at
from tests.chaos.points import ELSEWHERE
from tests.estuary.recorder import Answer, Recorder, Request
from tests.estuary.scene import Source, state_of
from tests.estuary.stand_in_process import look, main
from tests.waiting import until

CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.estuary.stand_in_process"])
POINTS = [name for name in ELSEWHERE if name.startswith("stand_in.")]


class Process:
    """Stand-ins one after another; what still runs is killed at the end."""

    def __init__(self, source: Source, recorder: Recorder) -> None:
        self.source, self.recorder = source, recorder
        self.running: Any = None

    def start(self, point: str = "") -> None:
        """Forked from a process that has imported all it needs."""
        arguments = (self.source.database.url, self.source.slot, self.source.path, self.recorder.url, point)
        self.running = CONTEXT.Process(target=main, args=arguments, daemon=True)
        self.running.start()

    def died(self) -> bool:
        return self.running is not None and not self.running.is_alive()

    def kill(self) -> None:
        if self.running is not None:
            self.running.kill()
            self.running.join(60)


@pytest.fixture
def process(source: Source, recorder: Recorder) -> Iterator[Process]:
    process = Process(source, recorder)
    yield process
    process.kill()


def received(recorder: Recorder, lost: set[int]) -> dict[int, str]:
    requests = [request for number, request in enumerate(recorder.requests) if number not in lost]
    documents = [document for request in requests if request.path != "/events" for document in request.documents]
    return {number: row["body"] for number, row in state_of(documents).items()}


def test_killed_anywhere_the_stand_in_loses_nothing(source: Source, recorder: Recorder, process: Process) -> None:
    rng = random.Random(11)
    source.execute("CREATE TABLE items (id int PRIMARY KEY, body text)")
    source.execute("INSERT INTO items SELECT n, 'row ' || n FROM generate_series(1, 50) n")
    numbers = itertools.count(51)

    def work() -> None:
        """Some transactions."""
        for _ in range(5):
            number = next(numbers)
            source.execute("INSERT INTO items VALUES (%s, 'new')", number)
            source.execute("UPDATE items SET body = body || '.' WHERE id = %s", rng.randrange(1, number + 1))
            source.execute("DELETE FROM items WHERE id = %s", rng.randrange(1, number + 1))
            source.execute("UPDATE items SET id = id + 10000 WHERE id = %s", rng.randrange(1, number + 1))

    for point in POINTS:
        process.start(point)
        # What it needs to come by the point.
        until(lambda: work() or process.died(), f"death at {point}")
    lost: set[int] = set()

    def kill(number: int, request: Request) -> Answer:
        """In the middle of a request, of which the receiver has taken nothing."""
        if number < wanted or request.path == "/events":
            return 200
        lost.add(number - 1)
        process.kill()
        return None

    for _ in range(2):
        wanted = len(recorder.requests) + rng.randrange(1, 6)
        recorder.answer = kill
        process.start()
        until(lambda: work() or process.died(), "death in a request")
    recorder.answer = lambda number, request: 200
    work()
    process.start()

    def truth() -> dict[int, str]:
        return {row[0]: row[1] for row in source.connection.execute("SELECT id, body FROM items")}

    until(lambda: received(recorder, lost) == truth(), "what the table has", 60)
    clocks = [entry.clock for entry in source.entries()]
    assert clocks == sorted(set(clocks)), "a document is twice in the journal, or out of its order"
    last = f'{{"max":"{published_at(clocks[-1])}"}}'.encode()
    until(lambda: any(request.body == last for request in recorder.requests), "the trigger of the last commit")


def test_a_point_that_no_test_arms_does_nothing() -> None:
    for name in POINTS:
        failpoints.failpoint(name)


@pytest.mark.parametrize("point", [name for name in ELSEWHERE if name.startswith("estuary.")])
def test_killed_while_rows_are_looked_up_all_or_nothing_is_done(source: Source, point: str) -> None:
    """An orphan, and a request for its key: dead before the commit nothing is done, dead behind it all of it."""
    connection = source.connection
    source.execute("CREATE TABLE items (id int PRIMARY KEY)")
    number = inbox.ensure_collection(connection, "items", ["id"])
    inbox.accept(connection, "items", [Change(canonical_key([1]), "c", Clock(1, 5, 0), {"id": 1})])
    source.execute("INSERT INTO sophia.rereads VALUES (%s, '[1]', '{1,7,0}', 'a test')", number)

    def left() -> tuple[Any, ...] | None:
        return connection.execute(
            "SELECT clock, deleted, (SELECT count(*) FROM sophia.rereads) FROM sophia.documents"
        ).fetchone()

    def run(armed: str) -> Any:
        process = CONTEXT.Process(target=look, args=(source.database.url, armed), daemon=True)
        process.start()
        process.join(60)
        return process.exitcode

    before = left()
    position = 7 if "reread" in point else 5
    after = ([1, position, 1], True, 0 if "reread" in point else 1)
    assert run(point) == -signal.SIGKILL
    # A server notices a dead client's transaction when it reads from it.
    until(lambda: left() == (before if "before" in point else after), "what the killed one left")
    assert run(point.partition(".before")[0].partition(".after")[0] + ".again") == 0
    assert left() == after

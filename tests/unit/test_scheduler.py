"""One embedder for many threads, on a device whose every forward pass the test can hold up."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sophia.catalog.models import Precision
from sophia.embedding import lanes
from sophia.embedding.base import EmbeddingFigures, Engine, Kind, RefusedTextsError, Vectors
from sophia.embedding.lanes import Pace, Queue, Request
from sophia.embedding.packing import pack
from sophia.embedding.scheduler import BULK_SECONDS, ONLINE_SECONDS, Lane, OverloadedError, Scheduler
from sophia.errors import TemporaryError
from tests.embedders import hash_vector
from tests.waiting import until

DIMENSION = 8
WAIT = 30.0
# Of twelve characters, hence five estimated tokens.
TEXT_TOKENS = 5


def text(name: object) -> str:
    return f"{name!s:>12}"


def texts(name: str, number: int) -> list[str]:
    return [text(f"{name} {i}") for i in range(number)]


class PowerCutError(BaseException):
    """No `Exception`: nobody may catch it."""


class HereEngine:
    """Says that the model is computed on this machine."""

    device: Literal["cpu", "cuda"] = "cpu"
    number: str | None = None
    budget_tokens = 4_096

    def flop_per_token(self, length: float) -> float | None:
        return None


@dataclass
class Pass:
    kind: str
    texts: list[str]
    pass_tokens: int | None


class Device:
    """Implements `Embedder`. A vector is a function of kind and text.

    Attributes:
        passes: every forward pass, noted when it begins.
        on_pass: called within each pass; may block or raise.
        rate: tokens of a second, as the figures say. No pass really takes time.
        overhead: seconds that each pass takes beside.
    """

    tokenizer: Any = None
    precision: Precision = "exact"
    backend = "device"
    fingerprint = "f"
    dimension = DIMENSION
    max_tokens = 256

    def __init__(self, rate: float = 3_200.0, overhead: float = 0.0) -> None:
        self.engine: Engine | None = HereEngine()
        self.figures = EmbeddingFigures()
        self.pass_tokens: int | None = 1_000_000
        self.passes: list[Pass] = []
        self.on_pass: Callable[[Pass], None] = lambda _: None
        self.rate = rate
        self.overhead = overhead
        self._user = threading.Lock()

    def embed(
        self, texts: Sequence[str], between: Callable[[], None] = lambda: None, *, kind: Kind = "document"
    ) -> Vectors:
        vectors = np.zeros((len(texts), DIMENSION), dtype=np.float32)
        reasons = {}
        counts = [len(each) // 4 + 2 for each in texts]
        for places in pack(counts, lambda: min(4_096, self.pass_tokens or 4_096), between, padded=False):
            self._compute(Pass(kind, [texts[i] for i in places], self.pass_tokens))
            for i in places:
                if "refuse" in texts[i]:
                    reasons[i] = f"refused {texts[i]}"
                else:
                    vectors[i] = vector(texts[i], kind)
        if reasons:
            raise RefusedTextsError(vectors, reasons)
        return vectors

    def embed_query(self, text: str) -> Vectors:
        found: Vectors = self.embed([text], kind="query")[0]
        return found

    def probe(self, texts: Sequence[str]) -> Vectors:
        self._compute(Pass("probe", list(texts), None))
        return vectors_of(list(texts), "probe")

    def _compute(self, work: Pass) -> None:
        assert self._user.acquire(blocking=False), "two threads use the embedder at once"
        try:
            self.passes.append(work)
            self.on_pass(work)
        finally:
            self._user.release()
        tokens = sum(len(each) // 4 + 2 for each in work.texts)
        self.figures.passes += 1
        self.figures.tokens += tokens
        self.figures.seconds += self.overhead + tokens / self.rate


class Steps:
    """Holds up every pass of a device until the test lets it go."""

    def __init__(self, device: Device) -> None:
        self._reached = threading.Semaphore(0)
        self._go = threading.Semaphore(0)
        self._open = False
        device.on_pass = self._step

    def _step(self, _: Pass) -> None:
        if not self._open:
            self._reached.release()
            assert self._go.acquire(timeout=WAIT)

    def reach(self) -> None:
        """Wait until a pass has begun."""
        assert self._reached.acquire(timeout=WAIT), "no pass begins"

    def go(self) -> None:
        """Let the pass that is held up end."""
        self._go.release()

    def open(self) -> None:
        """Hold up nothing any more."""
        self._open = True
        self._go.release()


def vector(text: str, kind: str) -> Vectors:
    return hash_vector(f"{kind}:{text}", DIMENSION)


def vectors_of(texts: list[str], kind: str = "document") -> Vectors:
    return np.stack([vector(each, kind) for each in texts]) if texts else np.empty((0, DIMENSION), dtype=np.float32)


def assert_vectors(future: Future[Vectors], texts: list[str], kind: str = "document") -> None:
    assert np.array_equal(future.result(WAIT), vectors_of(texts, kind))


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
def steps(device: Device) -> Iterator[Steps]:
    steps = Steps(device)
    yield steps
    steps.open()


@pytest.fixture
def scheduler(device: Device) -> Iterator[Scheduler]:
    scheduler = Scheduler(device, online_tokens=1_000, bulk_tokens=1_000)
    yield scheduler
    device.on_pass = lambda _: None
    scheduler.close(WAIT)


@pytest.fixture
def held(scheduler: Scheduler, device: Device, steps: Steps) -> Iterator[Future[Vectors]]:
    """An online request whose pass is held up: whatever is submitted now waits."""
    future = scheduler.submit([text("first")])
    steps.reach()
    yield future
    steps.open()


def in_thread(call: Callable[[], Any]) -> Future[Any]:
    """The outcome of a call in a thread of its own."""
    outcome: Future[Any] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome


def test_online_request_overtakes_a_running_bulk_job(scheduler: Scheduler, device: Device, steps: Steps) -> None:
    jobs = texts("bulk", 60)
    bulk = scheduler.submit(jobs, lane="bulk")
    steps.reach()
    online = scheduler.submit([text("online")])
    steps.go()
    steps.reach()
    assert device.passes[1].texts == [text("online")]
    assert not online.done()
    steps.go()
    steps.reach()
    assert online.done()
    assert not bulk.done()
    steps.open()
    assert_vectors(online, [text("online")])
    assert_vectors(bulk, jobs)


@pytest.mark.parametrize("rate", [300.0, 20_000.0, 300_000.0])
def test_bulk_passes_are_bounded_in_time_and_use_it(rate: float) -> None:
    device = Device(rate)
    scheduler = Scheduler(device, online_tokens=1_000, bulk_tokens=100_000)
    jobs = texts("bulk", 4_000)
    assert_vectors(scheduler.submit(jobs, lane="bulk"), jobs)
    scheduler.close(WAIT)
    tokens = [sum(len(each) // 4 + 2 for each in work.texts) for work in device.passes]
    bound = max(TEXT_TOKENS, rate * BULK_SECONDS)
    # The first pass of a device that is slower than was supposed may be longer.
    assert max(tokens[5:]) <= bound
    assert sorted(tokens)[len(tokens) // 2] >= min(bound / 2, 512), "passes are shorter than they need to be"
    assert device.pass_tokens == 1_000_000, "the embedder's own setting was not put back"


def test_online_passes_are_not_cut_and_slow_short_ones_do_not_cut_bulk_passes() -> None:
    device = Device(rate=100_000, overhead=0.002)
    scheduler = Scheduler(device, online_tokens=10_000, bulk_tokens=100_000)
    asked: list[Future[Vectors]] = []

    def ask(work: Pass) -> None:
        if work.kind == "document":
            asked.append(scheduler.submit([text("query")], kind="query"))

    device.on_pass = ask
    scheduler.submit(texts("bulk", 4_000), lane="bulk").result(WAIT)
    bulk = [len(work.texts) * TEXT_TOKENS for work in device.passes if work.kind == "document"]
    assert 100_000 * (BULK_SECONDS - 0.002) / 2 <= max(bulk) <= 100_000 * BULK_SECONDS
    assert len(asked) == len(bulk)
    longer = texts("long", 400)
    device.passes.clear()
    device.on_pass = lambda _: None
    assert_vectors(scheduler.submit(longer, kind="query"), longer, "query")
    scheduler.close(WAIT)
    assert [len(work.texts) for work in device.passes if work.texts[0] == longer[0]] == [400]


def test_pass_tokens_bound_bulk_passes_further(scheduler: Scheduler, device: Device) -> None:
    scheduler.pass_tokens = 2 * TEXT_TOKENS
    scheduler.submit(texts("bulk", 20), lane="bulk").result(WAIT)
    assert [len(work.texts) for work in device.passes] == [2] * 10


def test_passes_of_an_endpoint_are_not_cut(device: Device, scheduler: Scheduler) -> None:
    device.engine = None
    scheduler.pass_tokens = None
    scheduler.submit(texts("bulk", 100), lane="bulk").result(WAIT)
    assert [len(work.texts) for work in device.passes] == [100]


def test_pace_shrinks_when_passes_are_slow_and_never_to_nothing() -> None:
    pace = Pace(0.010)
    first = pace.tokens
    pace.took(EmbeddingFigures(passes=1, tokens=first, padding=first, seconds=0.020))
    assert pace.tokens == first, "padding is computed too"
    for _ in range(100):
        pace.took(EmbeddingFigures(passes=1, tokens=1, seconds=5.0))
    assert pace.tokens == 1


def test_pace_learns_nothing_from_a_short_pass_within_the_time() -> None:
    pace = Pace(0.010)
    pace.took(EmbeddingFigures(passes=1, tokens=2, seconds=0.009))
    pace.took(EmbeddingFigures(passes=0, tokens=0, seconds=0.0))
    assert pace.rate == lanes.FIRST_RATE


def test_online_beyond_the_bound_is_refused_at_once_and_room_comes_back(
    scheduler: Scheduler, held: Future[Vectors], steps: Steps
) -> None:
    accepted = [scheduler.submit(texts("many", 20)) for _ in range(10)]
    assert scheduler.waiting("online") == 1_000
    with pytest.raises(OverloadedError, match="online lane") as refused:
        scheduler.submit([text("one more")])
    assert 1 <= refused.value.retry_after <= 60
    assert scheduler.waiting("online") == 1_000
    steps.open()
    for future in accepted:
        assert_vectors(future, texts("many", 20))
    assert scheduler.waiting("online") == 0
    assert_vectors(scheduler.submit([text("one more")]), [text("one more")])


def test_retry_after_follows_the_tokens_and_the_rate(device: Device, steps: Steps) -> None:
    scheduler = Scheduler(device, online_tokens=10**9, bulk_tokens=10 * TEXT_TOKENS)
    scheduler.submit([text("first")])
    steps.reach()
    scheduler.submit(texts("bulk", 10), lane="bulk")
    waits = []
    # What waits in the online lane is computed before any bulk job.
    for waiting in (0, 10, 1_000):
        scheduler.submit(["x" * 1_000] * waiting)
        with pytest.raises(OverloadedError) as refused:
            scheduler.submit([text("more")], lane="bulk")
        waits.append(refused.value.retry_after)
    assert waits == [1, 1, 60]
    steps.open()
    scheduler.close(WAIT)


def test_bulk_waits_for_room_in_the_order_in_which_it_came(
    scheduler: Scheduler, held: Future[Vectors], device: Device, steps: Steps
) -> None:
    most = 0

    def look(_: Pass) -> None:
        nonlocal most
        most = max(most, scheduler.waiting("bulk"))

    jobs = [texts(f"job {number}", 90) for number in range(12)]
    outcomes = [in_thread(lambda job=job: scheduler.submit(job, lane="bulk", wait=True)) for job in jobs]
    until(lambda: sum(outcome.done() for outcome in outcomes) == 2, "two jobs of 450 tokens")
    with pytest.raises(OverloadedError):
        # It would have room, but would overtake those who wait.
        scheduler.submit([text("small")], lane="bulk")
    device.on_pass = look
    steps.open()
    for job, outcome in zip(jobs, outcomes, strict=True):
        assert_vectors(outcome.result(WAIT), job)
    assert 450 <= most <= 1_000
    assert scheduler.waiting("bulk") == 0


def test_who_gives_up_waiting_for_room_lets_the_next_one_in() -> None:
    room = threading.Condition()
    queue = Queue(10, Pace(0.010), room)
    checked: list[str] = []
    gives_up: list[str] = []

    def put(name: str) -> bool:
        def check() -> None:
            checked.append(name)
            if name in gives_up:
                raise InterruptedError

        with room:
            return queue.put(Request([text(name)] * 2, "document", lambda: None, 256, DIMENSION), True, check)

    assert put("first")
    outcomes = {}
    for name in ("impatient", "patient"):
        outcomes[name] = in_thread(lambda name=name: put(name))
        until(lambda name=name: name in checked, "the submitter")
    # Who has checked holds the lock until it waits.
    with room:
        queue.tokens = 0
        gives_up.append("impatient")
        room.notify(1)
    with pytest.raises(InterruptedError):
        outcomes["impatient"].result(WAIT)
    assert outcomes["patient"].result(WAIT)


def test_request_beyond_the_whole_bound_is_taken_when_its_lane_is_empty(
    scheduler: Scheduler, held: Future[Vectors], steps: Steps
) -> None:
    small = scheduler.submit(texts("small", 2), lane="bulk")
    huge = texts("huge", 300)
    with pytest.raises(OverloadedError):
        scheduler.submit(huge, lane="bulk")
    outcome = in_thread(lambda: scheduler.submit(huge, lane="bulk", wait=True))
    steps.open()
    assert_vectors(small, texts("small", 2))
    assert_vectors(outcome.result(WAIT), huge)


def test_long_texts_count_for_what_the_model_sees(scheduler: Scheduler, held: Future[Vectors]) -> None:
    scheduler.submit(["x" * 100_000], lane="bulk")
    assert scheduler.waiting("bulk") == 256


@pytest.mark.parametrize("lane", ["online", "bulk"])
def test_cancelled_before_it_began_is_dropped_and_its_room_is_free_at_once(
    lane: Lane, scheduler: Scheduler, held: Future[Vectors], device: Device, steps: Steps
) -> None:
    doomed = scheduler.submit(texts("doomed", 200), lane=lane)
    kept = in_thread(lambda: scheduler.submit(texts("kept", 200), lane=lane, wait=True))
    until(lambda: scheduler.waiting(lane) == 1_000, "the first of them")
    assert doomed.cancel()
    # Nothing was computed meanwhile: the room is what the cancelled one had.
    future = kept.result(WAIT)
    assert scheduler.waiting(lane) == 1_000
    assert future.cancel()
    assert scheduler.waiting(lane) == 0
    assert concurrent.futures.wait([doomed, future], WAIT).not_done == set()
    last = scheduler.submit([text("last")], lane=lane)
    steps.open()
    assert_vectors(last, [text("last")])
    assert {each for work in device.passes for each in work.texts} == {text("first"), text("last")}


def test_bulk_job_that_is_cancelled_stops_at_the_next_pass(scheduler: Scheduler, device: Device, steps: Steps) -> None:
    job = scheduler.submit(texts("job", 600), lane="bulk")
    steps.reach()
    steps.go()
    steps.reach()
    assert job.cancel()
    assert scheduler.waiting("bulk") == 0
    other = scheduler.submit(texts("other", 2), lane="bulk")
    steps.open()
    assert_vectors(other, texts("other", 2))
    assert [work.texts[0].split()[0] for work in device.passes] == ["job", "job", "other"]
    with pytest.raises(CancelledError):
        job.result(0)


def test_long_online_request_that_is_cancelled_stops_at_the_next_pass(
    scheduler: Scheduler, device: Device, steps: Steps
) -> None:
    long = scheduler.submit(texts("long", 2_000))
    steps.reach()
    assert long.cancel()
    steps.open()
    assert_vectors(scheduler.submit([text("next")]), [text("next")])
    assert [work.texts[0].split()[0] for work in device.passes] == ["long", "next"]


def test_asyncio_caller_that_leaves_cancels(scheduler: Scheduler, held: Future[Vectors], steps: Steps) -> None:
    async def leave() -> None:
        future = asyncio.wrap_future(scheduler.submit(texts("job", 10), lane="bulk"))
        await asyncio.sleep(0)
        assert scheduler.waiting("bulk") == 50
        future.cancel()
        await asyncio.wait([future])

    asyncio.run(leave())
    assert scheduler.waiting("bulk") == 0


def test_waiting_online_requests_are_computed_together_and_each_gets_its_own(
    scheduler: Scheduler, held: Future[Vectors], device: Device, steps: Steps
) -> None:
    asked: list[tuple[list[str], Kind]] = [
        (texts("a", 3), "document"),
        (texts("a", 1), "query"),
        (texts("b", 1), "document"),
        (texts("c", 2), "query"),
        (texts("d", 4), "document"),
    ]
    futures = [scheduler.submit(each, kind=kind) for each, kind in asked]
    probe = in_thread(lambda: scheduler.probe(texts("probe", 2)))
    until(lambda: scheduler.waiting("online") == 13 * TEXT_TOKENS, "the probe")
    steps.open()
    for future, (each, kind) in zip(futures, asked, strict=True):
        assert_vectors(future, each, kind)
    assert np.array_equal(probe.result(WAIT), vectors_of(texts("probe", 2), "probe"))
    assert [(work.kind, len(work.texts)) for work in device.passes[1:]] == [("document", 8), ("query", 3), ("probe", 2)]


def test_first_of_a_flood_does_not_wait_for_all_of_it(
    scheduler: Scheduler, held: Future[Vectors], device: Device, steps: Steps
) -> None:
    futures = [scheduler.submit([text(number)]) for number in range(100)]
    steps.go()
    steps.reach()
    assert 1 < len(device.passes[1].texts) <= ONLINE_SECONDS * lanes.FIRST_RATE / TEXT_TOKENS
    steps.go()
    steps.reach()
    done = [future.done() for future in futures]
    assert done == sorted(done, reverse=True)
    assert any(done)
    assert not all(done)
    steps.open()
    for number, future in enumerate(futures):
        assert_vectors(future, [text(number)])


def test_refused_texts_of_one_request_do_not_fail_its_neighbours(
    scheduler: Scheduler, held: Future[Vectors], device: Device, steps: Steps
) -> None:
    before = scheduler.submit(texts("before", 2))
    mixed = [text("good"), text("refuse 1"), text("fine"), text("refuse 2")]
    refused = scheduler.submit(mixed)
    after = scheduler.submit(texts("after", 2))
    steps.open()
    assert_vectors(before, texts("before", 2))
    assert_vectors(after, texts("after", 2))
    with pytest.raises(RefusedTextsError) as error:
        refused.result(WAIT)
    assert error.value.reasons == {1: f"refused {mixed[1]}", 3: f"refused {mixed[3]}"}
    assert np.array_equal(error.value.vectors[[0, 2]], vectors_of([mixed[0], mixed[2]]))
    assert not error.value.vectors[[1, 3]].any()
    assert len(device.passes) == 2, "they were not computed together"


def test_refused_texts_of_a_bulk_job_are_named_by_their_place_in_all_of_it(
    scheduler: Scheduler, device: Device
) -> None:
    job = texts("bulk", 900)
    job[3] = text("refuse 3")
    job[899] = text("refuse 899")
    with pytest.raises(RefusedTextsError) as error:
        scheduler.submit(job, lane="bulk").result(WAIT)
    assert sorted(error.value.reasons) == [3, 899]
    good = [place for place in range(900) if place not in (3, 899)]
    assert np.array_equal(error.value.vectors[good], vectors_of([job[place] for place in good]))


def test_any_other_failure_ends_the_requests_of_its_pass_only(
    scheduler: Scheduler, held: Future[Vectors], device: Device, steps: Steps
) -> None:
    def fail(work: Pass) -> None:
        if any("poison" in each for each in work.texts):
            raise TemporaryError("the endpoint is away")

    neighbour = scheduler.submit([text("a")], kind="query")
    poison = scheduler.submit([text("poison")], kind="query")
    document = scheduler.submit([text("b")])
    bulk = scheduler.submit(texts("bulk", 50), lane="bulk")
    poisoned = scheduler.submit([*texts("bulk", 140), text("poison")], lane="bulk")
    device.on_pass = fail
    steps.open()
    for future in (neighbour, poison, poisoned):
        with pytest.raises(TemporaryError, match="endpoint is away"):
            future.result(WAIT)
    assert_vectors(document, [text("b")])
    assert_vectors(bulk, texts("bulk", 50))
    assert scheduler.waiting("bulk") == 0
    assert_vectors(scheduler.submit([text("later")]), [text("later")])


def test_online_failure_between_bulk_passes_does_not_touch_the_job(scheduler: Scheduler, device: Device) -> None:
    asked: list[Future[Vectors]] = []

    def fail(work: Pass) -> None:
        if work.kind == "query":
            raise ValueError("query")
        if not asked:
            asked.append(scheduler.submit([text("query")], kind="query"))

    device.on_pass = fail
    job = texts("bulk", 50)
    assert_vectors(scheduler.submit(job, lane="bulk"), job)
    with pytest.raises(ValueError, match="query"):
        asked[0].result(WAIT)


def test_death_of_the_thread_fails_all_that_waits_and_all_that_comes(
    scheduler: Scheduler, held: Future[Vectors], device: Device, steps: Steps, caplog: pytest.LogCaptureFixture
) -> None:
    futures = [
        held,
        scheduler.submit([text("online")]),
        scheduler.submit(texts("bulk", 200), lane="bulk"),
    ]
    line = in_thread(lambda: scheduler.submit([text("more")], lane="bulk", wait=True))
    until(lambda: scheduler.waiting("bulk") == 1_000, "the job")

    def cut(_: Pass) -> None:
        raise PowerCutError("a secret text")

    device.on_pass = cut
    steps.open()
    for future in futures[1:]:
        with pytest.raises(TemporaryError, match="died of PowerCutError; restart the process"):
            future.result(WAIT)
    with pytest.raises(TemporaryError, match="died of PowerCutError"):
        line.result(WAIT)
    for lane in ("online", "bulk"):
        with pytest.raises(TemporaryError, match="died of PowerCutError"):
            scheduler.submit([text("later")], lane=lane, wait=True)
        assert scheduler.waiting(lane) == 0
    assert "a secret text" not in caplog.text


def test_close_finishes_what_was_accepted_and_takes_nothing_more(device: Device, steps: Steps) -> None:
    threads = set(threading.enumerate())
    scheduler = Scheduler(device, online_tokens=1_000, bulk_tokens=1_000)
    (mine,) = set(threading.enumerate()) - threads
    bulk = scheduler.submit(texts("bulk", 200), lane="bulk")
    steps.reach()
    online = [scheduler.submit([text(number)]) for number in range(30)]
    line = in_thread(lambda: scheduler.submit(texts("line", 200), lane="bulk", wait=True))
    closing = in_thread(lambda: scheduler.close(WAIT))
    with pytest.raises(TemporaryError, match="closed"):
        until(lambda: scheduler.submit([text("late")]).cancel() and None, "the refusal")
    steps.open()
    assert_vectors(bulk, texts("bulk", 200))
    for number, future in enumerate(online):
        assert_vectors(future, [text(number)])
    # It waited for room, so it was never accepted: refused, and not left waiting.
    with pytest.raises(TemporaryError, match="closed"):
        line.result(WAIT)
    assert closing.result(WAIT) is None
    assert not mine.is_alive()
    scheduler.close(WAIT)


def test_close_fails_what_is_not_done_in_time_and_the_thread_ends_behind_its_pass(device: Device, steps: Steps) -> None:
    threads = set(threading.enumerate())
    scheduler = Scheduler(device, online_tokens=1_000, bulk_tokens=1_000)
    (mine,) = set(threading.enumerate()) - threads
    futures = [scheduler.submit(texts("bulk", 150), lane="bulk")]
    steps.reach()
    futures += [scheduler.submit([text("online")]), scheduler.submit(texts("other", 10), lane="bulk")]
    scheduler.close(0)
    for future in futures:
        with pytest.raises(TemporaryError, match="closed before this was computed"):
            future.result(0)
    assert (scheduler.waiting("online"), scheduler.waiting("bulk")) == (0, 0)
    steps.go()
    until(lambda: not mine.is_alive(), "the end of the thread")
    assert len(device.passes) == 1


@pytest.mark.parametrize("lane", ["online", "bulk"])
def test_what_was_answered_is_given_back_at_once(device: Device, lane: Lane) -> None:
    """Texts and vectors may be megabytes: they do not wait for the garbage collector."""
    scheduler = Scheduler(device, online_tokens=1_000, bulk_tokens=1_000)
    gc.disable()
    try:
        future = scheduler.submit([text("one")], lane=lane)
        future.result(WAIT)
        left = weakref.ref(future)
        del future
        until(lambda: left() is None, "its end")
    finally:
        gc.enable()
        scheduler.close(WAIT)


def test_huge_bulk_jobs_do_not_starve_small_ones(device: Device, steps: Steps) -> None:
    scheduler = Scheduler(device, online_tokens=1_000, bulk_tokens=10**9)
    scheduler.submit([text("first")])
    steps.reach()
    order: list[str] = []
    for name, number in (("huge", 3_000), ("small", 3), ("huge too", 3_000), ("tiny", 1)):
        future = scheduler.submit(texts(name, number), lane="bulk")
        future.add_done_callback(lambda _, name=name: order.append(name))
    steps.open()
    scheduler.close(WAIT)
    assert order == ["small", "tiny", "huge", "huge too"]


def test_online_requests_without_end_do_not_starve_a_bulk_job(scheduler: Scheduler, device: Device) -> None:
    job: list[Future[Vectors]] = []

    def flood(work: Pass) -> None:
        # Each online pass brings the next, so that the lane is never empty.
        if work.kind == "query" and not (job and job[0].done()):
            scheduler.submit([text("query")], kind="query")

    device.on_pass = flood
    scheduler.submit([text("query")], kind="query")
    job.append(scheduler.submit(texts("bulk", 30), lane="bulk"))
    assert_vectors(job[0], texts("bulk", 30))


def test_between_is_called_between_the_passes_of_a_job_and_may_embed(scheduler: Scheduler, device: Device) -> None:
    calls: list[int] = []
    inner: list[Vectors] = []

    def between() -> None:
        calls.append(len(device.passes))
        if len(calls) == 2:
            # On the scheduler's own thread, which would wait for itself.
            inner.append(scheduler.embed([text("inner")]))
            inner.append(scheduler.embed_query("inner")[None])
            with pytest.raises(RuntimeError, match="would wait for itself"):
                scheduler.submit([text("inner")], lane="bulk", wait=True)

    job = texts("bulk", 900)
    found = in_thread(lambda: scheduler.embed(job, between)).result(WAIT)
    assert np.array_equal(found, vectors_of(job))
    assert np.array_equal(inner[0], vectors_of([text("inner")]))
    assert np.array_equal(inner[1], vectors_of(["inner"], "query"))
    assert len(calls) == len(device.passes) - 2 - 1
    assert calls == sorted(set(calls))


def test_between_that_raises_fails_its_job_alone(scheduler: Scheduler) -> None:
    def between() -> None:
        raise LookupError("stop")

    with pytest.raises(LookupError, match="stop"):
        scheduler.embed(texts("bulk", 50), between)
    assert np.array_equal(scheduler.embed(texts("next", 50)), vectors_of(texts("next", 50)))


def test_it_is_an_embedder(scheduler: Scheduler, device: Device) -> None:
    for name in ("fingerprint", "precision", "backend", "dimension", "max_tokens", "tokenizer", "engine", "figures"):
        assert getattr(scheduler, name) is getattr(device, name)
    assert np.array_equal(scheduler.embed_query("q"), vector("q", "query"))
    assert np.array_equal(scheduler.probe(["p"]), vectors_of(["p"], "probe"))
    assert scheduler.submit([]).result(WAIT).shape == (0, DIMENSION)
    assert scheduler.embed([], kind="query").shape == (0, DIMENSION)


Ask = tuple[Lane, Kind, int, int, Literal["", "refuse", "poison", "cancel"]]
ASKS = st.tuples(
    st.sampled_from(["online", "bulk"]),
    st.sampled_from(["document", "query"]),
    st.integers(0, 40),
    st.integers(0, 200),
    st.sampled_from(["", "", "", "refuse", "poison", "cancel"]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(ASKS, max_size=8), min_size=1, max_size=4), st.sampled_from([300.0, 5_000.0, 10**6]))
def test_every_accepted_future_ends_with_its_own_vectors(clients: list[list[Ask]], rate: float) -> None:
    device = Device(rate)
    scheduler = Scheduler(device, online_tokens=300, bulk_tokens=1_500)

    def fail(work: Pass) -> None:
        if any("poison" in each for each in work.texts):
            raise ValueError("poison")

    device.on_pass = fail

    def ask(client: int, asks: list[Ask]) -> list[tuple[Ask, list[str], Future[Vectors]]]:
        accepted = []
        for number, asked in enumerate(asks):
            lane, kind, count, length, fate = asked
            wanted = [f"{client} {number} {i} " + "x" * length for i in range(count)]
            if wanted and fate in ("refuse", "poison"):
                wanted[-1] += fate
            try:
                future = scheduler.submit(wanted, kind=kind, lane=lane, wait=lane == "bulk")
            except OverloadedError:
                assert lane == "online"
                continue
            if fate == "cancel":
                future.cancel()
            accepted.append((asked, wanted, future))
        return accepted

    running = [in_thread(lambda c=client, a=asks: ask(c, a)) for client, asks in enumerate(clients)]
    accepted = [each for outcome in running for each in outcome.result(WAIT)]
    scheduler.close(WAIT)
    poisoned_online = any(asked[0] == "online" and asked[4] == "poison" for asked, _, _ in accepted)
    for (lane, kind, count, _, fate), wanted, future in accepted:
        assert future.done()
        if future.cancelled():
            assert fate == "cancel"
            continue
        error = future.exception(0)
        if isinstance(error, RefusedTextsError):
            assert list(error.reasons) == [count - 1]
            assert np.array_equal(error.vectors[:-1], vectors_of(wanted[:-1], kind))
        elif error is not None:
            # Poison fails whoever is in its pass: another online request, but never another job.
            assert isinstance(error, ValueError)
            assert poisoned_online if lane == "online" else fate == "poison"
        else:
            assert count == 0 or fate in ("", "cancel")
            assert np.array_equal(future.result(0), vectors_of(wanted, kind))
    assert (scheduler.waiting("online"), scheduler.waiting("bulk")) == (0, 0)

"""Shares one embedder between online requests and bulk jobs.

One thread owns the embedder; all others hand it requests and hold futures. What always holds:

* Online first. Between any two bulk passes the online requests that wait are computed, those of a kind together, as
  many as `ONLINE_SECONDS` hold. So an online request waits for one bulk pass and for the online requests before it.
* A bulk pass takes `BULK_SECONDS` or one text, whichever is longer, by the speed that was measured.
* Nobody starves. Bulk jobs take turns of about `SLICE_SECONDS`, and after `ONLINE_TURNS` of online passes in a row
  comes a bulk pass.
* What waits is bounded in tokens, estimated from the length of the texts. Beyond that a submitter waits or is refused.
* An accepted future always ends: with its own vectors, with its own error, or with that of the pass that it was in. It
  can be cancelled until then: what waits is given up at once, what is being computed at the next pass.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from threading import Condition, RLock, Thread, current_thread
from typing import Literal
from weakref import ref

import numpy as np

from sophia.embedding.base import Embedder, Kind, RefusedTextsError, Vectors, nothing
from sophia.embedding.lanes import Pace, Queue, Request, Sort
from sophia.embedding.wrapping import Wrapper
from sophia.errors import TemporaryError

logger = logging.getLogger("sophia.embedding")
Lane = Literal["online", "bulk"]
BULK_SECONDS = 0.010
# What is coalesced ends together, so the first of a flood of online requests waits for as much.
ONLINE_SECONDS = 0.025
SLICE_SECONDS = 0.25
# A slice is tokenised before its first pass, while nothing is served: 10 to 20 ms on one core.
SLICE_TOKENS = 16_384
ONLINE_TURNS = 8
# Pass tokens that cut nothing. Not None, which an engine takes for leave to search its best budget meanwhile.
UNCUT = sys.maxsize
# How long `close` waits for the pass that runs, once it has failed what was left.
LAST_PASS_SECONDS = 1.0


class OverloadedError(TemporaryError):
    """A lane holds as many tokens as it may.

    Attributes:
        retry_after: seconds, 1 to 60, in which what waits now is probably computed.
    """

    def __init__(self, lane: Lane, retry_after: float) -> None:
        super().__init__(f"the {lane} lane of the embedder is full; try again in {retry_after:.0f} s")
        self.retry_after = retry_after


class Scheduler(Wrapper):
    """Implements `Embedder` for any number of threads, with one embedder and one thread of its own.

    Args:
        embedder: used by nobody else until `close`.
        online_tokens: most tokens that wait in the online lane; one larger request is taken when none waits.
        bulk_tokens: the same of the bulk lane.

    Attributes:
        pass_tokens: most tokens of a bulk pass; None for as many as `BULK_SECONDS` hold, which it never exceeds.
        died: why its thread ended before `close`, if it did: from then on every call fails with this.
    """

    def __init__(self, embedder: Embedder, *, online_tokens: int, bulk_tokens: int) -> None:
        super().__init__(embedder)
        self.pass_tokens = embedder.pass_tokens
        # One lock for both conditions. Re-entrant: a signal handler or a finaliser may cancel a future at any moment.
        lock = RLock()
        self._work = Condition(lock)
        self._room = Condition(lock)
        self._online = Queue(online_tokens, Pace(ONLINE_SECONDS), self._room)
        self._bulk = Queue(bulk_tokens, Pace(BULK_SECONDS), self._room)
        self._unfinished: set[Request] = set()
        self.died: TemporaryError | None = None
        self._ended: str | None = None
        self._seen = replace(embedder.figures)
        self._thread = Thread(target=self._run, name="embedding", daemon=True)
        self._thread.start()

    def submit(
        self, texts: Sequence[str], *, kind: Kind = "document", lane: Lane = "online", wait: bool = False
    ) -> Future[Vectors]:
        """A future of the texts' vectors, in the order given.

        Its `cancel()` works until it is done, also while it is computed: what waits is dropped and its room is free at
        once; a job of which a pass runs stops behind that pass. Done callbacks run on the scheduler's thread: they must
        be short, and not wait for other futures of it.

        Args:
            wait: block until there is room, in the order in which callers came, instead of being refused.

        Raises:
            OverloadedError: the lane is full, or others wait for room in it.
            TemporaryError: the scheduler was closed, or its thread has died.
        """
        return self._submit(list(texts), kind, lane, wait, nothing)

    def embed(self, texts: Sequence[str], between: Callable[[], None] = nothing, *, kind: Kind = "document") -> Vectors:
        """See `Embedder.embed`: in the bulk lane, waiting for room. `between` is called on the scheduler's thread.

        Called on that thread, within a `between` or a done callback, it embeds directly and at once.
        """
        if current_thread() is self._thread:
            return self.inner.embed(texts, between, kind=kind)
        return _result(self._submit(list(texts), kind, "bulk", True, between))

    def embed_query(self, text: str) -> Vectors:
        """See `Embedder.embed_query`: in the online lane.

        Raises:
            OverloadedError: that lane is full.
        """
        if current_thread() is self._thread:
            return self.inner.embed_query(text)
        vector: Vectors = _result(self.submit([text], kind="query"))[0]
        return vector

    def probe(self, texts: Sequence[str]) -> Vectors:
        """See `Embedder.probe`: in the online lane.

        Raises:
            OverloadedError: that lane is full.
        """
        if current_thread() is self._thread:
            return self.inner.probe(texts)
        return _result(self._submit(list(texts), "probe", "online", False, nothing))

    def waiting(self, lane: Lane) -> int:
        """Estimated tokens that wait in a lane, those being computed not counted."""
        return self._queue(lane).tokens

    def close(self, seconds: float) -> None:
        """Take no new work, finish what was accepted, and end the thread. May be called again.

        What is not done after so many seconds fails with TemporaryError, and the thread ends behind the pass that
        runs, for which this waits a second longer.
        """
        self._end("the embedder was closed; send the request to another process, or try again")
        self._thread.join(seconds)
        self._fail_all(TemporaryError("the embedder was closed before this was computed; try again"))
        self._thread.join(LAST_PASS_SECONDS)

    def _submit(
        self, texts: list[str], sort: Sort, lane: Lane, wait: bool, between: Callable[[], None]
    ) -> Future[Vectors]:
        if wait and current_thread() is self._thread:
            raise RuntimeError("submit(wait=True) on the scheduler's own thread would wait for itself; use embed()")
        queue = self._queue(lane)
        request = Request(texts, sort, between, self.max_tokens, self.dimension)
        # Weak, since a future keeps its callbacks: both would wait for the garbage collector, with texts and vectors.
        request.future.add_done_callback(partial(self._forget, queue, ref(request)))
        with self._work:
            if not texts:
                self._check()
            elif not queue.put(request, wait, self._check):
                ahead = {self._online, queue}
                raise OverloadedError(lane, min(60.0, max(1.0, sum(q.tokens / q.pace.rate for q in ahead))))
            else:
                self._unfinished.add(request)
                self._work.notify()
        if not texts:
            request.take(np.empty((0, self.dimension), dtype=np.float32), {})
        return request.future

    def _queue(self, lane: Lane) -> Queue:
        return self._online if lane == "online" else self._bulk

    def _check(self) -> None:
        if self._ended is not None:
            raise TemporaryError(self._ended)

    def _forget(self, queue: Queue, ended: ref[Request], future: Future[Vectors]) -> None:
        """A future is done."""
        request = ended()
        if request is not None:
            with self._work:
                self._unfinished.discard(request)
                queue.drop(request)
        if future.cancelled():
            # Else `concurrent.futures.wait` does not see that it was cancelled.
            future.set_running_or_notify_cancel()

    def _end(self, reason: str) -> None:
        with self._work:
            self._ended = self._ended or reason
            self._work.notify_all()
            self._room.notify_all()

    def _fail_all(self, error: TemporaryError) -> None:
        with self._work:
            unfinished = list(self._unfinished)
        for request in unfinished:
            request.fail(error)

    # What follows runs on the scheduler's thread.

    def _run(self) -> None:
        before = self.inner.pass_tokens
        try:
            while self._wait():
                self._serve_online()
                self._serve_bulk()
        except BaseException as error:
            # Without the error's text, which may quote a document.
            logger.critical("%s: the scheduler's thread died of %s", self.backend, type(error).__name__)
            reason = f"the embedder's thread died of {type(error).__name__}; restart the process"
            self._end(reason)
            died = TemporaryError(reason)
            died.__cause__ = error
            self._fail_all(died)
            self.died = died
        finally:
            self.inner.pass_tokens = before

    def _wait(self) -> bool:
        """Sleep until there is work. False when there is none and none will come."""
        with self._work:
            while not self._online.requests and not self._bulk.requests:
                if self._ended is not None:
                    return False
                self._work.wait()
            return True

    def _serve_online(self) -> None:
        for _ in range(ONLINE_TURNS):
            with self._work:
                batch = self._online.begin_alike()
            if not batch:
                return
            with _failing(batch):
                self._compute(self._online, batch, UNCUT, partial(_stop_unwanted, batch))

    def _serve_bulk(self) -> None:
        """A slice of the job whose turn it is."""
        with self._work:
            request = next(iter(self._bulk.requests), None)
            if request is None:
                return
            first = not request.begun
            self._bulk.begin(request, min(SLICE_TOKENS, int(self._bulk.pace.rate * SLICE_SECONDS)))

        def between() -> None:
            self._bulk.pace.took(self.inner.figures.since(self._seen))
            self._serve_online()
            _stop_unwanted([request])
            request.between()
            self._prepare(self._bulk_pass())

        with _failing([request]):
            if not first:
                request.between()
            self._compute(self._bulk, [request], self._bulk_pass(), between)

    def _bulk_pass(self) -> int | None:
        if self.inner.engine is None:
            # No device of ours: a request to an endpoint costs its round trip, and short ones would only be more.
            return self.pass_tokens
        tokens = self._bulk.pace.tokens
        return tokens if self.pass_tokens is None else min(tokens, self.pass_tokens)

    def _prepare(self, pass_tokens: int | None) -> None:
        """Set the size of the next passes, and measure from here."""
        self.inner.pass_tokens = pass_tokens
        self._seen = replace(self.inner.figures)

    def _compute(
        self, queue: Queue, batch: list[Request], pass_tokens: int | None, between: Callable[[], None]
    ) -> None:
        """Compute the slices of requests of one sort in one call, and give each its part of the outcome."""
        texts = [text for request in batch for text in request.slice]
        reasons: Mapping[int, str] = {}
        self._prepare(pass_tokens)
        sort = batch[0].sort
        try:
            vectors = self.inner.probe(texts) if sort == "probe" else self.inner.embed(texts, between, kind=sort)
        except RefusedTextsError as error:
            vectors, reasons = error.vectors, error.reasons
        queue.pace.took(self.inner.figures.since(self._seen))
        start = 0
        for request in batch:
            end = start + len(request.slice)
            request.take(
                vectors[start:end], {place - start: why for place, why in reasons.items() if start <= place < end}
            )
            start = end


@contextmanager
def _failing(batch: Sequence[Request]) -> Iterator[None]:
    """Whatever goes wrong ends the requests that it went wrong for, not the thread."""
    try:
        yield
    except Exception as error:
        for request in batch:
            request.fail(error)


def _stop_unwanted(batch: Sequence[Request]) -> None:
    """Leave an embedding that nobody waits for any more: cancelled, or failed by `close`."""
    if all(request.future.done() for request in batch):
        raise CancelledError


def _result(future: Future[Vectors]) -> Vectors:
    try:
        return future.result()
    finally:
        # Does nothing to a future that is done, which it is unless the caller was interrupted.
        future.cancel()

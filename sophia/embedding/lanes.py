"""What waits for an embedder: requests, in lanes that are bounded in tokens.

A lane counts exactly the tokens of its requests that no pass has begun. Submitters that wait for room enter in the
order in which they came, so that small requests do not overtake a large one for ever.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from threading import Condition
from typing import Literal

import numpy as np

from sophia.embedding.base import EmbeddingFigures, Kind, RefusedTextsError, Vectors

# What a request is: texts to embed, or an `Embedder.probe`. Only requests of one sort are computed together.
Sort = Kind | Literal["probe"]
# Tokens per second before anything was measured: one slow core with a small model.
FIRST_RATE = 3_200.0


class Pace:
    """How many tokens are computed in a given time, by what earlier passes took.

    Attributes:
        rate: tokens per second, padding included.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.rate = FIRST_RATE

    @property
    def tokens(self) -> int:
        """Tokens that the time holds, one at least."""
        return max(1, int(self.rate * self._seconds))

    def took(self, figures: EmbeddingFigures) -> None:
        """Learn from what was computed since the last look."""
        if figures.seconds <= 0 or not figures.tokens:
            return
        rate = (figures.tokens + figures.padding) / figures.seconds
        # A short pass within the time is no proof of slowness: starting it may be most of what it cost.
        if figures.seconds > self._seconds or rate > self.rate:
            self.rate = (self.rate + min(rate, 3 * self.rate)) / 2


class Request:
    """Texts of one caller. `texts[done:begun]` are being computed, those from `begun` on wait.

    Attributes:
        future: of all vectors. Never set running, so that it can be cancelled up to its end.
        waiting: estimated tokens of the texts that wait.
        begun: texts that were taken.
    """

    def __init__(
        self, texts: list[str], sort: Sort, between: Callable[[], None], max_tokens: int, dimension: int
    ) -> None:
        self.sort = sort
        self.between = between
        self.future: Future[Vectors] = Future()
        self._costs = [min(len(text) // 4 + 2, max_tokens) for text in texts]
        self.waiting = sum(self._costs)
        self.begun = 0
        self._texts = texts
        self._done = 0
        self._vectors = np.empty((len(texts), dimension), dtype=np.float32)
        self._reasons: dict[int, str] = {}

    @property
    def slice(self) -> list[str]:
        """The texts that are being computed."""
        return self._texts[self._done : self.begun]

    def begin(self, most: int) -> int:
        """Take texts of at most so many tokens, one text at least. Returns their tokens."""
        tokens = 0
        while self.begun < len(self._costs) and (not tokens or tokens + self._costs[self.begun] <= most):
            tokens += self._costs[self.begun]
            self.begun += 1
        self.waiting -= tokens
        return tokens

    def take(self, vectors: Vectors, reasons: Mapping[int, str]) -> None:
        """The outcome of `slice`, reasons by place in it. The last one ends the future."""
        self._vectors[self._done : self.begun] = vectors
        self._reasons |= {self._done + place: reason for place, reason in reasons.items()}
        self._done = self.begun
        if self._done < len(self._texts):
            return
        if self._reasons:
            self.fail(RefusedTextsError(self._vectors, self._reasons))
            return
        with suppress(InvalidStateError):
            self.future.set_result(self._vectors)

    def fail(self, error: Exception) -> None:
        """End the future with an error, unless it has ended."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)


class Queue:
    """The requests of a lane, in the order of their turns. Every call is made with the lock of `room`.

    Args:
        limit: most tokens that wait. A request that is larger is taken when nothing waits.
        room: notified whenever a submitter may enter or must give up.

    Attributes:
        pace: how fast the lane's passes are.
        tokens: estimated tokens that wait.
        requests: a dictionary, since any of them may be cancelled.
    """

    def __init__(self, limit: int, pace: Pace, room: Condition) -> None:
        self.pace = pace
        self.tokens = 0
        self.requests: dict[Request, None] = {}
        self._limit = limit
        self._room = room
        self._line: deque[object] = deque()

    def put(self, request: Request, wait: bool, check: Callable[[], None]) -> bool:
        """Add a request. False if there is no room, or others wait for it, and `wait` is not set.

        Args:
            check: raises when nothing is taken any more.
        """
        place = object()
        self._line.append(place)
        try:
            check()
            while self._line[0] is not place or (self.tokens and self.tokens + request.waiting > self._limit):
                if not wait:
                    return False
                self._room.wait()
                check()
        finally:
            self._line.remove(place)
            self._room.notify_all()
        self.tokens += request.waiting
        self.requests[request] = None
        return True

    def begin(self, request: Request, most: int) -> None:
        """Take a slice of a request; what is left of it goes to the end of the queue."""
        del self.requests[request]
        self.tokens -= request.begin(most)
        if request.waiting:
            self.requests[request] = None
        self._room.notify_all()

    def begin_alike(self) -> list[Request]:
        """Take whole requests of the first one's sort, in their order; one, and more as the pace's time holds."""
        batch: list[Request] = []
        room = self.pace.tokens
        # A copy: a finaliser may cancel a future, and so drop its request, at any moment.
        for request in list(self.requests):
            if batch and request.sort != batch[0].sort:
                continue
            room -= request.waiting
            if batch and room < 0:
                break
            batch.append(request)
        for request in batch:
            self.begin(request, request.waiting)
        return batch

    def drop(self, request: Request) -> None:
        """A request has ended, for whatever reason: give back what still waited."""
        if request in self.requests:
            del self.requests[request]
            self.tokens -= request.waiting
            self._room.notify_all()

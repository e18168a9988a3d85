"""The stand-in's materialisation: transactions from the journal to the webhook.

Invariants: a transaction takes what the journal has, combines it, drains its bindings one by one in the order of their
keys, and only when the receiver took all of it the checkpoint moves. A task that fails or dies replays the whole
transaction, with whatever came since and cut anew: at least once. Documents pile up while the receiver answers.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Event
from types import TracebackType

import httpx

from sophia.estuary.stand_in.combine import combine
from sophia.estuary.stand_in.faults import Faults, FaultyTransport, RestartError
from sophia.estuary.stand_in.journal import Entry, Journal
from sophia.estuary.stand_in.triggers import Deliverer, Span, Triggers
from sophia.estuary.stand_in.webhook import Binding, Endpoint, HttpTransport, TaskFailedError, Transport, Webhook
from sophia.failpoints import failpoint

logger = logging.getLogger("sophia.estuary")
# Documents of one transaction, at most: what fits into memory. Estuary spills to disk and has no such limit.
MOST_DOCUMENTS = 50_000
# How long an idle task waits before it looks again.
IDLE_SECONDS = 0.05
# Before a failed task is started again.
RESTART_SECONDS = 1.0


@dataclass(frozen=True)
class Materialization:
    """One materialize-webhook task. `name` is its full Estuary name."""

    name: str
    endpoint: Endpoint
    bindings: tuple[Binding, ...]
    triggers: Triggers = field(default_factory=Triggers)


@dataclass(slots=True)
class Figures:
    """What a materialisation has done: documents read and sent, transactions committed, tasks begun again."""

    read: int = 0
    sent: int = 0
    transactions: int = 0
    restarts: int = 0


class Materializer:
    """Runs one materialisation of a journal. For one thread; a context manager.

    Args:
        sleep: waits between attempts; with `now` (seconds of a clock that does not step back) all time that it knows.
        most: documents of one transaction, at most.
        rng: decides on faults, and how replays are cut.
    """

    def __init__(
        self,
        spec: Materialization,
        journal: Path,
        *,
        transport: Transport | None = None,
        client: httpx.Client | None = None,
        faults: Faults | None = None,
        rng: random.Random | None = None,
        most: int = MOST_DOCUMENTS,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spec = spec
        self._rng = rng or random.Random()  # noqa: S311 - faults, not secrets
        self._most = most
        self._sleep = sleep
        self._http = HttpTransport()
        self.transport = FaultyTransport(transport or self._http, faults or Faults(), self._rng)
        self._client = client or httpx.Client(follow_redirects=True)
        self._journal = Journal(journal)
        self._task = f"materialize/{spec.name}"
        self._deliverer = Deliverer(spec.name, spec.triggers, self._client, now=now, sleep=sleep)
        self._webhook = Webhook(spec.endpoint, self.transport, sleep)
        self.figures = Figures()

    def __enter__(self) -> Materializer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()
        self._client.close()
        self._journal.__exit__(kind, error, trace)

    @property
    def requests(self) -> int:
        """Requests that were answered 2xx."""
        return self._webhook.requests

    @property
    def attempts(self) -> int:
        """All requests, also those tried again."""
        return self._webhook.attempts

    def run(self, stop: Event) -> None:
        """Materialise until told to stop; a failed task is started again."""
        while not stop.is_set():
            try:
                if self.transaction() == 0:
                    stop.wait(IDLE_SECONDS)
            except (TaskFailedError, RestartError) as error:
                if isinstance(error, TaskFailedError):
                    logger.warning("%s: %s", self._spec.name, error)
                    stop.wait(RESTART_SECONDS)
                self._restart()

    def drain(self, progress: Callable[[Figures], None] = lambda figures: None) -> None:
        """Materialise what the journal holds, through restarts that were asked for, and return.

        `progress` is called behind each transaction.

        Raises:
            TaskFailedError: the task failed otherwise.
        """
        most: int | None = None
        while True:
            try:
                if self.transaction(most) == 0:
                    return
                most = None
                progress(self.figures)
            except RestartError:
                self._restart()
                most = self._rng.choice((None, 1, 7, 100))

    def transaction(self, most: int | None = None) -> int:
        """One transaction. Returns how many documents it read; 0 when nothing was there.

        Raises:
            TaskFailedError: a request or a trigger failed after all attempts. The next call replays.
            RestartError: a fault that was asked for; the next call replays.
        """
        state = self._journal.checkpoint(self._task)
        self._fire(state)
        names = [binding.collection for binding in self._spec.bindings]
        entries = self._journal.read(state.get("offset", 0), names, most or self._most)
        if not entries:
            return 0
        self.figures.read += len(entries)
        for binding in self._spec.bindings:
            documents = [entry.document for entry in entries if entry.collection == binding.collection]
            combined = combine(documents, binding.key, history=binding.history)
            for document in self.transport.order(combined, binding.key):
                self._webhook.store(binding, document)
                self.figures.sent += 1
        self._webhook.flush()
        failpoint("stand_in.sent.before_checkpoint")
        span = _span(entries)
        if pending := state.get("pending"):
            span = _read_span(pending).join(span)
        state = {"offset": entries[-1].offset, "pending": asdict(span) if self._spec.triggers.triggers else None}
        self._journal.set_checkpoint(self._task, state)
        self.figures.transactions += 1
        failpoint("stand_in.committed.before_trigger")
        self._fire(state)
        return len(entries)

    def _fire(self, state: dict[str, object]) -> None:
        """Deliver what waits for its trigger, once its time has come."""
        pending = state.get("pending")
        if isinstance(pending, dict) and self._deliverer.due:
            self._deliverer.deliver(_read_span(pending))
            state["pending"] = None
            self._journal.set_checkpoint(self._task, state)

    def _restart(self) -> None:
        """A new task: nothing of the open request is left."""
        self.figures.restarts += 1
        requests, attempts = self._webhook.requests, self._webhook.attempts
        self._webhook = Webhook(self._spec.endpoint, self.transport, self._sleep)
        self._webhook.requests, self._webhook.attempts = requests, attempts


def _span(entries: list[Entry]) -> Span:
    clocks = [entry.clock for entry in entries]
    return Span(tuple(sorted({entry.collection for entry in entries})), min(clocks), max(clocks))


def _read_span(value: dict[str, object]) -> Span:
    return Span(tuple(value["collections"]), int(value["first"]), int(value["last"]))  # type: ignore[arg-type, call-overload]

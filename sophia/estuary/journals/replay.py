"""Replays a collection from its journals at Estuary: what the webhook delivered, or should have, is read once more.

Invariants, each with a test:

* Only what a producer acknowledged is taken, never an acknowledgement itself, nor what was rolled back or is open.
* Documents take the intake's own way: clocks make a replay of what is there already a replay of nothing, so that one
  that was broken off is simply run again.
* A line that is no document with a UUID is taken alone, which parks it: it stands in the way of no other.
* Memory is bounded: journals are read in pieces, an open transaction waits in a file, and a take has a limit.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime

import msgspec

from sophia.documents import uuid_clock
from sophia.errors import DocumentError
from sophia.estuary.intake.take import Taken
from sophia.estuary.journals.broker import Broker, Span
from sophia.estuary.journals.lines import Lines
from sophia.estuary.journals.sequencer import Appended, Sequencer
from sophia.estuary.stamps import clock_at, uuid_flags

# Estuary's documents have 16 MB at most.
LONGEST_DOCUMENT = 64 * 1024 * 1024
TAKE_BYTES = 1024 * 1024
TAKE_DOCUMENTS = 5_000
# Clocks of producers and of the store of fragments may differ by so much.
SKEW_SECONDS = 300


class _Meta(msgspec.Struct):
    uuid: str


class _Envelope(msgspec.Struct):
    meta: _Meta = msgspec.field(name="_meta")


_decode = msgspec.json.Decoder(_Envelope).decode


@dataclass(slots=True)
class Replayed:
    """What was found in journals and what became of it.

    Attributes:
        journals: how many there are.
        size: bytes to read, of all of them.
        read: bytes that were read.
        gaps: places that a journal no longer has.
        acknowledgements: of transactions.
        rolled_back: documents of transactions that were rolled back.
        repeated: documents that were appended again.
        open: documents of transactions that were not acknowledged when the journal ended.
        earlier: documents from before the time that was asked for.
        documents: acknowledged documents, and lines that are none.
        changed: rows of the inbox that these changed, counted by take.
        parked: of these, how many cannot be taken.
    """

    journals: int = 0
    size: int = 0
    read: int = 0
    gaps: int = 0
    acknowledgements: int = 0
    rolled_back: int = 0
    repeated: int = 0
    open: int = 0
    earlier: int = 0
    documents: int = 0
    changed: int = 0
    parked: int = 0


# Takes a JSON array of documents in one transaction.
Take = Callable[[bytes], Taken]


def replay(
    broker: Broker,
    take: Take | None,
    since: datetime | None = None,
    progress: Callable[[Replayed], None] | None = None,
) -> Replayed:
    """Read the journals of a collection up to where they end now, and take what they commit.

    Args:
        take: None only counts.
        since: with its time zone; documents that were published before are left out.
        progress: called with the figures so far, behind each piece that was read.

    Raises:
        TemporaryError: Estuary is away; what was taken stays, and the same call goes on.
        ConfigurationError: a person must change something first.
    """
    figures = Replayed()
    begin = 0 if since is None else max(0, int(since.timestamp()) - SKEW_SECONDS)
    spans = [broker.span(journal, begin) for journal in broker.journals()]
    figures.journals = len(spans)
    figures.size = sum(span.end - span.begin for span in spans)
    batch = _Batch(take, figures)
    for span in spans:
        with closing(Sequencer()) as sequencer:
            _replay_span(broker, span, sequencer, batch, 0 if since is None else clock_at(since), progress)
            figures.open += sequencer.held
    return figures


def _replay_span(
    broker: Broker,
    span: Span,
    sequencer: Sequencer,
    batch: _Batch,
    first: int,
    progress: Callable[[Replayed], None] | None,
) -> None:
    figures = batch.figures
    before = (figures.acknowledgements, figures.rolled_back, figures.repeated)
    for line in _lines(broker, span, figures, progress):
        document = _appended(line)
        if document is None:
            batch.alone(line)
            continue
        for clock, text in sequencer.offer(document):
            if clock < first:
                figures.earlier += 1
            else:
                batch.add(text)
        figures.acknowledgements = before[0] + sequencer.acknowledgements
        figures.rolled_back = before[1] + sequencer.rolled_back
        figures.repeated = before[2] + sequencer.repeated
    batch.flush()


def _lines(
    broker: Broker, span: Span, figures: Replayed, progress: Callable[[Replayed], None] | None
) -> Iterator[bytes]:
    """The lines of a journal; one that a gap cuts is left out."""
    lines = Lines(LONGEST_DOCUMENT)
    expected = span.begin
    with closing(broker.content(span)) as pieces:
        for at, data in pieces:
            if at != expected:
                figures.gaps += 1
                lines.rest()
            figures.read += at - expected + len(data)
            expected = at + len(data)
            yield from lines.cut(data)
            if progress is not None:
                progress(figures)
    if expected < span.end:
        figures.gaps += 1
        figures.read += span.end - expected


def _appended(line: bytes) -> Appended | None:
    """The document of a line; None if it has no UUID of version 1."""
    try:
        text = _decode(line).meta.uuid
        return Appended(uuid.UUID(text).node, uuid_clock(text), uuid_flags(text), line)
    except (msgspec.DecodeError, ValueError, DocumentError, RecursionError):
        return None


class _Batch:
    """Collects documents and takes them."""

    def __init__(self, take: Take | None, figures: Replayed) -> None:
        self._take = take
        self.figures = figures
        self._texts: list[bytes] = []
        self._size = 0

    def add(self, text: bytes) -> None:
        self.figures.documents += 1
        if self._take is None:
            return
        self._texts.append(text)
        self._size += len(text)
        if self._size >= TAKE_BYTES or len(self._texts) >= TAKE_DOCUMENTS:
            self.flush()

    def alone(self, text: bytes) -> None:
        """It may be no JSON, which would make one array of it and its neighbours unreadable."""
        self.flush()
        self.add(text)
        self.flush()

    def flush(self) -> None:
        if self._take is None or not self._texts:
            return
        taken = self._take(b"[" + b",".join(self._texts) + b"]")
        self.figures.changed += taken.changed
        self.figures.parked += taken.parked
        self._texts.clear()
        self._size = 0

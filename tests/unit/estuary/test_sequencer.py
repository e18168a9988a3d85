"""What a journal commits: the sequencer against what producers did, however it was appended and read."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sophia.errors import TemporaryError
from sophia.estuary.intake.take import Taken
from sophia.estuary.journals.broker import Broker, Span
from sophia.estuary.journals.lines import Lines
from sophia.estuary.journals.replay import replay
from sophia.estuary.journals.sequencer import Appended, Sequencer
from sophia.estuary.stamps import ACK_TXN, CONTINUE_TXN, OUTSIDE_TXN
from tests.estuary_control.data_plane import Journal, clock_of


def _sequenced(*appended: tuple[int, int, int]) -> tuple[list[int], Sequencer]:
    """Clocks that are released of (producer, clock, flags), and the sequencer behind them."""
    sequencer = Sequencer()
    found = []
    for producer, clock, flags in appended:
        document = Appended(producer, clock, flags, f"{producer}:{clock}".encode())
        for released, text in sequencer.offer(document):
            assert text == f"{producer}:{released}".encode()
            found.append(released)
    return found, sequencer


def _open(clock: int, producer: int = 1) -> tuple[int, int, int]:
    return producer, clock, CONTINUE_TXN


def _ack(clock: int, producer: int = 1) -> tuple[int, int, int]:
    return producer, clock, ACK_TXN


def test_a_transaction_waits_for_its_acknowledgement() -> None:
    found, sequencer = _sequenced(_open(10), _open(11))
    assert (found, sequencer.held) == ([], 2)
    found, sequencer = _sequenced(_open(10), _open(11), _ack(12))
    assert (found, sequencer.held) == ([10, 11], 0)


def test_an_acknowledgement_below_documents_rolls_these_back() -> None:
    found, sequencer = _sequenced(_open(10), _ack(11), _open(20), _open(21), _ack(11), _open(22), _ack(23))
    assert (found, sequencer.rolled_back) == ([10, 22], 2)
    found, sequencer = _sequenced(_open(10), _ack(11), _open(20), _open(22), _ack(21))
    assert (found, sequencer.rolled_back) == ([10, 20], 1)


def test_what_was_rolled_back_may_be_written_anew_with_the_same_clocks() -> None:
    found, _ = _sequenced(_open(10), _ack(11), _open(20), _ack(11), _open(20), _ack(21))
    assert found == [10, 20]


def test_repetitions_are_dropped_before_and_behind_the_acknowledgement() -> None:
    found, sequencer = _sequenced(_open(10), _open(12), _open(10), _open(12), _ack(13), _open(12), _ack(13), _ack(13))
    assert (found, sequencer.repeated) == ([10, 12], 3)


def test_a_producer_that_went_back_to_an_older_checkpoint_goes_on_from_there() -> None:
    found, _ = _sequenced(_open(10), _ack(11), _open(20), _ack(21), _ack(11), _open(20), _ack(21))
    assert found == [10, 20, 20]


def test_producers_hold_up_no_other() -> None:
    found, sequencer = _sequenced(_open(10, 1), _open(5, 2), _ack(6, 2), _open(11, 1), _ack(12, 1), _open(7, 2))
    assert (found, sequencer.held) == ([5, 10, 11], 1)


def test_outside_of_a_transaction_a_document_comes_at_once_and_once() -> None:
    found, sequencer = _sequenced((1, 10, OUTSIDE_TXN), (1, 10, OUTSIDE_TXN), (1, 11, 77))
    assert (found, sequencer.repeated) == ([10, 11], 1)
    # It ends an open transaction, which its producer does not do.
    found, sequencer = _sequenced(_open(10), (1, 11, OUTSIDE_TXN), _ack(12))
    assert (found, sequencer.rolled_back) == ([11], 1)


def test_much_that_waits_is_in_a_file() -> None:
    tracemalloc.start()
    try:
        sequencer = Sequencer(memory=1000)
        before, _ = tracemalloc.get_traced_memory()
        for clock in range(10, 2010):
            assert not list(sequencer.offer(Appended(1, clock, CONTINUE_TXN, b"x" * 5000)))
        # Ten megabytes wait.
        assert tracemalloc.get_traced_memory()[0] - before < 1_000_000
        found = [clock for clock, text in sequencer.offer(Appended(1, 2010, ACK_TXN, b"")) if len(text) == 5000]
    finally:
        tracemalloc.stop()
    assert found == list(range(10, 2010))


# ---- against what producers did --------------------------------------------------------------------------------


@dataclass
class _Producer:
    """One that writes transactions, appends spans twice and rolls back; and what it truly committed.

    Clocks are numbers of `clock_of`; the first document that the reader sees begins its first transaction.
    """

    number: int
    clock: int = 0
    committed: int = 0
    open: list[int] = field(default_factory=list)
    appended: list[tuple[int, int]] = field(default_factory=list)
    truth: list[int] = field(default_factory=list)

    def step(self, chance: random.Random) -> list[tuple[int, int]]:
        """What it appends next: (number, flags)."""
        what = chance.random()
        if what < 0.55 or not self.appended:
            self.clock += chance.randint(1, 3)
            self.open.append(self.clock)
            new = [(self.clock, CONTINUE_TXN)]
        elif what < 0.7:
            # The append was repeated: its answer was lost.
            new = self.appended[-chance.randint(1, 4) :]
            new = [each for each in new if each[1] == CONTINUE_TXN and (each[0] <= self.committed or self.open)]
            new = [each for each in new if each[0] <= self.committed or each[0] in self.open]
            return new
        elif what < 0.85:
            self.clock += 1
            self.truth += self.open
            self.open, self.committed = [], self.clock
            new = [(self.clock, ACK_TXN)]
        elif what < 0.93:
            # Its successor acknowledges what the checkpoint has: all of it, nothing, or a part.
            upto = chance.choice([self.committed, *self.open])
            self.truth += [clock for clock in self.open if clock <= upto]
            self.open, self.committed, self.clock = [], upto, max(upto, self.clock)
            new = [(upto, ACK_TXN)]
        elif not self.open:
            self.clock += 1
            self.truth.append(self.clock)
            self.committed = self.clock
            new = [(self.clock, OUTSIDE_TXN)]
        else:
            return []
        self.appended += new
        return new


class _Cut(Broker):
    """A broker of one journal, whose bytes come in any pieces."""

    def __init__(self, content: bytes, chance: random.Random) -> None:
        self._bytes, self._chance = content, chance

    def journals(self) -> list[str]:
        return ["journal"]

    def span(self, journal: str, since: int) -> Span:
        return Span(journal, 0, len(self._bytes))

    def content(self, span: Span) -> Iterator[tuple[int, bytes]]:  # type: ignore[override]
        at = 0
        while at < span.end:
            size = self._chance.choice([1, 2, 40, 300, 5000])
            yield at, self._bytes[at : at + size]
            at += size


def _ids(bodies: list[bytes]) -> list[int]:
    return [document["id"] for each in bodies for document in json.loads(each)]


@given(st.integers(0, 1 << 32), st.integers(1, 4), st.integers(0, 120))
def test_what_comes_is_what_was_committed(seed: int, producers: int, steps: int) -> None:
    chance = random.Random(seed)
    journal = Journal("journal")
    writers = [_Producer(number) for number in range(producers)]
    for _ in range(steps):
        writer = chance.choice(writers)
        for number, flags in writer.step(chance):
            row = {} if flags == ACK_TXN else {"id": writer.number * 100_000 + number}
            journal.put(number, flags, writer.number, **row)
    taken: list[bytes] = []

    def take(body: bytes) -> Taken:
        taken.append(body)
        return Taken()

    figures = replay(_Cut(journal.content, chance), take)
    found = _ids(taken)
    for writer in writers:
        mine = [each - writer.number * 100_000 for each in found if each // 100_000 == writer.number]
        assert mine == writer.truth
    assert (figures.documents, figures.open) == (len(found), sum(len(writer.open) for writer in writers))
    assert figures.read == figures.size == len(journal.content)
    assert b'"ack"' not in b"".join(taken)


def test_an_interrupted_replay_begins_anew_and_takes_the_rest() -> None:
    journal = Journal("journal")
    journal.commit([1, 2, 3])
    taken: list[bytes] = []

    def take(body: bytes) -> Taken:
        if not taken:
            taken.append(b"[]")
            raise TemporaryError("away")
        taken.append(body)
        return Taken()

    with pytest.raises(TemporaryError):
        replay(_Cut(journal.content, random.Random(1)), take)
    replay(_Cut(journal.content, random.Random(1)), take)
    assert _ids(taken) == [1, 2, 3]


@given(st.binary(max_size=60).map(lambda each: each.replace(b"\x00", b"\n")), st.integers(1, 9))
def test_lines_are_the_same_however_they_are_cut(data: bytes, size: int) -> None:
    lines = Lines(100)
    found = [line for at in range(0, len(data), size) for line in lines.cut(data[at : at + size])]
    *whole, rest = data.split(b"\n")
    assert found == [line for line in whole if line]
    assert lines.rest() == rest


def test_the_clocks_of_the_fake_are_those_of_its_uuids() -> None:
    assert clock_of(2) - clock_of(1) == 160

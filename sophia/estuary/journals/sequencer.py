"""Makes what a journal commits of what was written to it: of each producer's documents those that it acknowledged.

A journal holds everything that was ever appended: documents of transactions that are still open, of ones that were
rolled back, repetitions, and acknowledgements between them. Producers are told apart; what one leaves open holds up
no other. Invariants, each with a test:

* A document of a transaction is released by the first acknowledgement of its producer behind it whose clock is not
  less than its own, and dropped by one whose clock is less: that transaction was rolled back.
* Nothing with a clock that its producer has already reached is released again, however often it was appended. Only an
  acknowledgement below what was acknowledged before, of a producer that went back to an older checkpoint, sets the
  clock back; what it wrote anew may then come twice, and the clocks at the inbox see to that.
* Documents of a producer come in the order of their clocks, and a document outside of any transaction at once.
* What waits is kept in memory up to a limit a producer, and in a temporary file beyond it.

Source: gazette `message/sequencer.go`. Pure, but for that file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile

from sophia.estuary.stamps import ACK_TXN, CONTINUE_TXN

# What waits of one producer goes to a file beyond this.
MEMORY_BYTES = 1024 * 1024
_HEAD = struct.Struct(">QI")


@dataclass(frozen=True, slots=True)
class Appended:
    """A document as it stands in a journal.

    Attributes:
        producer: who wrote it, 48 bits.
        clock: 64 bits, of its UUID.
        flags: of its UUID; unknown ones count as outside of a transaction.
        text: its JSON.
    """

    producer: int
    clock: int
    flags: int
    text: bytes


class Sequencer:
    """Sequences the documents of one journal. Not for several threads.

    Attributes:
        acknowledgements: how many came.
        repeated: documents that were dropped since their producer had reached their clocks.
        rolled_back: documents that were dropped by an acknowledgement below them.
    """

    def __init__(self, memory: int = MEMORY_BYTES) -> None:
        self._memory = memory
        self._producers: dict[int, _Producer] = {}
        self.acknowledgements = 0
        self.repeated = 0
        self.rolled_back = 0

    @property
    def held(self) -> int:
        """How many documents wait for an acknowledgement."""
        return sum(producer.held.count for producer in self._producers.values() if producer.held is not None)

    def offer(self, document: Appended) -> Iterator[tuple[int, bytes]]:
        """Take the journal's next document; returns (clock, text) of what it releases, in order.

        The result is read before the next document is offered, and to its end.
        """
        producer = self._producers.get(document.producer)
        if producer is None:
            producer = self._producers[document.producer] = _Producer(document.clock - 1, document.clock - 1)
        if document.flags == ACK_TXN:
            self.acknowledgements += 1
            return self._acknowledge(producer, document.clock)
        # Outside of a transaction only what was acknowledged counts, and it ends an open one.
        reached = producer.newest if document.flags == CONTINUE_TXN else producer.acknowledged
        if document.clock <= reached:
            self.repeated += 1
            return iter(())
        if document.flags == CONTINUE_TXN:
            if producer.held is None:
                producer.held = _Held(self._memory)
            producer.held.append(document.clock, document.text)
            producer.newest = document.clock
            return iter(())
        self._drop(producer)
        producer.acknowledged = producer.newest = document.clock
        return iter(((document.clock, document.text),))

    def close(self) -> None:
        """Give up what waits."""
        for producer in self._producers.values():
            if producer.held is not None:
                producer.held.close()
        self._producers.clear()

    def _acknowledge(self, producer: _Producer, clock: int) -> Iterator[tuple[int, bytes]]:
        committed = clock > producer.acknowledged
        producer.acknowledged = producer.newest = clock
        if not committed:
            self._drop(producer)
            return iter(())
        held, producer.held = producer.held, None
        return iter(()) if held is None else self._release(held, clock)

    def _release(self, held: _Held, clock: int) -> Iterator[tuple[int, bytes]]:
        try:
            released = 0
            for each, text in held.read():
                if each > clock:
                    break
                released += 1
                yield each, text
            self.rolled_back += held.count - released
        finally:
            held.close()

    def _drop(self, producer: _Producer) -> None:
        if producer.held is not None:
            self.rolled_back += producer.held.count
            producer.held.close()
            producer.held = None


@dataclass(slots=True)
class _Producer:
    """How far a producer is: what it acknowledged last, its newest clock, and what waits."""

    acknowledged: int
    newest: int
    held: _Held | None = None


class _Held:
    """Documents in the order of their clocks."""

    def __init__(self, memory: int) -> None:
        self._file = SpooledTemporaryFile(max_size=memory)  # noqa: SIM115 - it outlives the call, and is closed
        self.count = 0

    def append(self, clock: int, text: bytes) -> None:
        self._file.write(_HEAD.pack(clock, len(text)))
        self._file.write(text)
        self.count += 1

    def read(self) -> Iterator[tuple[int, bytes]]:
        self._file.seek(0)
        while head := self._file.read(_HEAD.size):
            clock, size = _HEAD.unpack(head)
            yield clock, self._file.read(size)

    def close(self) -> None:
        self._file.close()

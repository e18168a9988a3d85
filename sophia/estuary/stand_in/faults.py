"""Faults that the stand-in can be told to make: what a receiver must bear, from time to time or always.

Each is a probability a request (reorder: a transaction). With the same seed the same faults come.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from sophia.estuary.stand_in.combine import Document, packed_key
from sophia.estuary.stand_in.webhook import Transport

# How many requests are remembered to come again late.
REMEMBERED = 20


class RestartError(Exception):
    """The materialisation is to begin again from its last checkpoint."""


@dataclass(frozen=True, slots=True)
class Faults:
    """Probabilities from 0 to 1.

    Attributes:
        duplicate: a request is sent twice.
        lost: the receiver took a request, and its answer is lost: it is sent again.
        late: an older request comes once more, before a newer one.
        restart: the task dies behind a request and replays the transaction, cut differently.
        reorder: the keys of a transaction come in any order; documents of one key keep theirs.
    """

    duplicate: float = 0.0
    lost: float = 0.0
    late: float = 0.0
    restart: float = 0.0
    reorder: float = 0.0

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) for field in fields(self))


class FaultyTransport:
    """A transport with faults.

    Attributes:
        made: how many faults of each kind were made.
    """

    def __init__(self, transport: Transport, faults: Faults, rng: random.Random) -> None:
        self._transport = transport
        self._faults = faults
        self._rng = rng
        self._earlier: deque[tuple[str, Sequence[tuple[str, str]], bytes]] = deque(maxlen=REMEMBERED)
        self.made: dict[str, int] = {field.name: 0 for field in fields(Faults)}

    def post(self, url: str, headers: Sequence[tuple[str, str]], body: bytes) -> int:
        if self._earlier and self._strikes("late"):
            self._transport.post(*self._rng.choice(self._earlier))
        status = self._transport.post(url, headers, body)
        if not 200 <= status <= 299:
            return status
        self._earlier.append((url, headers, body))
        if self._strikes("duplicate"):
            status = self._transport.post(url, headers, body)
        if self._strikes("lost"):
            raise ConnectionResetError("the answer was lost on purpose")
        if self._strikes("restart"):
            raise RestartError
        return status

    def order(self, documents: list[Document], pointers: Sequence[str]) -> list[Document]:
        """A binding's documents in the order in which they are to be sent."""
        if not self._strikes("reorder"):
            return documents
        groups: dict[Any, list[Document]] = {}
        for document in documents:
            groups.setdefault(packed_key(document, pointers), []).append(document)
        keys = list(groups)
        self._rng.shuffle(keys)
        return [document for key in keys for document in groups[key]]

    def _strikes(self, fault: str) -> bool:
        if self._rng.random() >= getattr(self._faults, fault):
            return False
        self.made[fault] += 1
        return True

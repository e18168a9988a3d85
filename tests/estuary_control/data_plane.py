"""A data plane of Estuary: journals, which brokers show by gRPC's REST gateway and by gazette's own HTTP gateway.

Both answer as theirs do: streams of messages of limited size, statuses within a 200, offsets as texts, 206 with an
open range, 416 beyond the head, a trailer that tells how a body ended.
"""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from sophia.estuary.stamps import ACK_TXN, CONTINUE_TXN, OUTSIDE_TXN, uuid_of
from tests.estuary_control.answers import Answer

GENERATION = "0a1b2c3d4e5f6071"
_LONGEST = (1 << 63) - 1
_FIRST_CLOCK = 0x1F0_0000_0000_0000 << 4


def clock_of(number: int) -> int:
    """The clock of the document with that place in time, a microsecond a number; as `tests.intake.uuid_of` has it."""
    return _FIRST_CLOCK + 160 * number


@dataclass
class Journal:
    """What is stored of a journal.

    Attributes:
        content: from offset `begin` on; what lies before is gone.
        fragments: (offset at which a stored fragment begins, when it was stored in seconds since 1970).
        gap: offsets that the journal no longer has.
    """

    name: str
    content: bytes = b""
    begin: int = 0
    fragments: list[tuple[int, int]] = field(default_factory=list)
    gap: tuple[int, int] = (0, 0)

    @property
    def head(self) -> int:
        return self.begin + len(self.content)

    def put(self, number: int, flags: int = CONTINUE_TXN, producer: int = 1, **row: Any) -> None:
        """Append a document, or an acknowledgement."""
        meta: dict[str, Any] = {"uuid": uuid_of(clock_of(number), producer, flags)}
        if flags == ACK_TXN:
            meta["ack"] = True
        else:
            meta |= {"op": row.pop("op", "c"), "source": {"ts_ms": 1_700_000_000_000 + number}}
        self.line(json.dumps({"_meta": meta, **row}).encode())

    def line(self, text: bytes) -> None:
        self.content += text + b"\n"

    def commit(self, numbers: Sequence[int], producer: int = 1, **row: Any) -> None:
        """A transaction with a document of each number, whose key it is, and its acknowledgement."""
        for number in numbers:
            self.put(number, producer=producer, id=number, **row)
        self.put(max(numbers) + 1, ACK_TXN, producer)

    def outside(self, number: int, producer: int = 1, **row: Any) -> None:
        """A document outside of any transaction."""
        self.put(number, OUTSIDE_TXN, producer, **row)

    def served_from(self, offset: int) -> int:
        if offset < self.begin:
            return self.begin
        return self.gap[1] if self.gap[0] <= offset < self.gap[1] else offset

    def until(self, offset: int) -> int:
        """Where what can be read in one piece from there on ends."""
        return self.gap[0] if offset < self.gap[0] else self.head

    def bytes_at(self, begin: int, end: int) -> bytes:
        return self.content[begin - self.begin : end - self.begin]


class DataPlane:
    """Brokers of one data plane.

    Attributes:
        rest: whether they have REST pages to read by.
        faults: answers instead of the next ones that would have bytes of a journal.
        cuts: of the next ones, how many bytes come before the connection ends.
        waits: `retryMillis` of the next authorisations.
    """

    def __init__(self) -> None:
        self.journals: dict[str, Journal] = {}
        self.rest = True
        self.message = 400
        self.faults: list[Answer] = []
        self.cuts: list[int] = []
        self.waits: list[int] = []
        self.address: str | None = None
        self.authorizations: list[dict[str, Any]] = []
        self._tokens = itertools.count(1)
        self.token = "broker-token-0"

    def journal(self, collection: str, pivot: str = "00") -> Journal:
        """A new journal of a collection."""
        name = f"{collection}/{GENERATION}/pivot={pivot}"
        return self.journals.setdefault(name, Journal(name))

    def expire(self) -> None:
        """The token ends; the next authorisation makes another."""
        self.token = f"broker-token-{next(self._tokens)}"

    def authorization(self, question: dict[str, Any], url: str) -> bytes:
        self.authorizations.append(question)
        if self.waits:
            answer = {"brokerAddress": "", "brokerToken": "", "journalNamePrefix": "", "retryMillis": self.waits.pop(0)}
        else:
            answer = {
                "brokerAddress": self.address or url,
                "brokerToken": self.token,
                "journalNamePrefix": f"{question['collection']}/{GENERATION}/",
                "retryMillis": 0,
            }
        return json.dumps(answer).encode()

    # ---- REST --------------------------------------------------------------------------------------------------

    def post(self, path: str, question: dict[str, Any], token: str) -> Answer:
        if token != self.token:
            return Answer(401, b'{"code":16,"message":"token is expired"}')
        if path == "/v1/journals/list":
            (label,) = question["selector"]["include"]["labels"]
            assert (label["name"], label["prefix"]) == ("name", True)
            names = [name for name in self.journals if name.startswith(label["value"])]
            listed = [{"spec": {"name": name, "replication": 3}, "modRevision": "7"} for name in sorted(names)]
            # A stream: one message has the journals of one part.
            return Answer(200, b"".join(_message({"status": "OK", "journals": [each]}) for each in listed) or b"{}\n")
        if path != "/v1/journals/read" or not self.rest:
            return Answer(404, b'{"code":5,"message":"Not Found"}')
        right = Answer(200, b"".join(self.read(question)))
        if question.get("metadataOnly"):
            return right
        return self._cut(self.faults.pop(0) if self.faults else right)

    def read(self, question: dict[str, Any]) -> Iterator[bytes]:
        """The messages of an answer."""
        journal = self.journals.get(question["journal"])
        if journal is None:
            yield _message({"status": "JOURNAL_NOT_FOUND"})
            return
        offset = journal.served_from(int(question["offset"]))
        for begin, stored in journal.fragments:
            if stored < int(question.get("beginModTime", 0)) and begin >= offset:
                later = [at for at, _ in journal.fragments if at > begin]
                offset = min(later, default=journal.head)
        head = {"offset": str(offset), "writeHead": str(journal.head)}
        if offset >= journal.head:
            yield _message({"status": "OFFSET_NOT_YET_AVAILABLE", **head})
            return
        yield _message({"status": "OK", "fragment": {"journal": journal.name, "begin": str(offset)}, **head})
        end = min(int(question.get("endOffset", 0)) or _LONGEST, journal.until(offset))
        while offset < end and not question.get("metadataOnly"):
            content = journal.bytes_at(offset, min(end, offset + self.message))
            yield _message({"offset": str(offset), "content": base64.b64encode(content).decode()})
            offset += len(content)

    # ---- gazette's own gateway -----------------------------------------------------------------------------------

    def gateway(self, path: str, token: str) -> Answer:
        parts = urlsplit(path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if token != self.token:
            return Answer(401, b"Unauthenticated")
        journal = self.journals.get(unquote(parts.path[1:]))
        if journal is None:
            return Answer(404, b"JOURNAL_NOT_FOUND")
        if self.faults:
            return self._cut(self.faults.pop(0))
        offset = journal.served_from(int(query["offset"]))
        headers = {"X-Write-Head": str(journal.head), "Location": "http://broker.example.com/"}
        if offset >= journal.head:
            return Answer(416, b"OFFSET_NOT_YET_AVAILABLE", headers)
        headers["Content-Range"] = f"bytes {offset}-{_LONGEST}/{_LONGEST}"
        headers["X-Fragment-Name"] = f"{offset:016x}"
        body = journal.bytes_at(offset, journal.until(offset))
        answer = Answer(206, body, headers, trailers={"X-Close-Error": "broker terminated RPC"})
        return self._cut(answer)

    def _cut(self, answer: Answer) -> Answer:
        if self.cuts and answer.status < 400 and answer.body:
            size = self.cuts.pop(0)
            return Answer(answer.status, answer.body[:size], answer.headers, length=len(answer.body) + 1)
        return answer


def _message(value: dict[str, Any]) -> bytes:
    return json.dumps({"result": value}).encode() + b"\n"

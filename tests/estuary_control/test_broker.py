"""The client of Estuary's data plane: journals read whole and in order, whatever the broker does."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from sophia.errors import ConfigurationError, TemporaryError
from sophia.estuary.control import client
from sophia.estuary.control.client import ATTEMPTS, ControlPlane
from sophia.estuary.control.shapes import Authorization
from sophia.estuary.journals import broker as module
from sophia.estuary.journals.broker import Broker, Span
from tests.estuary_control.answers import Answer
from tests.estuary_control.data_plane import GENERATION, Journal
from tests.estuary_control.plane import Plane

NAME = "sophia/documents"
both = pytest.mark.parametrize("rest", [True, False], ids=["rest", "gateway"])


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses between attempts, which are noted and not waited for."""
    found: list[float] = []
    monkeypatch.setattr(client, "sleep", found.append)
    monkeypatch.setattr(module, "sleep", found.append)
    return found


@pytest.fixture
def journal(estuary: Plane) -> Journal:
    journal = estuary.data.journal(NAME)
    for number in range(1, 40, 3):
        journal.commit([number, number + 1], title="a text")
    return journal


@pytest.fixture
def broker(estuary: Plane) -> Iterator[Broker]:
    def authorize() -> Authorization:
        with ControlPlane(estuary.settings()) as client:
            return client.authorize(NAME)

    with Broker(authorize) as client:
        yield client


def _read(broker: Broker, journal: Journal, since: int = 0) -> bytes:
    """The journal's bytes; pieces must follow one another."""
    span = broker.span(journal.name, since)
    found = b""
    for at, data in broker.content(span):
        assert at == span.begin + len(found)
        found += data
    return found


def test_journals_of_the_collection_are_listed_and_no_others(estuary: Plane, broker: Broker, journal: Journal) -> None:
    assert broker.journals() == [journal.name]
    split = estuary.data.journal(NAME, "80")
    estuary.data.journal("sophia/documents2")
    assert broker.journals() == [journal.name, split.name]
    assert estuary.data.authorizations == [{"collection": NAME, "capability": "read", "startedUnix": 0}]


def test_before_its_first_document_a_collection_has_none(broker: Broker) -> None:
    assert broker.journals() == []


@both
def test_a_journal_is_read_whole_in_small_pieces(estuary: Plane, broker: Broker, journal: Journal, rest: bool) -> None:
    estuary.data.rest = rest
    assert _read(broker, journal) == journal.content
    asked = "POST /v1/journals/read" if rest else "GET /"
    assert sum(request.startswith(asked) for request in estuary.requests) == (2 if rest else 1)


@both
def test_an_empty_journal_has_nothing(estuary: Plane, broker: Broker, rest: bool) -> None:
    estuary.data.rest = rest
    assert _read(broker, estuary.data.journal(NAME)) == b""


@both
def test_what_is_cut_off_goes_on_where_it_ended(estuary: Plane, broker: Broker, journal: Journal, rest: bool) -> None:
    """In the middle of a document, and of a message of it."""
    estuary.data.rest = rest
    span = broker.span(journal.name, 0)
    estuary.data.cuts += [1500, 900, 1301]
    assert b"".join(data for _, data in broker.content(span)) == journal.content
    assert not estuary.data.cuts


@both
def test_what_the_journal_no_longer_has_is_skipped_and_seen(
    estuary: Plane, broker: Broker, journal: Journal, rest: bool
) -> None:
    estuary.data.rest = rest
    journal.begin = 7000
    journal.gap = (7400, 7650)
    span = broker.span(journal.name, 0)
    assert span == Span(journal.name, 7000, journal.head)
    pieces = list(broker.content(span))
    assert b"".join(data for _, data in pieces) == journal.content[:400] + journal.content[650:]
    assert 7650 in [at for at, _ in pieces]


def test_what_was_stored_before_a_time_is_not_read(broker: Broker, journal: Journal) -> None:
    half = journal.content.index(b"\n", len(journal.content) // 2) + 1
    journal.fragments = [(0, 1000), (half, 2000)]
    assert _read(broker, journal, since=1500) == journal.content[half:]
    assert _read(broker, journal, since=500) == journal.content
    assert broker.span(journal.name, 3000) == Span(journal.name, journal.head, journal.head)


@both
def test_what_is_appended_meanwhile_is_left(estuary: Plane, broker: Broker, journal: Journal, rest: bool) -> None:
    estuary.data.rest = rest
    span = broker.span(journal.name, 0)
    before = journal.content
    journal.commit([90])
    assert b"".join(data for _, data in broker.content(span)) == before


@both
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_broker_is_asked_again(
    estuary: Plane, broker: Broker, journal: Journal, pauses: list[float], rest: bool, status: int
) -> None:
    estuary.data.rest = rest
    span = broker.span(journal.name, 0)
    estuary.data.faults += [Answer(status, b"INSUFFICIENT_JOURNAL_BROKERS")] * 2
    assert b"".join(data for _, data in broker.content(span)) == journal.content
    assert len(pauses) == 2


@both
def test_attempts_end(estuary: Plane, broker: Broker, journal: Journal, rest: bool) -> None:
    estuary.data.rest = rest
    span = broker.span(journal.name, 0)
    estuary.data.faults += [Answer(503, b"secret page")] * 40
    with pytest.raises(TemporaryError, match="it answers 503; try again later") as error:
        list(broker.content(span))
    assert "secret" not in str(error.value)
    assert 40 - len(estuary.data.faults) == ATTEMPTS


@both
def test_beyond_the_head_it_waits_and_then_says_so(
    estuary: Plane, broker: Broker, journal: Journal, rest: bool
) -> None:
    """As when another broker took over that does not have the last bytes yet."""
    estuary.data.rest = rest
    broker.span(journal.name, 0)
    with pytest.raises(TemporaryError, match="less of a journal than was written"):
        list(broker.content(Span(journal.name, journal.head, journal.head + 10)))


@both
def test_a_journal_that_is_gone_is_named_with_the_fix(estuary: Plane, broker: Broker, rest: bool) -> None:
    estuary.data.rest = rest
    with pytest.raises(TemporaryError, match=r"a journal is gone.*run the command again"):
        broker.span(f"{NAME}/{GENERATION}/pivot=99", 0)


@both
def test_a_token_that_ended_is_replaced(estuary: Plane, broker: Broker, journal: Journal, rest: bool) -> None:
    estuary.data.rest = rest
    span = broker.span(journal.name, 0)
    pieces = broker.content(span)
    found = next(pieces)[1]
    pieces.close()
    estuary.data.expire()
    found += b"".join(data for _, data in broker.content(Span(span.journal, len(found), span.end)))
    assert found == journal.content
    assert len(estuary.data.authorizations) == 2


def test_a_token_that_is_never_taken_ends_it(estuary: Plane, journal: Journal) -> None:
    granted = Authorization.model_validate(
        {"brokerAddress": estuary.url, "brokerToken": "hunter2", "journalNamePrefix": f"{NAME}/"}
    )
    with (
        Broker(lambda: granted) as broker,
        pytest.raises(TemporaryError, match="it does not take its token") as error,
    ):
        broker.journals()
    assert "hunter2" not in f"{error.value!r}{granted!r}"
    assert len(estuary.requests) == ATTEMPTS


def test_estuary_may_ask_to_wait_for_an_authorization(estuary: Plane, broker: Broker, pauses: list[float]) -> None:
    estuary.data.waits += [300, 200]
    assert broker.journals() == []
    assert pauses == [0.3, 0.2]
    started = [each["startedUnix"] for each in estuary.data.authorizations]
    assert started[0] == 0
    assert started[1] == started[2] > 1_700_000_000


def test_it_does_not_wait_for_ever(estuary: Plane, broker: Broker) -> None:
    estuary.data.waits += [100] * 100
    with pytest.raises(TemporaryError, match="it cannot say yet"):
        broker.journals()


def test_a_collection_that_the_token_may_not_read_is_named_with_the_fix(estuary: Plane) -> None:
    with (
        ControlPlane(estuary.settings()) as client,
        pytest.raises(ConfigurationError, match=r"403.*grant its account read"),
    ):
        client.authorize("elsewhere/documents")


@pytest.mark.parametrize(
    "address",
    [
        "http://broker.example.com",
        "http://127.0.0.1.example.com",
        "broker.example.com",
        "ftp://127.0.0.1",
        "http://[::1",
        "https://",
    ],
)
def test_the_token_goes_by_tls_only_except_on_this_machine(estuary: Plane, broker: Broker, address: str) -> None:
    estuary.data.address = address
    with pytest.raises(ConfigurationError, match="without https, where the token does not go"):
        broker.journals()


@both
def test_the_token_is_not_carried_elsewhere(estuary: Plane, broker: Broker, journal: Journal, rest: bool) -> None:
    estuary.data.rest = rest
    span = broker.span(journal.name, 0)
    estuary.data.faults.append(Answer(307, b"", {"Location": f"{estuary.url}/elsewhere"}))
    with pytest.raises(ConfigurationError, match=r"307.*where the token does not go"):
        list(broker.content(span))
    assert not any("elsewhere" in request for request in estuary.requests)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", TemporaryError),
        (b"{}\n", TemporaryError),
        (b'{"result":{"status":"OK"', TemporaryError),
        (b'{"error":{"code":14,"message":"secret"}}\n', TemporaryError),
        (b'{"result":{"status":"NOT_JOURNAL_PRIMARY_BROKER"}}\n', TemporaryError),
        (b"<html>sign in</html>\n", ConfigurationError),
        (b"[1]\n", ConfigurationError),
        (b'{"result":7}\n', ConfigurationError),
        (b'{"result":{"offset":"x","content":"aGk="}}\n', ConfigurationError),
        (b'{"result":{"offset":"-4","content":"aGk="}}\n', ConfigurationError),
        (b'{"result":{"offset":"5","content":"***"}}\n', ConfigurationError),
        (b'{"result":{"offset":"5","content":7}}\n', ConfigurationError),
    ],
)
def test_an_answer_of_another_shape_is_not_believed(
    estuary: Plane, broker: Broker, journal: Journal, body: bytes, error: type[Exception]
) -> None:
    span = broker.span(journal.name, 0)
    estuary.data.faults += [Answer(200, body)] * ATTEMPTS
    with pytest.raises(error, match="Estuary's broker") as raised:
        list(broker.content(span))
    assert "secret" not in str(raised.value)


def test_bytes_from_before_the_place_asked_for_are_not_taken(estuary: Plane, broker: Broker, journal: Journal) -> None:
    estuary.data.faults.append(Answer(200, b'{"result":{"offset":"3","content":"aGk="}}\n'))
    with pytest.raises(ConfigurationError, match="not of the form"):
        list(broker.content(Span(journal.name, 10, journal.head)))


def test_a_message_that_is_too_large_is_not_kept(
    estuary: Plane, broker: Broker, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LONGEST_MESSAGE", 100_000)
    span = broker.span(journal.name, 0)
    estuary.data.faults.append(Answer(200, json.dumps({"result": {"content": "A" * 200_000}}).encode()))
    with pytest.raises(ConfigurationError, match=r"more than 100,000 bytes"):
        list(broker.content(span))


def test_nobody_at_the_address_is_temporary(estuary: Plane, broker: Broker, journal: Journal) -> None:
    span = broker.span(journal.name, 0)
    estuary.close()
    with pytest.raises(TemporaryError, match="does not answer: ConnectError"):
        list(broker.content(span))


def test_pieces_do_not_go_back(estuary: Plane, broker: Broker, journal: Journal) -> None:
    pieces = b'{"result":{"offset":"0","content":"aGk="}}\n{"result":{"offset":"1","content":"aGk="}}\n'
    estuary.data.faults.append(Answer(200, pieces))
    with pytest.raises(ConfigurationError, match="not of the form"):
        list(broker.content(Span(journal.name, 0, journal.head)))


@pytest.mark.parametrize(
    ("field", "value"),
    [("token", ""), ("token", "two\nlines"), ("token", "ümlaut"), ("address", "two\nlines"), ("address", "ümlaut")],
)
def test_an_authorization_that_is_none_is_not_used(estuary: Plane, broker: Broker, field: str, value: str) -> None:
    setattr(estuary.data, field, value)
    with pytest.raises(ConfigurationError, match="Estuary's authorization") as error:
        broker.journals()
    assert not value or value not in f"{error.value!r}{error.value.__cause__!r}"


def test_an_address_that_is_none_is_not_used(estuary: Plane, broker: Broker) -> None:
    estuary.data.address = "https://broker.example.com:port"
    with pytest.raises(ConfigurationError, match="Estuary's broker"):
        broker.journals()

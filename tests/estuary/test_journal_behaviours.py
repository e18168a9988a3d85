"""Behaviour 13: reading a collection's journals over HTTP, from the authorisation to the inbox."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta

import psycopg
import pytest
from psycopg.rows import TupleRow

from sophia.documents import uuid_time
from sophia.errors import TemporaryError
from sophia.estuary.control import client
from sophia.estuary.control.client import ATTEMPTS, ControlPlane
from sophia.estuary.control.shapes import Authorization
from sophia.estuary.intake.take import Taken, take_documents
from sophia.estuary.journals import broker as module
from sophia.estuary.journals.broker import Broker
from sophia.estuary.journals.replay import Replayed, replay
from sophia.estuary.stamps import ACK_TXN
from tests.estuary_control.answers import Answer
from tests.estuary_control.data_plane import clock_of
from tests.estuary_control.plane import Plane, plane
from tests.intake import NAME, document
from tests.integration.intake.inbox_view import Deliveries

both = pytest.mark.parametrize("rest", [True, False], ids=["rest", "gateway"])


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(client, "sleep", found.append)
    monkeypatch.setattr(module, "sleep", found.append)
    return found


@pytest.fixture
def estuary() -> Iterator[Plane]:
    with plane() as running:
        yield running


@pytest.fixture
def broker(estuary: Plane) -> Iterator[Broker]:
    def authorize() -> Authorization:
        with ControlPlane(estuary.settings()) as client:
            return client.authorize(NAME)

    with Broker(authorize) as client:
        yield client


@pytest.fixture
def deliveries(connection: psycopg.Connection[TupleRow]) -> Deliveries:
    return Deliveries(connection)


@pytest.fixture
def take(connection: psycopg.Connection[TupleRow], deliveries: Deliveries) -> Callable[[bytes], Taken]:
    return lambda body: take_documents(connection, deliveries.reader, [body])


def _numbers(deliveries: Deliveries) -> dict[str, int]:
    return {key: number for key, (number, row, _) in deliveries.rows().items() if row is not None}


@both
def test_13_journals_are_replayed_into_the_inbox(
    estuary: Plane, broker: Broker, deliveries: Deliveries, take: Callable[[bytes], Taken], rest: bool
) -> None:
    """Two journals, two producers between each other, an open transaction, one rolled back, a repetition, a cut."""
    estuary.data.rest = rest
    first, second = estuary.data.journal(NAME), estuary.data.journal(NAME, "80")
    first.commit([1, 2], title="committed")
    repeated = first.content
    first.put(10, id="open", title="of producer 1")
    first.commit([11], producer=2, title="of producer 2")
    first.content += repeated
    first.put(14, id="rolled back")
    first.put(3, ACK_TXN)
    first.put(20, id=1, op="u", body="later")
    first.put(21, id=2, op="d")
    first.put(22, ACK_TXN)
    first.put(30, id="never acknowledged")
    second.outside(5, id="outside", title="x")
    estuary.data.cuts += [300, 201]

    figures = replay(broker, take)
    assert _numbers(deliveries) == {"[1]": 20, "[11]": 11, '["outside"]': 5}
    assert deliveries.rows()["[1]"][1] == {"id": 1, "title": "committed", "body": "later"}
    assert deliveries.rows()["[2]"][1] is None
    assert deliveries.parked() == []
    assert figures == Replayed(
        journals=2,
        size=figures.read,
        read=len(first.content) + len(second.content),
        acknowledgements=5,
        rolled_back=2,
        repeated=2,
        open=1,
        documents=6,
        changed=figures.changed,
    )
    assert figures.changed > 0
    # Once more: all of it is known.
    again = replay(broker, take)
    assert (again.documents, again.changed, again.parked) == (6, 0, 0)


def test_13_what_was_delivered_already_changes_nothing_and_what_was_missed_comes(
    estuary: Plane, broker: Broker, deliveries: Deliveries, take: Callable[[bytes], Taken]
) -> None:
    """The webhook had combined two changes of a row and missed another row's."""
    deliveries.take(document(1, 4, title="second"))
    journal = estuary.data.journal(NAME)
    journal.put(1, id=1, title="first")
    journal.put(2, id=2, title="missed")
    journal.put(4, id=1, op="u", title="second")
    journal.put(5, ACK_TXN)
    figures = replay(broker, take)
    assert deliveries.rows() == {
        "[1]": (4, {"id": 1, "title": "second"}, []),
        "[2]": (2, {"id": 2, "title": "missed"}, []),
    }
    assert figures.changed == 1


def test_13_a_replay_that_is_broken_off_is_run_again(
    estuary: Plane,
    broker: Broker,
    deliveries: Deliveries,
    take: Callable[[bytes], Taken],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sophia.estuary.journals.replay.TAKE_DOCUMENTS", 3)
    journal = estuary.data.journal(NAME)
    for number in range(1, 60, 2):
        journal.commit([number])
    estuary.data.cuts.append(2000)
    # The bytes up to the cut are taken; then the broker is away.
    right = b"".join(estuary.data.read({"journal": journal.name, "offset": "0"}))
    estuary.data.faults += [Answer(200, right), *[Answer(503)] * ATTEMPTS]
    with pytest.raises(TemporaryError):
        replay(broker, take)
    some = len(_numbers(deliveries))
    assert 0 < some < 30
    figures = replay(broker, take)
    assert len(_numbers(deliveries)) == 30
    assert figures.changed == 30 - some


def test_13_a_line_that_is_no_document_is_parked_alone(
    estuary: Plane, broker: Broker, deliveries: Deliveries, take: Callable[[bytes], Taken]
) -> None:
    journal = estuary.data.journal(NAME)
    journal.put(1, id=1)
    journal.line(b'{"_meta":{"uuid":"no uuid"},"id":7}')
    journal.line(b']} , "broken')
    journal.put(2, title="without its key")
    journal.put(3, id=3)
    journal.put(4, ACK_TXN)
    figures = replay(broker, take)
    assert _numbers(deliveries) == {"[1]": 1, "[3]": 3}
    assert figures.parked == len(deliveries.parked()) == 3
    replay(broker, take)
    assert len(deliveries.parked()) == 3


def test_13_what_was_published_before_a_time_is_left(
    estuary: Plane, broker: Broker, deliveries: Deliveries, take: Callable[[bytes], Taken]
) -> None:
    journal = estuary.data.journal(NAME)
    journal.commit([1, 2])
    journal.commit([5_000_000])
    figures = replay(broker, take, uuid_time(clock_of(0)) + timedelta(seconds=3))
    assert _numbers(deliveries) == {"[5000000]": 5_000_000}
    assert (figures.earlier, figures.documents) == (2, 1)


def test_13_where_the_journal_lost_something_the_cut_document_is_left_out(
    estuary: Plane, broker: Broker, deliveries: Deliveries, take: Callable[[bytes], Taken]
) -> None:
    journal = estuary.data.journal(NAME)
    journal.commit([1])
    middle = len(journal.content) + 20
    journal.put(5, id=5)
    journal.put(6, id=6)
    end = len(journal.content)
    journal.commit([10])
    journal.gap = (middle, end)
    figures = replay(broker, take)
    assert _numbers(deliveries) == {"[1]": 1, "[10]": 10}
    assert (figures.gaps, figures.parked, figures.read) == (1, 0, figures.size)


def test_13_what_the_journal_lost_at_its_end_is_counted(
    estuary: Plane, broker: Broker, deliveries: Deliveries, take: Callable[[bytes], Taken]
) -> None:
    journal = estuary.data.journal(NAME)
    journal.commit([1])
    middle = len(journal.content)
    journal.commit([5])
    end = len(journal.content)
    spans = [broker.span(journal.name, 0)]
    journal.commit([10])
    journal.gap = (middle, end)
    broker.span = lambda journal, since: spans[0]  # type: ignore[method-assign]
    figures = replay(broker, take)
    assert _numbers(deliveries) == {"[1]": 1}
    assert (figures.gaps, figures.read) == (1, figures.size)


def test_13_to_count_is_to_take_nothing(estuary: Plane, broker: Broker, deliveries: Deliveries) -> None:
    estuary.data.journal(NAME).commit([1, 2, 3])
    figures = replay(broker, None)
    assert (figures.documents, figures.changed) == (3, 0)
    assert deliveries.rows() == {}

"""Bad input over HTTP: nothing crashes, nothing is lost, memory is bounded, and what is parked can be replayed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as bounded
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from sophia.catalog import Catalog
from sophia.database import Database
from sophia.estuary.intake.documents import Reader
from sophia.estuary.intake.parked import replay_parked
from sophia.settings import load_settings
from tests.intake import FEED, NAME, body, document, fed_catalog, intake, uuid_of
from tests.integration.intake.inbox_view import Deliveries
from tests.integration.intake.process import Process

PATH = f"/estuary/{NAME}"
EXAMPLES = 40
MEMORY_BYTES = 300_000_000
META = b'"_meta":{"op":"c","uuid":"%b"}' % uuid_of(3).encode()


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["allowed", "forbidden"])
def test_whatever_is_sent_is_taken_or_parked(
    tmp_path: Path, catalog: Catalog, database: Database, deliveries: Deliveries, mode: GenerationMode
) -> None:
    held = [
        not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
        checks.response_headers_conformance,
    ]
    with intake(load_settings(home=tmp_path), fed_catalog(catalog), database) as address:
        schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
        for route in (PATH, "/estuary-events"):

            @given(case=schema[route]["POST"].as_strategy(generation_mode=mode))
            @bounded(
                max_examples=EXAMPLES,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            def ask(case: schemathesis.Case) -> None:
                case.headers["Content-Type"] = "application/json"
                answer = case.call_and_validate(checks=held, timeout=60)
                assert answer.status_code in (200, 202)

            ask()
    told = deliveries.connection.execute("SELECT count(*) FROM sophia.parked").fetchone()
    assert told is not None
    # What the fuzzer makes up has no key of ours, or no UUID of version 1.
    assert told[0] > 0


CORPUS = [
    b'[{"id":1,%b},{"id":2,"_meta":' % META,
    b"[" * 10_000,
    b'[{"id":1,"a":%b%b,%b}]' % (b"[" * 10_000, b"]" * 10_000, META),
    b'[{"id":1,"id":2,"a":1,"a":2,%b}]' % META,
    b'[{"id":1,"a":NaN,%b}]' % META,
    b'[{"id":1,"a":%b,%b}]' % (b"9" * 100_000, META),
    b'[{"id":1,"a":1e99999999,%b}]' % META,
    b"[{%b}]" % META,
    b'[{"id":{"x":1},%b}]' % META,
    b'[{"id":null,%b}]' % META,
    b'[{"id":1,"_meta":{"op":"c","uuid":"9f0c2a54-6d5c-4f37-8c2d-000000000001"}}]',
    b'[{"_meta":{"op":"d","uuid":"%b"}}]' % uuid_of(4).encode(),
    b'[{"id":77,"_meta":{"op":"d","uuid":"%b"}}]' % uuid_of(4).encode(),
    b'[{"id":1,"a":"\\ud800",%b}]' % META,
    b'[{"id":1,"a":"\\u0000",%b}]' % META,
    b'[1,"a",null,true,[],{}]',
    b"[%b]" % b",".join([b'{"n":%d}' % number for number in range(50_000)]),
]


def test_our_own_corpus_beside_a_good_document(
    tmp_path: Path, catalog: Catalog, database: Database, deliveries: Deliveries
) -> None:
    reader = Reader(FEED)
    with (
        intake(load_settings(home=tmp_path), fed_catalog(catalog), database) as address,
        httpx.Client(base_url=address, timeout=60, headers={"Content-Type": "application/json"}) as client,
    ):
        for raw in CORPUS:
            answer = client.post(PATH, content=raw)
            assert answer.status_code == 200
            found = list(reader.read(raw, 1))
            told = sum(len(step.changes) for step in found) + sum(
                rejected.documents for step in found for rejected in step.rejected
            )
            assert answer.json()["documents"] == told
        assert client.post(PATH, content=body(document(5, 50))).json() == {"documents": 1, "parked": 0}
    assert "[5]" in deliveries.rows()
    assert deliveries.rows()["[77]"][1] is None
    parked = deliveries.parked()
    # Of the last one, a few entries of many documents each.
    assert len(parked) < 100
    again = replay_parked(deliveries.connection, {NAME: FEED})
    assert (again.taken, again.parked, again.unknown) == (0, len(parked), 0)
    assert [(attempts, text) for *_, attempts, text in deliveries.parked()] == [(2, text) for *_, text in parked]


@pytest.fixture
def process(tmp_path: Path, database: Database) -> Iterator[Process]:
    """The service in a process of its own."""
    running = Process(tmp_path, database)
    yield running
    running.kill()


def test_memory_is_bounded_whatever_comes(process: Process, database: Database, deliveries: Deliveries) -> None:
    process.ready()
    mb = 1_000_000
    one = body(document(1, 1, body="x" * (16 * mb)))
    many = body(*[document(number, number, body="y" * 900) for number in range(100, 5_000)])
    nested = b'[{"id":2,"a":[%b],%b}]' % (b",".join([b"[]"] * (2 * mb)), META)
    bad = b"[%b]" % b",".join([b"[%d]" % number for number in range(100_000)])
    unreadable = b"[" + b"1," * (2 * mb)
    answers: list[int] = []

    def send(raw: bytes) -> None:
        headers = {"Content-Type": "application/json"}
        answers.append(httpx.post(f"{process.address}{PATH}", content=raw, headers=headers, timeout=250).status_code)

    threads = [threading.Thread(target=send, args=(raw,)) for raw in (one, many, nested, unreadable, one, bad)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(280)
    assert answers == [200] * 6
    assert process.peak_bytes() < MEMORY_BYTES
    assert len(deliveries.rows()) == 4_902
    (count,) = deliveries.connection.execute("SELECT sum(documents) FROM sophia.parked").fetchone() or (0,)
    assert count == 100_000

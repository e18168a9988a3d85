"""Behaviours 9 to 11 and 14 of Estuary's materialize-webhook, of the stand-in against a receiver that records."""

from __future__ import annotations

import json
import random
import threading
from pathlib import Path
from typing import Any

import pytest

from sophia.documents import uuid_clock
from sophia.errors import ConfigurationError
from sophia.estuary.stand_in.combine import combine, packed_key
from sophia.estuary.stand_in.faults import Faults, RestartError
from sophia.estuary.stand_in.journal import Journal
from sophia.estuary.stand_in.webhook import FLUSH_BYTES, Binding, Endpoint, HttpTransport, TaskFailedError, Webhook
from tests.estuary.recorder import Recorder, Request
from tests.estuary.scene import ITEMS, Writer, materializer, state_of
from tests.waiting import until

OTHERS = Binding("acme/others", ("/id",), "acme/others")


def encoded(documents: list[dict[str, Any]]) -> bytes:
    return json.dumps(documents, separators=(",", ":"), sort_keys=True, ensure_ascii=False).encode()


def test_09_a_request_is_one_json_array_with_gos_headers(recorder: Recorder, writer: Writer) -> None:
    document = writer.document("c", 1, title="ü")
    writer.put(document)
    headers = (("x-team", "a"), ("Authorization", "Bearer t"), ("Content-Type", "text/plain"), ("X-Team", "b"))
    with materializer(writer.path, recorder.url, headers=headers) as stand_in:
        stand_in.drain()
    (request,) = recorder.requests
    assert (request.method, request.path) == ("POST", "/acme/items")
    assert request.body == encoded([document])
    assert request.headers == [
        ("Host", recorder.url.split("/")[2]),
        ("User-Agent", "Go-http-client/1.1"),
        ("Content-Length", str(len(request.body))),
        ("Authorization", "Bearer t"),
        ("Content-Type", "application/json"),
        ("Content-Type", "text/plain"),
        ("X-Team", "a"),
        ("X-Team", "b"),
        ("Accept-Encoding", "gzip"),
    ]


@pytest.mark.parametrize(
    ("relative", "url"),
    [
        ("acme/items", "http://example.com/estuary/acme/items"),
        ("/acme/items", "http://example.com/acme/items"),
    ],
)
def test_09_a_relative_path_is_resolved_against_the_address(relative: str, url: str) -> None:
    assert Endpoint("http://example.com/estuary/").url(Binding("acme/items", ("/id",), relative)) == url


@pytest.mark.parametrize("address", ["http://example.com/estuary", "http://example.com/a/?x=1", "ftp://example.com/"])
def test_09_an_address_ends_in_a_slash(address: str) -> None:
    with pytest.raises(ConfigurationError, match="ends in `/`"):
        Endpoint(address)


def test_09_the_limit_of_a_mebibyte_is_asked_before_a_document_is_added(recorder: Recorder, writer: Writer) -> None:
    writer.put(*(writer.document("c", number, text="x" * 300_000) for number in range(1, 9)))
    with materializer(writer.path, recorder.url) as stand_in:
        stand_in.drain()
    assert [len(request.documents) for request in recorder.requests] == [4, 4]
    first = recorder.requests[0].body
    assert len(first) > FLUSH_BYTES
    assert len(first) - 300_000 < FLUSH_BYTES


def test_09_another_binding_begins_another_request_and_bindings_are_drained_in_turn(
    recorder: Recorder, writer: Writer
) -> None:
    documents = [writer.document("c", number) for number in range(1, 7)]
    for number, document in enumerate(documents):
        writer.put(document, collection=(ITEMS, OTHERS)[number % 2].collection)
    with materializer(writer.path, recorder.url, bindings=(OTHERS, ITEMS)) as stand_in:
        stand_in.drain()
    assert [(request.path, [document["id"] for document in request.documents]) for request in recorder.requests] == [
        ("/acme/others", [2, 4, 6]),
        ("/acme/items", [1, 3, 5]),
    ]


def test_09_keys_ascend_as_estuarys_packed_keys_do(writer: Writer) -> None:
    values = ["ä", "b", 10, 9, -1, 1.5, True, False, None, "", "Z"]
    documents = [{"_meta": {"op": "c"}, "id": value} for value in values]
    ordered = [document["id"] for document in combine(documents, ("/id",))]
    assert ordered == [None, "", "Z", "b", "ä", -1, 9, 10, 1.5, False, True]
    loc = {"_meta": {"op": "c", "source": {"loc": [7, 8, 9]}}}
    assert packed_key(loc, ("/_meta/source/loc/0", "/_meta/source/loc/2")) == ((3, 7), (3, 9))
    assert packed_key({"_meta": {}, "a/b": {"c~d": 1}}, ("/a~1b/c~0d", "/no/where")) == ((3, 1), (0, 0))


def test_09_documents_of_a_key_are_merged_and_the_last_one_wins(recorder: Recorder, writer: Writer) -> None:
    created = writer.document("c", 1, title="a", body="b")
    updated = writer.document("u", 1, {"id": 7}, title="c")
    again = writer.document("u", 1, {"id": 8}, body=None)
    writer.put(created, updated, again)
    with materializer(writer.path, recorder.url) as stand_in:
        stand_in.drain()
    (sent,) = recorder.documents
    assert sent["_meta"] == again["_meta"] | {"before": {"id": 7}}
    assert (sent["title"], sent["body"]) == ("c", None)


def test_09_a_delete_stays_a_second_document(recorder: Recorder, writer: Writer) -> None:
    created, deleted = writer.document("c", 1, title="a"), writer.document("d", 1)
    writer.put(created, writer.document("c", 0), deleted, writer.document("c", 2))
    with materializer(writer.path, recorder.url) as stand_in:
        stand_in.drain()
    assert [(document["id"], document["_meta"]["op"]) for document in recorder.documents] == [
        (0, "c"),
        (1, "c"),
        (1, "d"),
        (2, "c"),
    ]


def test_09_history_mode_keeps_every_event(recorder: Recorder, writer: Writer) -> None:
    documents = [writer.document("c", 2), writer.document("c", 1), writer.document("u", 1), writer.document("d", 1)]
    writer.put(*documents)
    history = Binding(ITEMS.collection, ITEMS.key, ITEMS.relative_path, history=True)
    with materializer(writer.path, recorder.url, bindings=(history,)) as stand_in:
        stand_in.drain()
    assert recorder.documents == [*documents[1:], documents[0]]


def test_10_attempts_come_after_0_and_a_tenth_and_one_to_nine_seconds(recorder: Recorder, writer: Writer) -> None:
    writer.put(writer.document("c", 1))
    waits: list[float] = []
    recorder.answer = lambda number, request: 503
    with materializer(writer.path, recorder.url, sleep=waits.append) as stand_in:
        with pytest.raises(TaskFailedError, match="webhook failed after many attempts: status 503"):
            stand_in.drain()
        assert waits == [0.1, 1, 2, 3, 4, 5, 6, 7, 8, 9]
        assert len(recorder.requests) == 11
        # Each attempt is the same request: nothing tells it from the first.
        assert len({(request.body, str(request.headers)) for request in recorder.requests}) == 1
        recorder.answer = lambda number, request: 200
        stand_in.drain()
    assert len(recorder.requests) == 12


@pytest.mark.parametrize("status", [400, 401, 404, 413, 429, 500, 304])
def test_10_whatever_is_no_2xx_is_tried_again(recorder: Recorder, writer: Writer, status: int) -> None:
    writer.put(writer.document("c", 1))
    recorder.answer = lambda number, request: 200 if number == 3 else status
    with materializer(writer.path, recorder.url) as stand_in:
        stand_in.drain()
    assert len(recorder.requests) == 3


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_10_any_2xx_is_success(recorder: Recorder, writer: Writer, status: int) -> None:
    writer.put(writer.document("c", 1))
    recorder.answer = lambda number, request: status
    with materializer(writer.path, recorder.url) as stand_in:
        stand_in.drain()
    assert len(recorder.requests) == 1


def test_10_a_lost_answer_brings_the_same_request_again(recorder: Recorder, writer: Writer) -> None:
    writer.put(writer.document("c", 1))
    recorder.answer = lambda number, request: None if number == 1 else 200
    with materializer(writer.path, recorder.url) as stand_in:
        stand_in.drain()
    first, second = recorder.requests
    assert first == second


@pytest.mark.parametrize(("status", "method"), [(301, "GET"), (302, "GET"), (303, "GET"), (307, "POST"), (308, "POST")])
def test_10_a_redirect_is_followed_as_go_does(recorder: Recorder, writer: Writer, status: int, method: str) -> None:
    writer.put(writer.document("c", 1))
    recorder.answer = lambda number, request: (status, "/elsewhere") if number == 1 else 200
    with materializer(writer.path, recorder.url) as stand_in:
        stand_in.drain()
    first, second = recorder.requests
    assert (second.method, second.path) == (method, "/elsewhere")
    assert second.body == (first.body if method == "POST" else b""), "a 301 to 303 loses the documents"


def test_10_redirects_end_after_ten(recorder: Recorder) -> None:
    recorder.answer = lambda number, request: (307, f"/{number}")
    webhook = Webhook(Endpoint(recorder.url), HttpTransport(), lambda seconds: None)
    webhook.store(ITEMS, {"_meta": {}})
    with pytest.raises(TaskFailedError, match="stopped after 10 redirects"):
        webhook.flush()
    assert len(recorder.requests) == 11 * 11


def test_10_a_failed_task_replays_the_transaction_with_what_came_since(recorder: Recorder, writer: Writer) -> None:
    writer.put(*(writer.document("c", number, text="x" * 600_000) for number in (1, 2, 3)))
    recorder.answer = lambda number, request: 200 if number == 1 else 500
    with materializer(writer.path, recorder.url) as stand_in:
        with pytest.raises(TaskFailedError):
            stand_in.drain()
        recorder.requests.clear()
        recorder.answer = lambda number, request: 200
        writer.put(writer.document("u", 1, text="short"), writer.document("c", 0))
    with materializer(writer.path, recorder.url) as stand_in:
        stand_in.drain()
    assert [[document["id"] for document in request.documents] for request in recorder.requests] == [[0, 1, 2, 3]]
    assert recorder.documents[1]["text"] == "short"


def test_11_requests_follow_one_another_and_batches_grow_behind_a_slow_receiver(
    recorder: Recorder, writer: Writer
) -> None:
    arrived, go_on = threading.Event(), threading.Event()

    def answer(number: int, request: Request) -> int:
        if number == 1:
            arrived.set()
            assert go_on.wait(60)
        return 200

    recorder.answer = answer
    writer.put(writer.document("c", 1))
    stop = threading.Event()

    def work() -> None:
        # A journal's connection belongs to its thread.
        with materializer(writer.path, recorder.url) as stand_in:
            stand_in.run(stop)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert arrived.wait(60)
        for number in range(2, 202):
            writer.put(writer.document("c", number))
        go_on.set()
        until(lambda: sum(len(request.documents) for request in recorder.requests) == 201, "all documents")
    finally:
        go_on.set()
        stop.set()
        thread.join(60)
    assert [len(request.documents) for request in recorder.requests] == [1, 200]
    assert recorder.most_at_once == 1


def test_11_a_document_of_16_megabytes_is_sent_whole(recorder: Recorder, writer: Writer) -> None:
    text = "x" * 16_000_000
    writer.put(writer.document("c", 1), writer.document("c", 2, text=text), writer.document("c", 3))
    with materializer(writer.path, recorder.url) as stand_in:
        stand_in.drain()
    assert [[document["id"] for document in request.documents] for request in recorder.requests] == [[1, 2], [3]]
    assert recorder.documents[1]["text"] == text


def sent(recorder: Recorder, writer: Writer, faults: Faults, documents: int = 40, seed: int = 5) -> Any:
    """Drain under faults. The transport, which has counted them."""
    writer.put(*(writer.document("c", number, text="x" * 100_000) for number in range(documents)))
    with materializer(writer.path, recorder.url, faults=faults, rng=random.Random(seed)) as stand_in:
        stand_in.drain()
        return stand_in


@pytest.mark.parametrize("fault", ["duplicate", "lost", "late", "restart", "reorder"])
def test_14_each_fault_can_be_switched_on_alone(recorder: Recorder, writer: Writer, fault: str) -> None:
    stand_in = sent(recorder, writer, Faults(**{fault: 1.0 if fault == "reorder" else 0.5}))
    assert stand_in.transport.made[fault] > 0
    assert sum(stand_in.transport.made.values()) == stand_in.transport.made[fault]
    # Whatever is made of the way, a receiver that minds the clocks is left with the same.
    assert set(state_of(recorder.documents)) == set(range(40))
    numbers = [document["id"] for document in recorder.documents]
    if fault == "reorder":
        assert numbers != sorted(numbers)
        assert len(numbers) == 40
    else:
        assert len(numbers) > 40


def test_14_lost_answers_and_duplicates_come_as_the_same_bytes(recorder: Recorder, writer: Writer) -> None:
    sent(recorder, writer, Faults(duplicate=0.3, lost=0.3))
    bodies = [request.body for request in recorder.requests]
    assert len(bodies) > len(set(bodies)) == 4


def test_14_a_restart_cuts_the_transaction_anew(recorder: Recorder, writer: Writer) -> None:
    stand_in = sent(recorder, writer, Faults(restart=0.5))
    assert stand_in.figures.restarts == stand_in.transport.made["restart"] > 1
    assert len({len(request.documents) for request in recorder.requests}) > 2


def test_14_without_faults_nothing_comes_twice(recorder: Recorder, writer: Writer) -> None:
    stand_in = sent(recorder, writer, Faults())
    assert sum(stand_in.transport.made.values()) == 0
    assert [document["id"] for document in recorder.documents] == list(range(40))
    assert (stand_in.requests, stand_in.attempts, stand_in.figures.sent) == (4, 4, 40)


def test_14_documents_of_one_key_keep_their_order_when_keys_do_not(recorder: Recorder, writer: Writer) -> None:
    for number in range(10):
        writer.put(writer.document("c", number), writer.document("d", number))
    with materializer(writer.path, recorder.url, faults=Faults(reorder=1.0), rng=random.Random(3)) as stand_in:
        stand_in.drain()
    clocks: dict[int, int] = {}
    for document in recorder.documents:
        clock = uuid_clock(document["_meta"]["uuid"])
        assert clock > clocks.get(document["id"], 0)
        clocks[document["id"]] = clock
    assert list(clocks) != sorted(clocks)


def test_the_journal_reads_what_was_written_and_keeps_its_offsets(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "journal")
    odd = writer.document("c", 1, text='ü"\\\n\u2028', number=10**40, real=0.1)
    with Journal(writer.path) as journal:
        journal.append([("a/b", odd)], "task", {"lsn": 1})
        with pytest.raises(TypeError):
            # The checkpoint cannot be written, so the document is not either.
            journal.append([("a/b", writer.document("c", 2))], "task", {"lsn": {2}})
    with Journal(writer.path) as journal:
        assert [entry.document for entry in journal.read(0, ["a/b"], 10)] == [odd]
        assert journal.read(0, ["a/c"], 10) == []
        assert journal.checkpoint("task") == {"lsn": 1}
        assert journal.last_clock() == uuid_clock(odd["_meta"]["uuid"])
        journal.append([("a/b", writer.document("c", 4))])
        assert [entry.offset for entry in journal.read(0, ["a/b"], 10)] == [1, 2]


def test_a_restart_that_was_asked_for_ends_a_transaction(recorder: Recorder, writer: Writer) -> None:
    writer.put(writer.document("c", 1))
    with (
        materializer(writer.path, recorder.url, faults=Faults(restart=1.0)) as stand_in,
        pytest.raises(RestartError),
    ):
        stand_in.transaction()

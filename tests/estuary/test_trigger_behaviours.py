"""Behaviour 12 of Estuary: the triggers of a materialisation."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sophia.documents import uuid_clock
from sophia.errors import ConfigurationError
from sophia.estuary.stamps import published_at
from sophia.estuary.stand_in.templates import render
from sophia.estuary.stand_in.triggers import Triggers, duration, parse_triggers
from sophia.estuary.stand_in.webhook import TaskFailedError
from tests.estuary.recorder import Answer, Recorder, Request
from tests.estuary.scene import NAME, TASK, Writer, materializer

TEMPLATE = (
    '{"materialization":"{{materialization_name}}","collections":[{{#each collection_names}}"{{this}}"'
    '{{#unless @last}},{{/unless}}{{/each}}],"publishedAtMin":"{{flow_published_at_min}}",'
    '"publishedAtMax":"{{flow_published_at_max}}"}'
)


def triggers(recorder: Recorder, interval: str = "0s", **more: Any) -> Triggers:
    entry = {"url": f"{recorder.url}events", "payloadTemplate": TEMPLATE, "headers": {"Authorization": "Bearer e"}}
    return parse_triggers({"config": {"sophia": entry | more}, "interval": interval})


def delivered(recorder: Recorder) -> list[dict[str, Any]]:
    return [json.loads(request.body) for request in recorder.requests if request.path.startswith("/events")]


def test_12_a_trigger_fires_behind_the_commit_and_tells_its_span(recorder: Recorder, writer: Writer) -> None:
    documents = [writer.document("c", number) for number in (3, 1, 2)]
    writer.put(*documents)
    with materializer(writer.path, recorder.url, triggers=triggers(recorder)) as stand_in:
        stand_in.drain()
    stored, fired = recorder.requests
    assert stored.path == f"/{NAME}"
    assert (fired.method, fired.path) == ("POST", "/events")
    assert dict(fired.headers)["Authorization"] == "Bearer e"
    clocks = [uuid_clock(document["_meta"]["uuid"]) for document in documents]
    assert delivered(recorder) == [
        {
            "materialization": TASK,
            "collections": [NAME],
            "publishedAtMin": published_at(clocks[0]),
            "publishedAtMax": published_at(clocks[2]),
        }
    ]


def test_12_both_shapes_of_the_configuration_are_read(recorder: Recorder) -> None:
    entry = {"url": "https://example.com/events", "payloadTemplate": TEMPLATE, "method": "PUT", "maxAttempts": 5}
    present = parse_triggers({"config": {"a": entry | {"timeout": "1m30s"}}, "interval": "30s"})
    older = parse_triggers({"config": [entry | {"timeoutSecs": 90}]})
    assert present.triggers == older.triggers
    assert (present.triggers[0].timeout, present.interval, older.interval) == (90, 30, 0)


@pytest.mark.parametrize(
    "value",
    [
        {"config": {"a": {"url": "https://example.com"}}},
        {"config": {"a": {"url": "https://example.com", "payloadTemplate": "{{flow_run_id}}"}}},
        {"config": {"a": {"url": "https://example.com", "payloadTemplate": "{{#each collection_names}}"}}},
        {"config": {"a": {"url": "https://example.com", "payloadTemplate": "{{lookup a b}}"}}},
        {"config": {"a": {"url": "https://example.com", "payloadTemplate": "x", "method": "GET"}}},
        {"config": {"a": {"url": "https://example.com", "payloadTemplate": "x", "retries": 3}}},
        {"config": {"a": {"url": "https://example.com", "payloadTemplate": "x", "timeout": "soon"}}},
        {"triggers": []},
    ],
)
def test_12_what_estuary_would_refuse_is_refused(value: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        parse_triggers(value)


def test_12_templates_are_strict_and_escape_nothing() -> None:
    variables = {"name": '<&"', "list": ["a", "b"], "none": [], "headers": {"X": "y"}, "yes": True}
    assert render("{{name}}|{{{name}}}|{{headers.X}}|{{yes}}", variables) == '<&"|<&"|y|true'
    assert render("{{#each list}}{{@index}}{{this}}{{#if @first}}!{{else}}?{{/if}}{{/each}}", variables) == "0a!1b?"
    assert render("{{#each none}}x{{else}}nothing{{/each}}", variables) == "nothing"
    with pytest.raises(ConfigurationError, match=r"'headers\.Y' does not exist"):
        render("{{headers.Y}}", variables)
    with pytest.raises(ConfigurationError, match="is not known here"):
        render("{{/each}}", variables)


@pytest.mark.parametrize(("text", "seconds"), [("500ms", 0.5), ("30s", 30), ("5m", 300), ("1h5m", 3900)])
def test_12_durations(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("status", [500, 503, 408, 429, None])
def test_12_what_may_pass_is_tried_again_after_one_two_four_seconds(
    recorder: Recorder, writer: Writer, status: int | None
) -> None:
    def answer(number: int, request: Request) -> Answer:
        return status if request.path == "/events" and len(delivered(recorder)) < 4 else 200

    recorder.answer = answer
    waits: list[float] = []
    writer.put(writer.document("c", 1))
    with materializer(
        writer.path, recorder.url, triggers=triggers(recorder, maxAttempts=4), sleep=waits.append
    ) as stand_in:
        stand_in.drain()
    assert waits == [1, 2, 4]
    assert len(delivered(recorder)) == 4


def test_12_waits_are_thirty_seconds_at_most(recorder: Recorder, writer: Writer) -> None:
    recorder.answer = lambda number, request: 500 if request.path == "/events" else 200
    waits: list[float] = []
    writer.put(writer.document("c", 1))
    with (
        materializer(
            writer.path, recorder.url, triggers=triggers(recorder, maxAttempts=8), sleep=waits.append
        ) as stand_in,
        pytest.raises(TaskFailedError, match="after 8 attempts: status 500"),
    ):
        stand_in.drain()
    assert waits == [1, 2, 4, 8, 16, 30, 30]


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_12_another_refusal_fails_the_task_and_blocks_its_data(recorder: Recorder, writer: Writer, status: int) -> None:
    recorder.answer = lambda number, request: status if request.path == "/events" else 200
    writer.put(writer.document("c", 1))
    with materializer(writer.path, recorder.url, triggers=triggers(recorder)) as stand_in:
        with pytest.raises(TaskFailedError, match=f"refused with status {status}"):
            stand_in.drain()
        writer.put(writer.document("c", 2))
        with pytest.raises(TaskFailedError):
            stand_in.drain()
    assert [
        document["id"] for request in recorder.requests if request.path != "/events" for document in request.documents
    ] == [1]


def test_12_a_trigger_that_died_is_fired_again(recorder: Recorder, writer: Writer) -> None:
    recorder.answer = lambda number, request: 400 if request.path == "/events" else 200
    writer.put(writer.document("c", 1))
    with (
        materializer(writer.path, recorder.url, triggers=triggers(recorder)) as stand_in,
        pytest.raises(TaskFailedError),
    ):
        stand_in.drain()
    recorder.answer = lambda number, request: 200
    with materializer(writer.path, recorder.url, triggers=triggers(recorder)) as stand_in:
        stand_in.drain()
        stand_in.drain()
    first, second = delivered(recorder)
    assert first == second
    assert len([request for request in recorder.requests if request.path != "/events"]) == 1, "the data came once"


def test_12_an_interval_makes_one_delivery_of_a_burst(recorder: Recorder, writer: Writer) -> None:
    time = 0.0
    with materializer(writer.path, recorder.url, triggers=triggers(recorder, "30s"), now=lambda: time) as stand_in:
        for number in range(1, 5):
            writer.put(writer.document("c", number))
            stand_in.drain()
            time += 5
        assert len(delivered(recorder)) == 1, "the first at once, the others wait"
        time = 30.0
        stand_in.drain()
    first, burst = delivered(recorder)
    clocks = [uuid_clock(document["_meta"]["uuid"]) for document in recorder_documents(recorder)]
    assert (first["publishedAtMin"], first["publishedAtMax"]) == (published_at(clocks[0]),) * 2
    assert (burst["publishedAtMin"], burst["publishedAtMax"]) == (published_at(clocks[1]), published_at(clocks[3]))


def recorder_documents(recorder: Recorder) -> list[dict[str, Any]]:
    return [document for request in recorder.requests if request.path != "/events" for document in request.documents]


def test_12_of_two_triggers_with_one_method_and_url_the_first_fires(recorder: Recorder, writer: Writer) -> None:
    entry = {"url": f"{recorder.url}events", "payloadTemplate": '{"n":1}'}
    config = {"a": entry, "b": entry | {"payloadTemplate": '{"n":2}'}, "c": entry | {"method": "PUT"}}
    writer.put(writer.document("c", 1))
    with materializer(writer.path, recorder.url, triggers=parse_triggers({"config": config})) as stand_in:
        stand_in.drain()
    fired = [(request.method, request.body) for request in recorder.requests if request.path == "/events"]
    assert fired == [("POST", b'{"n":1}'), ("PUT", b'{"n":1}')]

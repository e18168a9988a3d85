"""The functions over HTTP: what they answer, what they refuse, and in which words."""

from __future__ import annotations

import base64
import json
import socket
import threading
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from sophia.catalog import Catalog
from sophia.errors import SophiaError, TemporaryError
from sophia.services.inference import models
from sophia.services.inference.generate import GenerateResult, RefusedRequestError
from sophia.services.inference.schemas import GenerateRequest
from sophia.settings import Settings
from tests.embedders import HashEmbedder, hash_vector
from tests.inference import hashed, inference
from tests.integration.inference.conftest import Serve

FUNCTIONS = ["/embed", "/analyze", "/classify", "/summarize", "/generate", "/v1/embeddings"]


def fields(answer: httpx.Response) -> list[str]:
    """The fields that a refusal names."""
    return [fault["field"] for fault in answer.json()["faults"]]


def test_embed_answers_vectors_in_order(client: httpx.Client, embedder: HashEmbedder) -> None:
    answer = client.post("/embed", json={"texts": ["one", "", "two\x00", "one"]}).json()
    assert (answer["model"], answer["precision"], answer["dimension"]) == ("minilm", "exact", 384)
    expected = np.stack([hash_vector(text) for text in ("one", "", "two\x00", "one")])
    np.testing.assert_allclose(np.array(answer["vectors"], dtype=np.float32), expected, atol=1e-7)
    assert answer["tokens"] == 2 + 2 + 3 + 2
    single = client.post("/embed", json={"text": "one", "kind": "query"}).json()
    assert len(single["vectors"]) == 1
    assert embedder.queries[-1] == "one"


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "body"),
        ({"texts": ["a"], "text": "a"}, "body"),
        ({"texts": []}, "texts"),
        ({"texts": None}, "texts"),
        ({"texts": "a"}, "texts"),
        ({"texts": ["a", 1]}, "texts.1"),
        ({"texts": ["a"] * 2_049}, "texts"),
        ({"texts": ["a", "b" * 100_001]}, "texts.1"),
        ({"text": "a", "kind": "question"}, "kind"),
        ({"text": "a", "normalise": True}, "normalise"),
        ([], "body"),
        (7, "body"),
    ],
)
def test_faults_are_named_by_path(client: httpx.Client, body: Any, named: str) -> None:
    answer = client.post("/embed", json=body)
    assert answer.status_code == 422
    assert fields(answer) == [named]
    assert answer.json()["error"].startswith(named)


@pytest.mark.parametrize(
    ("route", "body", "named"),
    [
        ("/classify", {"text": "a", "labels": ["x", "x"]}, "body"),
        ("/classify", {"text": "a", "labels": ["x"]}, "labels"),
        ("/classify", {"text": "a", "labels": ["x", "y"], "template": "no place"}, "template"),
        ("/classify", {"text": "a", "labels": ["x", "y"], "template": "{} {}"}, "template"),
        ("/classify", {"text": "a", "labels": ["x", "y"], "template": "{0.__class__}"}, "template"),
        ("/summarize", {"text": ""}, "text"),
        ("/summarize", {"text": "a", "sentences": 1, "max_tokens": 1}, "body"),
        ("/summarize", {"text": "a", "sentences": 0}, "sentences"),
        ("/summarize", {"text": "a", "sentences": True}, "sentences"),
        ("/generate", {"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "body"),
        ("/generate", {"messages": [{"role": "robot", "content": "b"}]}, "messages.0.role"),
        ("/generate", {"prompt": "a", "temperature": 3}, "temperature"),
        ("/generate", {"prompt": "a", "seed": 10**40}, "seed"),
        ("/generate", {"prompt": "a", "max_tokens": 1e400}, "max_tokens"),
    ],
)
def test_each_function_names_the_field(client: httpx.Client, route: str, body: Any, named: str) -> None:
    text = json.dumps(body).encode()
    answer = client.post(route, content=text, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert fields(answer) == [named]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nope",
        b'{"text": "a"',
        b'{"text": "\xff\xfe"}',
        b'{"text": "\\ud800"}',
        b'{"text": "\xed\xa0\x80"}',
        b'{"text": "a", "kind": NaN}'[:20],
        b"[" * 100_000,
        b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
    ],
    ids=["empty", "word", "cut", "bytes", "surrogate", "raw-surrogate", "half", "deep-list", "deep-object"],
)
@pytest.mark.parametrize("route", ["/embed", "/v1/embeddings"])
def test_what_is_no_json_is_refused(client: httpx.Client, route: str, content: bytes) -> None:
    answer = client.post(route, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"1" + b"0" * 5_000])
def test_numbers_that_are_none_are_refused(client: httpx.Client, number: bytes) -> None:
    content = b'{"prompt": "a", "temperature": ' + number + b"}"
    answer = client.post("/generate", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    assert "error" in answer.json()


def test_no_answer_repeats_what_was_sent(client: httpx.Client) -> None:
    for body in ({"texts": ["hunter2", 7]}, {"text": "hunter2", "kind": "hunter2"}, {"texts": "hunter2"}):
        assert "hunter2" not in client.post("/embed", json=body).text


@pytest.mark.parametrize("route", FUNCTIONS)
@pytest.mark.parametrize("media", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonp"])
def test_other_media_types_are_refused(client: httpx.Client, route: str, media: str | None) -> None:
    headers = {} if media is None else {"Content-Type": media}
    assert client.post(route, content=b'{"text":"a"}', headers=headers).status_code == 415


@pytest.mark.parametrize("media", ["application/json; charset=utf-8", "Application/JSON"])
def test_json_has_several_names(client: httpx.Client, media: str) -> None:
    assert client.post("/embed", content=b'{"text":"a"}', headers={"Content-Type": media}).status_code == 200


def test_limits_come_from_the_settings(served: Serve) -> None:
    client = served(max_texts=2, max_text_chars=5)
    assert client.post("/embed", json={"texts": ["a", "12345"]}).status_code == 200
    assert client.post("/embed", json={"texts": ["a", "123456"]}).json()["faults"][0]["field"] == "texts.1"
    assert fields(client.post("/analyze", json={"texts": ["a", "b", "c"]})) == ["texts"]
    assert fields(client.post("/generate", json={"messages": [{"role": "user", "content": "123456"}]})) == [
        "messages.0.content"
    ]
    compatible = client.post("/v1/embeddings", json={"model": "minilm", "input": ["a", "b", "c"]})
    assert compatible.json()["error"]["param"] == "input"
    bounds = client.get("/openapi.json").json()["components"]["schemas"]["EmbedRequest"]["properties"]["texts"]
    assert (bounds["maxItems"], bounds["items"]["maxLength"]) == (2, 5)


def test_large_bodies_are_refused_before_they_are_read(served: Serve) -> None:
    """Neither the declared nor the real length reaches the end: the client never sends the rest."""
    client = served(max_request_bytes=1_000)
    for route in FUNCTIONS:
        _refuses_large_body(client.base_url.host, client.base_url.port, route)


def _refuses_large_body(host: str, port: int | None, route: str) -> None:
    head = f"POST {route} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    declared = head + "Content-Length: 100000\r\n\r\n"
    chunked = head + "Transfer-Encoding: chunked\r\n\r\n" + "7d0\r\n" + "x" * 2_000 + "\r\n"
    for sent in (declared, chunked):
        with socket.create_connection((host, port or 80), timeout=60) as connection:
            connection.sendall(sent.encode())
            received = b""
            while part := connection.recv(65_536):
                received += part
        assert received.startswith(b"HTTP/1.1 413 ")
        assert b"larger than 1000 bytes" in received


def test_the_largest_body_is_taken(served: Serve) -> None:
    body = json.dumps({"text": "a" * 980}).encode()
    client = served(max_request_bytes=1_000)
    json_type = {"Content-Type": "application/json"}
    assert client.post("/embed", content=body.ljust(1_000), headers=json_type).status_code == 200

    def chunks() -> Iterator[bytes]:
        yield body[:500]
        yield body[500:].ljust(501)

    assert client.post("/embed", content=chunks(), headers=json_type).status_code == 413


def test_a_body_that_does_not_come_is_given_up(served: Serve) -> None:
    client = served(timeout_seconds=0.2)
    with socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=60) as connection:
        connection.sendall(
            b"POST /embed HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{"
        )
        assert connection.recv(65_536).startswith(b"HTTP/1.1 408 ")


def test_texts_that_cannot_be_embedded_are_named(client: httpx.Client, embedder: HashEmbedder) -> None:
    embedder.refused = {"bad": "its tokens do not fit"}
    answer = client.post("/embed", json={"texts": ["good", "bad", "good", "bad"]})
    assert answer.status_code == 422
    assert answer.json()["faults"] == [
        {"field": "texts.1", "message": "its tokens do not fit"},
        {"field": "texts.3", "message": "its tokens do not fit"},
    ]
    assert fields(client.post("/embed", json={"text": "bad"})) == ["text"]
    labelled = {"text": "good", "labels": ["good", "bad"], "template": "{}"}
    assert fields(client.post("/classify", json=labelled)) == ["labels.1"]
    compatible = client.post("/v1/embeddings", json={"model": "minilm", "input": ["good", "bad"]})
    assert (compatible.status_code, compatible.json()["error"]["param"]) == (400, "input.1")


def test_summaries_are_sentences_of_the_text(client: httpx.Client) -> None:
    text = "It rained all day. The river rose. The bridge was closed. People stayed at home."
    answer = client.post("/summarize", json={"text": text, "sentences": 2}).json()
    assert (answer["method"], len(answer["places"])) == ("extractive", 2)
    assert answer["places"] == sorted(answer["places"])
    assert all(sentence in text for sentence in answer["summary"].split(". ")[:1])
    assert client.post("/summarize", json={"text": " \n "}).json()["summary"] == ""
    written = client.post("/summarize", json={"text": text, "max_tokens": 20})
    assert written.status_code == 503
    assert "SOPHIA_INFERENCE__SUMMARY_MODEL" in written.json()["error"]


def test_generate_names_what_is_missing(client: httpx.Client) -> None:
    answer = client.post("/generate", json={"prompt": "a"})
    assert answer.status_code == 503
    assert "SOPHIA_INFERENCE__GENERATE_URL" in answer.json()["error"]
    assert "SOPHIA_INFERENCE__GENERATE_MODEL" in answer.json()["error"]


class Echo:
    """A generator that says what it was asked, word by word."""

    name = "echo"

    def __init__(self) -> None:
        self.fails: SophiaError | None = None
        self.fails_after = 0
        self.asked: list[GenerateRequest] = []

    async def generate(self, request: GenerateRequest) -> GenerateResult:
        self.asked.append(request)
        if self.fails is not None:
            raise self.fails
        return GenerateResult(request.conversation()[-1]["content"], "stop", 3, 4)

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[str, None]:
        words = request.conversation()[-1]["content"].split()
        for place, word in enumerate(words):
            if self.fails is not None and place == self.fails_after:
                raise self.fails
            yield word

    async def close(self) -> None:
        return None


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> Echo:
    generator = Echo()
    monkeypatch.setattr(models, "load_generator", lambda settings: generator)
    return generator


def test_generate_answers_whole_or_as_a_stream(echo: Echo, served: Serve) -> None:
    client = served()
    asked = {"messages": [{"role": "user", "content": "one\ntwo ü"}], "stop": ["x"], "temperature": 0}
    assert client.post("/generate", json=asked).json() == {
        "model": "echo",
        "text": "one\ntwo ü",
        "finish_reason": "stop",
        "prompt_tokens": 3,
        "completion_tokens": 4,
    }
    streamed = client.post("/generate", json=asked | {"stream": True})
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert streamed.text == (
        'data: {"text":"one"}\n\ndata: {"text":"two"}\n\ndata: {"text":"ü"}\n\nevent: done\ndata: {}\n\n'
    )


def test_what_is_not_asked_for_is_as_the_document_says(echo: Echo, served: Serve) -> None:
    client = served()
    described = client.get("/openapi.json").json()["components"]["schemas"]["GenerateRequest"]["properties"]
    client.post("/generate", json={"prompt": "a"})
    assert {name: getattr(echo.asked[0], name) for name in ("max_tokens", "temperature", "seed")} == {
        name: described[name]["default"] for name in ("max_tokens", "temperature", "seed")
    }


def test_a_stream_that_breaks_off_says_so(echo: Echo, served: Serve) -> None:
    client = served()
    echo.fails, echo.fails_after = TemporaryError("the server is away"), 1
    asked = {"prompt": "one two", "stream": True}
    assert client.post("/generate", json=asked).text == (
        'data: {"text":"one"}\n\nevent: error\ndata: {"error":"the server is away"}\n\n'
    )
    echo.fails_after = 0
    assert client.post("/generate", json=asked).status_code == 503
    assert client.post("/generate", json={"prompt": "a"}).headers["Retry-After"] == "1"
    echo.fails = RefusedRequestError("the prompt is too long")
    assert client.post("/generate", json={"prompt": "a"}).status_code == 422


def test_a_client_of_openai_gets_its_vectors(client: httpx.Client) -> None:
    speaks = openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="none", max_retries=0)
    texts = ["one", "", "three"]
    answer = speaks.embeddings.create(model="minilm", input=texts)
    expected = np.stack([hash_vector(text) for text in texts])
    np.testing.assert_array_equal(np.array([each.embedding for each in answer.data], dtype=np.float32), expected)
    assert [each.index for each in answer.data] == [0, 1, 2]
    assert (answer.object, answer.model, answer.usage.prompt_tokens) == ("list", "minilm", answer.usage.total_tokens)
    plain = speaks.embeddings.create(model="minilm", input="one", encoding_format="float", dimensions=384, user="u")
    np.testing.assert_allclose(plain.data[0].embedding, expected[0], atol=1e-7)

    with pytest.raises(openai.NotFoundError) as unknown:
        speaks.embeddings.create(model="other", input="a")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match="384 dimensions"):
        speaks.embeddings.create(model="minilm", input="a", dimensions=100)
    for tokens in ([1, 2], [[1], [2]]):
        with pytest.raises(openai.BadRequestError, match="send the text") as refused:
            speaks.embeddings.create(model="minilm", input=tokens)
        assert refused.value.param == "input"


def test_base64_is_little_endian_float32(client: httpx.Client) -> None:
    asked = {"model": "minilm", "input": "one", "encoding_format": "base64"}
    data = client.post("/v1/embeddings", json=asked).json()["data"][0]["embedding"]
    assert base64.b64decode(data, validate=True) == hash_vector("one").astype("<f4").tobytes()


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": "minilm"}, "input"),
        ({"model": "minilm", "input": []}, "input"),
        ({"model": "minilm", "input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"model": "minilm", "input": "a", "dimensions": 0}, "dimensions"),
        ({"model": "minilm", "input": "a", "other": 1}, "other"),
        ({"model": "minilm", "input": ["a", None]}, "input.1"),
    ],
)
def test_errors_below_v1_have_the_shape_of_openai(client: httpx.Client, body: Any, param: str) -> None:
    answer = client.post("/v1/embeddings", json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["param"], set(error)) == (
        "invalid_request_error",
        param,
        {"message", "type", "param", "code"},
    )


def test_unknown_paths_and_methods(client: httpx.Client) -> None:
    assert client.get("/nowhere").json() == {"error": "Not Found"}
    assert client.get("/embed").status_code == 405
    unknown = client.get("/v1/models").json()["error"]
    assert (unknown["message"], unknown["code"]) == ("Not Found", None), "a path is no model"


def test_request_ids_are_kept_or_made(client: httpx.Client) -> None:
    assert client.get("/health", headers={"X-Request-Id": "a-1.b:c_2"}).headers["X-Request-Id"] == "a-1.b:c_2"
    for forged in ('x", "status": 200, "a": "', "x" * 129, "", "ü"):
        answer = client.get("/health", headers={"X-Request-Id": forged.encode()})
        assert len(answer.headers["X-Request-Id"]) == 32
    assert len(client.post("/embed", json={}).headers["X-Request-Id"]) == 32


def test_metrics_count_requests_texts_and_passes(served: Serve, hash_embedder: HashEmbedder) -> None:
    client = served()
    client.post("/embed", json={"texts": ["a", "b"]})
    client.post("/embed", json={})
    client.get("/nowhere/1")
    text = client.get("/metrics").text
    for line in (
        'sophia_inference_request_seconds_count{method="POST",route="/embed",status="200"} 1.0',
        'sophia_inference_request_seconds_count{method="POST",route="/embed",status="422"} 1.0',
        'sophia_inference_request_seconds_count{method="GET",route="other",status="404"} 1.0',
        'sophia_inference_texts_total{route="/embed"} 2.0',
        'sophia_inference_tokens_total{route="/embed"} 4.0',
        'sophia_inference_waiting_tokens{lane="online"} 0.0',
        "sophia_inference_loaded 1.0",
        'sophia_engine_passes_total{backend="hash",model="minilm",precision="exact"} '
        f"{float(hash_embedder.figures.passes)}",
    ):
        assert line in text.splitlines()


def test_a_fault_of_ours_tells_nothing_of_the_text(
    settings: Settings, catalog: Catalog, hash_embedder: HashEmbedder, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(texts: Any) -> None:
        if "secret" in texts:
            raise RuntimeError(f"cannot embed {texts}")

    hash_embedder.before = fail
    with inference(settings, catalog, hashed(hash_embedder)) as address:
        answer = httpx.post(f"{address}/embed", json={"text": "secret"}, timeout=60)
    assert answer.status_code == 500
    assert answer.json()["error"] == "the service failed to answer"
    assert len(answer.headers["X-Request-Id"]) == 32
    assert "RuntimeError" in caplog.text
    assert "secret" not in caplog.text


def test_models_load_behind_an_open_port(settings: Settings, catalog: Catalog, hash_embedder: HashEmbedder) -> None:
    loaded = threading.Event()

    def load(model: Any, precision: Any, settings: Any) -> HashEmbedder:
        assert loaded.wait(60)
        return hash_embedder

    with inference(settings, catalog, load, wait=False) as address:
        assert httpx.get(f"{address}/ready", timeout=60).json() == {"status": "loading"}
        early = httpx.post(f"{address}/embed", json={"text": "a"}, timeout=60)
        assert (early.status_code, early.headers["Retry-After"]) == (503, "1")
        assert "sophia_inference_loaded 0.0" in httpx.get(f"{address}/metrics", timeout=60).text
        loaded.set()

"""Generation by a server, with a real one that answers as it should and in every wrong way."""

from __future__ import annotations

import asyncio
import json
import logging
import traceback
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import pytest
from pydantic import SecretStr

from sophia.errors import ConfigurationError, SophiaError, TemporaryError
from sophia.services.inference.endpoint_generator import EndpointGenerator
from sophia.services.inference.generate import GenerateResult, Generator, RefusedRequestError, load_generator
from sophia.services.inference.schemas import GenerateRequest, Message
from sophia.settings import InferenceSettings, load_settings
from tests.chat_server import DONE, ChatServer, Exchange, Script, chat_server, delta

KEY = "sk-the-secret-key-0123456789"
SECRET_TEXT = "the text of a patient"
REQUEST = GenerateRequest(prompt=SECRET_TEXT)
COMPLETION = {
    "choices": [{"message": {"role": "assistant", "content": "Hello."}, "finish_reason": "length"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 3},
}
Ask = Callable[[Generator, ChatServer], Any]


def _generator(url: str, **fields: Any) -> Generator:
    inference = InferenceSettings(generate_url=url, generate_model="writer", generate_key=SecretStr(KEY), **fields)
    found = load_generator(load_settings(inference=inference))
    assert isinstance(found, EndpointGenerator)
    return found


def _run(script: Script, ask: Ask, **fields: Any) -> Any:
    """What `ask` returns of a generator whose server answers by `script`; it must come to an end."""

    async def go() -> Any:
        async with chat_server(script) as server:
            generator = _generator(server.url, **fields)
            try:
                return await asyncio.wait_for(ask(generator, server), 30)
            finally:
                await generator.close()

    return asyncio.run(go())


async def _whole(generator: Generator, _server: ChatServer) -> GenerateResult:
    return await generator.generate(REQUEST)


async def _streamed(generator: Generator, _server: ChatServer) -> list[str]:
    return [piece async for piece in generator.stream(REQUEST)]


def test_a_request_is_passed_on_and_its_answer_back() -> None:
    async def ask(generator: Generator, server: ChatServer) -> None:
        request = GenerateRequest(
            messages=[Message(role="system", content="be brief"), Message(role="user", content="hello")],
            max_tokens=9,
            temperature=0.5,
            stop=["END"],
            seed=3,
        )
        assert await generator.generate(request) == GenerateResult("Hello.", "length", 7, 3)
        (exchange,) = server.exchanges
        assert exchange.path == "/v1/chat/completions"
        assert exchange.headers["authorization"] == f"Bearer {KEY}"
        assert exchange.body == {
            "model": "writer",
            "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}],
            "max_tokens": 9,
            "temperature": 0.5,
            "stream": False,
            "stop": ["END"],
            "seed": 3,
        }

    _run(lambda exchange: exchange.answer(200, COMPLETION), ask)


def test_what_was_not_asked_for_is_not_sent() -> None:
    async def ask(generator: Generator, server: ChatServer) -> None:
        await generator.generate(REQUEST)
        assert not {"stop", "seed"} & set(server.exchanges[0].body)

    _run(lambda exchange: exchange.answer(200, COMPLETION), ask)


def test_figures_that_a_server_does_not_give_are_none() -> None:
    answer = {"choices": [{"message": {"content": None}, "finish_reason": "content_filter"}]}
    result = _run(lambda exchange: exchange.answer(200, answer), _whole)
    assert result == GenerateResult("", "content_filter", None, None)


STREAM = b"".join(
    [
        b": a comment to keep the connection\n\n",
        b'data: {"choices": [{"delta": {"role": "assistant"}}]}\n\n',
        delta("One "),
        b'event: message\r\nid: 1\r\ndata:{"choices":\r\ndata:[{"delta":{"content":"two "}}]}\r\n\r\n',
        b"retry: 10\n\n",
        delta("th\u2028ree \U0001f60d"),
        delta(None, "stop"),
        b'data: {"choices": [], "usage": {"completion_tokens": 3}}\n\n',
        DONE,
    ]
)
STREAMED = "One two th\u2028ree \U0001f60d"


@pytest.mark.parametrize("size", [1, 7, 64, len(STREAM)])
def test_a_stream_is_read_however_it_is_cut(size: int) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.head(200, "text/event-stream")
        for start in range(0, len(STREAM), size):
            await exchange.send(STREAM[start : start + size])
            await asyncio.sleep(0)

    assert "".join(_run(script, _streamed)) == STREAMED


def test_pieces_come_as_they_are_written() -> None:
    """The server goes on only when the first piece was read."""

    async def ask(generator: Generator, _server: ChatServer) -> list[str]:
        pieces = []
        async for piece in generator.stream(REQUEST):
            pieces.append(piece)
            read.set()
        return pieces

    async def script(exchange: Exchange) -> None:
        await exchange.stream(delta("One "))
        await read.wait()
        await exchange.send(delta("two") + DONE)

    read = asyncio.Event()
    assert _run(script, ask) == ["One ", "two"]


def test_a_stream_that_says_it_is_finished_needs_no_mark_behind_it() -> None:
    assert _run(lambda exchange: exchange.stream(delta("One"), delta(None, "stop")), _streamed) == ["One"]


async def _hang_up(exchange: Exchange) -> None:
    await exchange.stream(delta("One "))


async def _hang_up_in_a_chunk(exchange: Exchange) -> None:
    frame = delta("One ")
    await exchange.head(200, "text/event-stream", "transfer-encoding: chunked")
    await exchange.send(f"{len(frame) + 50:x}\r\n".encode() + frame)


async def _silence(exchange: Exchange) -> None:
    await exchange.client_leaves()


async def _silence_in_the_middle(exchange: Exchange) -> None:
    await exchange.stream(delta("One "))
    await exchange.client_leaves()


async def _nothing(exchange: Exchange) -> None:
    exchange.writer.close()


def _echo(exchange: Exchange) -> dict[str, Any]:
    """What a careless server says: all that it was sent."""
    said = f"wrong: {exchange.headers['authorization']} {json.dumps(exchange.body)}"
    return {"error": {"message": said, "type": said, "code": said}}


def _status(status: int) -> Script:
    return lambda exchange: exchange.answer(status, _echo(exchange))


async def _error_frame(exchange: Exchange) -> None:
    await exchange.stream(delta("One "), f"data: {json.dumps(_echo(exchange))}\n\n".encode(), DONE)


async def _moved(exchange: Exchange) -> None:
    await exchange.head(307, "text/plain", "location: http://127.0.0.1:1/")


def _frames(*frames: bytes) -> Script:
    return lambda exchange: exchange.stream(*frames)


async def _page(exchange: Exchange) -> None:
    await exchange.head(200, "text/html")
    await exchange.send(f"<h1>{exchange.headers['authorization']}</h1>".encode())


FAULTS: list[tuple[str, Script, Any, type[SophiaError], str]] = [
    ("429", _status(429), _whole, TemporaryError, "429"),
    ("500", _status(500), _whole, TemporaryError, "500"),
    ("503-stream", _status(503), _streamed, TemporaryError, "503"),
    ("401", _status(401), _whole, ConfigurationError, "SOPHIA_INFERENCE__GENERATE_KEY"),
    ("403-stream", _status(403), _streamed, ConfigurationError, "SOPHIA_INFERENCE__GENERATE_KEY"),
    ("404", _status(404), _whole, ConfigurationError, "SOPHIA_INFERENCE__GENERATE_(URL|MODEL)"),
    ("307", _moved, _streamed, ConfigurationError, "SOPHIA_INFERENCE__GENERATE_URL"),
    ("400", _status(400), _whole, RefusedRequestError, "400"),
    ("422-stream", _status(422), _streamed, RefusedRequestError, "422"),
    ("nothing", _nothing, _whole, TemporaryError, "RemoteProtocolError"),
    ("silence", _silence, _whole, TemporaryError, "ReadTimeout"),
    ("silence-in-the-middle", _silence_in_the_middle, _streamed, TemporaryError, "ReadTimeout"),
    ("hang-up", _hang_up, _streamed, TemporaryError, "in the middle"),
    ("hang-up-in-a-chunk", _hang_up_in_a_chunk, _streamed, TemporaryError, "RemoteProtocolError"),
    ("error-frame", _error_frame, _streamed, TemporaryError, "broke off"),
    ("no-json", _frames(delta("One"), b"data: {oops\n\n", DONE), _streamed, TemporaryError, "no piece"),
    ("other-json", _frames(b"data: [1]\n\n", DONE), _streamed, TemporaryError, "no piece"),
    ("no-delta", _frames(b'data: {"choices": [{}]}\n\n', DONE), _streamed, TemporaryError, "no piece"),
    ("no-text", _frames(b'data: {"choices": [{"delta": {"content": 5}}]}\n\n'), _streamed, TemporaryError, "no piece"),
    ("bad-bytes", _frames(b"data: \xff\xfe\n\n"), _streamed, TemporaryError, "no piece"),
    ("page-for-a-stream", _page, _streamed, ConfigurationError, "SOPHIA_INFERENCE__GENERATE_URL"),
    ("page", _page, _whole, ConfigurationError, "SOPHIA_INFERENCE__GENERATE_URL"),
    ("no-choices", lambda e: e.answer(200, {"choices": []}), _whole, ConfigurationError, "no chat completion"),
    ("a-list", lambda e: e.answer(200, [_echo(e)]), _whole, ConfigurationError, "no chat completion"),
]


@pytest.mark.parametrize(("script", "ask", "kind", "says"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_every_fault_is_an_error_of_its_kind_without_key_or_text(
    script: Script, ask: Any, kind: type[SophiaError], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(kind, match=says) as caught:
        _run(script, ask, timeout_seconds=0.5)
    told = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + caplog.text
    assert KEY not in told
    assert SECRET_TEXT not in told


def test_a_server_that_is_not_there_is_a_temporary_error() -> None:
    async def ask() -> None:
        generator = _generator("http://127.0.0.1:1/v1")
        with pytest.raises(TemporaryError, match="ConnectError"):
            await generator.generate(REQUEST)
        await generator.close()

    asyncio.run(ask())


@pytest.mark.parametrize("key", [f"{KEY}\nX: 1", f"{KEY}é", f"{KEY}\x00"])
def test_a_key_that_no_header_can_hold_is_refused_at_once_and_not_shown(key: str) -> None:
    inference = InferenceSettings(generate_url="http://127.0.0.1:1", generate_model="m", generate_key=SecretStr(key))
    with pytest.raises(ConfigurationError, match="SOPHIA_INFERENCE__GENERATE_KEY") as caught:
        load_generator(load_settings(inference=inference))
    assert KEY not in "".join(traceback.format_exception(caught.value))


def test_a_stream_that_is_closed_closes_the_servers_connection() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.stream(delta("One "))
        await exchange.client_leaves()
        left.set()

    async def ask(generator: Generator, _server: ChatServer) -> None:
        async with aclosing(generator.stream(REQUEST)) as stream:
            assert await anext(stream) == "One "
            assert not left.is_set()
        await left.wait()

    left = asyncio.Event()
    _run(script, ask)


@pytest.mark.parametrize("ask_for", [_whole, _streamed])
def test_a_call_that_is_cancelled_closes_the_servers_connection(ask_for: Any) -> None:
    async def script(exchange: Exchange) -> None:
        asked.set()
        await exchange.client_leaves()
        left.set()

    async def ask(generator: Generator, server: ChatServer) -> None:
        task = asyncio.create_task(ask_for(generator, server))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await left.wait()

    asked, left = asyncio.Event(), asyncio.Event()
    _run(script, ask)

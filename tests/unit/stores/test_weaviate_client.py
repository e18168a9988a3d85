"""The connection: addresses, versions, keys, and how a fault of the server becomes one of ours."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from sophia.errors import ConfigurationError, FencedError, SophiaError, TemporaryError, UnreachableError
from sophia.settings import Settings, WeaviateSettings, load_settings
from sophia.stores.weaviate import WeaviateStore
from sophia.stores.weaviate_client import (
    Connection,
    MissingTenantError,
    addresses,
    masked,
    require_version,
    translated,
)

KEY = "no-real-key"


@pytest.mark.parametrize(
    ("url", "grpc", "wanted"),
    [
        ("http://127.0.0.1:8080", None, (("127.0.0.1", 8080), ("127.0.0.1", 50051))),
        ("http://weaviate", None, (("weaviate", 80), ("weaviate", 50051))),
        ("https://weaviate.example.com", None, (("weaviate.example.com", 443), ("weaviate.example.com", 50051))),
        ("https://a.example.com:8443/", "b.example.com:443", (("a.example.com", 8443), ("b.example.com", 443))),
        ("https://x.c0.weaviate.cloud", None, (("x.c0.weaviate.cloud", 443), ("grpc-x.c0.weaviate.cloud", 443))),
        ("https://x.weaviate.network", None, (("x.weaviate.network", 443), ("x.grpc.weaviate.network", 443))),
        ("http://[::1]:8080", "[::1]:50052", (("[::1]", 8080), ("[::1]", 50052))),
        ("http://[::1]", None, (("[::1]", 80), ("[::1]", 50051))),
    ],
)
def test_addresses(url: str, grpc: str | None, wanted: Any) -> None:
    assert addresses(url, grpc) == wanted


@pytest.mark.parametrize("version", ["1.32.0", "1.40.0-dev", "2.0", "1.100.1"])
def test_versions_with_aliases(version: str) -> None:
    require_version(version, "http://127.0.0.1")


@pytest.mark.parametrize("version", ["1.31.9", "1.9.0", "", "dev", "0.99"])
def test_versions_without_aliases_are_refused_with_the_fix(version: str) -> None:
    with pytest.raises(ConfigurationError, match=r"needs 1\.32 or newer.*upgrade the server"):
        require_version(version, "http://127.0.0.1")


def test_an_address_is_needed(settings: Settings) -> None:
    with pytest.raises(ConfigurationError, match="SOPHIA_WEAVIATE_URL is not set"):
        WeaviateStore(settings)


@pytest.mark.parametrize("field", ["weaviate_url", "weaviate_grpc_url"])
@pytest.mark.parametrize("value", ["weaviate", "ftp://weaviate", "http://a b", "http://"])
def test_an_address_that_is_none_is_named(tmp_path: Path, field: str, value: str) -> None:
    with pytest.raises(SophiaError, match=f"SOPHIA_{field.upper()}"):
        load_settings(home=tmp_path, **{field: value})


@contextmanager
def answering(status: int, body: str) -> Iterator[tuple[str, list[str | None]]]:
    """A server that answers everything so; yields its URL and the Authorization headers that it saw."""
    seen: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization"))
            data = body.encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        server.server_close()


def asked(settings: Settings, url: str, key: str | None = None, seconds: float = 10.0) -> Any:
    """What the server's metadata says, through a connection."""
    changes = {"weaviate_url": url, "weaviate_api_key": SecretStr(key) if key else None}
    connection = Connection(settings.model_copy(update=changes | {"weaviate": WeaviateSettings()}))
    try:
        return connection.run(lambda client: client.get_meta(), seconds)
    finally:
        connection.close()


def test_the_key_is_sent_and_no_package_index_is_asked(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from weaviate.connect import v4

    def asks(*_: Any, **__: Any) -> None:
        raise AssertionError("the client asks a package index")

    monkeypatch.setattr(v4._ConnectionBase, "_check_package_version", asks)
    with answering(200, json.dumps({"version": "1.33.0"})) as (url, seen):
        assert asked(settings, url, KEY) == {"version": "1.33.0"}
        assert set(seen) == {f"Bearer {KEY}"}
    with answering(200, json.dumps({"version": "1.33.0"})) as (url, seen):
        asked(settings, url)
        assert set(seen) == {None}


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (
            401,
            '{"error": [{"message": "anonymous access not enabled"}]}',
            "refuses the key; check SOPHIA_WEAVIATE_API_KEY",
        ),
        (403, '{"error": [{"message": "forbidden"}]}', "refuses the key; check SOPHIA_WEAVIATE_API_KEY"),
        (200, '{"hello": "world"}', "does not answer as Weaviate"),
        (200, '{"version": "1.31.0"}', "upgrade the server"),
    ],
)
def test_a_wrong_server_or_key_is_for_a_person(settings: Settings, status: int, body: str, message: str) -> None:
    with answering(status, body) as (url, _), pytest.raises(ConfigurationError, match=message) as raised:
        asked(settings, url, KEY)
    assert KEY not in str(raised.value)


def test_a_page_in_the_place_of_the_server_is_no_riddle(settings: Settings) -> None:
    with answering(200, "<html>log in</html>") as (url, _), pytest.raises(SophiaError, match="Weaviate"):
        asked(settings, url)


def test_a_server_that_is_away_is_temporary(settings: Settings) -> None:
    with answering(200, "{}") as (url, _):
        pass
    with pytest.raises(UnreachableError, match="Weaviate at"):
        asked(settings, url)


def test_who_does_not_answer_at_the_door_was_not_reached(settings: Settings) -> None:
    """And so nothing of a write is under way there."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(UnreachableError, match="did not answer within"):
            asked(settings, url, seconds=0.2)


def test_a_call_that_was_begun_may_have_had_an_effect(settings: Settings) -> None:
    async def hangs(client: Any) -> None:
        await asyncio.Event().wait()

    with answering(200, json.dumps({"version": "1.33.0"})) as (url, _):
        connection = Connection(settings.model_copy(update={"weaviate_url": url}))
        with pytest.raises(TemporaryError, match="did not answer within") as raised:
            connection.run(hangs, 0.5)
        connection.close()
    assert type(raised.value) is TemporaryError


def test_after_a_fault_the_next_call_connects_anew(settings: Settings) -> None:
    """The channel of the old client may wait for two minutes before it tries again."""

    async def itself(client: Any) -> Any:
        return client

    async def hangs(client: Any) -> None:
        await asyncio.Event().wait()

    with answering(200, json.dumps({"version": "1.33.0"})) as (url, _):
        connection = Connection(settings.model_copy(update={"weaviate_url": url}))
        first = connection.run(itself, 10)
        assert connection.run(itself, 10) is first
        with pytest.raises(TemporaryError):
            connection.run(hangs, 0.1)
        assert connection.run(itself, 10) is not first
        connection.close()


class Call:
    """What a gRPC error says."""

    def __init__(self, name: str, details: str) -> None:
        self._name, self._details = name, details

    def code(self) -> Any:
        return type("Code", (), {"name": self._name})

    def details(self) -> str:
        return self._details


class RpcError(Exception, Call):
    def __init__(self, name: str, details: str) -> None:
        Call.__init__(self, name, details)


@pytest.mark.parametrize(
    ("name", "details", "wanted"),
    [
        ("UNKNOWN", "could not find class Nope_v1 in schema", FencedError),
        ("UNKNOWN", 'explorer: list class: search: tenant not found: "s-x"', MissingTenantError),
        ("UNAUTHENTICATED", "unauthorized: invalid api key", ConfigurationError),
        ("PERMISSION_DENIED", "no", ConfigurationError),
        ("UNAVAILABLE", "connection reset", TemporaryError),
        ("RESOURCE_EXHAUSTED", "too many requests", TemporaryError),
        ("UNKNOWN", "invalid text property 'a': not a string, but 'somebody's secret'", TemporaryError),
    ],
)
def test_a_fault_of_the_server_becomes_one_of_ours(name: str, details: str, wanted: type[SophiaError]) -> None:
    from weaviate.exceptions import WeaviateQueryError

    try:
        try:
            raise RpcError(name, details)
        except RpcError:
            raise WeaviateQueryError(details, "GRPC search")  # noqa: B904
    except WeaviateQueryError as error:
        translation = translated(error, "http://127.0.0.1")
    assert type(translation) is wanted
    assert "secret" not in str(translation)


def test_a_fault_of_our_own_stays_what_it_is() -> None:
    assert translated(ValueError("a"), "http://127.0.0.1") is None


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ('the value is "b c", not it', "the value is '…', not it"),
        (
            "invalid date property 'd' on class 'C': not 'a'b' nor 'c'",
            "invalid date property 'd' on class 'C': not '…'",
        ),
        ("vector lengths don't match: 384 vs. 7", "vector lengths don't match: 384 vs. 7"),
        ("property 'a\nb' is bad", "property '…' is bad"),
    ],
)
def test_what_a_server_quotes_is_masked(said: str, shown: str) -> None:
    assert masked(said) == shown

"""What becomes of the objects of a batch that the server does not take: again, back, or in smaller parts."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from weaviate.exceptions import WeaviateBatchError, WeaviateInsertManyAllFailedError

from sophia.errors import FencedError
from sophia.stores import weaviate_write
from sophia.stores.weaviate_write import NewObject, delete_ids, put


class Server:
    """A collection that answers as `answer` says: messages by content, or an exception."""

    def __init__(self, answer: Callable[[list[str], int], dict[str, str]]) -> None:
        self._answer = answer
        self.calls: list[list[str]] = []
        self.data = self

    async def insert_many(self, objects: Sequence[Any]) -> Any:
        contents = [each.properties["content"] for each in objects]
        self.calls.append(contents)
        messages = self._answer(contents, len(self.calls))
        if messages and len(messages) == len(contents):
            raise WeaviateInsertManyAllFailedError("\n".join(messages.values()))
        errors = {
            place: SimpleNamespace(message=messages[content])
            for place, content in enumerate(contents)
            if content in messages
        }
        return SimpleNamespace(errors=errors)

    async def delete_many(self, where: Any) -> Any:
        self.calls.append([])
        failed = self._answer([], len(self.calls))
        return SimpleNamespace(failed=len(failed), matches=1)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weaviate_write, "FIRST_PAUSE", 0.0)
    monkeypatch.setattr(weaviate_write, "LONGEST_PAUSE", 0.0)


def objects(*contents: str) -> list[NewObject]:
    return [NewObject(uuid.uuid4(), {"content": content, "sophia_metadata": "{}"}, [1.0, 2.0]) for content in contents]


def written(server: Server, some: Sequence[NewObject], batch: int = 100) -> dict[str, str]:
    """Reasons by content."""
    refused = asyncio.run(put(server, some, batch, asyncio.Semaphore(2), "http://127.0.0.1"))  # type: ignore[arg-type]
    names = {each.id: each.properties["content"] for each in some}
    return {names[each]: reason for each, reason in refused.items()}


def test_what_passes_is_sent_again_until_it_is_taken() -> None:
    server = Server(lambda contents, call: {"b": "shard is read-only: disk full"} if call <= 4 else {})
    assert written(server, objects("a", "b", "c")) == {}
    assert server.calls == [["a", "b", "c"], ["b"], ["b"], ["b"], ["b"]]


def test_what_is_refused_for_what_it_is_comes_back_after_a_second_try() -> None:
    server = Server(lambda contents, call: {"b": "invalid property 'x': 'value'"} if "b" in contents else {})
    assert written(server, objects("a", "b", "c")) == {
        "b": "Every object failed during insertion. invalid property '…'"
    }
    assert server.calls == [["a", "b", "c"], ["b"]]


def test_a_value_that_reads_like_a_passing_fault_is_none() -> None:
    server = Server(lambda contents, call: {"b": "invalid property 'x': 'connection timeout'"})
    assert set(written(server, objects("a", "b"))) == {"b"}


def test_where_all_fail_each_gets_its_own_reason() -> None:
    reasons = {"a": "bad a", "b": "timeout", "c": "bad c"}
    calls = iter(range(1000))

    def answer(contents: list[str], call: int) -> dict[str, str]:
        late = next(calls) > 12
        return {content: reasons[content] for content in contents if not (late and content == "b")}

    refused = written(Server(answer), objects("a", "b", "c"))
    assert {content: "bad " + content in reason for content, reason in refused.items()} == {"a": True, "c": True}


def test_what_is_too_large_or_cannot_be_sent_does_not_hold_up_the_others() -> None:
    def answer(contents: list[str], call: int) -> dict[str, str]:
        if "huge" in contents:
            raise WeaviateBatchError("RESOURCE_EXHAUSTED: Sent message larger than max (200 vs. 100)")
        if "odd" in contents:
            raise ValueError("'utf-8' codec can't encode character: secret")
        return {}

    refused = written(Server(answer), objects("a", "huge", "b", "odd", "c"))
    assert set(refused) == {"huge", "odd"}
    assert "larger than the server takes" in refused["huge"]
    assert "secret" not in refused["odd"]


def test_a_server_that_is_away_is_asked_again() -> None:
    def answer(contents: list[str], call: int) -> dict[str, str]:
        if call <= 3:
            raise WeaviateBatchError("connection refused")
        return {}

    server = Server(answer)
    assert written(server, objects("a")) == {}
    assert len(server.calls) == 4


def test_a_class_that_is_gone_ends_it() -> None:
    def answer(contents: list[str], call: int) -> dict[str, str]:
        raise WeaviateBatchError("could not find class X_v1 in schema")

    with pytest.raises(FencedError):
        written(Server(answer), objects("a"))


def test_a_delete_of_which_a_part_failed_is_made_again() -> None:
    server = Server(lambda contents, call: {"a": "x"} if call < 3 else {})
    asyncio.run(delete_ids(server, [uuid.uuid4()], "http://127.0.0.1"))  # type: ignore[arg-type]
    assert len(server.calls) == 3


def test_requests_are_cut_by_number_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(lambda contents, call: {})
    written(server, objects(*map(str, range(25))), batch=10)
    assert sorted(map(len, server.calls)) == [5, 10, 10]
    monkeypatch.setattr(weaviate_write, "REQUEST_BYTES", 3_000)
    server = Server(lambda contents, call: {})
    written(server, objects("a", "b" * 5_000, "c", "d"), batch=10)
    assert sorted(content for call in server.calls for content in call) == ["a", "b" * 5_000, "c", "d"]
    assert ["b" * 5_000] in server.calls
    assert max(map(len, server.calls)) == 2


def test_when_a_part_ends_it_the_others_do_not_go_on_behind_it() -> None:
    """They are sent again until the deadline of the whole write, which nobody keeps for them any more."""

    def answer(contents: list[str], call: int) -> dict[str, str]:
        if "b" in contents:
            raise WeaviateBatchError("could not find class X_v1 in schema")
        return dict.fromkeys(contents, "shard is read-only: disk full")

    server = Server(answer)

    async def ended() -> int:
        with pytest.raises(FencedError):
            await put(server, objects("a", "b"), 1, asyncio.Semaphore(2), "http://127.0.0.1")  # type: ignore[arg-type]
        calls = len(server.calls)
        for _ in range(50):
            await asyncio.sleep(0)
        return len(server.calls) - calls

    assert asyncio.run(ended()) == 0

"""What an endpoint refuses, delays or answers wrongly: which text it was, how many requests it takes to know."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import numpy as np
import pytest

from sophia.embedding import RefusedTextsError, load_embedder
from sophia.embedding import endpoint as module
from sophia.embedding.endpoint import EndpointEmbedder
from sophia.errors import ConfigurationError, TemporaryError
from sophia.settings import Settings
from tests.endpoint import DIMENSION, Answer, Endpoint, model

BAD = "bad"


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    yield endpoint
    endpoint.close()


@pytest.fixture
def embedder(endpoint: Endpoint, settings: Settings) -> EndpointEmbedder:
    embedder = load_embedder(model(endpoint.url), "exact", settings)
    assert isinstance(embedder, EndpointEmbedder)
    return embedder


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were asked for; nobody waits."""
    pauses: list[float] = []
    monkeypatch.setattr(module, "sleep", pauses.append)
    return pauses


def refusing(endpoint: Endpoint, status: int = 400) -> Callable[[list[str]], Answer]:
    """A provider that refuses a whole request for the sake of one text."""
    return lambda texts: (status, {}) if any(BAD in text for text in texts) else endpoint.vectors(texts)


@pytest.mark.parametrize("status", [400, 413, 422])
@pytest.mark.parametrize("places", [(17,), (0, 99), (40, 41, 42)])
def test_a_text_that_is_refused_is_found_and_the_others_go_on(
    endpoint: Endpoint, embedder: EndpointEmbedder, status: int, places: tuple[int, ...]
) -> None:
    endpoint.answer = refusing(endpoint, status)
    texts = [BAD if place in places else f"text {'x' * place}" for place in range(100)]
    with pytest.raises(RefusedTextsError) as refused:
        embedder.embed(texts)
    error = refused.value
    assert set(error.reasons) == set(places)
    assert all(str(status) in reason and BAD not in reason for reason in error.reasons.values())
    good = [place for place in range(100) if place not in places]
    assert np.allclose(np.linalg.norm(error.vectors[good], axis=1), 1)
    sizes = error.vectors[good, 0] / error.vectors[good, 1]
    assert np.allclose(sizes, [len(texts[place]) for place in good])
    assert not error.vectors[list(places)].any()
    # Each is found by halving, and the account is asked twice at most whether it is meant.
    assert len(endpoint.requests) <= 2 * 7 * len(places) + 4
    assert embedder.figures.refused == len(places)
    assert embedder.figures.tokens == sum(len(texts[place]) // 4 + 2 for place in good)


def test_a_single_refused_text(endpoint: Endpoint, embedder: EndpointEmbedder) -> None:
    endpoint.answer = refusing(endpoint)
    with pytest.raises(RefusedTextsError) as refused:
        embedder.embed([BAD])
    assert set(refused.value.reasons) == {0}
    # A query is a text, too.
    with pytest.raises(RefusedTextsError):
        embedder.embed_query(BAD)


def test_live_work_is_let_in_while_a_request_is_split(endpoint: Endpoint, embedder: EndpointEmbedder) -> None:
    endpoint.answer = refusing(endpoint)
    calls: list[int] = []
    with pytest.raises(RefusedTextsError):
        embedder.embed(["a", "b", "c", BAD], lambda: calls.append(len(endpoint.requests)))
    assert len(calls) >= 3


# ---- the account is refused, not a text --------------------------------------------------------------------


def test_an_account_that_is_refused_costs_a_handful_of_requests(endpoint: Endpoint, embedder: EndpointEmbedder) -> None:
    endpoint.answer = lambda _texts: (400, {})
    with pytest.raises(ConfigurationError, match="refuses with 400"):
        embedder.embed([f"text {number}" for number in range(3000)])
    assert len(endpoint.requests) <= 3
    # Once it is paid again, the format that was not to blame is asked for as before.
    endpoint.answer = endpoint.vectors
    embedder.embed(["a"])
    assert endpoint.requests[-1]["encoding_format"] == "base64"


def test_an_account_that_is_refused_later_costs_as_little(endpoint: Endpoint, embedder: EndpointEmbedder) -> None:
    embedder.embed(["a"])
    endpoint.requests.clear()
    endpoint.answer = lambda _texts: (400, {})
    with pytest.raises(ConfigurationError, match="refuses with 400"):
        embedder.embed([f"text {number}" for number in range(1000)])
    # Halved down to one text, and then a text that every model takes.
    assert len(endpoint.requests) <= 12


def test_requests_hold_as_many_texts_as_providers_take(endpoint: Endpoint, embedder: EndpointEmbedder) -> None:
    embedder.embed(["a"] * 5000)
    assert max(len(request["input"]) for request in endpoint.requests) == 2048


# ---- the format of the answer ------------------------------------------------------------------------------


def plain_only(endpoint: Endpoint) -> Callable[[list[str]], Answer]:
    """A server that knows no format of the answer, and refuses some texts."""

    def answer(texts: list[str]) -> Answer:
        return (400, {}) if "encoding_format" in endpoint.requests[-1] else refusing(endpoint)(texts)

    return answer


def in_base64(endpoint: Endpoint, cut: int = 0) -> Callable[[list[str]], Answer]:
    """A server that knows the format. The first vector lacks its last `cut` bytes."""

    def answer(texts: list[str]) -> Answer:
        items = endpoint.vectors(texts)[1]["data"]
        for item in items:
            data = np.asarray(item["embedding"], dtype="<f4").tobytes()
            item["embedding"] = base64.b64encode(data[: len(data) - (cut if item["index"] == 0 else 0)]).decode()
        return 200, {"object": "list", "data": items, "usage": {"total_tokens": 7}}

    return answer


def test_vectors_in_base64_are_those_in_numbers(endpoint: Endpoint, embedder: EndpointEmbedder) -> None:
    numbers = embedder.embed(["a", "bb", "ccc"])
    endpoint.answer = in_base64(endpoint)
    assert np.array_equal(embedder.embed(["a", "bb", "ccc"]), numbers)


@pytest.mark.parametrize("cut", [3, 4])
def test_a_vector_that_is_cut_off_is_no_answer(endpoint: Endpoint, embedder: EndpointEmbedder, cut: int) -> None:
    endpoint.answer = in_base64(endpoint, cut)
    with pytest.raises(ConfigurationError, match="no embedding list"):
        embedder.embed(["a", "bb"])


@pytest.mark.parametrize("places", [(), (3,)])
def test_a_server_without_the_format_is_asked_for_it_once(
    endpoint: Endpoint, embedder: EndpointEmbedder, places: tuple[int, ...]
) -> None:
    """Also where a text of the first request is to blame, too."""
    endpoint.answer = plain_only(endpoint)
    texts = [BAD if place in places else f"text {place}" for place in range(8)]
    if places:
        with pytest.raises(RefusedTextsError) as refused:
            embedder.embed(texts)
        assert set(refused.value.reasons) == set(places)
    else:
        embedder.embed(texts)
    assert sum("encoding_format" in request for request in endpoint.requests) == 2
    endpoint.requests.clear()
    embedder.embed(["another"])
    assert ["encoding_format" in request for request in endpoint.requests] == [False]


def test_the_format_stays_where_only_a_text_was_to_blame(endpoint: Endpoint, embedder: EndpointEmbedder) -> None:
    endpoint.answer = refusing(endpoint)
    with pytest.raises(RefusedTextsError):
        embedder.embed(["a", BAD])
    assert all(request["encoding_format"] == "base64" for request in endpoint.requests)


# ---- pauses ------------------------------------------------------------------------------------------------


def later(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("asked", "least", "most"),
    [
        ("3", 3, 3),
        ("0.5", 0.5, 0.5),
        ("86400", module.LONGEST_PAUSE_SECONDS, module.LONGEST_PAUSE_SECONDS),
        (later(86400), module.LONGEST_PAUSE_SECONDS, module.LONGEST_PAUSE_SECONDS),
        (later(-60), 0, 0),
        ("-1", 0, 0),
        ("nan", 0, module.LONGEST_PAUSE_SECONDS),
        ("soon", 0, 5),
    ],
    ids=["seconds", "fraction", "day", "tomorrow", "past", "negative", "nan", "word"],
)
def test_pause_is_as_long_as_the_endpoint_asks_within_bounds(
    endpoint: Endpoint,
    embedder: EndpointEmbedder,
    pauses: list[float],
    status: int,
    asked: str,
    least: float,
    most: float,
) -> None:
    answers: Iterator[Answer] = iter([(status, {}, {"Retry-After": asked})])
    endpoint.answer = lambda texts: next(answers, None) or endpoint.vectors(texts)
    embedder.embed(["a"])
    (pause,) = pauses
    assert least <= pause <= most


def test_lasting_overload_is_left_to_the_caller(
    endpoint: Endpoint, embedder: EndpointEmbedder, pauses: list[float]
) -> None:
    endpoint.answer = lambda _texts: (429, {}, {"Retry-After": "2"})
    with pytest.raises(TemporaryError, match="429"):
        embedder.embed(["a"])
    assert pauses == [2.0] * (module.ATTEMPTS - 1)


# ---- vectors that are none ---------------------------------------------------------------------------------


def base64_of(values: list[float]) -> str:
    return base64.b64encode(np.array(values, dtype="<f4").tobytes()).decode()


@pytest.mark.parametrize(
    "vector",
    [
        [float("nan"), 0, 0, 0],
        [float("inf"), 1, 1, 1],
        [None, 1, 1, 1],
        [0, 0, 0, 0],
        [3e38, 3e38, 3e38, 3e38],
        base64_of([float("nan")] * DIMENSION),
    ],
)
def test_a_vector_that_has_no_direction_is_a_refused_text(
    endpoint: Endpoint, embedder: EndpointEmbedder, vector: Any
) -> None:
    def answer(texts: list[str]) -> Answer:
        items = [{"index": n, "embedding": vector if BAD in t else [1, 2, 2, 0]} for n, t in enumerate(texts)]
        return 200, {"data": items}

    endpoint.answer = answer
    with pytest.raises(RefusedTextsError) as refused:
        embedder.embed(["a", BAD, "c"])
    assert set(refused.value.reasons) == {1}
    assert np.allclose(refused.value.vectors[[0, 2]], [1 / 3, 2 / 3, 2 / 3, 0])
    assert not refused.value.vectors[1].any()
    assert len(endpoint.requests) == 1


# ---- probing -----------------------------------------------------------------------------------------------


def test_a_probe_is_counted_nowhere_and_has_no_prefix(endpoint: Endpoint, settings: Settings) -> None:
    embedder = load_embedder(model(endpoint.url, document_prefix="passage: "), "exact", settings)
    assert np.allclose(np.linalg.norm(embedder.probe(["one", "two"]), axis=1), 1)
    assert endpoint.requests[-1]["input"] == ["one", "two"]
    assert (embedder.figures.texts, embedder.figures.passes) == (0, 0)


def test_a_probe_finds_the_format(endpoint: Endpoint, embedder: EndpointEmbedder) -> None:
    endpoint.answer = plain_only(endpoint)
    assert embedder.probe(["one"]).shape == (1, DIMENSION)


def test_a_probe_of_an_overloaded_endpoint_does_not_wait(
    endpoint: Endpoint, embedder: EndpointEmbedder, pauses: list[float]
) -> None:
    endpoint.answer = lambda _texts: (503, {})
    with pytest.raises(TemporaryError):
        embedder.probe(["one"])
    assert (pauses, len(endpoint.requests)) == ([], 1)


def test_answer_that_cannot_be_unpacked_is_tried_again(
    endpoint: Endpoint, embedder: EndpointEmbedder, pauses: list[float]
) -> None:
    endpoint.answer = lambda texts: (200, b"no gzip at all", {"Content-Encoding": "gzip"})
    with pytest.raises(TemporaryError, match="does not answer"):
        embedder.embed(["a"])
    assert len(pauses) == module.ATTEMPTS - 1

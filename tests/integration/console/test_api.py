"""The console's HTTP API against a real database."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from sophia import inbox
from sophia.catalog import Catalog
from sophia.database import Database
from sophia.errors import ConfigurationError
from sophia.settings import Settings
from tests.bounded import the_idle_one_makes_room
from tests.catalogs import changed, replaced
from tests.console import Documents, console
from tests.embedders import HashEmbedder
from tests.waiting import until


def search(client: httpx.Client, text: str, **more: Any) -> httpx.Response:
    return client.post("/api/search", json={"index": "documents", "text": text} | more)


def test_its_connections_are_bounded(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert the_idle_one_makes_room(address, monkeypatch)


def test_search_finds_by_vector_by_text_and_through_filters(client: httpx.Client, documents: Documents) -> None:
    documents.put(1, "Elephants", "a purple elephant dances", kind="story")
    documents.put(2, "Parsing", "command line options", kind="manual")

    answer = search(client, "Parsing\n\ncommand line options").json()
    assert [hit["key"] for hit in answer["hits"]] == ["[2]", "[1]"]
    assert answer["hits"][0]["score"] == pytest.approx(1.0, abs=1e-3)
    assert (answer["version"], answer["model"]) == (1, "minilm")
    assert answer["took_ms"] > 0

    assert search(client, "elephant", k=1, hybrid=True).json()["hits"][0]["key"] == "[1]"
    assert [h["key"] for h in search(client, "any", filters={"kind": "story"}).json()["hits"]] == ["[1]"]


def test_status_tells_rows_lag_and_where_the_source_is(client: httpx.Client, documents: Documents) -> None:
    documents.put(1, "t", "b")

    def indexed() -> dict[str, Any] | None:
        answer = client.get("/api/status").json()
        return answer if answer["indexes"][0]["indexed"] == 1 else None

    status = until(indexed, "the document in the status")
    index = status["indexes"][0]
    assert (index["index"], index["backlog"], index["source"]) == ("documents", 0, "sample")
    assert index["lag_p50_ms"] > 0
    assert status["dead_letters"] == 0
    batches = client.get("/api/lag", params={"index": "documents"}).json()["batches"]
    assert [batch["documents"] for batch in batches] == [1]


def test_a_collection_of_estuary_tells_up_to_when_it_is_complete(
    settings: Settings, database: Database, catalog: Catalog, documents: Documents
) -> None:
    collection = catalog.collection("documents")
    source = collection.source.model_copy(update={"local": "estuary"})
    fed = changed(catalog, collections=replaced(catalog.collections, collection, source=source, key=("id",)))
    documents.connection.execute(
        "INSERT INTO sophia.estuary_watermarks (collection, published_at_max) VALUES (%s, '2026-11-21T11:59:00Z')",
        [collection.estuary],
    )
    with console(settings, database, fed) as address:
        (shown,) = httpx.get(f"{address}/api/status").json()["collections"]
    assert datetime.fromisoformat(shown["watermark"]) == datetime(2026, 11, 21, 11, 59, tzinfo=UTC)
    assert (shown["name"], shown["position"], shown["rereads"], shown["parked"]) == ("documents", 0, 0, 0)


def test_indexes_tell_what_a_search_form_needs(client: httpx.Client, documents: Documents) -> None:
    documents.put(1, "t", "b", module="first")
    listed = {index["name"]: index for index in client.get("/api/indexes").json()["indexes"]}
    assert listed["documents"]["metadata"] == ["module", "kind"]
    assert listed["memory"]["serving"] is False
    fields = client.get("/api/fields", params={"index": "documents"}).json()["fields"]
    assert fields == {"module": ['"first"'], "kind": ['"note"']}


@pytest.mark.parametrize("typed", ["1", "[1]"])
def test_why_tells_where_a_key_came_from(client: httpx.Client, documents: Documents, typed: str) -> None:
    documents.put(1, "t", "before")
    documents.put(1, "t", "after")
    why = client.get("/api/why", params={"index": "documents", "key": typed}).json()
    assert (why["lsn"], why["txid"], why["run"], why["state"]) == ("0/200", 2, "live", "applied")
    assert why["fingerprint"] == documents.version.fingerprint
    assert len(why["content_hashes"]) == 1
    assert [change["lsn"] for change in why["history"]] == ["0/200", "0/100"]


def test_dead_letters_name_key_and_reason(client: httpx.Client, documents: Documents) -> None:
    key = documents.put(1, "t", "b")
    inbox.park(documents.connection, "documents", key, stage="inbox", reason="no such column")
    letters = client.get("/api/dead-letters").json()["dead_letters"]
    assert [(letter["key"], letter["reason"]) for letter in letters] == [("[1]", "no such column")]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 400, "Invalid JSON"),
        (b"[]", 400, "object"),
        (b'{"index":"documents"}', 400, "text: Field required"),
        (b'{"index":"documents","text":"  "}', 400, "empty"),
        (b'{"index":"documents","text":"x","k":0}', 400, "k: "),
        (b'{"index":"documents","text":"x","k":"9"}', 400, "k: "),
        (b'{"index":"documents","text":"x","limit":9}', 400, "limit"),
        (b'{"index":"documents","text":"x","filters":{"colour":"red"}}', 400, "colour"),
        (b'{"index":"documents","text":"x","filters":{"kind":"\\u0000"}}', 400, "cannot be used"),
        (b'{"index":"documents","text":"\\u0000","hybrid":true}', 400, "cannot be used"),
        (b'{"index":"documents","text":"\\ud800"}', 400, "Invalid JSON"),
        (b'{"index":"dokuments","text":"x"}', 404, "documents"),
        (b'{"index":"documents","text":"' + b"x" * 70_000 + b'"}', 413, "65536"),
    ],
)
def test_faults_of_a_search_are_named(client: httpx.Client, body: bytes, status: int, words: str) -> None:
    answer = client.post("/api/search", content=body)
    assert answer.status_code == status
    assert words in answer.json()["error"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/why?index=documents&key=99", 404),
        ("/api/why?index=none&key=99", 404),
        ("/api/why?index=documents", 400),
        ("/api/why?index=%00&key=1", 400),
        ("/api/lag?index=documents&limit=x", 400),
        ("/api/lag?index=documents&limit=0", 400),
        ("/api/search", 405),
        ("/api/nothing", 404),
        ("/static/../app.py", 404),
        ("/static/..%2fapp.py", 404),
    ],
)
def test_faults_of_a_question_are_json(client: httpx.Client, path: str, status: int) -> None:
    answer = client.get(path)
    assert answer.status_code == status
    assert answer.json()["error"]


def test_a_body_without_an_end_is_cut_off(client: httpx.Client) -> None:
    answer = client.post("/api/search", content=(b"x" * 8192 for _ in range(1000)))
    assert answer.status_code == 413


def test_the_page_may_load_nothing_from_elsewhere(client: httpx.Client) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert page.headers["content-security-policy"].startswith("default-src 'self';")
    assert page.headers["x-content-type-options"] == "nosniff"
    assert "http" not in page.text
    assert "nosniff" in client.get("/api/nothing").headers["x-content-type-options"]


@pytest.mark.parametrize("path", ["/", "/static/console.js", "/static/console.css"])
def test_page_files_are_asked_for_again_by_their_etag(client: httpx.Client, path: str) -> None:
    first = client.get(path)
    assert first.headers["cache-control"] == "no-cache"
    assert client.get(path, headers={"If-None-Match": first.headers["etag"]}).status_code == 304


def test_a_foreign_host_name_is_refused(client: httpx.Client) -> None:
    # A page elsewhere that makes its own name resolve to 127.0.0.1 must not read our answers.
    assert client.get("/api/status", headers={"Host": "example.org"}).status_code == 400


def test_a_search_before_the_model_is_loaded_says_when_to_come_back(
    settings: Settings, database: Database, catalog: Catalog, documents: Documents
) -> None:
    release = threading.Event()

    def load(model: Any, precision: Any, settings: Any) -> HashEmbedder:
        release.wait(60)
        return HashEmbedder()

    with console(settings, database, catalog, load) as address, httpx.Client(base_url=address, timeout=60) as client:
        assert client.get("/").status_code == 200
        early = search(client, "x")
        assert (early.status_code, early.headers["retry-after"]) == (503, "1")
        assert "minilm" in early.json()["error"]
        release.set()
        until(lambda: search(client, "x").status_code == 200, "the model")


def test_a_model_that_cannot_be_loaded_names_the_reason_and_is_tried_again(
    settings: Settings, database: Database, catalog: Catalog, documents: Documents
) -> None:
    faults = [ConfigurationError("the weights are not there; install them")] * 2

    def load(model: Any, precision: Any, settings: Any) -> HashEmbedder:
        if faults:
            raise faults.pop()
        return HashEmbedder()

    with console(settings, database, catalog, load) as address, httpx.Client(base_url=address, timeout=60) as client:
        until(lambda: "install them" in search(client, "x").json().get("error", ""), "the reason")
        until(lambda: search(client, "x").status_code == 200, "the model")


def test_metrics_count_requests_and_tell_the_lag(client: httpx.Client, documents: Documents) -> None:
    documents.put(1, "t", "b")
    client.get("/no/such/path")

    def text() -> str | None:
        text = client.get("/metrics").text
        return text if 'sophia_index_lag_seconds{index="documents",quantile="0.95",version="1"}' in text else None

    found = until(text, "the lag")
    assert 'sophia_console_request_seconds_count{method="POST",route="/api/search",status="200"}' in found
    assert 'route="other",status="404"' in found
    assert "no/such" not in found
    assert "sophia_database_up 1.0" in found


def test_without_the_database_the_page_is_up_and_the_api_says_so(
    settings: Settings, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sophia.services.console.app.POOL_TIMEOUT_SECONDS", 0.2)
    nowhere = Database("postgresql://sophia:secret@127.0.0.1:1/sophia")
    with console(settings, nowhere, catalog) as address, httpx.Client(base_url=address, timeout=60) as client:
        assert client.get("/").status_code == 200
        assert client.get("/health").json() == {"status": "up"}
        for path in ("/ready", "/api/status", "/api/indexes"):
            answer = client.get(path)
            assert answer.status_code == 503
            assert answer.json()["fix"]
            assert "secret" not in answer.text
        assert "sophia_database_up 0.0" in client.get("/metrics").text

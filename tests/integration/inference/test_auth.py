"""Who may ask: bearer tokens, several of them, and nobody from elsewhere without one."""

from __future__ import annotations

import hashlib
import threading
from typing import Any

import httpx
import openai
import pytest

from sophia.catalog import Catalog
from sophia.errors import ConfigurationError
from sophia.services import bearer as tokens_module
from sophia.services.inference.auth import tokens_of
from sophia.services.inference.server import serve
from sophia.settings import InferenceSettings, Settings
from tests.embedders import HashEmbedder
from tests.integration.inference.conftest import Serve
from tests.integration.inference.test_api import FUNCTIONS

OLD, NEW = "old-token-of-callers", "new-token-of-callers"


@pytest.fixture
def guarded(served: Serve) -> httpx.Client:
    """A service with two tokens, as while one is rotated out."""
    return served(tokens=f" {OLD}, {NEW},")


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_every_function_wants_a_token(guarded: httpx.Client) -> None:
    for route in FUNCTIONS:
        # Refused before its body is looked at: this one is no JSON.
        answer = guarded.post(route, content=b"nope")
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        assert guarded.post(route, content=b"nope", headers=bearer(OLD)).status_code == 415
    assert guarded.get("/nowhere").status_code == 401


@pytest.mark.parametrize(
    "sent",
    [
        "Bearer",
        f"Bearer {OLD}x",
        f"Bearer {OLD[:-1]}",
        f"Bearer {OLD.upper()}",
        f"Bearer {OLD}, {NEW}",
        f"Bearer {OLD},{NEW},",
        f"Basic {OLD}",
        OLD,
        "Bearer ü",
    ],
)
def test_anything_else_is_refused(guarded: httpx.Client, sent: str) -> None:
    answer = guarded.post("/embed", json={"text": "a"}, headers={"Authorization": sent.encode()})
    assert answer.status_code == 401


def test_two_headers_are_refused(guarded: httpx.Client) -> None:
    headers = [("Authorization", "Bearer wrong"), ("Authorization", f"Bearer {OLD}")]
    assert guarded.post("/embed", json={"text": "a"}, headers=headers).status_code == 401


def test_both_tokens_are_accepted_while_one_is_rotated_out(guarded: httpx.Client) -> None:
    for token in (OLD, NEW):
        assert guarded.post("/embed", json={"text": "a"}, headers=bearer(token)).status_code == 200
    assert guarded.post("/embed", json={"text": "a"}, headers={"Authorization": f"bearer {OLD}"}).status_code == 200


def test_monitoring_needs_none(guarded: httpx.Client) -> None:
    for path in ("/", "/health", "/ready", "/metrics", "/openapi.json"):
        assert guarded.get(path).status_code == 200


def test_openai_clients_see_their_own_error(guarded: httpx.Client) -> None:
    wrong = openai.OpenAI(base_url=f"{guarded.base_url}/v1", api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError) as refused:
        wrong.embeddings.create(model="minilm", input="a")
    assert refused.value.code == "invalid_api_key"
    right = openai.OpenAI(base_url=f"{guarded.base_url}/v1", api_key=NEW, max_retries=0)
    assert len(right.embeddings.create(model="minilm", input="a").data) == 1


def test_all_tokens_are_compared_by_hash_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def compare(known: bytes, presented: bytes) -> bool:
        compared.append((known, presented))
        return known == presented

    tokens = tokens_of(InferenceSettings.model_validate({"tokens": f"{OLD},{NEW}"}))
    monkeypatch.setattr(tokens_module.hmac, "compare_digest", compare)
    for presented, accepted in ((OLD, True), (NEW, True), ("wrong", False)):
        assert tokens.accepts(presented.encode()) is accepted
    hashes = [hashlib.sha256(token.encode()).digest() for token in (OLD, NEW)]
    assert [known for known, _ in compared] == hashes * 3


@pytest.mark.parametrize("group", [{"host": "0.0.0.0"}, {"host": "::"}, {"tokens": " , "}])  # noqa: S104
def test_it_does_not_start_open_to_all(settings: Settings, catalog: Catalog, group: dict[str, Any]) -> None:
    changed = settings.model_copy(update={"inference": InferenceSettings.model_validate(group)})
    stop = threading.Event()
    # If it did start, it would end at once.
    stop.set()
    with pytest.raises(ConfigurationError, match="SOPHIA_INFERENCE__TOKENS"):
        serve(changed, catalog, stop, load=lambda model, precision, settings: HashEmbedder())


def test_without_tokens_only_this_machines_names_are_answered(client: httpx.Client) -> None:
    """A page whose DNS name was rebound to loopback is another origin's no more; its name still gives it away."""
    assert client.post("/embed", json={"text": "a"}, headers={"Host": "evil.example.com"}).status_code == 400
    assert client.post("/embed", json={"text": "a"}, headers={"Host": "localhost"}).status_code == 200

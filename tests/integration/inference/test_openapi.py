"""The OpenAPI document is true: what it allows is taken, what it forbids is refused, every answer is as it says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as bounded
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from sophia.catalog import Catalog
from sophia.services.inference import models
from sophia.settings import InferenceSettings, load_settings
from tests.embedders import HashEmbedder
from tests.inference import hashed, inference
from tests.integration.inference.test_api import FUNCTIONS, Echo

TOKEN = "token-of-callers"
EXAMPLES = 20


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, catalog: Catalog) -> Iterator[str]:
    """A service in which everything is configured, so that no function has a reason to answer 503."""
    settings = load_settings(home=tmp_path_factory.mktemp("home"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "load_generator", lambda settings: Echo())
        patch.setattr(models, "load_summarizer", lambda settings: Summary())
        with inference(settings, catalog, hashed(HashEmbedder(8)), tokens=TOKEN, max_text_chars=2_000) as address:
            yield address


class Summary:
    """Writes the beginning of a text."""

    name = "beginning"

    def summarize(self, text: str, max_tokens: int, stopped: Any) -> str:
        return text[:max_tokens]


@pytest.fixture(scope="module")
def document(address: str) -> dict[str, Any]:
    """The served document."""
    found: dict[str, Any] = httpx.get(f"{address}/openapi.json", timeout=60).json()
    return found


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["allowed", "forbidden"])
@pytest.mark.parametrize("route", FUNCTIONS)
def test_what_the_document_says_is_done(address: str, route: str, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    held = [
        not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
        checks.response_headers_conformance,
        checks.positive_data_acceptance if mode is GenerationMode.POSITIVE else checks.negative_data_rejection,
    ]

    @given(case=schema[route]["POST"].as_strategy(generation_mode=mode))
    @bounded(
        max_examples=EXAMPLES,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: schemathesis.Case) -> None:
        case.call_and_validate(headers={"Authorization": f"Bearer {TOKEN}"}, checks=held, timeout=60)

    ask()


@pytest.mark.parametrize("route", FUNCTIONS)
def test_examples_are_answered_in_their_own_shape(address: str, document: dict[str, Any], route: str) -> None:
    operation = document["paths"][route]["post"]
    body = operation["requestBody"]["content"]["application/json"]["example"]
    answer = httpx.post(f"{address}{route}", json=body, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60)
    assert answer.status_code == 200
    described = operation["responses"]["200"]["content"]["application/json"]
    schema = described["schema"] | {"components": document["components"]}
    jsonschema.validate(answer.json(), schema)
    jsonschema.validate(described["example"], schema)


def test_every_route_is_in_the_document(document: dict[str, Any]) -> None:
    assert set(document["paths"]) == {*FUNCTIONS, "/health", "/ready", "/metrics", "/openapi.json"}
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert operation["security"] == ([{"bearer": []}] if path in FUNCTIONS else [])
    statuses = set(document["paths"]["/embed"]["post"]["responses"])
    assert statuses == {"200", "400", "401", "408", "413", "415", "422", "429", "500", "503", "504"}


def test_without_tokens_the_document_asks_for_none(client: httpx.Client) -> None:
    found = client.get("/openapi.json").json()
    assert "securitySchemes" not in found["components"]
    assert "401" not in found["paths"]["/embed"]["post"]["responses"]


def test_the_page_lists_the_routes_and_loads_nothing(client: httpx.Client) -> None:
    page = client.get("/")
    assert all(route in page.text for route in FUNCTIONS)
    assert "<script" not in page.text
    assert "//" not in page.text.replace("http://127.0.0.1", "")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]


def test_defaults_of_the_settings_are_the_bounds_of_the_document(client: httpx.Client) -> None:
    found = client.get("/openapi.json").json()["components"]["schemas"]["EmbedRequest"]["properties"]
    defaults = InferenceSettings()
    assert found["texts"]["maxItems"] == defaults.max_texts
    assert found["text"]["maxLength"] == defaults.max_text_chars

"""The rendered tree: deterministic, sound, without secrets, and what the intake expects."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from sophia.catalog import Catalog, load
from sophia.catalog.models import Environment, EstuaryCapture, EstuaryStaging, EstuaryWebhook
from sophia.estuary.catalog.files import write_tree
from sophia.estuary.catalog.flow_checks import check_file
from sophia.estuary.catalog.publish import ENVIRONMENTS, rendered_models
from sophia.estuary.catalog.references import REFERENCE, variables_in
from sophia.estuary.catalog.render import HEADER, PAYLOAD, render_tree
from sophia.estuary.naming import collection_name
from sophia.estuary.stand_in.templates import render
from sophia.platform import build_reconcilers
from sophia.settings import known_variables
from tests.catalogs import changed, replaced


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return load()


def estuary_of(catalog: Catalog, **fields: Any) -> Catalog:
    return changed(catalog, estuary=catalog.estuary.model_copy(update=fields))


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_tree_is_sound_as_files(catalog: Catalog, environment: Environment, tmp_path: Path) -> None:
    write_tree(tmp_path, render_tree(catalog, environment))
    tree = check_file(tmp_path / "flow.yaml")
    assert tree.models() == rendered_models(catalog, environment)
    prefix = f"{catalog.estuary.prefixes.of(environment)}/"
    assert all(name.startswith(prefix) for _, name in tree.specs)


def test_rendering_twice_gives_the_same_bytes(catalog: Catalog) -> None:
    assert render_tree(catalog, "staging") == render_tree(load(), "staging")


def test_every_file_says_where_it_comes_from(catalog: Catalog) -> None:
    assert all(text.startswith(HEADER) for text in render_tree(catalog, "production").values())


def test_environments_share_no_name(catalog: Catalog) -> None:
    names = [set(rendered_models(catalog, environment)) for environment in ENVIRONMENTS]
    assert len(names[0] | names[1] | names[2]) == sum(map(len, names))


def test_what_estuary_runs_for_the_platform(catalog: Catalog) -> None:
    models = rendered_models(catalog, "production")
    assert {name for kind, name in models if kind == "collection"} == {
        "sophia/conversations",
        "sophia/business_metrics",
        "sophia/realtime_data",
        "sophia/vector_updates",
    }
    postgres = models["capture", "sophia/app/source-postgres"]
    assert postgres["endpoint"]["connector"]["image"] == "ghcr.io/estuary/source-postgres:v3"
    assert postgres["bindings"] == [
        {
            "resource": {"namespace": "public", "stream": "conversations", "mode": ""},
            "target": "sophia/conversations",
        }
    ]
    snowflake = models["capture", "sophia/snowflake/source-snowflake"]
    assert snowflake["endpoint"]["connector"]["image"] == "ghcr.io/estuary/source-snowflake:v1"
    assert snowflake["endpoint"]["connector"]["config"]["credentials"] == {
        "auth_type": "jwt",
        "user": "${SOPHIA_ESTUARY_SNOWFLAKE_USER}",
        "private_key": "${SOPHIA_ESTUARY_SNOWFLAKE_PRIVATE_KEY}",
    }
    assert models["collection", "sophia/business_metrics"]["key"] == ["/ID"]
    assert models["collection", "sophia/realtime_data"]["key"] == ["/timestamp", "/source"]


def test_the_webhook_leads_to_the_intake(catalog: Catalog) -> None:
    webhook = rendered_models(catalog, "staging")["materialization", "sophia/staging/webhook"]
    connector = webhook["endpoint"]["connector"]
    assert connector["image"] == "ghcr.io/estuary/materialize-webhook:v1"
    assert connector["config"]["address"] == "${SOPHIA_ESTUARY_INTAKE_URL}/estuary/"
    assert webhook["shards"] == {"minTxnDuration": "0s"}
    # One path a collection: the name by which the intake knows it, in every environment.
    assert {binding["source"]: binding["resource"]["relativePath"] for binding in webhook["bindings"]} == {
        "sophia/staging/conversations": "sophia/conversations",
        "sophia/staging/realtime_data": "sophia/realtime_data",
        "sophia/staging/vector_updates": "sophia/vector_updates",
    }
    (trigger,) = webhook["triggers"]["config"]
    assert (trigger["method"], trigger["url"]) == ("POST", "${SOPHIA_ESTUARY_INTAKE_URL}/estuary-events")
    assert trigger["headers"] == {"Authorization": "Bearer ${SOPHIA_ESTUARY_WEBHOOK_TOKEN}"}


def test_the_payload_is_json_with_what_every_version_gives() -> None:
    given = {
        "materialization_name": "sophia/webhook",
        "collection_names": ["sophia/a", "sophia/b"],
        "connector_image": "ghcr.io/estuary/materialize-webhook:v1",
        "flow_published_at_min": "2026-01-01T00:00:00Z",
        "flow_published_at_max": "2026-01-01T00:00:01Z",
    }
    assert json.loads(render(PAYLOAD, given)) == {
        "materialization": "sophia/webhook",
        "collections": ["sophia/a", "sophia/b"],
        "publishedAtMin": "2026-01-01T00:00:00Z",
        "publishedAtMax": "2026-01-01T00:00:01Z",
    }


def test_a_capture_that_nothing_reads_is_disabled(catalog: Catalog) -> None:
    models = rendered_models(catalog, "production")
    assert models["capture", "sophia/snowflake/source-snowflake"]["shards"] == {"disable": True}
    assert "shards" not in models["capture", "sophia/app/source-postgres"]


def test_no_secret_and_no_host_is_in_a_file(catalog: Catalog) -> None:
    for environment in ENVIRONMENTS:
        text = "\n".join(render_tree(catalog, environment).values())
        for line in text.splitlines():
            if re.match(r"\s*(address|host|user|database|password|private_key|value|url|Authorization):", line):
                assert REFERENCE.search(line), line
    assert [
        finding
        for entry in build_reconcilers(catalog)["estuary"].entries()
        for finding in build_reconcilers(catalog)["estuary"].verify(entry)
    ] == []


def test_variables_are_no_settings_and_secrets_are_known(catalog: Catalog) -> None:
    variables = variables_in(rendered_models(catalog, "production")["materialization", "sophia/webhook"])
    secrets = {secret.env for secret in catalog.secrets}
    assert variables - secrets == {"SOPHIA_ESTUARY_INTAKE_URL"}
    every = {name for model in rendered_models(catalog, "production").values() for name in variables_in(model)}
    assert not every & set(known_variables())


def test_collections_may_have_a_webhook_and_a_token_of_their_own(catalog: Catalog) -> None:
    webhooks = (
        EstuaryWebhook(),
        EstuaryWebhook(name="vectors", token="estuary_token", collections=("vector_updates",)),
    )
    models = rendered_models(estuary_of(catalog, webhooks=webhooks), "production")
    bound = {
        name: [binding["source"] for binding in model["bindings"]]
        for (kind, name), model in models.items()
        if kind == "materialization"
    }
    assert bound == {
        "sophia/webhook": ["sophia/conversations", "sophia/realtime_data"],
        "sophia/vectors": ["sophia/vector_updates"],
    }
    config = models["materialization", "sophia/vectors"]["endpoint"]["connector"]["config"]
    assert config["headers"]["customHeaders"][0]["value"] == "Bearer ${SOPHIA_ESTUARY__TOKEN}"


def test_tables_beside_the_intake(catalog: Catalog) -> None:
    staging = EstuaryStaging(
        variables="SOPHIA_ESTUARY_STAGING", secret="estuary_app_password", collections=("business_metrics",)
    )
    models = rendered_models(estuary_of(catalog, staging=staging), "production")
    model = models["materialization", "sophia/staging"]
    connector = model["endpoint"]["connector"]
    assert connector["image"] == "ghcr.io/estuary/materialize-postgres:v5"
    assert (connector["config"]["hardDelete"], connector["config"]["schema"]) == (True, "estuary")
    assert model["bindings"][0]["resource"] == {"table": "business_metrics", "schema": "estuary"}
    assert "shards" not in models["capture", "sophia/snowflake/source-snowflake"]


def test_a_history_capture_says_so_in_endpoint_and_schema(catalog: Catalog) -> None:
    capture: EstuaryCapture = catalog.captures[0]
    other = changed(catalog, captures=replaced(catalog.captures, capture, history=True))
    models = rendered_models(other, "production")
    assert models["capture", "sophia/app/source-postgres"]["endpoint"]["connector"]["config"]["historyMode"] is True
    change = models["collection", "sophia/conversations"]["schema"]["allOf"][0]
    assert "reduce" in change["properties"]["_meta"]["properties"]["source"]
    # Estuary's tests merge by key; a history is not merged.
    assert ("test", "sophia/tests/conversations") not in models


def test_a_hosted_server_has_a_connector_of_its_own(catalog: Catalog) -> None:
    captures = replaced(catalog.captures, catalog.captures[0], variant="source-neon-postgres")
    models = rendered_models(changed(catalog, captures=captures), "production")
    model = models["capture", "sophia/app/source-neon-postgres"]
    assert model["endpoint"]["connector"]["image"] == "ghcr.io/estuary/source-neon-postgres:v3"


def test_the_capture_sends_transaction_ids_only_where_they_are_projected(catalog: Catalog) -> None:
    models = rendered_models(catalog, "production")
    assert models["collection", "sophia/conversations"]["projections"] == {
        "_meta/op": "/_meta/op",
        "_meta/source/txid": "/_meta/source/txid",
    }
    assert models["collection", "sophia/business_metrics"]["projections"] == {"_meta/op": "/_meta/op"}


def test_tests_of_collections_are_documents_of_their_schemas(catalog: Catalog) -> None:
    from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

    models = rendered_models(catalog, "production")
    tests = [model for (kind, _), model in models.items() if kind == "test"]
    assert len(tests) == 2
    for ingest, verify in tests:
        schema = models["collection", ingest["ingest"]["collection"]]["schema"]
        for document in ingest["ingest"]["documents"]:
            Draft202012Validator(schema).validate(document)
        first, second = ingest["ingest"]["documents"]
        # The update leaves columns out, and what is expected has them.
        (merged,) = verify["verify"]["documents"]
        assert set(merged) == set(first) > set(second)


def test_names_of_other_environments(catalog: Catalog) -> None:
    collection = catalog.collection("conversations")
    assert [collection_name(catalog, collection, name) for name in ENVIRONMENTS] == [
        "sophia/development/conversations",
        "sophia/staging/conversations",
        "sophia/conversations",
    ]


def test_old_files_go_and_foreign_ones_stay(catalog: Catalog, tmp_path: Path) -> None:
    files = render_tree(catalog, "production")
    write_tree(tmp_path, {**files, "collections/gone.flow.yaml": f"{HEADER}a: 1\n"})
    (tmp_path / "collections" / "mine.flow.yaml").write_text("a: 1\n")
    assert write_tree(tmp_path, files) == ("collections/gone.flow.yaml",)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {*files, "collections/mine.flow.yaml"}
    assert yaml.safe_load((tmp_path / "flow.yaml").read_text())["import"] == sorted(set(files) - {"flow.yaml"})


def test_a_tree_that_estuary_would_refuse_fails_its_check(catalog: Catalog) -> None:
    """A key whose type nobody declares is rendered, and found."""
    collection = catalog.collection("realtime_data")
    other = changed(catalog, collections=replaced(catalog.collections, collection, columns={}))
    reconciler = build_reconcilers(other)["estuary"]
    findings = [reconciler.verify(entry) for entry in reconciler.entries()]
    assert [{finding.rule for finding in each} for each in findings] == [{"flow-conflict"}] * len(ENVIRONMENTS)
    assert "key[0]: /timestamp has no type in the schema" in str(findings[0][0])


def test_a_changed_entry_is_another_version_of_the_asset(catalog: Catalog) -> None:
    other = changed(catalog, captures=replaced(catalog.captures, catalog.captures[0], slot="other_slot"))
    before, after = (build_reconcilers(each)["estuary"].entries() for each in (catalog, other))
    assert [entry.name for entry in before] == [entry.name for entry in after] == list(ENVIRONMENTS)
    assert {entry.digest for entry in before} & {entry.digest for entry in after} == set()

"""Secrets, their environments, workflows and frontends."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from sophia.catalog.models import ROTATION_DAYS, Catalog, Step
from sophia.platform import PlatformSystems, Reconciler, build_reconcilers, status_of
from sophia.platform.environments import reference_findings
from sophia.platform.text import from_yaml_stream
from sophia.platform.workflow_checks import check_workflow

VALUE = "postgresql://the-value-of-it"


def test_status_of_a_secret(catalog: Catalog) -> None:
    secret = catalog.secret("database_url")
    assert status_of(secret, {}) == "missing"
    assert status_of(secret, {secret.env: "mysql://somewhere"}) == "malformed"
    assert status_of(secret, {secret.env: "p://"}) == "malformed"
    assert status_of(secret, {secret.env: VALUE}) == "set"


def test_plan_of_a_secret_names_status_and_never_the_value(catalog: Catalog) -> None:
    secret = catalog.secret("database_url")
    good = build_reconcilers(catalog, PlatformSystems(environ={secret.env: VALUE}))["secrets"]
    assert good.plan(secret).empty
    missing = build_reconcilers(catalog, PlatformSystems(environ={}))["secrets"].plan(secret)
    assert "-status: missing\n+status: set\n" in missing.diff()
    assert missing.observed.state == "absent"
    broken = build_reconcilers(catalog, PlatformSystems(environ={secret.env: "a-wrong-value"}))["secrets"].plan(secret)
    assert "-status: malformed" in broken.diff()
    assert "a-wrong-value" not in repr(broken)
    assert VALUE not in repr(good.plan(secret))


def test_optional_secret_may_be_missing(catalog: Catalog) -> None:
    reconciler = build_reconcilers(catalog, PlatformSystems(environ={}))["secrets"]
    plan = reconciler.plan(catalog.secret("figma_token"))
    assert plan.empty
    assert plan.observed.attributes["status"] == "missing"


@pytest.mark.parametrize(
    ("update", "rule"),
    [
        ({"env": "SOPHIA__ODD_"}, "variable-name"),
        ({"env": "SOPHIA_SOMETHING_ELSE"}, "variable-name"),
        ({"pattern": "("}, "pattern"),
    ],
)
def test_each_rule_of_a_secret_has_a_breaking_case(
    replaced: Callable[..., Catalog], rules: Callable[..., set[str]], update: dict[str, str], rule: str
) -> None:
    changed = replaced("secrets", "database_url", **update)
    assert rules(changed, "secrets", "database_url") == {rule}


@pytest.mark.parametrize(("name", "days"), [("github_token", 31), ("notion_token", 91)])
def test_rotation_has_a_longest_interval(
    catalog: Catalog, rules: Callable[..., set[str]], monkeypatch: pytest.MonkeyPatch, name: str, days: int
) -> None:
    monkeypatch.setitem(ROTATION_DAYS, catalog.secret(name).rotation, days)
    assert rules(catalog, "secrets", name) == {"rotation"}


def test_environment_has_only_references(reconcilers: dict[str, Reconciler[Any]], catalog: Catalog) -> None:
    for entry in reconcilers["environments"].entries():
        files = reconcilers["environments"].render(entry).files
        (esc,) = from_yaml_stream(files[f"environments/{entry.name}/esc.yaml"])
        assert esc["imports"] == [f"sophia/{entry.name}-values"]
        variables = esc["values"]["environmentVariables"]
        assert variables["SOPHIA_DATABASE_URL"] == "${secrets.database_url}"
        assert ("SOPHIA_PAGERDUTY_ROUTING_KEY" in variables) == (entry.name == "production")
        for document in from_yaml_stream(files[f"environments/{entry.name}/external-secrets.yaml"]):
            assert document["kind"] == "ExternalSecret"
            assert "data" not in document


def test_every_secret_reference_of_a_service_is_delivered(
    reconcilers: dict[str, Reconciler[Any]], catalog: Catalog
) -> None:
    production = next(entry for entry in reconcilers["environments"].entries() if entry.name == "production")
    files = reconcilers["environments"].render(production).files
    delivered = {
        (item["metadata"]["namespace"], item["spec"]["target"]["name"], item["spec"]["data"][0]["secretKey"])
        for item in from_yaml_stream(files["environments/production/external-secrets.yaml"])
    }
    for service in catalog.services:
        for name in service.secrets:
            assert (service.namespace, name.replace("_", "-"), catalog.secret(name).env) in delivered


def test_value_in_an_environment_is_found() -> None:
    esc = {"values": {"environmentVariables": {"SOPHIA_A": "${secrets.a}", "SOPHIA_B": "literal"}}}
    assert [finding.rule for finding in reference_findings("f", esc)] == ["secret-value"]


def test_secret_that_does_not_reach_production(
    replaced: Callable[..., Catalog], rules: Callable[..., set[str]]
) -> None:
    changed = replaced("secrets", "database_url", environments=("staging",))
    assert rules(changed, "environments", "production") == {"secret-missing"}


@pytest.fixture
def workflow(reconcilers: dict[str, Reconciler[Any]], catalog: Catalog) -> dict[str, Any]:
    files = reconcilers["workflows"].render(catalog.workflow("deployment_pipeline")).files
    document: dict[str, Any] = json.loads(files["workflows/deployment_pipeline.json"])
    return document


def follow(document: dict[str, Any], node: str, output: int) -> list[str]:
    return [link["node"] for link in document["connections"][node]["main"][output]]


def test_dagster_step_waits_for_its_run(workflow: dict[str, Any]) -> None:
    assert follow(workflow, "webhook", 0) == ["validate"]
    assert follow(workflow, "validate", 0) == ["validate_wait"]
    assert follow(workflow, "validate", 1) == ["report_failure"]
    assert follow(workflow, "validate_status", 0) == ["validate_over"]
    assert follow(workflow, "validate_over", 1) == ["validate_wait"]
    assert follow(workflow, "validate_succeeded", 0) == ["build"]
    assert follow(workflow, "validate_succeeded", 1) == ["report_failure"]


def test_webhook_wants_a_token_by_name(workflow: dict[str, Any]) -> None:
    (webhook,) = (node for node in workflow["nodes"] if node["name"] == "webhook")
    assert webhook["parameters"]["authentication"] == "headerAuth"
    assert webhook["credentials"] == {"httpHeaderAuth": {"name": "n8n_webhook_token"}}


def test_expressions_end_once(workflow: dict[str, Any]) -> None:
    bodies = [str(node["parameters"].get("jsonBody", "")) for node in workflow["nodes"]]
    expressions = [body for body in bodies if body.startswith("=")]
    assert expressions
    assert all(body.count("}}") == 1 and body.endswith("}}") for body in expressions)
    assert any("$('webhook').item.json.body.version" in body for body in expressions)


def test_actions_in_the_format_of_n8n(replaced: Callable[..., Catalog]) -> None:
    steps = (
        Step(
            name="tool", action="mcp", service="github", tool="list_issues", secret="mcp_gateway_token", next=("pause",)
        ),
        Step(name="pause", action="wait", seconds=3, next=("answer",)),
        Step(name="answer", action="respond"),
    )
    changed = replaced("workflows", "deployment_pipeline", steps=steps)
    files = build_reconcilers(changed)["workflows"].render(changed.workflow("deployment_pipeline")).files
    document = json.loads(files["workflows/deployment_pipeline.json"])
    assert list(check_workflow("w", document)) == []
    nodes = {node["name"]: node for node in document["nodes"]}
    assert nodes["webhook"]["parameters"]["responseMode"] == "responseNode"
    assert nodes["tool"]["parameters"]["url"] == "http://github.sophia-mcp:8080/mcp"
    assert nodes["tool"]["credentials"] == {"httpHeaderAuth": {"name": "mcp_gateway_token"}}
    assert nodes["pause"]["parameters"] == {"amount": 3, "unit": "seconds"}


WORKFLOW_BREAKAGES: list[tuple[str, Callable[[dict[str, Any]], object]]] = [
    ("duplicate-node", lambda d: d["nodes"].append(copy.deepcopy(d["nodes"][1]))),
    ("trigger-count", lambda d: d["nodes"][0].update(type="n8n-nodes-base.noOp")),
    ("dangling-connection", lambda d: d["connections"]["check"]["main"][0].append({"node": "nowhere"})),
    ("dangling-connection", lambda d: d["connections"].update(nowhere={"main": [[{"node": "check"}]]})),
    ("unreachable-node", lambda d: d["nodes"].append({"name": "alone", "type": "n8n-nodes-base.noOp"})),
    ("credential", lambda d: d["nodes"][0]["credentials"]["httpHeaderAuth"].update(id="1")),
]


@pytest.mark.parametrize(("rule", "breakage"), WORKFLOW_BREAKAGES)
def test_each_rule_of_a_workflow_has_a_breaking_case(
    workflow: dict[str, Any], rule: str, breakage: Callable[[dict[str, Any]], object]
) -> None:
    assert list(check_workflow("w", workflow)) == []
    breakage(workflow)
    assert rule in {finding.rule for finding in check_workflow("w", workflow)}


def test_workflow_may_only_call_what_the_worker_may(
    catalog: Catalog, replaced: Callable[..., Catalog], rules: Callable[..., set[str]]
) -> None:
    step = Step(name="ask", action="http", service="redis", path="/")
    changed = replaced("workflows", "data_sync", steps=(step,))
    assert "flow-missing" not in rules(changed, "workflows", "data_sync")
    step = step.model_copy(update={"service": "weaviate"})
    changed = replaced("workflows", "data_sync", steps=(step,))
    assert "flow-missing" in rules(changed, "workflows", "data_sync")


def test_workflow_with_an_unknown_service(replaced: Callable[..., Catalog], rules: Callable[..., set[str]]) -> None:
    step = Step(name="ask", action="http", service="no_such", path="/")
    changed = replaced("workflows", "data_sync", steps=(step,))
    assert rules(changed, "workflows", "data_sync") == {"unknown-reference"}


def test_slack_secret_must_reach_a_worker(
    catalog: Catalog, replaced: Callable[..., Catalog], rules: Callable[..., set[str]]
) -> None:
    changed = replaced("services", "n8n_worker", secrets=())
    assert "secret-missing" in rules(changed, "workflows", "data_sync")


def test_frontend_files(reconcilers: dict[str, Reconciler[Any]], catalog: Catalog) -> None:
    files = reconcilers["frontends"].render(catalog.frontend("chat")).files
    project = json.loads(files["frontends/chat/project.json"])
    assert project["name"] == "sophia-chat"
    assert project["environment"][0]["type"] == "plain"
    configuration = json.loads(files["frontends/chat/vercel.json"])
    headers = {header["key"] for header in configuration["headers"][0]["headers"]}
    assert {"Content-Security-Policy", "Strict-Transport-Security"} <= headers
    (dns,) = from_yaml_stream(files["frontends/chat/dns.yaml"])
    assert dns["records"][0]["value"] == "${SOPHIA_VERCEL_DNS_TARGET}"


def test_frontend_secrets_go_by_name(replaced: Callable[..., Catalog]) -> None:
    changed = replaced("frontends", "chat", secrets=("console_session_key",))
    files = build_reconcilers(changed)["frontends"].render(changed.frontend("chat")).files
    environment = json.loads(files["frontends/chat/project.json"])["environment"]
    (secret,) = (variable for variable in environment if variable["type"] == "sensitive")
    assert "value" not in secret


@pytest.mark.parametrize(
    ("update", "rule"),
    [
        ({"env": {"NEXT_PUBLIC_API_KEY": "x"}}, "secret-value"),
        ({"domains": ("dashboard.sophia.example.com",)}, "shared-domain"),
        ({"domains": ("chat.elsewhere.example.com",)}, "foreign-domain"),
        ({"service": "redis"}, "unreachable-service"),
    ],
)
def test_each_rule_of_a_frontend_has_a_breaking_case(
    replaced: Callable[..., Catalog], rules: Callable[..., set[str]], update: dict[str, Any], rule: str
) -> None:
    assert rules(replaced("frontends", "chat", **update), "frontends", "chat") == {rule}


def test_secret_compiled_into_a_page(replaced: Callable[..., Catalog]) -> None:
    changed = replaced("secrets", "jwt_signing_key", env="NEXT_PUBLIC_KEY")
    fields = {field: getattr(changed, field) for field in Catalog.model_fields}
    frontend = changed.frontend("chat").model_copy(update={"secrets": ("jwt_signing_key",)})
    changed = Catalog.model_construct(**{**fields, "frontends": (frontend,)})
    findings = build_reconcilers(changed)["frontends"].verify(frontend)
    assert "public-secret" in {finding.rule for finding in findings}

"""The catalog's workflows in n8n's format. Credentials go by name: their values live in n8n's own store.

A Dagster step becomes five nodes: launch the run, wait, ask for its status, is it over, did it succeed. n8n's own
check of a workflow accepts connections that lead nowhere; ours are in `workflow_checks`.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from sophia.catalog.models import Catalog, Secret, Step, Workflow

Node = dict[str, Any]
Connections = dict[str, dict[str, list[list[dict[str, Any]]]]]

NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://sophia.example.com/workflows")
DAGSTER_SERVICE = "dagster_webserver"
DAGSTER_LOCATION = "sophia"
WEBHOOK_SECRET = "n8n_webhook_token"  # noqa: S105
POLL_SECONDS = 10
MOST_TRIES = 5
"""n8n takes no more than five attempts of one node."""

LAUNCH = (
    "mutation Launch($job: String!) { launchRun(executionParams: {selector: {"
    f'repositoryLocationName: "{DAGSTER_LOCATION}", repositoryName: "__repository__", jobName: $job'
    "}}) { __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"
)
STATUS = "query Status($run: ID!) { runOrError(runId: $run) { __typename ... on Run { status } } }"
OVER = "={{ ['SUCCESS', 'FAILURE', 'CANCELED'].includes($json.data.runOrError.status) }}"
SUCCEEDED = "={{ $json.data.runOrError.status === 'SUCCESS' }}"


class WorkflowBuilder:
    """Collects nodes and connections of one workflow."""

    def __init__(self, catalog: Catalog, workflow: Workflow) -> None:
        self._catalog = catalog
        self._workflow = workflow
        self._nodes: list[Node] = []
        self._connections: Connections = {}

    def build(self) -> dict[str, Any]:
        """The document that n8n imports; raises UnknownEntryError for an unknown service or secret."""
        workflow = self._workflow
        trigger = workflow.trigger.kind
        self._trigger(trigger)
        self._connect(trigger, 0, (workflow.steps[0].name,))
        for step in workflow.steps:
            self._step(step)
        return {
            "active": workflow.active,
            "connections": self._connections,
            "name": workflow.name,
            "nodes": self._nodes,
            "settings": {
                "executionOrder": "v1",
                "executionTimeout": workflow.timeout_seconds,
                "saveDataErrorExecution": "all",
                "saveDataSuccessExecution": "none",
                "timezone": "Etc/UTC",
            },
        }

    def _trigger(self, name: str) -> None:
        trigger = self._workflow.trigger
        if trigger.kind == "schedule":
            interval = {"expression": trigger.cron, "field": "cronExpression"}
            self._add(name, "scheduleTrigger", 1.2, {"rule": {"interval": [interval]}})
            return
        answers = any(step.action == "respond" for step in self._workflow.steps)
        parameters = {
            "authentication": "headerAuth",
            "httpMethod": "POST",
            "path": trigger.path,
            "responseMode": "responseNode" if answers else "onReceived",
        }
        credentials = {"httpHeaderAuth": {"name": self._catalog.secret(WEBHOOK_SECRET).name}}
        node_id = self._id(f"{name}/webhook")
        self._add(name, "webhook", 2, parameters, credentials=credentials, webhookId=node_id)

    def _step(self, step: Step) -> None:
        if step.action == "dagster_job":
            self._dagster(step)
            return
        if step.action == "condition":
            self._condition(step.name, step.expression or "")
            self._connect(step.name, 0, step.next)
            self._connect(step.name, 1, step.otherwise)
            return
        if step.action == "wait":
            self._add(step.name, "wait", 1.1, {"amount": step.seconds, "unit": "seconds"})
        elif step.action == "respond":
            self._add(step.name, "respondToWebhook", 1.1, {"respondWith": "json", "responseBody": "={{ $json }}"})
        else:
            self._request(step, self._request_parameters(step))
        self._connect(step.name, 0, step.next)
        self._connect(step.name, 1, step.otherwise)

    def _request_parameters(self, step: Step) -> dict[str, Any]:
        if step.action == "slack":
            secret = self._catalog.secret(step.secret or "")
            # The address itself is the secret, and credentials of n8n cannot hold an address.
            return _json_call("POST", f"={{{{ $env.{secret.env} }}}}", {"text": step.expression})
        url = self._url(step.service or "")
        if step.action == "mcp":
            call = {"id": 1, "jsonrpc": "2.0", "method": "tools/call", "params": {"name": step.tool, "arguments": {}}}
            return _json_call("POST", f"{url}/mcp", call)
        return {"method": step.method, "options": {"timeout": 30_000}, "url": f"{url}{step.path}"}

    def _request(self, step: Step, parameters: dict[str, Any]) -> None:
        extra: dict[str, Any] = {}
        if step.secret is not None and step.action != "slack":
            secret: Secret = self._catalog.secret(step.secret)
            parameters |= {"authentication": "genericCredentialType", "genericAuthType": "httpHeaderAuth"}
            extra["credentials"] = {"httpHeaderAuth": {"name": secret.name}}
        if step.otherwise:
            extra["onError"] = "continueErrorOutput"
        self._add(step.name, "httpRequest", 4.2, parameters, **_retries(step.retries), **extra)

    def _dagster(self, step: Step) -> None:
        url = f"{self._url(DAGSTER_SERVICE)}/graphql"
        wait, status, over, succeeded = (f"{step.name}_{part}" for part in ("wait", "status", "over", "succeeded"))
        on_error = {"onError": "continueErrorOutput"} if step.otherwise else {}
        launch = _json_call("POST", url, {"query": LAUNCH, "variables": {"job": step.job}})
        self._add(step.name, "httpRequest", 4.2, launch, **_retries(step.retries), **on_error)
        self._add(wait, "wait", 1.1, {"amount": POLL_SECONDS, "unit": "seconds"})
        run = f"={{{{ $('{step.name}').first().json.data.launchRun.run.runId }}}}"
        question = _json_call("POST", url, {"query": STATUS, "variables": {"run": run}})
        self._add(status, "httpRequest", 4.2, question, **_retries(MOST_TRIES - 1), **on_error)
        self._condition(over, OVER)
        self._condition(succeeded, SUCCEEDED)
        for source in (step.name, status):
            self._connect(source, 1, step.otherwise)
        self._connect(step.name, 0, (wait,))
        self._connect(wait, 0, (status,))
        self._connect(status, 0, (over,))
        self._connect(over, 0, (succeeded,))
        self._connect(over, 1, (wait,))
        self._connect(succeeded, 0, step.next)
        self._connect(succeeded, 1, step.otherwise)

    def _condition(self, name: str, expression: str) -> None:
        condition = {
            "id": self._id(f"{name}/condition"),
            "leftValue": expression,
            "operator": {"operation": "true", "singleValue": True, "type": "boolean"},
            "rightValue": "",
        }
        options = {"caseSensitive": True, "leftValue": "", "typeValidation": "strict", "version": 2}
        conditions = {"combinator": "and", "conditions": [condition], "options": options}
        self._add(name, "if", 2.2, {"conditions": conditions, "options": {}})

    def _url(self, name: str) -> str:
        service = self._catalog.service(name)
        port = next((port.number for port in service.ports if port.name == "http"), 80)
        return f"http://{service.resource_name}.{service.namespace}:{port}"

    def _add(self, name: str, kind: str, version: float, parameters: Mapping[str, Any], **extra: Any) -> None:
        column, row = len(self._nodes) % 6, len(self._nodes) // 6
        self._nodes.append(
            {
                "id": self._id(name),
                "name": name,
                "parameters": dict(parameters),
                "position": [column * 240, row * 180],
                "type": f"n8n-nodes-base.{kind}",
                "typeVersion": version,
                **extra,
            }
        )

    def _connect(self, source: str, output: int, targets: tuple[str, ...]) -> None:
        if not targets:
            return
        outputs = self._connections.setdefault(source, {"main": []})["main"]
        while len(outputs) <= output:
            outputs.append([])
        outputs[output] += [{"index": 0, "node": target, "type": "main"} for target in targets]

    def _id(self, part: str) -> str:
        return str(uuid.uuid5(NAMESPACE, f"{self._workflow.name}/{part}"))


def _json_call(method: str, url: str, body: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "jsonBody": _expression(body),
        "method": method,
        "options": {"timeout": 30_000},
        "sendBody": True,
        "specifyBody": "json",
        "url": url,
    }


def _expression(body: Mapping[str, Any]) -> str:
    """A JSON body; with expressions inside, one JavaScript object, so that their values are quoted by n8n."""
    if not any(_is_expression(value) for value in _leaves(body)):
        return json.dumps(body, sort_keys=True)
    return f"={{{{ {_javascript(body)} }}}}"


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    else:
        yield value


def _is_expression(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("=")


def _javascript(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(key)}: {_javascript(item)}" for key, item in sorted(value.items())) + " }"
    if not _is_expression(value):
        return json.dumps(value)
    parts: list[str] = []
    for position, text in enumerate(value[1:].split("{{")):
        code, closed, rest = text.partition("}}")
        if position and closed:
            parts.append(f"({code.strip()})")
            text = rest
        if text:
            parts.append(json.dumps(text))
    return " + ".join(parts) if parts else '""'


def _retries(retries: int) -> dict[str, Any]:
    if not retries:
        return {}
    return {"maxTries": min(retries + 1, MOST_TRIES), "retryOnFail": True, "waitBetweenTries": 2_000}

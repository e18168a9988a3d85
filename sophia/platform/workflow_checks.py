"""Checks of a workflow in n8n's format, which n8n itself does not make."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from sophia.platform.reconcile import Finding

TRIGGERS = {"n8n-nodes-base.scheduleTrigger", "n8n-nodes-base.webhook"}
ENVIRONMENT = "$env."


def check_workflow(where: str, document: dict[str, Any]) -> Iterator[Finding]:
    """Unique names, one trigger, connections that lead somewhere, nodes that are reached, credentials by name."""
    nodes: list[dict[str, Any]] = document["nodes"]
    names = Counter(node["name"] for node in nodes)
    for name, count in names.items():
        if count > 1:
            yield Finding("error", "duplicate-node", where, f'{count} nodes are called "{name}"', "rename a step")
    triggers = [node["name"] for node in nodes if node["type"] in TRIGGERS]
    if len(triggers) != 1:
        fix = "give it exactly one webhook or schedule"
        yield Finding("error", "trigger-count", where, f"it has {len(triggers)} triggers", fix)
    edges: dict[str, set[str]] = {}
    for source, outputs in document["connections"].items():
        targets = {link["node"] for output in outputs.get("main", []) for link in output}
        edges[source] = targets & set(names)
        if source not in names:
            yield Finding("error", "dangling-connection", where, f'a connection starts at "{source}", which is no node')
        for target in sorted(targets - set(names)):
            message = f'"{source}" leads to "{target}", which is no node'
            yield Finding("error", "dangling-connection", where, message, "correct next or otherwise")
    reached = set(triggers)
    front = list(triggers)
    while front:
        for target in edges.get(front.pop(), set()) - reached:
            reached.add(target)
            front.append(target)
    for name in sorted(set(names) - reached):
        yield Finding("error", "unreachable-node", where, f'nothing leads to "{name}"', "connect or remove it")
    for node in nodes:
        for kind, credential in node.get("credentials", {}).items():
            if set(credential) != {"name"}:
                message = f'"{node["name"]}" holds more than the name of its {kind} credential'
                yield Finding("error", "credential", where, message, "keep only the name")


def reads_environment(value: Any) -> bool:
    """Whether any expression of a document reads a variable of n8n's environment."""
    if isinstance(value, dict):
        return any(reads_environment(item) for item in value.values())
    if isinstance(value, list):
        return any(reads_environment(item) for item in value)
    return isinstance(value, str) and ENVIRONMENT in value

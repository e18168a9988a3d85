"""Workflows: n8n documents from the catalog."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from sophia.catalog.models import Catalog, UnknownEntryError, Workflow
from sophia.platform.exposure import exposures
from sophia.platform.n8n import DAGSTER_SERVICE, WorkflowBuilder
from sophia.platform.reconcile import Finding, Observed, Plan, Rendered, make_plan
from sophia.platform.systems import PlatformSystems
from sophia.platform.text import to_json
from sophia.platform.workflow_checks import check_workflow, reads_environment

BLOCK_ENVIRONMENT = "N8N_BLOCK_ENV_ACCESS_IN_NODE"


@dataclass(frozen=True)
class WorkflowReconciler:
    """Workflows of the catalog."""

    catalog: Catalog
    systems: PlatformSystems
    kind: str = "workflows"

    def entries(self) -> tuple[Workflow, ...]:
        """All workflows, in the order of the catalog."""
        return self.catalog.workflows

    def render(self, entry: Workflow) -> Rendered:
        """The document that n8n imports; raises UnknownEntryError."""
        return Rendered({_path(entry): to_json(WorkflowBuilder(self.catalog, entry).build())})

    def observe(self, entry: Workflow) -> Observed:
        """Not read back from n8n in this version."""
        if self.systems.n8n_url is None:
            return Observed.unknown("no n8n is configured (set SOPHIA_N8N_URL)")
        return Observed.unknown(f"workflow {entry.name} is not read back from n8n; the plan shows all of it")

    def plan(self, entry: Workflow) -> Plan:
        """What an apply would have to do; raises UnknownEntryError."""
        return make_plan(self.kind, entry.name, self.render(entry), self.observe(entry))

    def verify(self, entry: Workflow) -> tuple[Finding, ...]:
        """Our own checks of the document, and that n8n may do what it asks for."""
        return tuple(self._findings(entry))

    def _findings(self, entry: Workflow) -> Iterator[Finding]:
        path = _path(entry)
        try:
            rendered = self.render(entry)
        except UnknownEntryError as unknown:
            yield Finding("error", "unknown-reference", path, str(unknown), "correct the step in workflows.yaml")
            return
        yield from exposures(rendered)
        document = json.loads(rendered.files[path])
        yield from check_workflow(path, document)
        yield from self._flow_findings(entry, path)
        if reads_environment(document):
            yield from self._environment_findings(entry, path)

    def _flow_findings(self, entry: Workflow, path: str) -> Iterator[Finding]:
        engines = [service for service in self.catalog.services if service.category == "workflow"]
        permitted = {called.name for engine in engines for called in self.catalog.callees_of(engine.name)}
        called = [*entry.services, *(DAGSTER_SERVICE for step in entry.steps if step.action == "dagster_job")]
        for name in sorted(set(called) - permitted):
            message = f"no workflow service may call {name}"
            yield Finding("error", "flow-missing", path, message, f"add {name} to the calls of the worker")

    def _environment_findings(self, entry: Workflow, path: str) -> Iterator[Finding]:
        for service in self.catalog.services:
            if service.category != "workflow":
                continue
            if service.env.get(BLOCK_ENVIRONMENT) != "false":
                message = f"it reads a variable, and {service.name} does not allow that"
                fix = f'set {BLOCK_ENVIRONMENT}: "false" in its env'
                yield Finding("warning", "environment-access", path, message, fix)
        steps = {step.secret for step in entry.steps if step.action == "slack" and step.secret is not None}
        held = {name for service in self.catalog.services if service.category == "workflow" for name in service.secrets}
        for name in sorted(steps - held):
            message = f"no workflow service gets the secret {name}"
            yield Finding("error", "secret-missing", path, message, "add it to the secrets of the worker")


def _path(entry: Workflow) -> str:
    return f"workflows/{entry.name}.json"

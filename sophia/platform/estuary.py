"""Estuary's catalog as a kind of the platform: one tree an environment.

What is published is read through flowctl, where it is installed and has a token; the plan is by definition, not by
file, since Estuary keeps no files. What this renders with is imported when it is used: it lies above this package.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from sophia.catalog.models import Catalog, Environment, UnknownEntryError
from sophia.errors import SophiaError
from sophia.platform.exposure import exposures
from sophia.platform.reconcile import Action, Change, Finding, Observed, Plan, Rendered, files_digest, make_plan
from sophia.platform.systems import PlatformSystems

if TYPE_CHECKING:
    from sophia.estuary.catalog.plan import Models

NOT_CONFIGURED = "flowctl is not configured: install it, and set FLOW_API_KEY, FLOW_AUTH_TOKEN or SOPHIA_ESTUARY__TOKEN"
_ACTIONS: dict[str, Action] = {"add": "create", "change": "update", "remove": "none", "none": "none"}


@dataclass(frozen=True)
class EstuaryTree:
    """The part of Estuary's catalog that one environment has. `digest` is of the entries that it is rendered from."""

    name: Environment
    digest: str


@dataclass(frozen=True)
class EstuaryReconciler:
    """Estuary's catalog, rendered from ours."""

    catalog: Catalog
    systems: PlatformSystems
    kind: str = "estuary"

    def entries(self) -> tuple[EstuaryTree, ...]:
        """Development, staging, production."""
        catalog = self.catalog
        parts = (catalog.estuary, *catalog.captures, *catalog.collections, *catalog.indexes)
        digest = hashlib.sha256("".join(part.model_dump_json() for part in parts).encode()).hexdigest()[:12]
        return tuple(EstuaryTree(name, digest) for name in get_args(Environment))

    def render(self, entry: EstuaryTree) -> Rendered:
        """The flow.yaml tree; raises UnknownEntryError for a secret that the catalog lacks."""
        from sophia.estuary.catalog.render import render_tree

        return Rendered(
            {f"estuary/{entry.name}/{path}": text for path, text in render_tree(self.catalog, entry.name).items()}
        )

    def observe(self, entry: EstuaryTree) -> Observed:
        """What is published below the environment's prefix, one text a definition."""
        live = self._live(entry)
        return live if isinstance(live, Observed) else _observed(live)

    def plan(self, entry: EstuaryTree) -> Plan:
        """What an apply would have to do. What only Estuary has stays: it may belong to somebody else."""
        live = self._live(entry)
        if isinstance(live, Observed):
            return make_plan(self.kind, entry.name, self.render(entry), live)
        from sophia.catalog.errors import CatalogError
        from sophia.estuary.catalog.plan import compare
        from sophia.estuary.catalog.publish import rendered_models
        from sophia.estuary.catalog.references import as_published

        try:
            desired = rendered_models(self.catalog, entry.name)
        except CatalogError as error:
            # The check says all of it; a plan of what Estuary would refuse compares nothing.
            unsound = Observed.unknown(f"the rendered tree is not sound: {error.problems[0].message}")
            return make_plan(self.kind, entry.name, self.render(entry), unsound)
        environ = self.systems.environ or {}
        plan = compare(as_published(desired, live, environ), live)
        changes = tuple(
            Change(
                _ACTIONS[change.action],
                f"{change.kind}/{change.name}",
                "" if change.action == "remove" else change.diff,
            )
            for change in plan.changes
        )
        return Plan(self.kind, entry.name, changes, _observed(live))

    def verify(self, entry: EstuaryTree) -> tuple[Finding, ...]:
        """The schema's and the cross-checks' findings, and that no address or secret is in a file."""
        return tuple(self._findings(entry))

    def _live(self, entry: EstuaryTree) -> Models | Observed:
        if self.systems.flowctl is None:
            return Observed.unknown(NOT_CONFIGURED)
        from sophia.estuary.catalog.publish import published

        try:
            return published(self.catalog, entry.name, self.systems.flowctl)
        except SophiaError as error:
            return Observed.unknown(str(error).splitlines()[0])

    def _findings(self, entry: EstuaryTree) -> Iterator[Finding]:
        from sophia.catalog.errors import CatalogError
        from sophia.estuary.catalog.publish import rendered_models

        folder = f"estuary/{entry.name}"
        try:
            rendered_models(self.catalog, entry.name)
        except UnknownEntryError as unknown:
            yield Finding("error", "unknown-reference", folder, str(unknown), "correct deploy/catalog/estuary.yaml")
            return
        except CatalogError as error:
            for problem in error.problems:
                where = f"{problem.kind} {problem.name}" if problem.name else problem.path
                yield Finding("error", f"flow-{problem.code}", folder, f"{where}: {problem.message}")
        yield from exposures(self.render(entry))


def _observed(live: Models) -> Observed:
    from sophia.estuary.catalog.plan import text_of

    if not live:
        return Observed("absent", "nothing is published below the prefix", digest=files_digest({}))
    files = {f"{kind}/{name}.yaml": text_of(kind, model) for (kind, name), model in live.items()}
    return Observed("present", f"{len(files)} definitions are published", files=files)

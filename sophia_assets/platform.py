"""The platform's kinds as assets: one multi-asset a kind, since planning a kind is one cheap step.

Nothing is applied here: an asset says "planned" or "in step", with the diff as metadata, and its data version is what
was observed. So it does not move until something was really changed.
"""

import hashlib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from typing import Any

import dagster as dg
from pydantic import BaseModel

from resources import PlatformResource
from sophia.catalog import Catalog
from sophia.catalog.models import Cluster, Entry, Frontend, Image, Service, Workflow
from sophia.platform import EstuaryTree, SecretEnvironment, build_reconcilers
from sophia_assets.keys import ICONS, asset_key

CHECK = "rendered_is_sound"
# Metadata is stored with every event: a diff is cut, its size is a number beside it.
DIFF_LINES = 400
# Where Estuary's materialisations lead.
INTAKE = "intake"
PLATFORM_TEAM = "team:platform"
# Kinds whose entries the catalog does not describe one by one.
DESCRIPTIONS = {
    "cluster": "The K3s cluster as a whole: GPU operator, quotas, limits, autoscaling policy, mesh.",
    "environments": "One environment's secrets as references, for Pulumi ESC and Kubernetes.",
    "estuary": "One environment's captures, collections and materialisations at Estuary, as flow.yaml.",
}


def dependencies(catalog: Catalog, entry: Any) -> list[dg.AssetKey]:
    """What an entry depends on: image → infrastructure → service, secret → service, service → the rest."""
    found: list[dg.AssetKey] = []
    match entry:
        case Image(base=str(base)):
            found.append(asset_key("images", base))
        case Service():
            found += [asset_key("images", entry.image), asset_key("cluster", catalog.cluster.name)]
            found += [asset_key("secrets", name) for name in entry.secrets]
            found += [asset_key("services", name) for name in entry.depends_on]
        case Workflow():
            found += [asset_key("services", name) for name in entry.services]
            found += [asset_key("secrets", name) for name in entry.secrets]
        case Frontend():
            found.append(asset_key("services", entry.service))
            found += [asset_key("secrets", name) for name in entry.secrets]
        case Cluster():
            found += [asset_key("nodes", node.name) for node in catalog.nodes]
        case SecretEnvironment():
            found += [asset_key("secrets", s.name) for s in catalog.secrets if entry.name in s.environments]
        case EstuaryTree():
            # Not on the collections: they move with every document.
            found += [asset_key("sources", source.name) for source in catalog.sources if source.kind == "estuary"]
            found += [asset_key("secrets", name) for name in estuary_secrets(catalog)]
            found += [asset_key("services", name) for name in (INTAKE,) if name in {s.name for s in catalog.services}]
    return list(dict.fromkeys(found))


def estuary_secrets(catalog: Catalog) -> list[str]:
    """The secrets that Estuary's catalog refers to, as far as our catalog has them."""
    known = {secret.name for secret in catalog.secrets}
    staging = catalog.estuary.staging
    names = [webhook.token for webhook in catalog.estuary.webhooks] + ([staging.secret] if staging else [])
    return [name for name in (*names, *(capture.secret for capture in catalog.captures)) if name in known]


def code_version(entry: Any) -> str:
    """Changes whenever the catalog entry does."""
    text = entry.model_dump_json() if isinstance(entry, BaseModel) else repr(entry)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _spec(catalog: Catalog, kind: str, entry: Any) -> dg.AssetSpec:
    return dg.AssetSpec(
        asset_key(kind, entry.name),
        deps=dependencies(catalog, entry),
        description=entry.description if isinstance(entry, Entry) else DESCRIPTIONS[kind],
        group_name=kind,
        kinds=ICONS[kind],
        owners=list(entry.owners) if isinstance(entry, Entry) else [PLATFORM_TEAM],
        code_version=code_version(entry),
        skippable=True,
    )


def build_platform_asset(catalog: Catalog, kind: str) -> dg.AssetsDefinition:
    """The multi-asset of one kind, with a check of what is rendered for each entry."""
    entries = {asset_key(kind, entry.name): entry for entry in build_reconcilers(catalog)[kind].entries()}
    specs = [_spec(catalog, kind, entry) for entry in entries.values()]
    # Dagster wants the assets of one step in the order of their dependencies.
    inside = {spec.key: [dep.asset_key for dep in spec.deps if dep.asset_key in entries] for spec in specs}
    order = {key: number for number, key in enumerate(TopologicalSorter(inside).static_order())}
    checks = [dg.AssetCheckSpec(CHECK, asset=key, description="Rendered files obey the rules.") for key in entries]

    @dg.multi_asset(
        name=f"plan_{kind}",
        specs=specs,
        check_specs=checks,
        can_subset=True,
        description=f"Render, observe, compare and check the {kind} of the catalog. Changes nothing outside.",
    )
    def plan(
        context: dg.AssetExecutionContext, platform: PlatformResource
    ) -> Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]:
        reconciler = platform.reconcilers(catalog)[kind]
        for key in sorted(context.selected_asset_keys, key=order.__getitem__):
            yield _materialize(reconciler, key, entries[key])
        for check in sorted(context.selected_asset_check_keys, key=lambda check: check.asset_key):
            yield _check(reconciler, check.asset_key, entries[check.asset_key])

    return plan


def _materialize(reconciler: Any, key: dg.AssetKey, entry: Any) -> dg.MaterializeResult[Any]:
    plan = reconciler.plan(entry)
    rendered = reconciler.render(entry)
    counts = plan.counts()
    diff = plan.diff().splitlines()
    shown = "\n".join(diff[:DIFF_LINES]) + ("\n…" if len(diff) > DIFF_LINES else "")
    return dg.MaterializeResult(
        asset_key=key,
        data_version=dg.DataVersion(plan.observed.digest or plan.observed.state),
        metadata={
            "state": "in step" if plan.empty else "planned",
            "observed": f"{plan.observed.state}: {plan.observed.reason}"
            if plan.observed.reason
            else plan.observed.state,
            "desired_digest": rendered.digest[:12],
            "files": len(rendered.files),
            "to_create": counts["create"],
            "to_update": counts["update"],
            "to_delete": counts["delete"],
            "diff_lines": len(diff),
            "diff": dg.MetadataValue.md(f"```diff\n{shown}\n```" if diff else "nothing to do"),
        },
    )


def _check(reconciler: Any, key: dg.AssetKey, entry: Any) -> dg.AssetCheckResult:
    findings = reconciler.verify(entry)
    errors = [finding for finding in findings if finding.severity == "error"]
    lines = "\n".join(f"- {finding}" for finding in findings)
    return dg.AssetCheckResult(
        asset_key=key,
        check_name=CHECK,
        passed=not errors,
        severity=dg.AssetCheckSeverity.ERROR,
        description=str(errors[0]) if errors else None,
        metadata={
            "errors": len(errors),
            "findings": dg.MetadataValue.md(lines or "none"),
        },
    )

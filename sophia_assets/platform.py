"""The platform's kinds as assets: one multi-asset a kind, since planning a kind is one cheap step.

Nothing is applied here: an asset says "planned" or "in step", with the diff as metadata, and its data version is what
was observed. So it does not move until something was really changed.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

import dagster as dg

from resources import PlatformResource
from sophia.catalog import Catalog
from sophia.catalog.models import Entry, Frontend, Image, Service, Workflow
from sophia_assets.keys import ICONS, asset_key

CHECK = "rendered_is_sound"
# Metadata is stored with every event: a diff is cut, its size is a number beside it.
DIFF_LINES = 400


def dependencies(catalog: Catalog, entry: Entry) -> list[dg.AssetKey]:
    """What an entry depends on: image → infrastructure → service, secret → service, service → the rest."""
    found: list[dg.AssetKey] = []
    match entry:
        case Image(base=str(base)):
            found.append(asset_key("images", base))
        case Service():
            found.append(asset_key("images", entry.image))
            found += [asset_key("secrets", name) for name in entry.secrets]
            found += [asset_key("services", name) for name in entry.depends_on]
            nodes = catalog.route(entry.route).nodes if entry.route else ()
            found += [asset_key("cluster", name) for name in nodes]
        case Workflow():
            found += [asset_key("services", name) for name in entry.services]
            found += [asset_key("secrets", name) for name in entry.secrets]
        case Frontend():
            found.append(asset_key("services", entry.service))
            found += [asset_key("secrets", name) for name in entry.secrets]
    return list(dict.fromkeys(found))


def entries_of(catalog: Catalog, kind: str) -> tuple[Any, ...]:
    """The catalog's entries of an asset kind. The cluster's assets are its nodes."""
    found: tuple[Any, ...] = catalog.nodes if kind == "cluster" else getattr(catalog, kind)
    return found


def code_version(entry: Entry) -> str:
    """Changes whenever the catalog entry does."""
    return hashlib.sha256(entry.model_dump_json().encode()).hexdigest()[:12]


def build_platform_asset(catalog: Catalog, kind: str) -> dg.AssetsDefinition:
    """The multi-asset of one kind, with a check of what is rendered for each entry."""
    entries = {asset_key(kind, entry.name): entry for entry in entries_of(catalog, kind)}
    specs = [
        dg.AssetSpec(
            key,
            deps=dependencies(catalog, entry),
            description=entry.description,
            group_name=kind,
            kinds=ICONS[kind],
            owners=list(entry.owners),
            code_version=code_version(entry),
            skippable=True,
        )
        for key, entry in entries.items()
    ]
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
        for key in sorted(context.selected_asset_keys):
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

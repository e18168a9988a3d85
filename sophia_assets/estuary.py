"""What Estuary says of its collections, as observations and checks of the graph.

A sensor reports both as they change; the same checks can be run at any time, and then ask Estuary themselves.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dagster as dg

from resources import DatabaseResource, EstuaryResource
from sophia.catalog import Catalog
from sophia.errors import ConfigurationError, TemporaryError
from sophia.estuary.control.observation import CollectionView, Look
from sophia.estuary.control.schema_watch import mismatches, shapes_of
from sophia.estuary.control.verdicts import (
    COLLECTION_CHECKS,
    SOURCE_CHECKS,
    Verdict,
    away,
    catalog_verdict,
    sources_of,
    verdicts,
)
from sophia.estuary.naming import fed_by_estuary
from sophia.settings import Profile
from sophia_assets.keys import DATA_VERSION, asset_key


def estuary_sources(catalog: Catalog, profile: Profile) -> list[str]:
    """The sources of kind estuary that feed a collection in this profile."""
    return list(dict.fromkeys(c.source.for_profile(profile) or "" for c in fed_by_estuary(catalog, profile)))


def collection_figures(view: CollectionView) -> dict[str, Any]:
    """Metadata of a collection's observation; the keys are stable, so the UI plots them. Totals are of the month."""
    ours = view.ours
    return {
        "position": ours.position,
        "generation": ours.generation,
        "estuary_docs": view.written_docs,
        "estuary_bytes": view.written_bytes,
        "estuary_delivered_docs": view.delivered_docs,
        # 0 where nothing flows: a quiet collection is not late.
        "estuary_lag_seconds": round(view.lag or 0.0, 1),
        "estuary_waiting_seconds": round(view.waiting_seconds, 1),
        "estuary_errors": view.totals.errors,
        "estuary_failures": view.totals.failures,
        "estuary_alerts": len(view.alerts),
        "estuary_watermark": ours.watermark.isoformat() if ours.watermark else "none yet",
        "source_time": ours.source_time.isoformat() if ours.source_time else "none yet",
    }


def source_figures(look: Look, source: str) -> dict[str, Any]:
    """Metadata of the source's observation: all its collections and tasks together."""
    views = [view for view in look.collections if view.source == source]
    tasks = [spec for spec in look.specs if spec.kind in ("capture", "materialization")]
    return {
        "estuary_docs": sum(view.written_docs for view in views),
        "estuary_bytes": sum(view.written_bytes for view in views),
        "estuary_delivered_docs": sum(view.delivered_docs for view in views),
        "estuary_lag_seconds": round(max((view.lag or 0.0 for view in views), default=0.0), 1),
        "estuary_alerts": len(look.alerts),
        "tasks": len(tasks),
        "tasks_failing": sum(spec.health == "ERROR" for spec in tasks),
        "tasks_disabled": sum(spec.disabled for spec in tasks),
        "complete": int(look.whole),
    }


def observations(look: Look) -> list[dg.AssetObservation]:
    """One observation of each collection and of each source."""
    collections = [
        dg.AssetObservation(
            asset_key("collections", view.name),
            metadata=collection_figures(view),
            # What the inbox holds; an observation without it would say that nothing is known.
            tags={DATA_VERSION: f"{view.ours.generation}:{view.ours.position}"},
        )
        for view in look.collections
    ]
    sources = [
        dg.AssetObservation(asset_key("sources", source), metadata=source_figures(look, source))
        for source in sources_of(look)
    ]
    return [*collections, *sources]


def check_key(verdict: Verdict) -> dg.AssetCheckKey:
    """The check that a verdict is of."""
    return dg.AssetCheckKey(asset_key(verdict.kind, verdict.name), verdict.check)


def evaluation(verdict: Verdict) -> dg.AssetCheckEvaluation:
    """A verdict as a sensor reports it."""
    return dg.AssetCheckEvaluation(
        asset_key=asset_key(verdict.kind, verdict.name),
        check_name=verdict.check,
        passed=verdict.passed,
        severity=dg.AssetCheckSeverity[verdict.severity],
        description=verdict.text,
        metadata=_metadata(verdict),
    )


def _metadata(verdict: Verdict) -> Mapping[str, dg.MetadataValue]:
    return {name: dg.MetadataValue.float(float(value)) for name, value in verdict.figures.items()}


def check_specs(catalog: Catalog, profile: Profile) -> list[dg.AssetCheckSpec]:
    """The checks of every collection that Estuary feeds, and of its source."""
    assets: Sequence[tuple[dg.AssetKey, Mapping[str, str]]] = [
        *((asset_key("collections", c.name), COLLECTION_CHECKS) for c in fed_by_estuary(catalog, profile)),
        *((asset_key("sources", name), SOURCE_CHECKS) for name in estuary_sources(catalog, profile)),
    ]
    return [
        dg.AssetCheckSpec(name, asset=key, description=description)
        for key, checks in assets
        for name, description in checks.items()
    ]


def build_estuary_checks(catalog: Catalog, profile: Profile) -> list[dg.AssetChecksDefinition]:
    """One definition of all checks, so that a run asks Estuary once; none where Estuary feeds nothing."""
    specs = check_specs(catalog, profile)
    if not specs:
        return []

    @dg.multi_asset_check(name="check_estuary", specs=specs, can_subset=True)
    def check(
        context: dg.AssetCheckExecutionContext, database: DatabaseResource, estuary: EstuaryResource
    ) -> Iterator[dg.AssetCheckResult]:
        wanted = context.selected_asset_check_keys
        found = _looked(context, database, estuary, catalog, profile)
        if any(key.name == "estuary_catalog" for key in wanted):
            found += _compared(estuary, catalog, profile)
        for verdict in found:
            if check_key(verdict) in wanted:
                yield dg.AssetCheckResult(
                    asset_key=asset_key(verdict.kind, verdict.name),
                    check_name=verdict.check,
                    passed=verdict.passed,
                    severity=dg.AssetCheckSeverity[verdict.severity],
                    description=verdict.text,
                    metadata=_metadata(verdict),
                )

    return [check]


def _looked(
    context: dg.AssetCheckExecutionContext,
    database: DatabaseResource,
    estuary: EstuaryResource,
    catalog: Catalog,
    profile: Profile,
) -> list[Verdict]:
    """The verdicts of a look; only that it failed if it did, since nothing else is known then."""
    with database.connect() as connection:
        try:
            look = estuary.look(connection, catalog, profile)
        except (ConfigurationError, TemporaryError) as error:
            context.log.warning("%s", error)
            return away(estuary_sources(catalog, profile), str(error))
        return verdicts(look, catalog, mismatches(catalog, look, shapes_of(connection, look)))


def _compared(estuary: EstuaryResource, catalog: Catalog, profile: Profile) -> list[Verdict]:
    """Whether the rendered catalog is published; nothing while Estuary is away."""
    sources = estuary_sources(catalog, profile)
    try:
        plan = estuary.drift(catalog)
    except TemporaryError:
        return []
    except ConfigurationError as error:
        return [Verdict("sources", name, "estuary_catalog", False, "WARN", str(error)) for name in sources]
    return [catalog_verdict(name, plan) for name in sources]

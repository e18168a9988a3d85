"""Inbox positions become collection observations, the indexer's progress becomes materialisations of shards.

Coalesced a tick: however many changes came, a collection gets one observation and a touched shard one
materialisation. The cursor holds the positions that were reported. A lost tick is made up by the next one, since the
next compares positions; a repeated tick reports nothing new.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from resources import DatabaseResource
from sophia.catalog import Catalog
from sophia.errors import TemporaryError
from sophia.settings import Profile
from sophia_assets.collections import collection_observation, collection_version
from sophia_assets.indexes import index_data_version
from sophia_assets.keys import DATA_VERSION, asset_key, shard_names


def progress_events(
    cursor: Mapping[str, Mapping[str, int]],
    collections: Sequence[Any],
    indexes: Sequence[tuple[Any, int, list[int], Any]],
) -> tuple[list[dg.AssetObservation | dg.AssetMaterialization], dict[str, dict[str, int]]]:
    """The events of a tick and the new cursor. Pure.

    Args:
        cursor: {"collections": {name: position}, "versions": {id: position}} as reported last.
        collections: collection statuses, at least of those whose position moved.
        indexes: (version, number of shards, touched shards since the cursor, status) of each serving version. The
            status counts documents; it may be None where no shard was touched.
    """
    seen = dict(cursor.get("collections", {}))
    reported = dict(cursor.get("versions", {}))
    events: list[dg.AssetObservation | dg.AssetMaterialization] = []
    for collection in collections:
        if seen.get(collection.name) != collection.position:
            events.append(
                dg.AssetObservation(
                    asset_key("collections", collection.name),
                    metadata=collection_observation(collection),
                    tags={DATA_VERSION: collection_version(collection)},
                )
            )
            seen[collection.name] = collection.position
    for version, shards, touched, status in indexes:
        names = shard_names(shards)
        events += [
            dg.AssetMaterialization(
                asset_key("indexes", version.index_name),
                partition=names[shard],
                description="kept in step by the indexer",
                metadata=_live_metadata(status),
                tags={DATA_VERSION: index_data_version(version.fingerprint, version.position)},
            )
            for shard in touched
        ]
        reported[str(version.id)] = version.position
    return events, {"collections": seen, "versions": reported}


def _live_metadata(status: Any) -> dict[str, Any]:
    """Metadata of what the indexer did; the keys are stable, so the UI plots them."""
    return {
        "state": "live",
        "dagster/row_count": status.documents,
        "rows": status.documents,
        "vectors": status.chunks,
        "lag_ms": round(status.lag_p50_ms or 0.0, 1),
        "lag_p95_ms": round(status.lag_p95_ms or 0.0, 1),
        "parked": status.parked,
        "verified": status.verified,
        "drift_found": status.drift_found,
        "drift_repaired": status.drift_repaired,
    }


def build_progress_sensor(catalog: Catalog, profile: Profile) -> dg.SensorDefinition:
    """The sensor. It runs no jobs."""

    @dg.sensor(
        name="inbox_progress_sensor",
        minimum_interval_seconds=10,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Reports inbox positions and the indexer's progress, coalesced a tick.",
        asset_selection=dg.AssetSelection.groups("collections", "indexes"),
    )
    def inbox_progress_sensor(context: dg.SensorEvaluationContext, database: DatabaseResource) -> dg.SensorResult:
        from sophia.indexing.status import (
            collection_progress,
            collection_status,
            index_status,
            touched_shards,
        )
        from sophia.indexing.versions import active_versions

        cursor = json.loads(context.cursor) if context.cursor else {}
        reported = cursor.get("versions", {})
        known = {collection.name for collection in catalog.collections}
        named = {index.name for index in catalog.indexes}
        try:
            with database.connect() as connection:
                versions = [v for v in active_versions(connection) if v.state == "serving" and v.index_name in named]
                touched = [
                    # The first tick takes the position as it is: what was there came by runs.
                    touched_shards(connection, v, reported[str(v.id)], v.position) if str(v.id) in reported else []
                    for v in versions
                ]
                # Documents are counted only where something is reported.
                changed = [v.id for v, shards in zip(versions, touched, strict=True) if shards]
                counted = {s.version_id: s for s in index_status(connection, changed)} if changed else {}
                moved_on = [
                    c.name
                    for c in collection_progress(connection)
                    if c.name in known and cursor.get("collections", {}).get(c.name) != c.position
                ]
                collections = collection_status(connection, moved_on) if moved_on else []
        except TemporaryError as error:
            return dg.SensorResult(skip_reason=str(error), cursor=context.cursor)
        indexes = [
            (version, version.index.shards, shards, counted.get(version.id))
            for version, shards in zip(versions, touched, strict=True)
        ]
        events, moved = progress_events(cursor, collections, indexes)
        if not events:
            return dg.SensorResult(skip_reason="no position has moved", cursor=json.dumps(moved))
        return dg.SensorResult(asset_events=events, cursor=json.dumps(moved))

    return inbox_progress_sensor

"""Composes the graph: one function of a catalog and a profile. Loading it imports nothing heavy."""

from __future__ import annotations

import dagster as dg

from jobs import (
    build_estuary_jobs,
    build_estuary_sweep_job,
    build_jobs,
    build_rebuild_job,
    build_retention_job,
    build_schedules,
    indexes_by_shards,
    repair_job_name,
)
from resources import executor_of, resources_of
from sensors import (
    build_automation_sensors,
    build_backlog_sensor,
    build_estuary_sensor,
    build_progress_sensor,
    run_failure_reason,
)
from sophia.catalog import Catalog, default_path, load
from sophia.indexing.versions import local_indexes
from sophia.settings import Profile, load_settings
from sophia_assets import policy
from sophia_assets.checks import build_collection_checks, build_index_checks
from sophia_assets.collections import build_collections, build_sources
from sophia_assets.estuary import build_estuary_checks
from sophia_assets.indexes import build_index
from sophia_assets.keys import PLATFORM_KINDS
from sophia_assets.platform import build_platform_asset
from sophia_assets.serving import build_candidate, build_gates, build_serving


def build_definitions(catalog: Catalog, profile: Profile) -> dg.Definitions:
    """All definitions for a catalog in a profile."""
    executor = executor_of(profile)
    captured = [
        collection
        for collection in catalog.collections
        if (name := collection.source.for_profile(profile)) and catalog.source(name).kind == "postgres"
    ]
    assets = dg.map_asset_specs(
        policy.apply,
        [
            *(build_platform_asset(catalog, kind) for kind in PLATFORM_KINDS),
            *build_sources(catalog),
            build_collections(catalog, profile),
            *(build_index(catalog, index, profile) for index in catalog.indexes),
            *(build_candidate(catalog, index, profile) for index in catalog.indexes),
            *(build_serving(catalog, index, profile) for index in catalog.indexes),
        ],
    )
    jobs = build_jobs(catalog, profile, executor)
    groups = indexes_by_shards(catalog, profile)
    by_name = {job.name: job for job in jobs}
    repairs = [(by_name[repair_job_name(shards, next(iter(groups)))], shards) for shards in groups]
    retention = build_retention_job(catalog, executor)
    estuary = build_estuary_jobs(catalog, profile, executor)
    return dg.Definitions(
        assets=assets,
        asset_checks=[
            *(build_index_checks(index) for index in local_indexes(catalog, profile)),
            *(build_gates(catalog, index, profile) for index in local_indexes(catalog, profile)),
            *(build_collection_checks(catalog, collection, profile) for collection in captured),
            *build_estuary_checks(catalog, profile),
        ],
        jobs=[
            *jobs,
            build_rebuild_job(catalog, executor),
            retention,
            build_estuary_sweep_job(catalog, executor),
            *estuary,
        ],
        schedules=build_schedules(repairs, retention),
        sensors=[
            build_progress_sensor(catalog, profile),
            build_backlog_sensor(catalog, profile, [job for job, _ in repairs]),
            *build_estuary_sensor(catalog, profile, estuary),
            run_failure_reason,
            *build_automation_sensors(),
        ],
        resources=resources_of(),
        executor=executor,
    )


@dg.definitions
def defs() -> dg.Definitions:
    """The definitions that Dagster loads: catalog and profile as the settings say."""
    settings = load_settings()
    return build_definitions(load(settings.catalog or default_path()), settings.profile)

"""Asset jobs: few, by selection."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import dagster as dg

from sophia.catalog import Catalog
from sophia.catalog.models import Index
from sophia.settings import Profile
from sophia_assets.keys import PLATFORM_KINDS, asset_key, shard_partitions

REPAIR_JOB = "repair_indexes"
# What `define_asset_job` returns; Dagster gives that type no public name.
AssetJob = Any


def repair_job_name(shards: int, default: int) -> str:
    """Jobs hold assets of one partitioning: the usual one has the plain name, others carry their shard count."""
    return REPAIR_JOB if shards == default else f"{REPAIR_JOB}_{shards}"


def indexes_by_shards(catalog: Catalog, profile: Profile) -> dict[int, list[Index]]:
    """The indexes with a store in this profile by their number of shards, the largest group first."""
    groups: dict[int, list[Index]] = defaultdict(list)
    for index in catalog.indexes:
        if index.store.for_profile(profile):
            groups[index.shards].append(index)
    return dict(sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])))


def build_jobs(catalog: Catalog, profile: Profile, executor: dg.ExecutorDefinition) -> list[AssetJob]:
    """The asset jobs of this catalog."""
    platform = dg.AssetSelection.groups(*PLATFORM_KINDS)
    gates = dg.AssetSelection.checks_for_assets(*(asset_key("candidates", index.name) for index in catalog.indexes))
    jobs = [
        dg.define_asset_job(
            "plan_platform",
            selection=platform,
            executor_def=executor,
            description="Render, observe, diff and check everything. People before a deployment; CI on every change.",
        ),
        dg.define_asset_job(
            "validate_platform",
            # The gates ask whether a version may serve; of the one that does, `equals_source` answers.
            selection=dg.AssetSelection.all_asset_checks() - gates,
            executor_def=executor,
            description="Run every check, change nothing. After a deployment, and whenever in doubt.",
        ),
    ]
    groups = indexes_by_shards(catalog, profile)
    for shards, indexes in groups.items():
        jobs.append(
            dg.define_asset_job(
                repair_job_name(shards, next(iter(groups))),
                selection=dg.AssetSelection.assets(*(asset_key("indexes", index.name) for index in indexes)),
                partitions_def=shard_partitions(shards),
                executor_def=executor,
                description="Compare shards of all indexes with their documents, mend them. Nightly; on a backlog.",
            )
        )
    return jobs

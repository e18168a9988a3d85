"""A backlog that the indexer cannot work off soon becomes bulk runs of the repair job: on GPUs, in the cluster."""

from collections.abc import Sequence
from typing import Any

import dagster as dg

from jobs import AssetJob, indexes_by_shards, repair_job_name
from resources import DatabaseResource
from sophia.catalog import Catalog
from sophia.errors import TemporaryError
from sophia.settings import Profile
from sophia_assets.keys import asset_key, shard_names

# Live documents waiting. The indexer does some hundred a second on a CPU, so this is minutes of work.
BACKLOG = 10_000


def backlog_requests(
    statuses: Sequence[tuple[Any, str, int, int]], threshold: int
) -> tuple[list[dg.RunRequest], list[str]]:
    """Run requests for indexes over the threshold, and a sentence for each that is not. Pure.

    Args:
        statuses: (status, job name, number of shards, collection position) of each serving version. The run key holds
            the position, so one backlog asks once and the next one asks again.
    """
    requests: list[dg.RunRequest] = []
    calm: list[str] = []
    for status, job, shards, position in statuses:
        if status.backlog < threshold:
            calm.append(f"{status.index}: {status.backlog} waiting")
            continue
        requests += [
            dg.RunRequest(
                run_key=f"backlog:{status.fingerprint}:{position}:{name}",
                job_name=job,
                partition_key=name,
                asset_selection=[asset_key("indexes", status.index)],
                tags={"sophia/reason": f"backlog of {status.backlog} documents"},
            )
            for name in shard_names(shards)
        ]
    return requests, calm


def build_backlog_sensor(catalog: Catalog, profile: Profile, jobs: Sequence[AssetJob]) -> dg.SensorDefinition:
    """The sensor over the repair jobs."""
    groups = indexes_by_shards(catalog, profile)
    default = next(iter(groups), 0)

    @dg.sensor(
        name="backlog_sensor",
        jobs=list(jobs),
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"More than {BACKLOG} documents waiting for an index start its shards as bulk runs.",
    )
    def backlog_sensor(context: dg.SensorEvaluationContext, database: DatabaseResource) -> dg.SensorResult:
        from sophia.indexing.status import index_progress

        try:
            with database.connect() as connection:
                statuses = [s for s in index_progress(connection) if s.state == "serving"]
        except TemporaryError as error:
            return dg.SensorResult(skip_reason=str(error))
        shards = {index.name: index.shards for index in catalog.indexes if index.store.for_profile(profile)}
        rows = [
            (s, repair_job_name(shards[s.index], default), shards[s.index], s.collection_position)
            for s in statuses
            if s.index in shards
        ]
        requests, calm = backlog_requests(rows, BACKLOG)
        if not requests:
            return dg.SensorResult(skip_reason="; ".join(calm) or "no index is served here yet")
        return dg.SensorResult(run_requests=requests)

    return backlog_sensor

"""A backlog that the indexer cannot work off soon becomes bulk runs of the repair job: on GPUs, in the cluster.

Of every collection what waits on the live lane counts; of one that Estuary feeds also what came in bulk, since a
backfill there begins without anybody here knowing. While runs of an index are under way, no more are asked for: what
comes meanwhile is counted when they have ended.
"""

from collections.abc import Collection as Names
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from jobs import AssetJob, indexes_by_shards, repair_job_name
from resources import DatabaseResource
from sophia.catalog import Catalog
from sophia.errors import TemporaryError
from sophia.estuary.naming import fed_by_estuary
from sophia.settings import Profile
from sophia_assets.keys import asset_key, shard_names

# Live documents waiting. The indexer does some hundred a second on a CPU, so this is minutes of work.
BACKLOG = 10_000
# The tag by which a tick finds the runs that earlier ones asked for.
INDEX_TAG = "sophia/backlog"
UNDER_WAY = (
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
)


def backlog_requests(
    statuses: Sequence[tuple[Any, str, int, int]],
    threshold: int,
    bulk: Mapping[str, Mapping[int, int]] | None = None,
    under_way: Names[str] = (),
) -> tuple[list[dg.RunRequest], list[str]]:
    """Run requests for indexes over the threshold, and a sentence for each that is not. Pure.

    Args:
        statuses: (status, job name, number of shards, collection position) of each serving version. The run key holds
            the position, so one backlog asks once and the next one asks again.
        bulk: documents that came in bulk and wait, by index and shard. Only these shards are asked for.
        under_way: indexes of which such runs have not ended.
    """
    requests: list[dg.RunRequest] = []
    calm: list[str] = []
    for status, job, shards, position in statuses:
        waiting = (bulk or {}).get(status.index, {})
        names = shard_names(shards)
        if status.backlog >= threshold:
            wanted, reason = names, f"backlog of {status.backlog} documents"
        elif sum(waiting.values()) >= threshold:
            wanted = [names[shard] for shard in sorted(waiting)]
            reason = f"{sum(waiting.values())} new documents in bulk"
        else:
            counted = f", {sum(waiting.values())} in bulk" if waiting else ""
            calm.append(f"{status.index}: {status.backlog} waiting{counted}")
            continue
        if status.index in under_way:
            calm.append(f"{status.index}: {reason}, runs are under way")
            continue
        requests += [
            dg.RunRequest(
                run_key=f"backlog:{status.fingerprint}:{position}:{name}",
                job_name=job,
                partition_key=name,
                asset_selection=[asset_key("indexes", status.index)],
                tags={"sophia/reason": reason, INDEX_TAG: status.index},
            )
            for name in wanted
        ]
    return requests, calm


def build_backlog_sensor(catalog: Catalog, profile: Profile, jobs: Sequence[AssetJob]) -> dg.SensorDefinition:
    """The sensor over the repair jobs."""
    groups = indexes_by_shards(catalog, profile)
    default = next(iter(groups), 0)
    by_estuary = {collection.name for collection in fed_by_estuary(catalog, profile)}

    @dg.sensor(
        name="backlog_sensor",
        jobs=list(jobs),
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"More than {BACKLOG} documents waiting for an index start its shards as bulk runs.",
    )
    def backlog_sensor(context: dg.SensorEvaluationContext, database: DatabaseResource) -> dg.SensorResult:
        from sophia.indexing.status import index_progress, shards_waiting

        shards = {index.name: index.shards for index in catalog.indexes if index.store.for_profile(profile)}
        try:
            with database.connect() as connection:
                statuses = [s for s in index_progress(connection) if s.state == "serving" and s.index in shards]
                bulk = {
                    s.index: shards_waiting(connection, s.version_id, shards[s.index], BACKLOG)
                    for s in statuses
                    # A version of another number of shards is on its way out.
                    if s.collection in by_estuary and s.shards_behind and s.shards == shards[s.index]
                }
        except TemporaryError as error:
            return dg.SensorResult(skip_reason=str(error))
        rows = [
            (s, repair_job_name(shards[s.index], default), shards[s.index], s.collection_position) for s in statuses
        ]
        under_way = {s.index for s in statuses if _under_way(context.instance, s.index)}
        requests, calm = backlog_requests(rows, BACKLOG, bulk, under_way)
        if not requests:
            return dg.SensorResult(skip_reason="; ".join(calm) or "no index is served here yet")
        return dg.SensorResult(run_requests=requests)

    return backlog_sensor


def _under_way(instance: dg.DagsterInstance, index: str) -> bool:
    runs = dg.RunsFilter(tags={INDEX_TAG: index}, statuses=list(UNDER_WAY))
    return bool(instance.get_runs(runs, limit=1))

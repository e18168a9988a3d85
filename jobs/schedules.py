"""Schedules. The nightly repair yields one run a shard, so that a failed one is retried alone."""

from collections.abc import Iterator, Sequence

import dagster as dg

from jobs.jobs import REPAIR_JOB, AssetJob
from sophia_assets.keys import shard_names

NIGHTLY = "0 3 * * *"
RETENTION = "30 4 * * *"


def build_schedules(
    repair_jobs: Sequence[tuple[AssetJob, int]], retention: dg.JobDefinition
) -> list[dg.ScheduleDefinition]:
    """One nightly repair for each repair job (with its number of shards), and the retention."""
    schedules: list[dg.ScheduleDefinition] = [_repair_schedule(job, shards) for job, shards in repair_jobs]
    schedules.append(
        dg.ScheduleDefinition(
            name="nightly_retention",
            job=retention,
            cron_schedule=RETENTION,
            description="Operational records over their time are removed.",
            default_status=dg.DefaultScheduleStatus.RUNNING,
        )
    )
    return schedules


def _repair_schedule(job: AssetJob, shards: int) -> dg.ScheduleDefinition:
    name = job.name.replace(REPAIR_JOB, "nightly_repair")

    @dg.schedule(
        name=name,
        job=job,
        cron_schedule=NIGHTLY,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="One run a shard: every shard is compared with its documents once a night, deep.",
    )
    def nightly(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest]:
        night = context.scheduled_execution_time.date().isoformat()
        for shard in shard_names(shards):
            yield dg.RunRequest(run_key=f"{name}:{night}:{shard}", partition_key=shard, tags={"sophia/night": night})

    return nightly

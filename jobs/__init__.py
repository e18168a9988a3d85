"""Entry points: selections and schedules. Whoever runs one and when stands beside it."""

from jobs.estuary import build_estuary_jobs
from jobs.jobs import AssetJob, build_jobs, indexes_by_shards, repair_job_name
from jobs.maintenance import build_retention_job
from jobs.rebuild import build_rebuild_job
from jobs.schedules import build_schedules
from jobs.sweep import build_estuary_sweep_job

__all__ = [
    "AssetJob",
    "build_estuary_jobs",
    "build_estuary_sweep_job",
    "build_jobs",
    "build_rebuild_job",
    "build_retention_job",
    "build_schedules",
    "indexes_by_shards",
    "repair_job_name",
]

"""Jobs that a word of Estuary starts: look at its catalog and schemas, and make an alert a failed run."""

from typing import Any

import dagster as dg
from pydantic import Field

from jobs.jobs import AssetJob
from sophia.catalog import Catalog
from sophia.settings import Profile
from sophia_assets.estuary import check_specs

PLAN_JOB = "estuary_plan_job"
ALERT_JOB = "estuary_alert_job"


class EstuaryAlertConfig(dg.Config):
    """An alert of Estuary, or one that Sophia's own figures of it raise."""

    name: str = Field(description="The task or collection that it is about.")
    kind: str = Field(description="Type of the alert.")
    since: str = Field(description="When it began.")
    text: str = Field(description="What Estuary says of it, and what to do.")


def build_estuary_jobs(catalog: Catalog, profile: Profile, executor: dg.ExecutorDefinition) -> list[AssetJob]:
    """The jobs; none where Estuary feeds nothing in this profile."""
    specs = check_specs(catalog, profile)
    if not specs:
        return []
    return [
        dg.define_asset_job(
            PLAN_JOB,
            selection=dg.AssetSelection.groups("estuary") | dg.AssetSelection.checks(*(spec.key for spec in specs)),
            executor_def=executor,
            description="Plan Estuary's catalog, check what Estuary runs and sends. When a schema changed.",
        ),
        _alert_job(executor),
    ]


def _alert_job(executor: dg.ExecutorDefinition) -> dg.JobDefinition:
    @dg.op(name="estuary_alert")
    def estuary_alert(context: dg.OpExecutionContext, config: EstuaryAlertConfig) -> None:
        facts: dict[str, Any] = {"name": config.name, "type": config.kind, "since": config.since}
        context.log.error("%s", config.text)
        # The alert ends in Estuary, not by another attempt here.
        raise dg.Failure(description=config.text, metadata=facts, allow_retries=False)

    @dg.job(
        name=ALERT_JOB,
        executor_def=executor,
        description="Fails with an alert of Estuary, so that whoever is told of failed runs is told of it.",
    )
    def estuary_alert_job() -> None:
        estuary_alert()

    return estuary_alert_job

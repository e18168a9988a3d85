"""`estuary_sweep`: delete the documents of a collection whose rows went without a delivery that said so."""

from datetime import UTC, datetime

import dagster as dg
from pydantic import Field

from resources import DatabaseResource
from sophia.catalog import Catalog
from sophia.settings import load_settings


class SweepConfig(dg.Config):
    """Which collection, and since when its rows were sent again."""

    collection: str = Field(description="Name of a collection that Estuary feeds.")
    before: str | None = Field(
        None, description="When the re-backfill began, ISO 8601 with time zone; unset: verify every document."
    )
    dry_run: bool = Field(False, description="Count only, change nothing.")


def build_estuary_sweep_job(catalog: Catalog, executor: dg.ExecutorDefinition) -> dg.JobDefinition:
    """The job, over the catalog that the definitions were made from."""

    @dg.op(name="sweep_orphans", description="Look each document's row up in the source; delete where it is gone.")
    def sweep_orphans(context: dg.OpExecutionContext, config: SweepConfig, database: DatabaseResource) -> None:
        from sophia.estuary.source.sweep import sweep

        before = datetime.now(UTC) if config.before is None else datetime.fromisoformat(config.before)
        if before.tzinfo is None:
            raise dg.Failure(description="`before` has no time zone; write 2026-01-31T12:00:00Z", allow_retries=False)
        with database.connect() as connection:
            swept = sweep(
                connection,
                catalog,
                config.collection,
                load_settings(),
                before=before,
                dry_run=config.dry_run,
                progress=lambda done, total: context.log.info(
                    "%d of %d documents verified, %d deleted", done.looked_at, total, done.deleted
                ),
            )
        context.add_output_metadata(
            {
                "looked_at": swept.looked_at,
                "deleted": swept.deleted,
                "refreshed": swept.refreshed,
                "left": swept.left,
                "unread": swept.unread,
            }
        )

    @dg.job(
        name="estuary_sweep",
        executor_def=executor,
        description="Behind a re-backfill: documents whose rows are gone from the source are deleted. By a person.",
    )
    def estuary_sweep() -> None:
        sweep_orphans()

    return estuary_sweep

"""Jobs that keep Sophia's own tables small."""

from contextlib import closing

import dagster as dg

from resources import DatabaseResource
from sophia.catalog import Catalog


def build_retention_job(catalog: Catalog, executor: dg.ExecutorDefinition) -> dg.JobDefinition:
    """Removes operational records older than the catalog's retention, and says how many."""

    @dg.op(name="remove_old_records")
    def remove_old_records(context: dg.OpExecutionContext, database: DatabaseResource) -> None:
        from sophia.retention import apply_retention
        from sophia.settings import load_settings
        from sophia.stores import Stores

        with database.connect() as connection, closing(Stores(load_settings())) as stores:
            removed = apply_retention(connection, catalog.retention, stores=stores)
        context.log.info("removed %s", ", ".join(f"{count} {name}" for name, count in removed.items()))
        context.add_output_metadata(dict(removed))

    @dg.job(
        name="apply_retention",
        executor_def=executor,
        description="Remove operational records that are over their time. Nightly, by schedule.",
    )
    def apply_retention_job() -> None:
        remove_old_records()

    return apply_retention_job

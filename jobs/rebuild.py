"""`rebuild_index`: bring one index to what the catalog says, ask the gates, and let it serve."""

from contextlib import closing

import dagster as dg
from pydantic import Field

from resources import DatabaseResource, EmbeddingResource
from sophia.catalog import Catalog
from sophia.settings import load_settings
from sophia_assets.gpu import gpu_step
from sophia_assets.indexes import index_data_version
from sophia_assets.keys import DATA_VERSION, asset_key, shard_names
from sophia_assets.serving import gates_of, switch_metadata


class RebuildConfig(dg.Config):
    """Which index, and whether the new version may serve."""

    index: str = Field(description="Name of the index in the catalog.")
    promote: bool = Field(True, description="Let the version serve once its gates pass.")


def build_rebuild_job(catalog: Catalog, executor: dg.ExecutorDefinition) -> dg.JobDefinition:
    """The job, over the catalog that the definitions were made from."""

    gpu = gpu_step(catalog)

    @dg.op(
        name="rebuild",
        description="Fill all shards, ask the gates of the version, promote it.",
        pool=gpu["pool"],
        tags=gpu["op_tags"],
    )
    def rebuild(
        context: dg.OpExecutionContext,
        config: RebuildConfig,
        database: DatabaseResource,
        embedding: EmbeddingResource,
    ) -> None:
        from sophia.embedding.progress import Lines
        from sophia.indexing.promotion import promote
        from sophia.indexing.provenance import register_run
        from sophia.indexing.repair import Session, repair_version
        from sophia.stores import Stores

        settings = load_settings()
        index = catalog.index(config.index)
        lines = Lines(context.log.info)
        with database.connect() as connection, closing(Stores(settings)) as stores:
            run = register_run(connection, "dagster", settings, run=context.run_id)
            session = Session.open(
                connection, catalog, index, settings.profile, embedding.of, settings, run=run, stores=stores
            )
            version = session.version
            figures = repair_version(
                connection,
                session,
                range(index.shards),
                batch=settings.indexer.bulk_documents,
                deep=True,
                progress=lambda step: lines(step, ends=step.ended),
            )
            gates = list(gates_of(connection, version, embedding, seed=context.run_id))
            for gate in gates:
                context.log.info(gate.sentence)
            failed = [gate for gate in gates if not gate.passed]
            if failed:
                raise dg.Failure(
                    description="; ".join(gate.sentence for gate in failed),
                    metadata={f"{gate.name}/{name}": value for gate in failed for name, value in gate.figures.items()},
                    # The same version would fail the same way; what is on its way was waited for.
                    allow_retries=False,
                )
            switch = promote(connection, version, session.writer.store) if config.promote else None
            position = session.position(connection)
        switched = switch is not None and switch.switched
        for partition in shard_names(index.shards):
            context.log_event(
                dg.AssetMaterialization(
                    asset_key("indexes", index.name),
                    partition=partition,
                    metadata={"version": version.number, "promoted": switched, "embedded": figures.embedded},
                    tags={DATA_VERSION: index_data_version(version.fingerprint, position)},
                )
            )
        if switch is not None:
            measured = {f"{gate.name}/{name}": value for gate in gates for name, value in gate.figures.items()}
            context.log_event(
                dg.AssetMaterialization(
                    asset_key("serving", index.name),
                    metadata=switch_metadata(version, switch) | measured,
                    tags={DATA_VERSION: version.fingerprint},
                )
            )

    @dg.job(
        name="rebuild_index",
        executor_def=executor,
        description="Build the version that the catalog asks for beside the serving one, ask its gates, switch.",
    )
    def rebuild_index() -> None:
        rebuild()

    return rebuild_index

"""`rebuild_index`: bring one index to what the catalog says, prove it, and let it serve."""

import dagster as dg
from pydantic import Field

from resources import DatabaseResource, EmbeddingResource
from sophia.catalog import Catalog
from sophia.settings import load_settings
from sophia_assets.gpu import gpu_step
from sophia_assets.indexes import index_data_version
from sophia_assets.keys import DATA_VERSION, asset_key, shard_names


class RebuildConfig(dg.Config):
    """Which index, and whether the new version may serve at once."""

    index: str = Field(description="Name of the index in the catalog.")
    promote: bool = Field(True, description="Let the version serve once its proof holds.")


def build_rebuild_job(catalog: Catalog, executor: dg.ExecutorDefinition) -> dg.JobDefinition:
    """The job, over the catalog that the definitions were made from."""

    gpu = gpu_step(catalog)

    @dg.op(
        name="rebuild",
        description="Fill all shards, prove the version, promote it.",
        pool=gpu["pool"],
        tags=gpu["op_tags"],
    )
    def rebuild(
        context: dg.OpExecutionContext,
        config: RebuildConfig,
        database: DatabaseResource,
        embedding: EmbeddingResource,
    ) -> None:
        from sophia.indexing.promote import promote
        from sophia.indexing.repair import Session, repair_version
        from sophia.indexing.verify import verify

        settings = load_settings()
        index = catalog.index(config.index)
        with database.connect() as connection:
            session = Session.open(
                connection, catalog, index, settings.profile, embedding.of, settings, run=context.run_id
            )
            version = session.version
            figures = repair_version(
                connection,
                session,
                range(index.shards),
                batch=settings.indexer.bulk_documents,
                deep=True,
                progress=context.log.info,
            )
            proof = verify(connection, version, session.writer.store, embedding.of(version), seed=context.run_id)
            context.log.info(proof.sentence())
            if not proof.holds:
                raise dg.Failure(description=proof.sentence(), metadata=proof.difference.counts())
            switched = promote(connection, version, session.writer.store) if config.promote else False
            position = session.position(connection)
        for partition in shard_names(index.shards):
            context.log_event(
                dg.AssetMaterialization(
                    asset_key("indexes", index.name),
                    partition=partition,
                    metadata={"version": version.number, "promoted": switched, "embedded": figures.embedded},
                    tags={DATA_VERSION: index_data_version(version.fingerprint, position)},
                )
            )

    @dg.job(
        name="rebuild_index",
        executor_def=executor,
        description="Build the version that the catalog asks for beside the serving one, prove it, switch.",
    )
    def rebuild_index() -> None:
        rebuild()

    return rebuild_index

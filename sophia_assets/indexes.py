"""Indexes as assets, sharded by hash prefix. Materialising is repairing: compare, embed only what differs.

Between runs the indexer keeps the index in step and a sensor reports that as materialisations of the touched shards,
so a changed row never makes the asset stale.
"""

import statistics
import time
from collections import deque
from contextlib import closing
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from resources import DatabaseResource, EmbeddingResource
from sophia.catalog import Catalog
from sophia.catalog.models import Index
from sophia.settings import Profile, load_settings
from sophia_assets.gpu import gpu_step
from sophia_assets.keys import STORE_ICONS, asset_key, shard_number, shard_partitions
from sophia_assets.plots import lag_plot
from sophia_assets.policy import RETRY

if TYPE_CHECKING:
    from sophia.embedding import Embedder
    from sophia.indexing.watch import RepairProgress

# Services that an index stands on, as the catalog names them.
STORE_SERVICE = {"pgvector": "postgresql", "weaviate": "weaviate", "pinecone": None}


class RepairConfig(dg.Config):
    """How thorough a repair is."""

    deep: bool = Field(True, description="Read the store itself and compare it hash by hash, not only the ledger.")


def index_code_version(catalog: Catalog, index: Index) -> str:
    """Changes with the index, its model or its collection in the catalog."""
    import hashlib

    entries = (index, catalog.model(index.model), catalog.collection(index.collection))
    return hashlib.sha256("".join(entry.model_dump_json() for entry in entries).encode()).hexdigest()[:12]


def index_dependencies(catalog: Catalog, index: Index, profile: Profile) -> list[dg.AssetKey]:
    """Its collection, the indexer that feeds it and the store that holds it, as far as the catalog has them."""
    services = {service.name for service in catalog.services}
    store = index.store.for_profile(profile) or index.store.for_profile("cluster")
    wanted = ["indexer", STORE_SERVICE.get(store or "")]
    return [asset_key("collections", index.collection)] + [
        asset_key("services", name) for name in wanted if name is not None and name in services
    ]


def index_data_version(fingerprint: str, position: int) -> str:
    """What an index contains: what it was made with, and up to which position of its collection."""
    return f"{fingerprint}:{position}"


def embedder_metadata(embedder: "Embedder") -> dict[str, str | int]:
    """What computed a step's vectors: library, version and number format, device, tokens of a forward pass."""
    engine = embedder.engine
    return {
        "backend": embedder.backend,
        "device": engine.device if engine is not None else "remote",
        "budget": engine.budget_tokens if engine is not None else 0,
    }


def build_index(catalog: Catalog, index: Index, profile: Profile) -> dg.AssetsDefinition:
    """The asset of one index. Where the profile has no store for it, materialising says so and changes nothing."""
    store = index.store.for_profile(profile)
    source = catalog.collection(index.collection).source.for_profile(profile)
    shown = store or index.store.for_profile("cluster") or "pgvector"

    @dg.asset(
        key=asset_key("indexes", index.name),
        deps=index_dependencies(catalog, index, profile),
        description=index.description,
        group_name="indexes",
        kinds=STORE_ICONS[shown],
        owners=list(index.owners),
        code_version=index_code_version(catalog, index),
        partitions_def=shard_partitions(index.shards),
        # One run for a whole range: a model is loaded once, not once a shard.
        backfill_policy=dg.BackfillPolicy.single_run(),
        retry_policy=RETRY,
        metadata={
            "collection": index.collection,
            "model": index.model,
            "store": shown,
            "template": index.template,
            "chunk_tokens": index.chunk_tokens,
            "dagster/uri": f"indexes.{index.name}",
        },
        **gpu_step(catalog),
    )
    def index_asset(
        context: dg.AssetExecutionContext,
        config: RepairConfig,
        database: DatabaseResource,
        embedding: EmbeddingResource,
    ) -> dg.MaterializeResult[Any]:
        if store is None or source is None:
            return dg.MaterializeResult(
                data_version=dg.DataVersion("planned"),
                metadata={"state": "planned", "reason": f"no store or no source in profile {profile!r}"},
            )
        return _repair(context, config, catalog, index, profile, database, embedding)

    return index_asset


def _repair(
    context: dg.AssetExecutionContext,
    config: RepairConfig,
    catalog: Catalog,
    index: Index,
    profile: Profile,
    database: DatabaseResource,
    embedding: EmbeddingResource,
) -> dg.MaterializeResult[Any]:
    from sophia.embedding.progress import Lines
    from sophia.indexing.provenance import register_run
    from sophia.indexing.repair import Session, repair_version
    from sophia.indexing.status import index_status, lag_history
    from sophia.stores import Stores

    settings = load_settings()
    lines = Lines(context.log.info)
    steps: deque[RepairProgress] = deque(maxlen=1)

    def progress(step: "RepairProgress") -> None:
        steps.append(step)
        lines(step, ends=step.ended)

    with database.connect() as connection, closing(Stores(settings)) as stores:
        run = register_run(connection, "dagster", settings, run=context.run_id)
        session = Session.open(connection, catalog, index, profile, embedding.of, settings, run=run, stores=stores)
        shards = [shard_number(partition) for partition in context.partition_keys]
        started = time.perf_counter()
        figures = repair_version(
            connection,
            session,
            shards,
            deep=config.deep,
            batch=settings.indexer.bulk_documents,
            progress=progress,
        )
        seconds = time.perf_counter() - started
        status = index_status(connection, [session.version.id])[0]
        history = lag_history(connection, index.name)
        position = session.position(connection)
    lags = [lag for _, _, lag, _ in history]
    metadata: dict[str, Any] = {
        "state": "repaired",
        "version": status.version,
        "dagster/row_count": status.documents,
        "rows": status.documents,
        "vectors": status.chunks,
        "chunks": status.chunks,
        "documents_written": figures.documents,
        "embedded": figures.embedded,
        "reused": figures.reused,
        "deleted": figures.deleted,
        "parked": status.parked,
        "tokens": figures.tokens,
        "embed_s": round(figures.embed_seconds, 3),
        "seconds": round(seconds, 3),
        "lag_ms": round(statistics.median(lags), 1) if lags else 0.0,
        **steps[-1].embedding.metadata(),
        **embedder_metadata(session.embedder),
    }
    plot = lag_plot([(at, lag) for _, at, lag, _ in history], f"{index.name}: commit to searchable")
    if plot is not None:
        metadata["lag"] = plot
    return dg.MaterializeResult(
        data_version=dg.DataVersion(index_data_version(status.fingerprint, position)), metadata=metadata
    )

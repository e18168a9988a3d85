"""Asset checks: what is true of indexes, collections and the capture right now."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import dagster as dg

from resources import DatabaseResource, EmbeddingResource
from sophia.capture.health import SLOT_FAIL_BYTES, SLOT_WARN_BYTES, capture_health
from sophia.catalog import Catalog
from sophia.catalog.models import Collection, Index
from sophia.settings import Profile, load_settings
from sophia_assets.keys import asset_key, shard_number

# Keys of each kind of difference that a check's result lists; `sophia verify --json` lists all.
MOST_KEYS = 50


def build_index_checks(index: Index) -> dg.AssetChecksDefinition:
    """The checks of an index that is served in this profile."""
    key = asset_key("indexes", index.name)

    @dg.multi_asset_check(
        name=f"check_{index.name}",
        can_subset=True,
        specs=[
            dg.AssetCheckSpec(
                "equals_source",
                asset=key,
                blocking=True,
                description="Keys, hashes and clocks equal the current documents; sampled vectors agree.",
            ),
            dg.AssetCheckSpec("lag", asset=key, description=f"95% of changes within {index.max_lag_seconds:g} s."),
            dg.AssetCheckSpec("dead_letters", asset=key, description="No document is parked."),
        ],
    )
    def check(
        context: dg.AssetCheckExecutionContext, database: DatabaseResource, embedding: EmbeddingResource
    ) -> Iterator[dg.AssetCheckResult]:
        from sophia.indexing.status import index_status
        from sophia.indexing.verify import verify
        from sophia.indexing.versions import serving_version
        from sophia.stores import Stores

        wanted = {selected.name for selected in context.selected_asset_check_keys}
        with database.connect() as connection:
            version = serving_version(connection, index.name)
            status = index_status(connection, [version.id])[0]
            if "equals_source" in wanted:
                with closing(Stores(load_settings())) as stores:
                    proof = verify(
                        connection,
                        version,
                        stores.of(version),
                        embedding.of(version),
                        seed=context.run.run_id,
                        shards=_shards_of_run(context),
                    )
                yield dg.AssetCheckResult(
                    asset_key=key,
                    check_name="equals_source",
                    passed=proof.holds,
                    description=proof.sentence(),
                    metadata=proof.difference.counts()
                    | {
                        "documents": proof.documents,
                        "chunks": proof.chunks,
                        "cosine_min": proof.cosine_min or 0.0,
                        "keys": dg.MetadataValue.json(proof.listed(MOST_KEYS)),
                    },
                )
        if "lag" in wanted:
            lag = status.lag_p95_ms
            passed = (lag is None or lag <= index.max_lag_seconds * 1000) and (status.level or status.indexer_running)
            yield dg.AssetCheckResult(
                asset_key=key,
                check_name="lag",
                passed=passed,
                severity=dg.AssetCheckSeverity.WARN,
                description=None
                if passed
                else "too late, or a backlog and no indexer; run `sophia indexer` or `make up`",
                metadata={"lag_p95_ms": lag or 0.0, "lag_p50_ms": status.lag_p50_ms or 0.0, "backlog": status.backlog},
            )
        if "dead_letters" in wanted:
            yield dg.AssetCheckResult(
                asset_key=key,
                check_name="dead_letters",
                passed=status.parked == 0,
                severity=dg.AssetCheckSeverity.WARN,
                description=None if status.parked == 0 else "`sophia dead-letters` lists them with their reasons",
                metadata={"parked": status.parked},
            )

    return check


def _shards_of_run(context: dg.AssetCheckExecutionContext) -> range | None:
    """The shards that the run is about; None for all. A run answers for its own shards, not for another's drift."""
    if context.has_partition_key_range:
        keys = context.partition_key_range
        return range(shard_number(keys.start), shard_number(keys.end) + 1)
    if context.has_partition_key:
        shard = shard_number(context.partition_key)
        return range(shard, shard + 1)
    return None


def build_collection_checks(catalog: Catalog, collection: Collection, profile: Profile) -> dg.AssetChecksDefinition:
    """The checks of a collection that our own capture feeds from PostgreSQL."""
    key = asset_key("collections", collection.name)
    source_name = collection.source.for_profile(profile)

    @dg.multi_asset_check(
        name=f"check_{collection.name}_capture",
        can_subset=True,
        specs=[
            dg.AssetCheckSpec("slot_retention", asset=key, description="The slot holds back little log."),
            dg.AssetCheckSpec("in_publication", asset=key, description="The publication names the table."),
            dg.AssetCheckSpec("replica_identity", asset=key, description="Deletes carry the key."),
        ],
    )
    def check(context: dg.AssetCheckExecutionContext, database: DatabaseResource) -> Iterator[dg.AssetCheckResult]:
        settings = load_settings()
        wanted = {selected.name for selected in context.selected_asset_check_keys}
        with database.connect() as connection:
            found = capture_health(catalog, settings, database.get(), connection, source_name or "", collection.name)
        facts: dict[str, tuple[bool, str | None, dict[str, Any]]] = {
            "slot_retention": (
                found.slot_exists and not found.at_risk and found.retained_bytes < SLOT_FAIL_BYTES,
                found.slot_fault,
                {"retained_bytes": found.retained_bytes, "warn_at": SLOT_WARN_BYTES},
            ),
            "in_publication": (found.in_publication, found.publication_fault, {}),
            "replica_identity": (found.identity_fault is None, found.identity_fault, {}),
        }
        for name, (passed, fault, metadata) in facts.items():
            if name in wanted:
                yield dg.AssetCheckResult(
                    asset_key=key,
                    check_name=name,
                    passed=passed,
                    severity=dg.AssetCheckSeverity.ERROR,
                    description=fault,
                    metadata=metadata,
                )

    return check

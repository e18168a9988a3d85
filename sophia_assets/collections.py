"""Sources as external assets, collections as observed ones: their documents arrive by the capture, not by runs."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from resources import DatabaseResource
from sophia.catalog import Catalog
from sophia.indexing.status import collection_status
from sophia.settings import Profile
from sophia_assets.keys import asset_key
from sophia_assets.platform import code_version

SOURCE_ICONS = {"postgres": {"postgres"}, "snowflake": {"snowflake"}, "estuary": {"estuary"}}


def build_sources(catalog: Catalog) -> list[dg.AssetSpec]:
    """The systems that changes come from; nobody materialises them."""
    return [
        dg.AssetSpec(
            asset_key("sources", source.name),
            description=source.description,
            group_name="sources",
            kinds=SOURCE_ICONS[source.kind],
            owners=list(source.owners),
            code_version=code_version(source),
        )
        for source in catalog.sources
    ]


def collection_observation(status: Any) -> dict[str, Any]:
    """Metadata of a collection's observation; the keys are stable, so the UI plots them."""
    return {
        "dagster/row_count": status.documents,
        "position": status.position,
        "generation": status.generation,
        "dead_letters": status.dead_letters,
        "source_lsn": status.source_lsn or "none yet",
        "source_time": status.source_time.isoformat() if status.source_time else "none yet",
    }


def collection_version(status: Any) -> str:
    """The data version of a collection: it moves with every change that the inbox took."""
    return f"{status.generation}:{status.position}"


def _upstream(catalog: Catalog, source: str | None) -> list[dg.AssetKey]:
    """The source, and the tree by which Estuary brings what comes from there."""
    if source is None:
        return []
    tree = [asset_key("estuary", "production")] if catalog.source(source).kind == "estuary" else []
    return [asset_key("sources", source), *tree]


def build_collections(catalog: Catalog, profile: Profile) -> dg.AssetsDefinition:
    """All collections as one observation: how far the inbox is."""
    specs = []
    for collection in catalog.collections:
        source = collection.source.for_profile(profile)
        specs.append(
            dg.AssetSpec(
                asset_key("collections", collection.name),
                deps=_upstream(catalog, source),
                description=collection.description,
                group_name="collections",
                kinds={"postgres", "table"},
                owners=list(collection.owners),
                code_version=code_version(collection),
                metadata={"table": collection.table or "none", "estuary": collection.estuary},
            )
        )
    names = {asset_key("collections", collection.name): collection.name for collection in catalog.collections}

    @dg.multi_observable_source_asset(
        name="observe_collections", specs=specs, can_subset=True, description="Read how far the inbox is."
    )
    def observe(context: dg.AssetExecutionContext, database: DatabaseResource) -> Iterator[dg.ObserveResult[Any]]:
        with database.connect() as connection:
            found = {status.name: status for status in collection_status(connection)}
        for key in sorted(context.selected_asset_keys):
            status = found.get(names[key])
            if status is None:
                context.log.info("%s has no documents yet: nothing captures it in this profile", names[key])
                continue
            yield dg.ObserveResult(
                asset_key=key,
                data_version=dg.DataVersion(collection_version(status)),
                metadata=collection_observation(status),
            )

    return observe

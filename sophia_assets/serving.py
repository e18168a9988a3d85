"""Which version of an index serves: a candidate, its gates as blocking checks, and the switch.

`indexes/<name>` fills the version that the catalog asks for, shard by shard. `candidates/<name>` says which one that
is; its checks are the gates. `serving/<name>` lets it serve, and runs only behind checks that passed.
"""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import dagster as dg

from resources import DatabaseResource, EmbeddingResource
from sophia.catalog import Catalog
from sophia.catalog.models import Index
from sophia.indexing.gates import NAMES, Gate, run_gates
from sophia.indexing.promotion import Switch, promote
from sophia.indexing.versions import IndexVersion, candidate_version, serving_version
from sophia.settings import Profile, load_settings
from sophia_assets.gpu import gpu_step
from sophia_assets.indexes import index_code_version
from sophia_assets.keys import STORE_ICONS, asset_key

GROUP = "serving"
WHAT = {
    "complete": "Every shard was compared; every document is in the ledger as it is now, or parked.",
    "proven": "The store equals the documents, hash by hash; sampled vectors agree.",
    "recall": "The nearest-neighbour index finds at least 95% of what an exact search finds.",
    "sample_queries": "At least 95% of sampled documents are found by their own text.",
}


def build_candidate(catalog: Catalog, index: Index, profile: Profile) -> dg.AssetsDefinition:
    """The version that the catalog asks for, once its shards were filled."""

    @dg.asset(
        key=asset_key("candidates", index.name),
        deps=[asset_key("indexes", index.name)],
        description=f"The version of {index.name} that the catalog asks for; its checks are the gates to serving.",
        group_name=GROUP,
        kinds=_icons(index, profile),
        owners=list(index.owners),
        code_version=index_code_version(catalog, index),
    )
    def candidate(context: dg.AssetExecutionContext, database: DatabaseResource) -> dg.MaterializeResult[Any]:
        if not _is_local(catalog, index, profile):
            return _planned(profile)
        from sophia.indexing.status import index_status

        with database.connect() as connection:
            version = _candidate(connection, catalog, index, profile)
            status = index_status(connection, [version.id])[0]
        return dg.MaterializeResult(
            data_version=dg.DataVersion(version.fingerprint),
            metadata={
                "state": version.state,
                "version": version.number,
                "fingerprint": version.fingerprint,
                "model": status.model,
                "dimension": version.dimension,
                "rows": status.documents,
                "indexed": status.indexed,
                "parked": status.parked,
                "shards_behind": status.shards_behind,
            },
        )

    return candidate


def build_gates(catalog: Catalog, index: Index, profile: Profile) -> dg.AssetChecksDefinition:
    """The gates of a candidate, as checks that block the switch."""
    key = asset_key("candidates", index.name)

    @dg.multi_asset_check(
        name=f"gates_{index.name}",
        can_subset=True,
        specs=[dg.AssetCheckSpec(name, asset=key, blocking=True, description=WHAT[name]) for name in NAMES],
        pool=gpu_step(catalog)["pool"],
        op_tags=gpu_step(catalog)["op_tags"],
    )
    def gates(
        context: dg.AssetCheckExecutionContext, database: DatabaseResource, embedding: EmbeddingResource
    ) -> Iterator[dg.AssetCheckResult]:
        selected = {check.name for check in context.selected_asset_check_keys}
        with database.connect() as connection:
            version = _candidate(connection, catalog, index, profile)
            for gate in gates_of(
                connection, version, embedding, seed=context.run.run_id, names=tuple(n for n in NAMES if n in selected)
            ):
                yield dg.AssetCheckResult(
                    asset_key=key,
                    check_name=gate.name,
                    passed=gate.passed,
                    description=gate.sentence,
                    metadata=gate.figures | {"version": version.number},
                )

    return gates


def build_serving(catalog: Catalog, index: Index, profile: Profile) -> dg.AssetsDefinition:
    """The version that searches read."""

    @dg.asset(
        key=asset_key("serving", index.name),
        deps=[asset_key("candidates", index.name)],
        description=f"The version of {index.name} that searches read; materialising lets the candidate serve.",
        group_name=GROUP,
        kinds=_icons(index, profile),
        owners=list(index.owners),
        code_version=index_code_version(catalog, index),
    )
    def serving(context: dg.AssetExecutionContext, database: DatabaseResource) -> dg.MaterializeResult[Any]:
        if not _is_local(catalog, index, profile):
            return _planned(profile)
        from sophia.stores import Stores

        with database.connect() as connection:
            version = _candidate(connection, catalog, index, profile)
            with closing(Stores(load_settings())) as stores:
                switch = promote(connection, version, stores.of(version))
        context.log.info(said(switch))
        return dg.MaterializeResult(
            data_version=dg.DataVersion(version.fingerprint), metadata=switch_metadata(version, switch)
        )

    return serving


def gates_of(
    connection: Any,
    version: IndexVersion,
    embedding: EmbeddingResource,
    *,
    seed: str,
    names: tuple[Any, ...] = NAMES,
) -> Iterator[Gate]:
    """The gates of a version, compared with the one that serves."""
    from sophia.stores import Stores

    serving = serving_version(connection, version.index_name)
    with closing(Stores(load_settings())) as stores:
        yield from run_gates(
            connection,
            version,
            stores.of(version),
            embedding.of,
            serving=serving,
            seed=seed,
            names=names,
            stores=stores,
        )


def switch_metadata(version: IndexVersion, switch: Switch) -> dict[str, Any]:
    """What a materialisation of `serving/<name>` says."""
    return {
        "state": "promoted" if switch.switched else "unchanged",
        "version": switch.now,
        "promoted_from": switch.before if switch.before is not None else 0,
        "promoted_to": switch.now,
        "fingerprint": version.fingerprint,
        "summary": said(switch),
    }


def said(switch: Switch) -> str:
    """A switch in one sentence."""
    if switch.switched:
        return f"v{switch.now} serves, v{switch.before} goes on being fed; `sophia rollback {switch.index}` goes back"
    return f"nothing to promote: v{switch.now} serves already"


def _candidate(connection: Any, catalog: Catalog, index: Index, profile: Profile) -> IndexVersion:
    version = candidate_version(connection, catalog, index, profile)
    if version is None:
        raise dg.Failure(
            description=f"the version of {index.name} that the catalog asks for was not begun yet; materialise "
            f"indexes/{index.name} first, all shards",
            allow_retries=False,
        )
    return version


def _is_local(catalog: Catalog, index: Index, profile: Profile) -> bool:
    source = catalog.collection(index.collection).source.for_profile(profile)
    return index.store.for_profile(profile) is not None and source is not None


def _icons(index: Index, profile: Profile) -> set[str]:
    return STORE_ICONS[index.store.for_profile(profile) or index.store.for_profile("cluster") or "pgvector"]


def _planned(profile: Profile) -> dg.MaterializeResult[Any]:
    return dg.MaterializeResult(
        data_version=dg.DataVersion("planned"),
        metadata={"state": "planned", "reason": f"no store or no source in profile {profile!r}"},
    )

"""The Weaviate class of an index version: what it must look like, and how a class that is there differs from that.

A version is the class `<ClassName>_v<n>`; the alias `<ClassName>` is the public name and leads to the version that
serves. A class has the chunk's text as `content`, the metadata columns as typed properties for its other readers, and
Sophia's own properties, which all begin with `sophia_`. Pure: no I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sophia.catalog.models import Hnsw, WeaviateOptions
from sophia.errors import ConfigurationError
from sophia.indexing.versions import IndexVersion

if TYPE_CHECKING:
    from weaviate.collections.classes.config import CollectionConfig

VECTOR = "default"
# Filters that pass fewer objects are answered by comparing all of these, which an exact search makes use of.
FLAT_CUTOFF = 40_000
_KEPT = {"indexFilterable": False, "indexSearchable": False}
_WORD = {"dataType": ["text"], "tokenization": "word", "indexFilterable": False, "indexSearchable": True}
_LOOKED_UP = {"tokenization": "field", "indexFilterable": True, "indexSearchable": False}
_RANGE = {"dataType": ["int"], "indexFilterable": False, "indexRangeFilters": True}
_OWN: dict[str, dict[str, Any]] = {
    "content": _WORD,
    "sophia_key": {"dataType": ["text"], **_LOOKED_UP},
    "sophia_slot": _RANGE,
    "sophia_chunk": _RANGE,
    "sophia_start": {"dataType": ["int"], "indexFilterable": False},
    "sophia_end": {"dataType": ["int"], "indexFilterable": False},
    "sophia_hash": {"dataType": ["text"], **_LOOKED_UP},
    "sophia_fields": {"dataType": ["text[]"], **_LOOKED_UP},
    "sophia_metadata": {"dataType": ["text"], **_KEPT},
    "sophia_clock": {"dataType": ["text"], **_KEPT},
    "sophia_lsn": {"dataType": ["text"], **_KEPT},
    "sophia_txid": {"dataType": ["text"], **_KEPT},
    "sophia_committed_at": {"dataType": ["date"], "indexFilterable": False},
    "sophia_run": {"dataType": ["text"], **_KEPT},
    "sophia_indexed_at": {"dataType": ["date"], "indexFilterable": False},
}


def alias_name(version: IndexVersion) -> str:
    """The public name.

    Raises:
        ConfigurationError: the index has none.
    """
    name = version.index.class_name
    if name is None:
        raise ConfigurationError(f"index {version.index_name!r} needs a class_name, the public name of its class")
    return name


def class_name(version: IndexVersion) -> str:
    """The version's own class."""
    return f"{alias_name(version)}_v{version.number}"


def definition(version: IndexVersion) -> dict[str, Any]:
    """The class as Weaviate's REST API takes it.

    Vectors are ours (no vectoriser), compared by cosine. Quantisation is what the catalog says, whatever the server's
    default is.
    """
    index = version.index
    options = index.weaviate
    graph: dict[str, Any] = {
        "distance": "cosine",
        "efConstruction": options.hnsw.ef_construction,
        "maxConnections": options.hnsw.max_connections,
        "ef": -1,
        "dynamicEfMin": options.hnsw.ef_min,
        "dynamicEfMax": options.hnsw.ef_max,
        "dynamicEfFactor": options.hnsw.ef_factor,
        "flatSearchCutoff": FLAT_CUTOFF,
    }
    if options.hnsw.quantizer == "rq":
        graph["rq"] = {"enabled": True, "bits": 8}
    else:
        graph["skipDefaultQuantization"] = True
    wanted: dict[str, Any] = {
        "class": class_name(version),
        "description": f"{version.label}: {index.description} Written by Sophia; do not edit.",
        "properties": _properties(index.metadata, options),
        "vectorConfig": {
            VECTOR: {"vectorizer": {"none": {}}, "vectorIndexType": "hnsw", "vectorIndexConfig": graph},
        },
    }
    if options.tenancy:
        wanted["multiTenancyConfig"] = {"enabled": True, "autoTenantCreation": True, "autoTenantActivation": True}
    if options.generative is not None:
        wanted["moduleConfig"] = {options.generative.module: dict(options.generative.settings)}
    return wanted


def _properties(metadata: tuple[str, ...], options: WeaviateOptions) -> list[dict[str, Any]]:
    columns: dict[str, dict[str, Any]] = {}
    for column in metadata:
        kind = options.property_of(column).type
        # A filter of another reader finds the whole value, as Sophia's own filters do.
        rules = _LOOKED_UP if kind.startswith("text") else {"indexFilterable": True}
        columns[options.property_name(column)] = {"dataType": [kind], **rules}
    return [{"name": name, **rules} for name, rules in (columns | _OWN).items()]


def differences(version: IndexVersion, found: CollectionConfig) -> list[str]:
    """How a class differs from `definition` in what cannot be changed in place, for people; empty if it does not.

    Properties that someone added are theirs.
    """
    wanted = definition(version)
    there = {each.name: each for each in found.properties}
    faults = []
    for want in wanted["properties"]:
        name, kind = want["name"], want["dataType"][0]
        if name not in there:
            faults.append(f"property {name} ({kind}) is missing")
            continue
        have = there[name]
        for what, wish, real in (
            ("type", kind, have.data_type.value),
            ("tokenization", want.get("tokenization", "word"), have.tokenization and have.tokenization.value),
            ("filterable index", want.get("indexFilterable", True), have.index_filterable),
            ("range index", want.get("indexRangeFilters", False), have.index_range_filters),
            ("searchable index", want.get("indexSearchable", kind.startswith("text")), have.index_searchable),
        ):
            if what == "tokenization" and (not kind.startswith("text") or want.get("tokenization") is None):
                continue
            if wish != real:
                faults.append(f"property {name}: {what} is {real}, not {wish}")
    tenancy = bool(found.multi_tenancy_config and found.multi_tenancy_config.enabled)
    if tenancy != version.index.weaviate.tenancy:
        faults.append(f"multi-tenancy is {'on' if tenancy else 'off'}")
    return faults + _graph_differences(version.index.weaviate.hnsw, found)


def _graph_differences(wanted: Hnsw, found: CollectionConfig) -> list[str]:
    vector = (found.vector_config or {}).get(VECTOR)
    if vector is None:
        return [f"it has no vector named {VECTOR!r}"]
    graph: Any = vector.vector_index_config
    if graph.vector_index_type() != "hnsw":
        return [f"its vector index is {graph.vector_index_type()}, not hnsw"]
    quantizer = type(graph.quantizer).__name__ if graph.quantizer is not None else "none"
    pairs = (
        ("distance", "cosine", graph.distance_metric.value),
        ("ef_construction", wanted.ef_construction, graph.ef_construction),
        ("max_connections", wanted.max_connections, graph.max_connections),
        ("quantised", wanted.quantizer != "none", quantizer != "none"),
    )
    return [f"{what} is {real}, not {wish}" for what, wish, real in pairs if wish != real]

"""The classes of the platform's indexes, and what the catalog refuses to say about a class."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from sophia.catalog import Catalog
from sophia.catalog.models import Index
from sophia.indexing.versions import IndexVersion, fingerprint
from sophia.stores.weaviate_schema import class_name, definition

INDEX = {
    "name": "memory",
    "description": "What is remembered.",
    "collection": "conversations",
    "model": "minilm",
    "template": "{content}",
    "chunk_tokens": 100,
    "metadata": ["user_id", "created_at"],
    "store": "weaviate",
    "class_name": "SophiaMemory",
}


def version(catalog: Catalog, index: Index, number: int = 3) -> IndexVersion:
    model = catalog.model(index.model)
    spec = {"index": index.model_dump(mode="json"), "model": model.model_dump(mode="json")}
    return IndexVersion(
        1, index.name, number, "0" * 16, 1, index.collection, "serving", "weaviate", "x_v3", model.dimension, spec, 0
    )


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        (
            "SophiaMemory",
            {
                "content": "text",
                "timestamp": "date",
                "source": "text",
                "importance": "number",
                "tags": "text[]",
                "user_id": "text",
            },
        ),
        (
            "BusinessIntelligence",
            {
                "data_type": "text",
                "content": "text",
                "source_system": "text",
                "confidence": "number",
                "created_at": "date",
            },
        ),
        ("SophiaConversation", {"content": "text", "user_id": "text", "channel": "text", "created_at": "date"}),
    ],
)
def test_the_named_classes_have_the_platforms_properties(catalog: Catalog, name: str, wanted: dict[str, str]) -> None:
    (index,) = (index for index in catalog.indexes if index.class_name == name)
    made = definition(version(catalog, index))
    assert made["class"] == f"{name}_v3"
    types = {each["name"]: each["dataType"][0] for each in made["properties"]}
    assert wanted.items() <= types.items()
    vector = made["vectorConfig"]["default"]
    assert vector["vectorizer"] == {"none": {}}
    assert vector["vectorIndexConfig"]["distance"] == "cosine"
    searchable = [
        each["name"] for each in made["properties"] if each.get("indexSearchable", "text" in each["dataType"])
    ]
    assert searchable == ["content"]


def test_options_of_the_catalog_are_in_the_class(catalog: Catalog) -> None:
    index = Index.model_validate(
        INDEX
        | {
            "required_filter": "user_id",
            "weaviate": {
                "hnsw": {"ef_construction": 200, "max_connections": 64, "ef_min": 50, "quantizer": "rq"},
                "tenancy": True,
                "generative": {"module": "generative-openai", "settings": {"model": "gpt-4"}},
            },
        }
    )
    made = definition(version(catalog, index))
    graph = made["vectorConfig"]["default"]["vectorIndexConfig"]
    assert (graph["efConstruction"], graph["maxConnections"], graph["dynamicEfMin"]) == (200, 64, 50)
    assert graph["rq"] == {"enabled": True, "bits": 8}
    assert "skipDefaultQuantization" not in graph
    assert made["multiTenancyConfig"] == {"enabled": True, "autoTenantCreation": True, "autoTenantActivation": True}
    assert made["moduleConfig"] == {"generative-openai": {"model": "gpt-4"}}
    plain = definition(version(catalog, Index.model_validate(INDEX)))
    # A server may quantise by default.
    assert plain["vectorConfig"]["default"]["vectorIndexConfig"]["skipDefaultQuantization"] is True
    assert "multiTenancyConfig" not in plain
    assert class_name(version(catalog, index, 12)) == "SophiaMemory_v12"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_name": "sophia-memory"}, "no name of a Weaviate class"),
        ({"class_name": "memory"}, "no name of a Weaviate class"),
        ({"weaviate": {"properties": {"other": {"type": "int"}}}}, 'names "other", which is not in metadata'),
        ({"weaviate": {"properties": {"user_id": {"type": "geo"}}}}, "Input should be 'text'"),
        ({"weaviate": {"tenancy": True}}, "tenancy needs required_filter"),
        ({"metadata": ["id"]}, 'property name "id" is taken'),
        ({"metadata": ["content"]}, 'property name "content" is taken'),
        ({"metadata": ["sophia_key"]}, 'property name "sophia_key" is taken'),
        ({"metadata": ["COUNT", "count"]}, 'property name "count" is taken'),
        ({"weaviate": {"hnsw": {"ef_min": 900}}}, "ef_min must not be greater"),
        ({"weaviate": {"generative": {"module": "openai"}}}, "module"),
    ],
)
def test_what_cannot_be_a_class_is_refused(changes: dict[str, Any], message: str) -> None:
    Index.model_validate(INDEX)
    with pytest.raises(ValidationError, match=message):
        Index.model_validate(INDEX | changes)


def test_a_column_may_be_renamed_out_of_the_way(catalog: Catalog) -> None:
    index = Index.model_validate(
        INDEX
        | {
            "metadata": ["id", "DATA_TYPE", "Kind"],
            "weaviate": {"properties": {"id": {"type": "int", "name": "number"}}},
        }
    )
    names = [each["name"] for each in definition(version(catalog, index))["properties"]]
    assert names[:3] == ["number", "data_type", "kind"]


@pytest.mark.parametrize(
    ("options", "new"),
    [
        ({"hnsw": {"ef_construction": 64}}, True),
        ({"properties": {"created_at": {"type": "date"}}}, True),
        ({"tenancy": True}, True),
        ({"generative": {"module": "generative-openai"}}, False),
    ],
)
def test_what_a_class_cannot_change_is_a_new_version(catalog: Catalog, options: dict[str, Any], new: bool) -> None:
    plain = Index.model_validate(INDEX | {"required_filter": "user_id"})
    changed = Index.model_validate(INDEX | {"required_filter": "user_id", "weaviate": options})
    model = catalog.model("minilm")
    assert (fingerprint(plain, model, "weaviate") != fingerprint(changed, model, "weaviate")) is new
    assert fingerprint(plain, model, "pgvector") == fingerprint(changed, model, "pgvector")


def test_another_column_of_tenants_is_a_new_version(catalog: Catalog) -> None:
    model = catalog.model("minilm")
    for tenancy in (True, False):
        one, other = (
            Index.model_validate(INDEX | {"required_filter": column, "weaviate": {"tenancy": tenancy}})
            for column in ("user_id", "created_at")
        )
        assert (fingerprint(one, model, "weaviate") != fingerprint(other, model, "weaviate")) is tenancy

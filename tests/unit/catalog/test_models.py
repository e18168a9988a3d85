"""The models themselves: frozen, closed, and what they derive."""

from __future__ import annotations

from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

import sophia.catalog
import sophia.catalog.models
from sophia.catalog import Catalog, Index, PerProfile, Secret, UnknownEntryError
from sophia.catalog.kinds import FILES
from sophia.catalog.models import Frozen, Scaling, Service

INDEX = {
    "name": "memory",
    "description": "Remembers.",
    "collection": "conversations",
    "model": "minilm",
    "template": "{content}",
    "chunk_tokens": 200,
    "store": "pgvector",
}
SERVICE = {
    "name": "api",
    "description": "API.",
    "category": "application",
    "namespace": "sophia",
    "image": "main",
    "ports": [{"name": "http", "number": 8000}],
}


def _all_models(base: type[BaseModel] = Frozen) -> set[type[BaseModel]]:
    return {base}.union(*(_all_models(model) for model in base.__subclasses__()))


@pytest.mark.parametrize("model", sorted(_all_models(), key=str))
def test_every_model_is_frozen_closed_and_described(model: type[BaseModel]) -> None:
    assert model.model_config.get("frozen") is True
    assert model.model_config.get("extra") == "forbid"
    assert model.__doc__
    assert [name for name, field in model.model_fields.items() if not field.description] == []


@pytest.mark.parametrize("module", [sophia.catalog, sophia.catalog.models])
def test_exports_are_sorted_and_there(module: ModuleType) -> None:
    exported: list[str] = module.__all__
    capitals = [name for name in exported if name.isupper()]
    assert exported == capitals + sorted(name for name in exported if not name.isupper())
    assert all(hasattr(module, name) for name in exported)


def test_every_section_is_a_field_of_the_catalog() -> None:
    assert {section.key for sections in FILES.values() for section in sections} == set(Catalog.model_fields)


def test_one_value_stands_for_both_profiles() -> None:
    both = PerProfile.model_validate("app")
    assert (both.for_profile("local"), both.for_profile("cluster")) == ("app", "app")
    one = PerProfile.model_validate({"local": None, "cluster": "app"})
    assert (one.for_profile("local"), one.for_profile("cluster")) == (None, "app")


@given(st.integers(-5, 600))
def test_shards_are_powers_of_two(shards: int) -> None:
    if shards in {1, 2, 4, 8, 16, 32, 64, 128, 256}:
        assert Index.model_validate({**INDEX, "shards": shards}).shards == shards
    else:
        with pytest.raises(ValidationError, match="power of two"):
            Index.model_validate({**INDEX, "shards": shards})


def test_names_leave_room_for_those_made_of_them() -> None:
    assert Index.model_validate({**INDEX, "name": "n" * 48})
    with pytest.raises(ValidationError, match="has 49 characters; at most 48"):
        Index.model_validate({**INDEX, "name": "n" * 49})
    for name in ("Memory", "memory-2", 'memory"'):
        with pytest.raises(ValidationError, match="pattern"):
            Index.model_validate({**INDEX, "name": name})


@given(st.text(alphabet="{}ab!:.0[] ", max_size=12))
def test_a_template_that_validates_formats_from_its_columns_alone(template: str) -> None:
    try:
        index = Index.model_validate({**INDEX, "template": template})
    except ValidationError:
        return
    assert index.template_columns
    index.template.format(**dict.fromkeys(index.template_columns, "text"))


@pytest.mark.parametrize("overlap", [200, 300])
def test_chunks_overlap_less_than_their_length(overlap: int) -> None:
    with pytest.raises(ValidationError, match="chunk_overlap must be smaller"):
        Index.model_validate({**INDEX, "chunk_overlap": overlap})


def test_a_store_outside_needs_its_own_name() -> None:
    with pytest.raises(ValidationError, match="class_name is required for weaviate"):
        Index.model_validate({**INDEX, "store": {"local": "pgvector", "cluster": "weaviate"}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group": "data"}, "group goes with category mcp"),
        ({"category": "mcp"}, "group goes with category mcp"),
        ({"metrics": {"port": "metrics"}}, 'port "metrics" is not one of its ports'),
        ({"probes": {"liveness": {"path": "/", "port": "web"}}}, 'port "web" is not one of its ports'),
        ({"min_available": 1}, "min_available must be below"),
        ({"scaling": {"min": 2, "max": 1}}, "min is above max"),
        ({"scaling": {"min": 1, "max": 2}}, "metric and target go with"),
        (
            {"scaling": {"min": 2, "max": 2}, "volumes": [{"name": "d", "mount_path": "/d", "size": "1Gi"}]},
            "needs a statefulset",
        ),
        ({"resources": {"memory_limit": "2 GB"}}, "memory_limit"),
        ({"security": {"run_as_user": 0}}, "run_as_user"),
    ],
)
def test_a_service_that_could_not_run_is_refused(change: dict[str, object], message: str) -> None:
    Service.model_validate(SERVICE)
    with pytest.raises(ValidationError, match=message):
        Service.model_validate({**SERVICE, **change})


def test_scaling_says_whether_it_is_automatic() -> None:
    assert not Scaling(min=2, max=2).autoscaled
    assert Scaling(min=0, max=2, metric="cpu", target=70).autoscaled


def test_rotation_classes_have_days() -> None:
    secret = Secret(name="token", description="T.", env="SOPHIA_TOKEN", rotation="credential-30")
    assert secret.rotation_days == 30


def test_looking_up_what_is_not_there_suggests_a_name() -> None:
    catalog = Catalog(indexes=(Index.model_validate(INDEX),))
    assert catalog.index("memory").name == "memory"
    with pytest.raises(UnknownEntryError, match=r'"memry" is not in the catalog; did you mean "memory"\?'):
        catalog.index("memry")

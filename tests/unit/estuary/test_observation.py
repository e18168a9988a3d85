"""Whose names are observed: those of the environment whose prefix it is."""

from __future__ import annotations

import pytest

from sophia.catalog import Catalog
from sophia.estuary.control.observation import observed_environment, observed_prefix, other_prefixes
from sophia.estuary.naming import fed_by_estuary
from sophia.settings import EstuarySettings


def test_production_is_observed_unless_a_prefix_is_set(catalog: Catalog) -> None:
    assert observed_prefix(catalog, EstuarySettings()) == "sophia/"
    assert observed_prefix(catalog, EstuarySettings(prefix="sophia/staging/")) == "sophia/staging/"


@pytest.mark.parametrize(
    ("prefix", "environment", "others"),
    [
        ("sophia/", "production", ("sophia/development/", "sophia/staging/")),
        ("sophia/staging/", "staging", ()),
        ("somewhere/else/", "production", ()),
    ],
)
def test_a_prefix_is_an_environments_without_the_trees_of_others(
    catalog: Catalog, prefix: str, environment: str, others: tuple[str, ...]
) -> None:
    assert observed_environment(catalog, prefix) == environment
    assert other_prefixes(catalog, prefix) == others


def test_a_collection_is_fed_by_estuary_where_its_source_says_so(catalog: Catalog) -> None:
    assert fed_by_estuary(catalog, "local") == []
    assert {c.name for c in fed_by_estuary(catalog, "cluster")} == {"conversations", "realtime_data", "vector_updates"}
